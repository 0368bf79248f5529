"""`python -m benchmarks.regression REVISION`: what this checkout costs beside another revision.

Both run in the same rounds, so that noise of the machine hits both alike. Printed are the medians
of each and the median of the ratios of the rounds; with `--limit 1.03` the exit code is 1 where a
ratio is over it, or more connections were closed, messages missed or repeated by reloads than with
the other revision. That is checked out into a directory of its own and runs with the packages that
are installed here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from app.command_line import make_parser
from benchmarks import reloads
from benchmarks.procs import HEADERS, ROOT, LoadClient, Server, service
from benchmarks.scenarios import PLAIN, SOCKETIO, say
from benchmarks.stream import INTERVAL, Publisher
from tests.support.waiting import until_now

WIRES = {"socketio": ("sio", SOCKETIO), "json": ("json", PLAIN)}
_SETTLE = 1.5
_RECEIVERS = 10
"""Connections that get what the publish measurement stores: its cost is not that of deliveries."""

_RELOADS = 2
"""Reloads of each server: the second one hands over what the first has handed over."""
_HANDED_OVER = 60.0
"""Seconds in which the workers before a reload must be gone."""
_COUNTS = frozenset({"connections closed", "messages missed", "messages repeated"})
"""Measures that are 0 when all is well: they are compared as sums, not as ratios."""

Samples = dict[str, tuple[list[float], list[float]]]
"""By measure: values of this checkout and of the other one, in the order of the rounds."""


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A worktree of a revision, removed in the end."""
    with tempfile.TemporaryDirectory(prefix="yujian-before-") as directory:
        path = Path(directory, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", path, revision], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", path], check=True)


def _connect(load: LoadClient, server: Server, wire: str, clients: int) -> None:
    name, path = WIRES[wire]
    result = load("connect", port=server.port, path=path, wire=name, clients=clients)
    if result["ready"] != clients:
        sys.exit(f"only {result} of {clients} connected:\n{server.log()}")
    time.sleep(_SETTLE)


def connects(roots: tuple[Path, Path], clients: int, rounds: int, samples: Samples) -> None:
    """CPU and memory per connection, on servers that have just started."""
    for number in range(rounds):
        say(f"connect: round {number + 1} of {rounds}")
        for wire in WIRES:
            # In turns, so that neither is always the first.
            for side in (0, 1) if number % 2 else (1, 0):
                with service(root=roots[side]) as server, LoadClient() as load:
                    time.sleep(_SETTLE)
                    cpu, memory = server.cpu(), server.own_pss()
                    _connect(load, server, wire, clients)
                    cpu, memory = server.cpu() - cpu, server.own_pss() - memory
                    samples[f"{wire}: CPU per connect, us"][side].append(cpu / clients * 1e6)
                    samples[f"{wire}: memory per connection, bytes"][side].append(memory / clients)


def deliveries(roots: tuple[Path, Path], clients: int, rounds: int, samples: Samples) -> None:
    """CPU per delivery, alone and 100 per flush, and per publish to few receivers."""
    for wire in WIRES:
        with ExitStack() as stack:
            many: list[tuple[Server, LoadClient]] = []
            few: list[tuple[Server, LoadClient]] = []
            for root in roots:
                for running, count in ((many, clients), (few, _RECEIVERS)):
                    server = stack.enter_context(service(root=root))
                    load = stack.enter_context(LoadClient())
                    _connect(load, server, wire, count)
                    load("publish", posts=2, size=1, headers=HEADERS)
                    running.append((server, load))
            for number in range(rounds):
                say(f"deliver, {wire}: round {number + 1} of {rounds}")
                for side in (0, 1) if number % 2 else (1, 0):
                    for name, running, posts, size in (
                        ("CPU per delivery, one message a flush, us", many, 12, 1),
                        ("CPU per delivery, 100 messages a flush, us", many, 3, 100),
                        ("CPU per publish, one message a call, us", few, 200, 1),
                    ):
                        server, load = running[side]
                        cpu = server.cpu()
                        result = load("publish", posts=posts, size=size, headers=HEADERS)
                        cpu = server.cpu() - cpu
                        count = posts * size if running is few else result["received"]
                        samples[f"{wire}: {name}"][side].append(cpu / max(count, 1) * 1e6)


