"""`python -m benchmarks.regression REVISION`: what this checkout costs beside another revision.

Both run in the same rounds, so that noise of the machine hits both alike. Printed are the medians
of each and the median of the ratios of the rounds; with `--limit 1.03` the exit code is 1 where a
ratio is over it. The other revision is checked out into a directory of its own and runs with the
packages that are installed here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.procs import HEADERS, ROOT, LoadClient, Server, service
from benchmarks.scenarios import PLAIN, SOCKETIO, say

WIRES = {"socketio": ("sio", SOCKETIO), "json": ("json", PLAIN)}
_SETTLE = 1.5
_RECEIVERS = 10
"""Connections that get what the publish measurement stores: its cost is not that of deliveries."""

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


def main() -> int:
    """Measure, print, and judge if a limit is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description=__doc__)
    parser.add_argument("revision", help="what to compare with, such as HEAD~1 or v1.0.0")
    parser.add_argument("--clients", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=float, help="largest ratio that is accepted")
    parser.add_argument("--json", action="store_true", help="print every sample")
    options = parser.parse_args()
    samples: Samples = defaultdict(lambda: ([], []))
    with checkout(options.revision) as before:
        roots = ROOT, before
        connects(roots, options.clients, options.rounds, samples)
        deliveries(roots, options.clients, options.rounds, samples)
    if options.json:
        print(json.dumps(samples))
    worst = 0.0
    print(f"{'':52} {'here':>10} {'before':>10} {'ratio':>7}")
    for name, (here, there) in samples.items():
        ratio = median(a / b for a, b in zip(here, there, strict=True) if b)
        worst = max(worst, ratio)
        print(f"{name:52} {median(here):10.3f} {median(there):10.3f} {ratio:7.3f}")
    return 1 if options.limit and worst > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
