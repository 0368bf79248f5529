"""How cost grows: with connections, size, types, subscription sets, workers and slow clients.

`python -m benchmarks.growth` measures the service alone, one axis at a time. A cost for each
delivery that stays the same along an axis is a straight line; what rises is a defect, or the
growth that the page names.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from matplotlib import pyplot as plt

from app.command_line import make_parser
from benchmarks.peers.load import Load
from benchmarks.plots import OWN_COLOUR, name_axes, save
from benchmarks.procs import ROOT, BenchmarkError, Server, service
from benchmarks.scenarios import say

DOCS = ROOT / "docs" / "benchmarks"
_PATH = "/ws/realtime?types=status"
_SETTLE = 1.5
_PER_WORKER = 17_000
"""Connections of one process, below its limit of open files; of a load client as well."""

_CALL = 800_000

CLIENTS = 5000
"""Connections where they are not what grows."""

Row = dict[str, float]


def _measure(server: Server, loads: Sequence[Load], *, filling: int, seconds: float) -> Row:
    """CPU of a delivery alone and of one among a hundred, in microseconds of all processes.

    A call has at most `_CALL` bytes: of large messages it has fewer than a hundred.
    """
    first, others = loads[0], len(loads)
    row: Row = {}
    for name, size in (("alone_us", 1), ("flush_us", min(100, _CALL // (filling + 300)))):
        began = time.monotonic()
        warm = first.publish(2, size, filling)
        calls = max(int(2 * seconds / 3 / (time.monotonic() - began)), 2)
        samples = []
        for _ in range(3):
            cpu = server.cpu()
            answer = first.publish(calls, size, filling)
            cpu = server.cpu() - cpu
            _check(answer)
            # The other clients get the same messages, and are not counted.
            samples.append(cpu / (answer["received"] * others) * 1e6)
        _check(warm)
        row[name] = median(samples)
    return row


def _check(answer: dict[str, Any]) -> None:
    wrong = {
        name: answer[name] for name in ("missing", "repeated", "failed", "lost") if answer[name]
    }
    if wrong or answer["received"] != answer["expected"]:
        raise BenchmarkError(f"not everything arrived as it should: {answer}")


def _run(
    clients: int,
    seconds: float,
    *,
    workers: int = 1,
    filling: int = 50,
    paths: Sequence[str] = (_PATH,),
    slow: int = 0,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Row:
    """One row, on a service that has just started."""
    limit = str(clients + 1000)
    with ExitStack() as stack:
        server = stack.enter_context(
            service(
                workers,
                pinned=workers == 1,
                root=ROOT,
                **({"MAX_TOTAL_CONNECTIONS": limit} | dict(settings)),
            )
        )
        time.sleep(_SETTLE)
        loads, connected = [], 0
        number = -(-clients // _PER_WORKER)
        cpu, memory = server.cpu(), server.own_pss()
        for index in range(number):
            path = paths[0]
            load = stack.enter_context(
                Load(server, "raw", path, server.port, "/ws/broadcast", first=index * _PER_WORKER)
            )
            for path in paths:
                connected += load.connect(clients // number // len(paths), path)["new"]
            loads.append(load)
        time.sleep(_SETTLE)
        row = {
            "connect_us": (server.cpu() - cpu) / connected * 1e6,
            "memory_kb": (server.own_pss() - memory) / connected / 1024,
        }
        if slow:
            loads[0].stall(slow)
        return row | _measure(server, loads, filling=filling, seconds=seconds)


def _sets(count: int) -> list[str]:
    """Paths of `count` distinct subscription sets, all of which have `status`."""
    paths = []
    for number in range(count):
        types = [f"t{bit}" for bit in range(number.bit_length()) if number >> bit & 1]
        paths.append(f"/ws/realtime?types={','.join(['status', *types])}")
    return paths


_TEN_TYPES = {"MESSAGE_TYPES": ",".join(f"t{number}" for number in range(10))}


def _types(count: int, seconds: float) -> Row:
    names = [f"t{number}" for number in range(count - 1)]
    path = f"/ws/realtime?types={','.join(['status', *names])}"
    return _run(CLIENTS, seconds, paths=[path], settings={"MESSAGE_TYPES": ",".join(names)})


AXES: dict[str, tuple[str, tuple[int, ...], Callable[[int, float], Row]]] = {
    "connections": (
        "connections, one worker",
        (1000, 2000, 5000, 10_000, 17_000),
        _run,
    ),
    "many": (
        "connections, three workers",
        (10_000, 25_000, 50_000),
        lambda value, seconds: _run(value, seconds, workers=3),
    ),
    "size": (
        "bytes of a message, 2 000 connections",
        (100, 1000, 4000, 16_000, 64_000),
        lambda value, seconds: _run(2000, seconds, filling=value),
    ),
    "types": ("types that each of 5 000 connections has", (1, 4, 16, 27), _types),
    "sets": (
        "distinct subscription sets among 5 000 connections",
        (1, 8, 64, 512),
        lambda value, seconds: _run(CLIENTS, seconds, paths=_sets(value), settings=_TEN_TYPES),
    ),
    "workers": (
        "workers for 5 000 connections",
        (1, 2, 4, 8),
        lambda value, seconds: _run(CLIENTS, seconds, workers=value),
    ),
    "slow": (
        "clients of 5 000 that do not read",
        (0, 50, 250, 1000),
        lambda value, seconds: _run(CLIENTS, seconds, slow=value),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the axes, and write the figures, the page and its plot."""
    parser = make_parser("python -m benchmarks.growth", __doc__)
    parser.add_argument("--only", action="append", choices=AXES, help="may be repeated")
    parser.add_argument("--seconds", type=float, default=2, help="for each figure, roughly")
    parser.add_argument("--out", type=Path, default=DOCS, help="directory of the results")
    options = parser.parse_args(argv)
    results: dict[str, list[Row]] = {}
    for name in options.only or AXES:
        title, values, run = AXES[name]
        for value in values:
            say(f"{title}: {value}")
            row = {"value": float(value), **run(value, options.seconds)}
            results.setdefault(name, []).append({k: round(v, 3) for k, v in row.items()})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    _plot(results, options.out / "growth.svg")
    text = "\n".join(_page(results)) + "\n"
    (options.out / "GROWTH").with_suffix(".md").write_text(text)
    print(text)
    return 0


