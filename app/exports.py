"""What one worker has counted, for Prometheus; see app/figures.py for the other workers of its machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from app.backplane.cluster.publisher import ClusterPublisher
from app.backplane.replica import ReplicaRoute
from app.clock import steady_time
from app.figures import Sources
from app.metrics import Metrics
from app.types import Gap, Message, Priority

_DESCRIPTORS = "/proc/self/fd"

MOST_NOTES = 1_000
"""Figures of flushes that are kept at most before they are added to the metrics: some 100 KB."""


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


class Exports:
    """Brings the metrics up to date.

    Args:
        sources: the parts of this worker.
        metrics: of this worker.
        flushes: what the fan-out has written.
        types: that there are.
    """

    def __init__(
        self, sources: Sources, metrics: Metrics, flushes: FlushFigures, types: Sequence[str]
    ) -> None:
        self._sources = sources
        self._metrics = metrics
        self._flushes = flushes
        self._types = types
        self._exported: Counter[str] = Counter()
        """Totals that are in the metrics already, by name."""

    def export(self) -> None:
        """Bring the metrics up to date that are not counted as things happen."""
        metrics, sources, hub = self._metrics, self._sources, self._sources.hub
        self._flushes.export()
        metrics.slow_consumers.set(len(sources.fanout.slow))
        metrics.incoming_bytes.set(hub.input.total + hub.input.bodies)
        metrics.backplane_up.set(sources.backplane.available)
        metrics.backplane_writable.set(sources.writable())
        for cause, total in sources.backplane.errors.items():
            self._count_up(f"backplane {cause}", total, metrics.backplane_errors[cause].inc)
        metrics.backplane_lag.set(sources.reader.lag())
        if isinstance(sources.publisher, ClusterPublisher):
            failing = sources.publisher.faults().keys() | sources.backplane.reading_faults.keys()
            for type in self._types:
                metrics.backplane_type_failing.labels(type).set(type in failing)
        if sources.replica is not None:
            self._export_replica(sources.replica)
        metrics.deaf_workers.set(sources.canary.is_deaf)
        metrics.history_cache_bytes.set(sources.history.cached_bytes)
        metrics.outgoing_bytes.set(hub.outgoing())
        metrics.write_buffer_bytes.set(hub.unread.total())
        metrics.sessions.set(len(sources.registry))
        metrics.groups.set(len(sources.fanout.groups()))
        metrics.rooms.set(sources.manager.room_count)
        metrics.awaited_acks.set(len(sources.manager.callbacks))
        metrics.tasks.set(len(asyncio.all_tasks()))
        metrics.open_descriptors.set(_open_descriptors())
        metrics.sample_process()
        self._count_up("sent", hub.bytes_sent, metrics.sent_bytes.inc)
        self._count_up("received", hub.bytes_received, metrics.received_bytes.inc)
        self._count_up("held back", sources.rates.held_back, metrics.held_back.inc)
        self._count_up("reconnects", sources.reader.reconnects, metrics.backplane_reconnects.inc)
        for stream, total in sources.reader.unreadable.items():
            self._count_up(f"unreadable {stream}", total, metrics.unreadable[stream].inc)
        self._count_up("replayed", sources.catchup.replayed, metrics.replayed.inc)
        for priority in Priority:
            name = priority.name.lower()
            counter = metrics.queue_dropped[name]
            self._count_up(f"dropped {name}", sources.queue.dropped[priority], counter.inc)
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


def _open_descriptors() -> int:
    """How many files and sockets this process has open.

    Linux 6.2 and newer say it as the size of the directory; listing it takes milliseconds with
    ten thousand connections.
    """
    return os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))  # noqa: PTH116, PTH208
