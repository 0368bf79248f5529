"""How cost grows: with connections, size, types, subscription sets, workers, machines and slow clients.

`python -m benchmarks.growth` measures the service alone, one axis at a time, in some nine minutes. A
cost for each delivery that stays the same along an axis is a straight line; what rises is a defect, or
the growth that the page names.
"""

from __future__ import annotations

import json
import sys
import tempfile
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
from benchmarks.procs import ROOT, BenchmarkError, Server, cpu_seconds, service
from benchmarks.scenarios import say
from tests.support.ports import free_port
from tests.support.sentinels import ServerProcess

DOCS = ROOT / "docs" / "benchmarks"
_PATH = "/ws/realtime?types=status"
_SETTLE = 1.5
_PER_WORKER = 17_000
"""Connections of one process, below its limit of open files; of a load client as well."""

_CALL = 800_000

CLIENTS = 5000
"""Connections where they are not what grows."""
FLUSH, FLUSH_TO_MANY = 100, 10
"""Messages of a call, and of one to many connections: all that clients have not yet read has to fit into the memory
that the kernel has for TCP (`tcp_mem`), or it throws segments away and sends them again."""

_ROUNDS = 3
"""Rounds of each figure, whose median counts; one where a single call takes long."""

Row = dict[str, float]

_FIGURES = (
    ("alone_us", "delivery alone, us", "{:.2f}"),
    ("flush_us", "many a flush, us", "{:.3f}"),
    ("connect_us", "connect, us", "{:.0f}"),
    ("memory_kb", "memory, KB", "{:.2f}"),
)
"""Names of figures, how they are called, and their form."""


class _Servers:
    """All that serves in one run: one service, or one for each machine and the Valkey that they share."""

    def __init__(self, services: Sequence[Server], shared: ServerProcess | None) -> None:
        self.services = services
        self._shared = shared

    def cpu(self) -> float:
        """Seconds that all processes have used."""
        used = sum(server.cpu() for server in self.services)
        return used if self._shared is None else used + cpu_seconds(self._shared.pid)

    def own_pss(self) -> int:
        """Bytes of memory of the services, without mapped files."""
        return sum(server.own_pss() for server in self.services)


