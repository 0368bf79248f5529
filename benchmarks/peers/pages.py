"""The page of results and its plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.peers.field import FIELD
from benchmarks.peers.measure import CONNECTS, SAME_RATE
from benchmarks.plots import OWN_COLOUR, name_axes, save

_OWN = "service"
_ORDER = {one.name: number for number, one in enumerate(FIELD)}
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("connect_us", "connect, us", "{:.0f}".format),
    ("memory_kb", "memory, KB", "{:.1f}".format),
    ("delivery_1_us", "delivery alone, us", "{:.1f}".format),
    ("delivery_10_us", "10 a flush", "{:.2f}".format),
    ("delivery_100_us", "100 a flush", "{:.2f}".format),
    ("capacity", "deliveries a second", "{:,.0f}".format),
)
_RATES = {"25": "25 %", "50": "50 %", "75": "75 %", "same": f"{SAME_RATE:,}/s"}
_LATENCIES = tuple(
    (f"at_{rate}_{name}_ms", f"{title}: {name}")
    for rate, title in _RATES.items()
    for name in ("p50", "p99", "max")
)
_PLOTS = (
    ("delivery_1_us", "CPU of one delivery, one message at a time, us"),
    ("delivery_100_us", "CPU of one delivery, 100 messages a flush, us"),
    ("connect_us", "CPU of one connect, us"),
    ("memory_kb", "Memory of one connection, KB"),
    ("at_same_p99_ms", f"Latency at {SAME_RATE:,} deliveries a second, p99, ms"),
)


def write_page(result: dict[str, Any], directory: Path) -> str:
    """Write the page; returns its text."""
    text = "\n".join(_page(result)) + "\n"
    (directory / "README.md").write_text(text)
    return text


def _page(result: dict[str, Any]) -> Iterable[str]:
    yield "# This service beside others"
    yield ""
    yield from _runs(result["runs"])
    yield (
        "\nEvery server is started as its own documentation advises, and sends the same envelope of "
        "about 250 bytes to every connection. CPU and memory are those of all its processes. With one "
        "worker the load has a processor of its own; two workers share both processors with it. "
        f"*Connect* is of {CONNECTS:,} connects at least, in waves of as many connections as there "
        "are. Memory leaves mapped files out. *Deliveries a second* is the largest rate without a "
        f"loss. Latencies are those at shares of it, and at {SAME_RATE:,} deliveries a second for all "
        "that can carry them. A row that failed or took too long has no figures from there on. The "
        "median of seven rounds of a delivery alone beside the bare loop is measured by "
        "`python -m benchmarks --only deliver --rounds 7`."
    )
    for name, install in result["missing"].items():
        yield f"\n**Missing on this machine: {name}** (`{install}`)."
    groups = sorted({(row["workers"], row["clients"]) for row in result["rows"]})
    for workers, clients in groups:
        rows = _group(result, workers, clients)
        yield f"\n## {clients:,} connections, {workers} worker{'s' if workers > 1 else ''}\n"
        yield from _table(["server", *(title for _, title, _ in _COLUMNS)], rows, _cells)
        yield ""
        yield "Latency in ms at shares of the server's own capacity, and at the same rate for all:\n"
        yield from _table(["server", *(title for _, title in _LATENCIES)], rows, _latencies)
        for row in rows:
            if "failed" in row:
                yield f"\n**{row['name']} failed: {row['failed'].splitlines()[0]}**"
            for problem in row["problems"]:
                yield f"\n{row['name']}: {problem}."
    yield "\n## Versions\n"
    versions = dict.fromkeys((row["name"], row["version"]) for row in _group(result))
    yield from (f"- {name}: {version}" for name, version in versions)
    yield "\n## Plots\n"
    for name, title in _PLOTS:
        yield f"![{title}]({_plot_name(name)})\n"


def _runs(runs: list[dict[str, Any]]) -> Iterable[str]:
    for run in runs:
        rounds = f"medians of {run['rounds']} rounds" if run["rounds"] > 1 else "one round"
        mark = f"{run['number']}. " if len(runs) > 1 else ""
        yield f"{mark}Written by `{run['command']}` on {run['date']}; {rounds}; {run['machine']}."
    if len(runs) > 1:
        yield "\nThe number behind a server is that of the run which measured the row."
    if len({run["machine"] for run in runs}) > 1:
        yield "\n**The runs are of different machines: compare rows with the same number only.**"


def _group(result: dict[str, Any], *head: int) -> list[dict[str, Any]]:
    """Rows in the order of the field, those with these workers and clients or all; named as shown."""
    rows = [
        row for row in result["rows"] if not head or (row["workers"], row["clients"]) == tuple(head)
    ]
    if len(result["runs"]) > 1:
        rows = [row | {"name": f"{row['name']} [{row['run']}]"} for row in rows]
    return sorted(rows, key=lambda row: _ORDER.get(row["name"].partition(" [")[0], len(_ORDER)))


def _table(
    titles: list[str], rows: list[dict[str, Any]], cells: Callable[[dict[str, Any]], list[str]]
) -> Iterable[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for row in rows:
        yield f"| {' | '.join([row['name'], *cells(row)])} |"


def _cells(row: dict[str, Any]) -> list[str]:
    return [show(row[name]) if name in row else "–" for name, _, show in _COLUMNS]


def _latencies(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.1f}" if name in row else "–" for name, _ in _LATENCIES]


def _plot_name(figure: str) -> str:
    return f"peers-{figure.removesuffix('_us')}.svg"


def write_plots(result: dict[str, Any], directory: Path) -> None:
    """Write one bar chart for each figure, with the rows of one worker and the most connections."""
    most = max((row["clients"] for row in result["rows"] if row["workers"] == 1), default=0)
    for name, title in _PLOTS:
        rows = [row for row in _group(result, 1, most) if name in row]
        figure, axes = plt.subplots(figsize=(8, 0.4 * len(rows) + 1))
        names = [row["name"] for row in reversed(rows)]
        colours = [OWN_COLOUR if one.startswith(_OWN) else "#94a3b8" for one in names]
        bars = axes.barh(names, [row[name] for row in reversed(rows)], color=colours)
        axes.bar_label(bars, fmt="%.2f", padding=3)
        name_axes(axes, f"{title} ({most:,} connections)", 11)
        axes.margins(x=0.12)
        save(figure, directory / _plot_name(name))