def handoffs(roots: tuple[Path, Path], clients: int, rounds: int, samples: Samples) -> None:
    """Reloads under a steady stream: what the clients notice of them."""
    for number in range(rounds):
        say(f"handoff: round {number + 1} of {rounds}")
        for side in (0, 1) if number % 2 else (1, 0):
            with (
                service(2, pinned=False, root=roots[side]) as server,
                LoadClient(module="fleet") as fleet,
            ):
                until_now(lambda server=server: len(_workers(server)) == 2, "both workers serve")  # type: ignore[misc]
                for name, value in _handoff(server, fleet, clients).items():
                    samples[f"handoff: {name}"][side].append(value)


def _handoff(server: Server, fleet: LoadClient, clients: int) -> dict[str, float]:
    """By name, what clients notice of the reloads of one server."""
    reloads.connect(fleet, server, ("json", "sio"), clients)
    with Publisher(server) as publisher:
        time.sleep(1)
        fleet("mark")
        for _ in range(_RELOADS):
            old = _workers(server)
            server.signal(signal.SIGHUP)
            until_now(lambda old=old: _replaced(server, old), "new workers", _HANDED_OVER)  # type: ignore[misc]
            time.sleep(1)  # the pause of the last one ends with its next message
        publisher.stop()
        seen = reloads.arrived(fleet, publisher.answered[-1])
    pauses = seen["pause_s"]
    return {
        "connections closed": seen["lost"],
        "messages missed": seen["missing"] + seen["behind"],
        "messages repeated": seen["repeated"],
        "longest pause, p50 of the clients, ms": max(0.0, pauses["p50"] - INTERVAL) * 1e3,
        "longest pause, p99 of the clients, ms": max(0.0, pauses["p99"] - INTERVAL) * 1e3,
        "longest pause of all, ms": max(0.0, pauses["max"] - INTERVAL) * 1e3,
    }


def _workers(server: Server) -> set[int]:
    """Process ids of the workers that are ready; by HTTP, which is the same in all revisions."""
    status, body = server.get("/status")
    if status != 200:
        return set()
    return {row["pid"] for row in body["workers"] if row["state"] == "ready"}


def _replaced(server: Server, old: set[int]) -> bool:
    """Whether only new workers are left."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return len(_workers(server) - old) == 2 and not any(
            Path(f"/proc/{pid}").exists() for pid in old
        )
    return False


PARTS: Mapping[str, Callable[[tuple[Path, Path], int, int, Samples], None]] = {
    "connects": connects,
    "deliveries": deliveries,
    "handoffs": handoffs,
}


def is_worse(name: str, here: Sequence[float], there: Sequence[float], limit: float) -> bool:
    """Whether a measure of this checkout is over the limit."""
    if name.partition(": ")[2] in _COUNTS:
        return sum(here) > sum(there)
    found = ratio(here, there)
    return found is not None and found > limit


def ratio(here: Sequence[float], there: Sequence[float]) -> float | None:
    """The median of the ratios of the rounds; None where the other revision has only zeros."""
    ratios = [a / b for a, b in zip(here, there, strict=True) if b]
    return median(ratios) if ratios else None


def main() -> int:
    """Measure, print, and judge if a limit is given."""
    parser = make_parser("python -m benchmarks.regression", __doc__)
    parser.add_argument("revision", help="what to compare with, such as HEAD~1 or v1.0.0")
    parser.add_argument("--clients", type=int, default=3000, help="connections (default: 3000)")
    parser.add_argument("--rounds", type=int, default=7, help="of both (default: 7)")
    parser.add_argument("--limit", type=float, help="largest ratio that is accepted")
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this part only")
    parser.add_argument("--json", action="store_true", help="print every sample")
    options = parser.parse_args()
    samples: Samples = defaultdict(lambda: ([], []))
    with checkout(options.revision) as before:
        for part in options.part or PARTS:
            PARTS[part]((ROOT, before), options.clients, options.rounds, samples)
    if options.json:
        print(json.dumps(samples))
    worse = False
    print(f"{'':52} {'here':>10} {'before':>10} {'ratio':>7}")
    for name, (here, there) in samples.items():
        found = ratio(here, there)
        shown = "-" if found is None else f"{found:.3f}"
        print(f"{name:52} {median(here):10.3f} {median(there):10.3f} {shown:>7}")
        worse |= options.limit is not None and is_worse(name, here, there, options.limit)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