def _measure(
    servers: _Servers, loads: Sequence[Load], *, flush: int, filling: int, seconds: float
) -> Row:
    """CPU of a delivery alone and of one among many, in microseconds of all processes.

    A call has at most `_CALL` bytes: of large messages it has fewer than `flush`.
    """
    first, others = loads[0], len(loads)
    row: Row = {}
    for name, size in (("alone_us", 1), ("flush_us", min(flush, _CALL // (filling + 300)))):
        began = time.monotonic()
        warm = first.publish(2, size, filling)
        took = time.monotonic() - began
        calls = max(int(2 * seconds / _ROUNDS / took), 2)
        samples = []
        for _ in range(_ROUNDS if took < seconds else 1):
            cpu = servers.cpu()
            answer = first.publish(calls, size, filling)
            cpu = servers.cpu() - cpu
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
    machines: int = 0,
    flush: int = FLUSH,
    filling: int = 50,
    paths: Sequence[str] = (_PATH,),
    slow: int = 0,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Row:
    """One row, on services that have just started; `machines` is 0 where there is one with its own Valkey."""
    settings = {"MAX_TOTAL_CONNECTIONS": str(clients + 1000)} | dict(settings)
    with ExitStack() as stack:
        servers = _start(stack, workers, machines, settings)
        time.sleep(_SETTLE)
        loads, connected = [], 0
        each = max(1, -(-clients // _PER_WORKER) // len(servers.services))
        cpu, memory = servers.cpu(), servers.own_pss()
        for server in servers.services:
            for index in range(each):
                load = stack.enter_context(
                    Load(
                        server,
                        "raw",
                        paths[0],
                        server.port,
                        "/ws/broadcast",
                        first=index * _PER_WORKER,
                    )
                )
                part = clients // each // len(servers.services) // len(paths)
                for path in paths:
                    connected += load.connect(part, path)["new"]
                loads.append(load)
        time.sleep(_SETTLE)
        row = {
            "connect_us": (servers.cpu() - cpu) / connected * 1e6,
            "memory_kb": (servers.own_pss() - memory) / connected / 1024,
        }
        if slow:
            loads[0].stall(slow)
        return row | _measure(servers, loads, flush=flush, filling=filling, seconds=seconds)


def _start(stack: ExitStack, workers: int, machines: int, settings: Mapping[str, str]) -> _Servers:
    """Start what is to be measured; it ends with the stack."""
    shared = None
    if machines:
        port = free_port()
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yujian-growth-")))
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        shared = ServerProcess(home / "valkey", port, *words)
        stack.callback(shared.close)
        settings = {"BACKPLANE_URL": f"redis://127.0.0.1:{port}/0"} | dict(settings)
    services = [
        stack.enter_context(
            service(workers, pinned=workers * max(1, machines) == 1, root=ROOT, **settings)
        )
        for _ in range(max(1, machines))
    ]
    return _Servers(services, shared)


def _sets(count: int) -> list[str]:
    """Paths of `count` distinct subscription sets, all of which have `status`."""
    paths = []
    for number in range(count):
        types = [f"t{bit}" for bit in range(number.bit_length()) if number >> bit & 1]
        paths.append(f"/ws/realtime?types={','.join(['status', *types])}")
    return paths


_STEPS = 512
_TEN_TYPES = {"MESSAGE_TYPES": ",".join(f"t{number}" for number in range(10))}


def _types(count: int, seconds: float) -> Row:
    names = [f"t{number}" for number in range(count - 1)]
    path = f"/ws/realtime?types={','.join(['status', *names])}"
    return _run(CLIENTS, seconds, paths=[path], settings={"MESSAGE_TYPES": ",".join(names)})


AXES: dict[str, tuple[str, tuple[int, ...], Callable[[int, float], Row]]] = {
    "connections": (
        "connections, one worker",
        (1000, 5000, 10_000, 17_000),
        lambda value, seconds: _run(value, seconds, flush=FLUSH_TO_MANY),
    ),
    "many": (
        "connections, three workers",
        (10_000, 25_000, 50_000),
        lambda value, seconds: _run(value, seconds, workers=3, flush=FLUSH_TO_MANY),
    ),
    "size": (
        "bytes of a message, 2 000 connections",
        (100, 1000, 8000, 64_000),
        lambda value, seconds: _run(2000, seconds, filling=value),
    ),
    "types": ("types that each of 5 000 connections has", (1, 8, 27), _types),
    "sets": (
        "distinct subscription sets among 5 000 connections",
        (1, 64, 512),
        # As many steps of connecting for few sets as for many: a step has a price of its own.
        lambda value, seconds: _run(
            CLIENTS, seconds, paths=_sets(value) * (_STEPS // value), settings=_TEN_TYPES
        ),
    ),
    "workers": (
        "workers for 5 000 connections",
        (1, 2, 4, 8),
        lambda value, seconds: _run(CLIENTS, seconds, workers=value),
    ),
    "machines": (
        "machines with one worker each, for 5 000 connections",
        (1, 2, 4),
        lambda value, seconds: _run(CLIENTS, seconds, machines=value),
    ),
    "slow": (
        "clients of 5 000 that do not read",
        (0, 250, 1000),
        lambda value, seconds: _run(CLIENTS, seconds, slow=value),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the axes, and write the figures, the page and its plots; axes that are left out stay as they were."""
    parser = make_parser("python -m benchmarks.growth", __doc__)
    parser.add_argument("--only", action="append", choices=AXES, help="may be repeated")
    parser.add_argument("--seconds", type=float, default=1, help="for each figure, roughly")
    parser.add_argument("--out", type=Path, default=DOCS, help="directory of the results")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "growth.json"
    results: dict[str, list[Row]] = json.loads(target.read_text()) if target.exists() else {}
    for name in options.only or AXES:
        results[name] = _measure_axis(name, options.seconds)
        # After each: what was measured is kept when the run is interrupted.
        results = {axis: results[axis] for axis in AXES if axis in results}
        target.write_text(json.dumps(results, indent=1) + "\n")
        _plot(name, results[name], options.out / _plot_name(name))
        (options.out / "growth.md").write_text("\n".join(_page(results)) + "\n")
    print((options.out / "growth.md").read_text())
    return 0


def _measure_axis(name: str, seconds: float) -> list[Row]:
    title, values, run = AXES[name]
    rows: list[Row] = []
    for value in values:
        say(f"{title}: {value}")
        row = {"value": float(value), **run(value, seconds)}
        rows.append({key: round(figure, 3) for key, figure in row.items()})
        say(f"  {rows[-1]}")
    return rows


def _plot_name(axis: str) -> str:
    return f"growth-{axis}.svg"


def _page(results: dict[str, list[Row]]) -> list[str]:
    lines = [
        "# How cost grows",
        "",
        f"Written by `python -m benchmarks.growth` on {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "CPU of all processes of the service, in microseconds; memory without mapped files. The load client",
        "takes its time from the same machine. *Many a flush*: 100 messages in a call; 10 where connections grow, and as",
        "many as fit into 800 KB where messages do. *Times* is the last row beside the first. A message's bytes are",
        "copied to each socket, so that price grows with its size. Clients that do not read are sent messages until",
        "their sockets are full, and are not counted: the others pay for them. The price of a connect hangs on the",
        "pace of the load client, which is slower where it is one of several.",
    ]
    for name, rows in results.items():
        lines += ["", f"## By {AXES[name][0]}", ""]
        lines += [f"| | {' | '.join(title for _, title, _ in _FIGURES)} |"]
        lines += ["|---" * (len(_FIGURES) + 1) + "|"]
        for row in rows:
            cells = [form.format(row[key]) for key, _, form in _FIGURES]
            lines += [f"| {row['value']:,.0f} | {' | '.join(cells)} |"]
        ratios = [f"{rows[-1][key] / rows[0][key]:.2f}" for key, _, _ in _FIGURES]
        lines += [f"| *times* | {' | '.join(ratios)} |"]
        lines += ["", f"![Cost by {AXES[name][0]}]({_plot_name(name)})"]
    return lines


def _plot(name: str, rows: list[Row], target: Path) -> None:
    figure, panels = plt.subplots(1, len(_FIGURES), figsize=(12, 2.4))
    for axis, (key, title, _) in zip(panels, _FIGURES, strict=True):
        axis.plot(
            [row["value"] for row in rows], [row[key] for row in rows], marker="o", color=OWN_COLOUR
        )
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.set_xlabel(AXES[name][0], fontsize=7)
        name_axes(axis, title, 8)
    save(figure, target)


if __name__ == "__main__":
    sys.exit(main())
