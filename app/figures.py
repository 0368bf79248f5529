"""What one worker counts, shown once a second to the other workers and to Prometheus.

Nothing is counted on request: work over all sessions or rows is done once a second, in slices
between which the loop gets a turn, and requests read its result.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app.backplane.client import AnyBackplane
from app.backplane.cluster.publisher import ClusterPublisher
from app.backplane.faults import Fault
from app.backplane.history import History
from app.backplane.publisher import StreamPublisher
from app.backplane.reader import Reader
from app.backplane.replica import ReplicaRoute
from app.backplane.worker_names import Place, place_of_row
from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.broadcast.queue import BroadcastQueue
from app.broadcast.subscriber import Group
from app.canary import Canary
from app.clock import steady_time
from app.metrics import Metrics
from app.ports import Slots
from app.sessions.rates import Rates
from app.sessions.registry import Registry
from app.sessions.socketio.rooms import RoomManager
from app.transport.hub import Hub
from app.types import Gap, Message, Priority, Subscribers, WorkerRow

_DESCRIPTORS = "/proc/self/fd"
_PRIORITIES = [priority.name.lower() for priority in Priority]

USERS_A_SECOND = 2_000
"""Users whose subscriptions are shown within a second; after a storm of connects it takes longer."""
MOST_NOTES = 1_000
"""Figures of flushes that are kept at most before they are added to the metrics: some 100 KB."""
QUIET_SECONDS = 3
"""Between two times that figures are shown on a machine without connections, if nothing happens and the worker does
not rest."""
OWN_MESSAGES = 3
"""Messages in the queue that do not count as something that happens: a probe and those of the collector."""
SLICE = 500
"""Sessions that are looked at before the loop gets a turn: some 200 us."""
USERS_SLICE = 50
"""Users whose subscriptions are shown before the loop gets a turn: some 200 us."""


class FlushFigures:
    """Notes what the fan-out has written, and adds it to the metrics once a second.

    Args:
        metrics: where.
        clock: monotonic seconds.
        now: the time by which messages are accepted.
    """

    def __init__(
        self,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = steady_time,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._durations: list[tuple[float, int]] = []
        """Seconds of each flush that is not in the metrics yet, with the count 1."""
        self._delivered: dict[str, int] = {}
        """Deliveries by type that are not in the metrics yet, and"""
        self._latencies: list[tuple[float, int]] = []
        """the seconds that messages took, each with its deliveries."""

    def count(
        self, items: Sequence[Message | Gap], receivers: Mapping[str, int], began: float
    ) -> None:
        """Count what one flush has written.

        Args:
            items: messages and gaps.
            receivers: connections that got them, by type.
            began: monotonic seconds at which the flush began.
        """
        now = self._now()
        self._durations.append((self._clock() - began, 1))
        delivered = self._delivered
        accepted: dict[float, int] = {}  # those of one call were accepted at one time
        for item in items:
            count = receivers[item.type]
            if isinstance(item, Gap):
                self._metrics.gaps[item.reason].inc(count)
            elif count:
                delivered[item.type] = delivered.get(item.type, 0) + count
                accepted[item.accepted] = accepted.get(item.accepted, 0) + count
        for at, count in accepted.items():
            self._latencies.append((now - at, count))
        if len(self._durations) + len(self._latencies) > MOST_NOTES:
            self.export()

    def export(self) -> None:
        """Add what was noted to the metrics."""
        metrics = self._metrics
        metrics.flush_duration.observe_all(self._durations)
        metrics.delivery_latency.observe_all(self._latencies)
        for type, count in self._delivered.items():
            metrics.delivered[type].inc(count)
        self._durations.clear()
        self._latencies.clear()
        self._delivered.clear()


class SubscriberCounts:
    """Connections and users of this machine that are subscribed to each type, at most 2 s old.

    Args:
        types: that there are.
    """

    def __init__(self, types: Iterable[str]) -> None:
        self._counts = dict.fromkeys(types, Subscribers(0, 0))

    def of(self, type: str) -> Subscribers:
        """Those of one type."""
        return self._counts[type]

    def show(self, type: str, counts: Subscribers) -> None:
        """Note the newest counts of a type."""
        self._counts[type] = counts


class Silences:
    """For how long workers of this machine have said nothing of themselves.

    Their rows say when they did so by a clock that may be set. So what counts is when that was last seen
    to change.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Place, tuple[float, float]] = {}
        """What each said, and when that was first seen."""

    def look(self, rows: Iterable[WorkerRow]) -> None:
        """Note what the rows say; to be called about once a second."""
        now, before = self._clock(), self._seen
        self._seen = {}
        for row in rows:
            place = place_of_row(row)
            known = before.get(place)
            self._seen[place] = known if known and known[0] == row.updated else (row.updated, now)

    def of(self, row: WorkerRow) -> float:
        """Seconds for which a row has been the same."""
        said, since = self._seen.get(place_of_row(row), (0.0, 0.0))
        return self._clock() - since if said == row.updated else 0.0