def _page(results: dict[str, list[Row]]) -> list[str]:
    lines = [
        "# How cost grows",
        "",
        f"Written by `python -m benchmarks.growth` on {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "CPU of all processes of the service, in microseconds; memory without mapped files.",
        "",
        "![CPU of a delivery along each axis](growth.svg)",
    ]
    for name, rows in results.items():
        lines += ["", f"## By {AXES[name][0]}", ""]
        lines += ["| | delivery alone, us | 100 a flush, us | connect, us | memory, KB |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {row['value']:,.0f} | {row['alone_us']:.2f} | {row['flush_us']:.3f} "
            f"| {row['connect_us']:.0f} | {row['memory_kb']:.2f} |"
            for row in rows
        ]
    return lines


def _plot(results: dict[str, list[Row]], target: Path) -> None:
    figure, grid = plt.subplots(len(results), 2, figsize=(9, 2.2 * len(results)), squeeze=False)
    for axes, (name, rows) in zip(grid, results.items(), strict=True):
        for axis, key in zip(axes, ("alone_us", "flush_us"), strict=True):
            axis.plot(
                [row["value"] for row in rows],
                [row[key] for row in rows],
                marker="o",
                color=OWN_COLOUR,
            )
            axis.set_ylim(bottom=0)
            name_axes(
                axis,
                f"{'alone' if key == 'alone_us' else '100 a flush'}, us, by {AXES[name][0]}",
                8,
            )
    save(figure, target)


if __name__ == "__main__":
    sys.exit(main())
