"""When a worker shows its figures."""

from __future__ import annotations

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from app.broadcast.fanout import FanOut
from app.broadcast.subscriber import Group
from app.exports import MOST_NOTES, FlushFigures
from app.figures import (
    OWN_MESSAGES,
    QUIET_SECONDS,
    Figures,
    Silences,
    Sources,
    SubscriberCounts,
)
from app.metrics import Metrics
from app.protocol.codecs import PLAIN
from app.sessions.registry import Registry
from app.transport.connection import OPEN
from app.types import Gap, Message
from tests.support.clock import Clock
from tests.support.http_side import worker_row


def figures_of(parts: dict[str, Any], slots: Any, metrics: Metrics, *types: str) -> Figures:
    return Figures(Sources(**parts), slots, metrics, SubscriberCounts(types), types)


class Worker:
    """What its figures are made of."""

    def __init__(self) -> None:
        self.connections = 0
        self.parts: dict[str, Any] = {
            "publisher": SimpleNamespace(fault=None),
            "backplane": SimpleNamespace(reading_fault=None, available=True),
            "canary": SimpleNamespace(receives=True, is_deaf=False),
            "queue": SimpleNamespace(per_priority=lambda: [0, 0, 0], dropped=[0, 0, 0]),
            "reader": SimpleNamespace(reconnects=0, unreadable=Counter()),
            "catchup": SimpleNamespace(replayed=0),
            "hub": SimpleNamespace(
                bytes_received=0,
                bytes_sent=0,
                heartbeat_bytes=0,
                output=SimpleNamespace(total=0),
                closed={},
            ),
            "registry": SimpleNamespace(changes=0),
            "fanout": SimpleNamespace(asked=0),
            **dict.fromkeys(("rates", "manager", "history", "replica")),
        }
        slots: Any = SimpleNamespace(total_connections=lambda: self.connections)
        self.figures = figures_of(self.parts, slots, Metrics(["status"]), "status")

    def seconds(self, count: int) -> list[bool]:
        """Whether the figures are due in each of so many seconds."""
        return [self.figures.look() for _ in range(count)]


QUIET = [False] * (QUIET_SECONDS - 1) + [True]


def test_a_worker_in_which_nothing_happens_shows_them_seldom() -> None:
    worker = Worker()
    assert worker.seconds(1) == [True]
    assert worker.seconds(2 * QUIET_SECONDS) == 2 * QUIET


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("publisher", "fault", SimpleNamespace(words="it is full")),
        ("backplane", "reading_fault", SimpleNamespace(words="it is away")),
        ("backplane", "available", False),
        ("canary", "receives", False),
        ("canary", "is_deaf", True),
        ("queue", "dropped", [0, 1, 0]),
        ("reader", "reconnects", 1),
        ("reader", "unreadable", Counter(status=1)),
        ("catchup", "replayed", 1),
        ("hub", "bytes_received", 1),
        ("hub", "bytes_sent", 1),
        ("hub", "output", SimpleNamespace(total=1)),
        ("hub", "closed", {1000: 1}),
        ("registry", "changes", 1),
        ("fanout", "asked", 1),
    ],
)
def test_what_happens_is_shown_in_the_same_second(part: str, name: str, value: object) -> None:
    worker = Worker()
    worker.seconds(2)
    setattr(worker.parts[part], name, value)
    assert worker.seconds(1) == [True]
    assert worker.seconds(QUIET_SECONDS) == QUIET


def test_a_probe_in_the_queue_is_nothing_that_happens() -> None:
    worker = Worker()
    worker.seconds(2)
    quiet = worker.figures.quiet_looks
    worker.parts["queue"].per_priority = lambda: [1, 0, OWN_MESSAGES - 1]
    worker.seconds(2)
    assert worker.figures.quiet_looks == quiet + 2
    worker.parts["queue"].per_priority = lambda: [1, 0, OWN_MESSAGES]
    assert worker.seconds(1) == [True]
    assert worker.figures.quiet_looks == 0


def test_a_worker_with_silent_clients_shows_them_seldom_and_does_not_rest() -> None:
    worker = Worker()
    worker.seconds(1)
    worker.connections, hub = 1, worker.parts["hub"]
    for is_due in 2 * QUIET:
        hub.bytes_sent += 2  # a ping
        hub.bytes_received += 6  # and its answer
        hub.heartbeat_bytes += 8
        assert worker.seconds(1) == [is_due]
        assert not worker.figures.quiet_looks
    hub.bytes_received += 1
    assert worker.seconds(1) == [True]


def test_subscribers_are_counted_when_a_worker_shows_others() -> None:
    worker = Worker()
    rows = [worker_row(), dataclasses.replace(worker_row(), index=1, pid=2)]
    users = [0]
    slots: Any = SimpleNamespace(rows=lambda: rows, users_of_type=lambda _: users[0])
    subscribers = SubscriberCounts(["status"])
    figures = Figures(Sources(**worker.parts), slots, Metrics(["status"]), subscribers, ["status"])

    def counted() -> tuple[int, int]:
        figures.read()
        found = subscribers.of("status")
        return found.connections, found.users

    assert counted() == (0, 0)
    for connections in (3, 3, 2):
        stats: dict[str, object] = {
            "subscriptions": {"status": connections},
            "unnamed": {"status": 1},
        }
        rows[1] = dataclasses.replace(rows[1], stats=stats)
        assert counted() == (connections, 1)
    users[0] = 1
    assert counted() == (2, 2)
    del rows[1]
    assert counted() == (0, 1)