class Figures:
    """Reads the parts of a worker."""

    def __init__(
        self,
        *,
        types: Sequence[str],
        slots: Slots,
        metrics: Metrics,
        hub: Hub,
        fanout: FanOut,
        registry: Registry,
        rates: Rates,
        manager: RoomManager,
        catchup: CatchUp,
        queue: BroadcastQueue,
        reader: Reader,
        history: History,
        backplane: AnyBackplane,
        publisher: StreamPublisher | ClusterPublisher,
        replica: ReplicaRoute | None,
        canary: Canary,
        subscribers: SubscriberCounts,
        flushes: FlushFigures,
    ) -> None:
        self._types = {type: number for number, type in enumerate(types)}
        self._slots = slots
        self._metrics = metrics
        self._hub = hub
        self._fanout = fanout
        self._registry = registry
        self._rates = rates
        self._manager = manager
        self._catchup = catchup
        self._queue = queue
        self._reader = reader
        self._history = history
        self._backplane = backplane
        self._publisher = publisher
        self._replica = replica
        self._canary = canary
        self._exported: Counter[str] = Counter()
        self._shown_users: dict[str, int] = {}
        self._subscribers = subscribers
        self._flushes = flushes
        self.silences = Silences()
        """Of the workers of this machine, as often as its figures are shown."""
        self._state: tuple[object, ...] = ()
        self._counted: tuple[int, int] | None = None
        """What said that sessions change when these were counted; None: they have names, and always count anew:"""
        self._sizes: Counter[Group] = Counter()
        """sessions of each group, and"""
        self._unnamed: Counter[Group] = Counter()
        """those of them without a user."""
        self.quiet_looks = 0
        """How often in a row `look` has found that nothing happens."""

    def fault(self) -> Fault | None:
        """What is wrong with the backplane, as this worker sees it; None: nothing."""
        return self._publisher.fault or self._backplane.reading_fault

    def writable(self) -> bool:
        """Whether this worker can publish, by its last attempts."""
        return self._publisher.fault is None and self._backplane.available

    def look(self) -> bool:
        """Whether the figures are due: at each look, or a third of them while nothing happens.

        On a machine without connections only figures of the process itself change then, such as its CPU time.
        """
        queued = self._queue.per_priority()
        state = (
            self.fault(),
            self.writable(),
            self._canary.receives,
            self._canary.is_deaf,
            queued if sum(queued) > OWN_MESSAGES else (),
            sum(self._queue.dropped),
            self._reader.reconnects,
            self._reader.unreadable.total(),
            self._catchup.replayed,
            self._hub.bytes_received,
            sum(self._hub.closed.values()),
            self._replica is not None and self._replica.is_read,
            len(self._registry),
        )
        is_quiet = not self._slots.total_connections() and state == self._state
        self._state = state
        self.quiet_looks = self.quiet_looks + 1 if is_quiet else 0
        return self.quiet_looks % QUIET_SECONDS == 0

    async def show(self) -> None:
        """Put what the other workers may ask for into the slot table, and read what they put."""
        changes = self._registry.changes, self._fanout.asked
        if changes != self._counted:
            users = await self._count_sessions()
            self._show_groups()
            await self._show_users(users)
            has_names = self._unnamed.total() < self._sizes.total()
            self._counted = None if has_names else changes
        else:
            self._show_groups()
        self._count_subscribers()

    async def _count_sessions(self) -> dict[str, int]:
        """Count the sessions of each group; returns the types of each user, as bits."""
        sizes: Counter[Group] = Counter()
        unnamed: Counter[Group] = Counter()
        users: dict[str, int] = {}
        bits: dict[Group, int] = {}
        sessions = self._registry.all()
        for start in range(0, len(sessions), SLICE):
            if start:
                await asyncio.sleep(0)
            part = sessions[start : start + SLICE]
            sizes.update([session.group for session in part])
            unnamed.update([session.group for session in part if session.user is None])
            for session in part:
                if session.user is not None and session.claimed:
                    group = session.group
                    if group not in bits:
                        bits[group] = sum(1 << self._types[type] for type in group.types)
                    users[session.user] = users.get(session.user, 0) | bits[group]
        self._sizes, self._unnamed = sizes, unnamed
        return users

    def _show_groups(self) -> None:
        sizes, unnamed = self._sizes, self._unnamed
        protocols: Counter[str] = Counter()
        subscriptions = dict.fromkeys(self._types, 0)
        unnamed_by_type = dict.fromkeys(self._types, 0)
        for group, count in sizes.items():
            protocols[group.codec.protocol] += count
            for type in group.types:
                subscriptions[type] += count
                unnamed_by_type[type] += unnamed[group]
        dropped = self._queue.dropped
        fault = self.fault()
        self._slots.set_stats(
            {
                "plain": protocols["plain"],
                "socketio": protocols["socketio"],
                "sse": protocols["sse"],
                "subscriptions": subscriptions,
                "subscribed": sum(subscriptions.values()),
                "unnamed": unnamed_by_type,
                "queued": dict(zip(_PRIORITIES, self._queue.per_priority(), strict=True)),
                "anonymous": unnamed.total(),
                "dropped": dict(zip(_PRIORITIES, dropped, strict=True)),
                "lag": round(self._reader.lag(), 3),
                "slow": len(self._fanout.slow),
                "hears": self._canary.receives,
                "deaf": self._canary.is_deaf,
            }
            | ({} if fault is None else {"fault": fault.words})
            | ({} if self.writable() else {"unwritable": True})
            | ({"replica": True} if self._replica is not None and self._replica.is_read else {})
        )
        for type, count in subscriptions.items():
            self._metrics.subscriptions[type].set(count)

    async def _show_users(self, types: Mapping[str, int]) -> None:
        """Say of each named user, if it changed, what its connections are subscribed to."""
        shown = {user: bits for user, bits in self._shown_users.items() if user in types}
        changed = [user for user, bits in types.items() if shown.get(user, 0) != bits]
        for number, user in enumerate(changed[:USERS_A_SECOND], 1):
            self._slots.set_user_types(user, types[user])
            shown[user] = types[user]
            if number % USERS_SLICE == 0:
                await asyncio.sleep(0)
        self._shown_users = shown

    def _count_subscribers(self) -> None:
        rows = self._slots.rows()
        self.silences.look(rows)
        for type, number in self._types.items():
            connections = sum(_figure(row.stats, "subscriptions", type) for row in rows)
            unnamed = sum(_figure(row.stats, "unnamed", type) for row in rows)
            users = self._slots.users_of_type(number) + unnamed
            self._subscribers.show(type, Subscribers(connections, users))

    def replica(self) -> dict[str, object] | None:
        """What `GET /status` says of the replica of this machine; None: it has none."""
        if self._replica is None:
            return None
        note = self._replica.note
        rows = [row for row in self._slots.rows() if row.state != "starting"]
        return {
            "state": "the leader has not said anything yet" if note is None else note.words,
            "readers": sum(row.stats.get("replica") is True for row in rows),
            "bytesBehind": None if note is None else note.bytes_behind,
            "secondsBehind": None if note is None else note.seconds_behind,
        }

    def export(self) -> None:
        """Bring the metrics up to date that are not counted as things happen."""
        metrics, hub = self._metrics, self._hub
        self._flushes.export()
        metrics.slow_consumers.set(len(self._fanout.slow))
        metrics.incoming_bytes.set(hub.input.total + hub.input.bodies)
        metrics.backplane_up.set(self._backplane.available)
        metrics.backplane_writable.set(self.writable())
        for cause, total in self._backplane.errors.items():
            self._count_up(f"backplane {cause}", total, metrics.backplane_errors[cause].inc)
        metrics.backplane_lag.set(self._reader.lag())
        if isinstance(self._publisher, ClusterPublisher):
            failing = self._publisher.faults().keys() | self._backplane.reading_faults.keys()
            for type in self._types:
                metrics.backplane_type_failing.labels(type).set(type in failing)
        if self._replica is not None:
            self._export_replica(self._replica)
        metrics.deaf_workers.set(self._canary.is_deaf)
        metrics.history_cache_bytes.set(self._history.cached_bytes)
        metrics.outgoing_bytes.set(hub.outgoing())
        metrics.write_buffer_bytes.set(hub.unread.total())
        metrics.sessions.set(len(self._registry))
        metrics.groups.set(len(self._fanout.groups()))
        metrics.rooms.set(self._manager.room_count)
        metrics.awaited_acks.set(len(self._manager.callbacks))
        metrics.tasks.set(len(asyncio.all_tasks()))
        metrics.open_descriptors.set(_open_descriptors())
        metrics.sample_process()
        self._count_up("sent", hub.bytes_sent, metrics.sent_bytes.inc)
        self._count_up("received", hub.bytes_received, metrics.received_bytes.inc)
        self._count_up("held back", self._rates.held_back, metrics.held_back.inc)
        self._count_up("reconnects", self._reader.reconnects, metrics.backplane_reconnects.inc)
        for stream, total in self._reader.unreadable.items():
            self._count_up(f"unreadable {stream}", total, metrics.unreadable[stream].inc)
        self._count_up("replayed", self._catchup.replayed, metrics.replayed.inc)
        for priority in Priority:
            name = priority.name.lower()
            counter = metrics.queue_dropped[name]
            self._count_up(f"dropped {name}", self._queue.dropped[priority], counter.inc)
        for protocol, total in hub.opened.items():
            self._count_up(f"opened {protocol}", total, metrics.opened[protocol].inc)
        for code, total in hub.closed.items():
            self._count_up(f"closed {code}", total, metrics.closed[code].inc)

    def _export_replica(self, replica: ReplicaRoute) -> None:
        metrics, note = self._metrics, replica.note
        metrics.replica_expected.set(1)
        metrics.replica_readers.set(replica.is_read)
        metrics.replica_bytes_behind.set(0 if note is None else note.bytes_behind)
        metrics.replica_seconds_behind.set(0 if note is None else note.seconds_behind)
        self._count_up("left the replica", replica.left, metrics.replica_left.inc)

    def _count_up(self, name: str, total: int, count: Callable[[float], None]) -> None:
        if total > self._exported[name]:
            count(total - self._exported[name])
            self._exported[name] = total


def _figure(stats: Mapping[str, Any], name: str, type: str) -> int:
    """What a worker, perhaps of another version, says of a type; 0 where it says nothing."""
    figures = stats.get(name)
    value = figures.get(type) if isinstance(figures, Mapping) else None
    return value if isinstance(value, int) else 0


def _open_descriptors() -> int:
    """How many files and sockets this process has open.

    Linux 6.2 and newer say it as the size of the directory; listing it takes milliseconds with
    ten thousand connections.
    """
    return os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))  # noqa: PTH116, PTH208
