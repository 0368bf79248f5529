"""What is measured, and under which load.

Rounds of all subjects are interleaved, so that noise of the machine hits all alike, and ratios
are made of figures of the same round.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.procs import HEADERS, BenchmarkError, LoadClient, Server, peer, service

SOCKETIO = "/ws/realtime/?EIO=4&transport=websocket"
PLAIN = "/ws/realtime?types=status"
EVENTS = "/events?types=status"
_SETTLE = 1.5  # seconds: default subscriptions flow after the first frame or one second


@dataclass(frozen=True, slots=True)
class Subject:
    """A server, and the wire that its clients speak."""

    name: str
    wire: str
    path: str
    make: Callable[[], Server]


SUBJECTS = (
    Subject("service/socketio", "sio", SOCKETIO, service),
    Subject("service/json", "json", PLAIN, service),
    Subject("stock", "sio", SOCKETIO, lambda: peer("stock")),
    Subject("bare", "bare", PLAIN, lambda: peer("bare")),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much load a run makes."""

    clients: int
    many: int
    """Clients of the scenarios with two workers."""
    connect_rounds: int
    deliver_rounds: int
    singles: int
    """Messages one at a time, per round."""
    stock_singles: int
    """The same for the stock server, which takes ten times as long."""
    batches: int
    """Requests with 100 messages, per round; none for the stock server."""
    attack_rounds: int = 1
    """Measurements of `fairness` beside each attack; each has one without before it."""
    attacks: tuple[str, ...] = ()
    """Kinds of hostile clients; empty: all."""
    crowds: tuple[int, ...] = ()
    """Their numbers; empty: those of `fairness`."""


FULL = Size(5000, 10_000, 3, 15, 12, 1, 3, attack_rounds=3)
QUICK = Size(500, 1000, 2, 3, 10, 4, 4)


@dataclass
class Figures:
    """What was measured: `samples[measure][subject]` has one value for each round."""

    samples: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is said beside the figures."""

    def add(self, measure: str, subject: str, value: float) -> None:
        """Note the value of one round."""
        self.samples[measure][subject].append(value)

    def check(self, subject: str, result: dict[str, Any]) -> None:
        """Note messages that did not arrive as they should: such figures are worth nothing."""
        wrong = {
            name: result[name]
            for name in ("missing", "repeated", "lost", "failed", "late")
            if result[name]
        }
        if result["received"] != result["expected"]:
            wrong |= {name: result[name] for name in ("received", "expected", "answer")}
        if wrong:
            self.problems.append(f"{subject}: {wrong}")


def say(text: str) -> None:
    """Tell the user how far the run is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _connect(load: LoadClient, server: Server, wire: str, path: str, clients: int) -> None:
    result = load("connect", port=server.port, path=path, wire=wire, clients=clients)
    if result["ready"] != clients:
        raise BenchmarkError(f"only {result} of {clients} connected:\n{server.log()}")
    time.sleep(_SETTLE)


def connect(size: Size, figures: Figures) -> None:
    """CPU and memory of connections, each round on a server that has just started."""
    for number in range(size.connect_rounds):
        say(f"connect: round {number + 1} of {size.connect_rounds}")
        for subject in SUBJECTS:
            with subject.make() as server, LoadClient() as load:
                time.sleep(_SETTLE)
                cpu, memory, fresh = server.cpu(), server.own_pss(), server.pss()
                _connect(load, server, subject.wire, subject.path, size.clients)
                cpu, grown = server.cpu() - cpu, server.own_pss() - memory
            figures.add("fresh_mb", subject.name, fresh / 1e6)
            figures.add("connect_ms", subject.name, cpu / size.clients * 1e3)
            figures.add("memory_kb", subject.name, grown / size.clients / 1024)


def deliver(size: Size, figures: Figures) -> None:
    """CPU and latency of deliveries; all servers are up, and take turns."""
    with ExitStack() as stack:
        running: list[tuple[Subject, Server, LoadClient]] = []
        for subject in SUBJECTS:
            say(f"deliver: {size.clients} clients to {subject.name}")
            server = stack.enter_context(subject.make())
            load = stack.enter_context(LoadClient())
            _connect(load, server, subject.wire, subject.path, size.clients)
            figures.check(subject.name, load("publish", posts=2, size=1, headers=HEADERS))
            running.append((subject, server, load))
        for number in range(size.deliver_rounds):
            say(f"deliver: round {number + 1} of {size.deliver_rounds}")
            for subject, server, load in running:
                stock = subject.name == "stock"
                posts = size.stock_singles if stock else size.singles
                _publish(figures, subject, server, load, "single", posts, 1)
            for subject, server, load in running:
                if subject.name != "stock":
                    _publish(figures, subject, server, load, "batch", size.batches, 100)