NOW = 1_700_000_000.0


def flush_figures(metrics: Metrics) -> FlushFigures:
    return FlushFigures(metrics, Clock(500.0), Clock(NOW))


def message(seq: int, age: float, type: str = "status") -> Message:
    return Message(type, "e", seq, "said", b"{", NOW - age)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


DURATIONS = "realtime_flush_duration_seconds_count"
LATENCIES = "realtime_delivery_latency_seconds"
DELIVERED = "realtime_messages_delivered_total"


def test_flushes_are_in_the_metrics_when_they_are_exported() -> None:
    metrics = Metrics(["status", "other"])
    flushes = flush_figures(metrics)
    items = [message(1, 8.0), message(1, 8.0, "other"), message(2, 0.0), message(2, 0.0, "other")]
    flushes.count(items, {"status": 3, "other": 0}, 500.0)
    flushes.count([message(3, 8.0)], {"status": 4}, 500.0)
    assert value(metrics, DURATIONS) == 0
    for _ in range(2):  # what is in the metrics is not added once more
        flushes.export()
        assert value(metrics, DURATIONS) == 2
        assert value(metrics, f"{LATENCIES}_count") == 10
        assert value(metrics, f"{LATENCIES}_sum") >= 7 * 7.99
        assert value(metrics, DELIVERED, type="status") == 10
        assert value(metrics, DELIVERED, type="other") == 0


def test_a_gap_counts_for_each_receiver() -> None:
    metrics = Metrics(["status"])
    flushes = flush_figures(metrics)
    flushes.count([Gap("status", "e", 1, 5, "history")], {"status": 3}, 500.0)
    flushes.export()
    assert value(metrics, "realtime_gaps_total", reason="history") == 3
    assert value(metrics, f"{LATENCIES}_count") == 0


def test_figures_of_flushes_do_not_pile_up_within_a_second() -> None:
    metrics = Metrics(["status"])
    flushes = flush_figures(metrics)
    for seq in range(MOST_NOTES):
        flushes.count([message(seq, 0.0)], {"status": 1}, 500.0)
    assert value(metrics, DURATIONS) >= MOST_NOTES / 2


def test_a_row_is_silent_since_it_was_last_seen_to_change() -> None:
    clock = Clock(500.0)
    silences = Silences(clock)
    row = dataclasses.replace(worker_row(), updated=1_700_000_000.0)
    assert silences.of(row) == 0.0, "not looked at yet"
    for _ in range(12):
        silences.look([row])
        clock.now += 1
    assert silences.of(row) == 12.0
    # What it says may be far ahead or behind: its clock was set.
    for said in (1_700_003_600.0, 1_699_996_400.0):
        row = dataclasses.replace(row, updated=said)
        assert silences.of(row) == 0.0
        silences.look([row])
        clock.now += 5
        assert silences.of(row) == 5.0
    assert silences.of(dataclasses.replace(row, generation=2)) == 0.0, "a new worker in its row"


class Counted:
    """A worker whose sessions are counted for its figures."""

    def __init__(self) -> None:
        anything: Any = None
        self.fanout = FanOut(anything, {}, 1, lambda *_: None)
        self.registry = Registry()
        self.passes = 0
        worker = Worker()
        self.shown: dict[str, Any] = {}
        self.users: dict[str, int] = {}
        slots: Any = SimpleNamespace(
            set_stats=self.shown.update,
            set_user_types=self.users.__setitem__,
            rows=list,
            users_of_type=lambda _: 0,
        )
        parts = worker.parts | {"registry": self.registry, "fanout": self.fanout}
        parts["reader"].lag = lambda: 0.0
        types = "status", "stats"
        self.figures = figures_of(parts, slots, Metrics(types), *types)
        all_of, registry = self.registry.all, vars(self.registry)

        def counting() -> Any:
            self.passes += 1
            return all_of()

        registry["all"] = counting

    def group(self, *types: str) -> Group:
        return self.fanout.group(PLAIN, frozenset(types), batch=False)

    def add(self, id: str, user: str | None = None) -> Any:
        session: Any = SimpleNamespace(
            id=id, user=user, claimed=False, group=self.group("status"), state=OPEN
        )
        self.registry.add(session)
        return session

    async def show(self) -> tuple[int, dict[str, int]]:
        """Show the figures; how often all sessions were looked at for that, and what they are subscribed to."""
        before = self.passes
        await self.figures.show()
        return self.passes - before, self.shown["subscriptions"]


async def test_sessions_in_which_nothing_changes_are_not_counted_again() -> None:
    worker = Counted()
    session = worker.add("a")
    assert await worker.show() == (1, {"status": 1, "stats": 0})
    assert await worker.show() == (0, {"status": 1, "stats": 0})
    session.group = worker.group("status", "stats")
    assert await worker.show() == (1, {"status": 1, "stats": 1})
    worker.registry.rename(session)
    worker.add("b")
    assert await worker.show() == (1, {"status": 2, "stats": 1})
    worker.registry.forget(session)
    assert await worker.show() == (1, {"status": 1, "stats": 0})
    assert await worker.show() == (0, {"status": 1, "stats": 0})


async def test_sessions_with_names_are_counted_each_time() -> None:
    """They get their place among the users at any time, as after an outage."""
    worker = Counted()
    session = worker.add("a", user="ann")
    assert (await worker.show())[0] == 1
    assert worker.users == {}
    session.claimed = True
    assert (await worker.show())[0] == 1
    assert worker.users == {"ann": 1}