def _publish(
    figures: Figures,
    subject: Subject,
    server: Server,
    load: LoadClient,
    kind: str,
    posts: int,
    size: int,
) -> None:
    cpu = server.cpu()
    result = load("publish", posts=posts, size=size, headers=HEADERS)
    cpu = server.cpu() - cpu
    figures.check(subject.name, result)
    figures.add(f"{kind}_us", subject.name, cpu / max(result["received"], 1) * 1e6)
    figures.add(f"{kind}_bytes", subject.name, result["bytes"] / max(result["received"], 1))
    for name, value in result["latency_ms"].items():
        figures.add(f"{kind}_{name}_ms", subject.name, value)


def two_workers(size: Size, figures: Figures) -> None:
    """Memory of all processes at 10 000 connections on two workers, and a broadcast to all.

    Half of the clients speak Socket.IO. Servers are not pinned to one processor here.
    """
    say(f"two-workers: {size.many} clients")
    name = "service, 2 workers"
    with service(2, pinned=False) as server, LoadClient() as load:
        time.sleep(_SETTLE)  # the second worker may have started a little later
        figures.add("many_fresh_mb", name, server.pss() / 1e6)
        for wire, path in (("sio", SOCKETIO), ("json", PLAIN)):
            _connect(load, server, wire, path, size.many // 2)
        memory = server.pss()
        for kind, posts, messages in (("single", 5, 1), ("batch", 2, 100)):
            result = load("publish", posts=posts, size=messages, headers=HEADERS)
            figures.check(name, result)
            for part, value in result["latency_ms"].items():
                figures.add(f"many_{kind}_{part}_ms", name, value)
            unseen = result["expected"] - result["received"]
            figures.add(f"many_{kind}_unseen", name, unseen + result["repeated"])
        figures.add("many_connected_mb", name, memory / 1e6)
        figures.add("many_broadcast_mb", name, server.pss() / 1e6)


def events(size: Size, figures: Figures) -> None:
    """Server-sent events beside plain JSON: memory, CPU per connect and per delivery, in one run."""
    wires = (("json", PLAIN), ("sse", EVENTS))
    for number in range(size.connect_rounds):
        say(f"events: {size.many} clients, round {number + 1} of {size.connect_rounds}")
        with ExitStack() as stack:
            running: list[tuple[str, Server, LoadClient]] = []
            for wire, path in wires if number % 2 else wires[::-1]:
                server = stack.enter_context(service())
                load = stack.enter_context(LoadClient())
                time.sleep(_SETTLE)
                cpu, memory = server.cpu(), server.own_pss()
                _connect(load, server, wire, path, size.many)
                cpu, memory = server.cpu() - cpu, server.own_pss() - memory
                figures.add("events_memory_bytes", wire, memory / size.many)
                figures.add("events_connect_us", wire, cpu / size.many * 1e6)
                figures.check(wire, load("publish", posts=2, size=1, headers=HEADERS))
                running.append((wire, server, load))
            for turn in range(2 * size.connect_rounds):
                for kind, posts, messages in (
                    ("single", size.singles, 1),
                    ("batch", size.batches, 100),
                ):
                    for wire, server, load in running if turn % 2 else running[::-1]:
                        cpu = server.cpu()
                        result = load("publish", posts=posts, size=messages, headers=HEADERS)
                        received = max(result["received"], 1)
                        cpu = server.cpu() - cpu
                        figures.check(wire, result)
                        figures.add(f"events_{kind}_us", wire, cpu / received * 1e6)
                        figures.add(f"events_{kind}_bytes", wire, result["bytes"] / received)


SCENARIOS: dict[str, Callable[[Size, Figures], None]] = {
    "connect": connect,
    "deliver": deliver,
    "two-workers": two_workers,
    "events": events,
}
