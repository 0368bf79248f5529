"""What one worker counts, shown once a second to the other workers and to Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.backplane.client import Backplane
from app.backplane.history import History
from app.backplane.reader import StreamReader
from app.broadcast.catchup import CatchUp
from app.broadcast.queue import BroadcastQueue
from app.canary import Canary
from app.metrics import Metrics
from app.ports import Slots
from app.sessions.realtime import Realtime
from app.types import Gap, Message, Priority

_PRIORITIES = [priority.name.lower() for priority in Priority]

USERS_A_SECOND = 2_000
"""Users whose subscriptions are shown in one go: some 10 ms after a storm of connects."""


class Figures:
    """Reads the parts of a worker."""

    def __init__(
        self,
        *,
        types: Sequence[str],
        slots: Slots,
        metrics: Metrics,
        realtime: Realtime,
        catchup: CatchUp,
        queue: BroadcastQueue,
        reader: StreamReader,
        history: History,
        backplane: Backplane,
        canary: Canary,
    ) -> None:
        self._types = {type: number for number, type in enumerate(types)}
        self._slots = slots
        self._metrics = metrics
        self._realtime = realtime
        self._catchup = catchup
        self._queue = queue
        self._reader = reader
        self._history = history
        self._backplane = backplane
        self._canary = canary
        self._exported: Counter[str] = Counter()
        self._shown_users: dict[str, int] = {}

    def count_flush(
        self,
        items: Sequence[Message | Gap],
        receivers: Mapping[str, int],
        duration: float,
        now: float,
    ) -> None:
        """Count what one flush has written.

        Args:
            items: messages and gaps.
            receivers: connections that got them, by type.
            duration: of the flush, in seconds.
            now: Unix time in seconds, by which latencies are measured.
        """
        metrics = self._metrics
        metrics.flush_duration.observe(duration)
        counts: Counter[str] = Counter()
        for item in items:
            count = receivers[item.type]
            if isinstance(item, Gap):
                metrics.gaps[item.reason].inc(count)
            elif count:
                counts[item.type] += count
                metrics.delivery_latency.observe_many(now - item.accepted, count)
        for type, count in counts.items():
            metrics.delivered[type].inc(count)

    def subscribers(self, type: str) -> tuple[int, int]:
        """Connections and users of this machine that are subscribed to a type.

        Who gave no name counts as a user of its own.
        """
        connections = 0
        users = self._slots.users_of_type(self._types[type])
        for row in self._slots.rows():
            stats: Any = row.stats
            connections += stats.get("subscriptions", {}).get(type, 0)
            users += stats.get("unnamed", {}).get(type, 0)
        return connections, users

    def show(self) -> None:
        """Put what the other workers may ask for into the slot table."""
        sessions = self._realtime.sessions.values()
        groups = Counter(session.group for session in sessions)
        unnamed = Counter(session.group for session in sessions if session.user is None)
        protocols: Counter[str] = Counter()
        subscriptions = dict.fromkeys(self._types, 0)
        unnamed_by_type = dict.fromkeys(self._types, 0)
        for group, count in groups.items():
            protocols[group.codec.name] += count
            for type in group.types:
                subscriptions[type] += count
                unnamed_by_type[type] += unnamed[group]
        dropped = self._queue.dropped
        self._slots.set_stats(
            {
                "plain": protocols["plain"],
                "socketio": protocols["socketio"],
                "subscriptions": subscriptions,
                "subscribed": sum(subscriptions.values()),
                "unnamed": unnamed_by_type,
                "queued": dict(zip(_PRIORITIES, self._queue.per_priority(), strict=True)),
                "anonymous": unnamed.total(),
                "dropped": dict(zip(_PRIORITIES, dropped, strict=True)),
                "lag": round(self._reader.lag(), 3),
                "slow": len(self._catchup.slow),
                "hears": self._canary.hears,
                "deaf": self._canary.is_deaf,
            }
        )
        for type, count in subscriptions.items():
            self._metrics.subscriptions[type].set(count)
        self._show_users()

    def _show_users(self) -> None:
        """Say of each named user, if it changed, what its connections are subscribed to."""
        types: dict[str, int] = {}
        for session in self._realtime.sessions.values():
            if session.user is not None and session.claimed:
                bits = types.get(session.user, 0)
                for type in session.group.types:
                    bits |= 1 << self._types[type]
                types[session.user] = bits
        shown = {user: bits for user, bits in self._shown_users.items() if user in types}
        changed = [user for user, bits in types.items() if shown.get(user, 0) != bits]
        for user in changed[:USERS_A_SECOND]:
            self._slots.set_user_types(user, types[user])
            shown[user] = types[user]
        self._shown_users = shown

    def export(self) -> None:
        """Bring the metrics up to date that are not counted as things happen."""
        metrics, hub = self._metrics, self._realtime.hub
        metrics.slow_consumers.set(len(self._catchup.slow))
        metrics.incoming_bytes.set(hub.incoming)
        metrics.backplane_up.set(self._backplane.available)
        metrics.backplane_lag.set(self._reader.lag())
        metrics.deaf_workers.set(self._canary.is_deaf)
        metrics.history_cache_bytes.set(self._history.cached_bytes)
        metrics.write_buffer_bytes.set(hub.unsent())
        metrics.sample_process()
        self._count_up("sent", hub.bytes_sent, metrics.sent_bytes.inc)
        self._count_up("received", hub.bytes_received, metrics.received_bytes.inc)
        self._count_up("reconnects", self._reader.reconnects, metrics.backplane_reconnects.inc)
        self._count_up("replayed", self._catchup.replayed, metrics.replayed.inc)
        for priority in Priority:
            name = priority.name.lower()
            counter = metrics.queue_dropped[name]
            self._count_up(f"dropped {name}", self._queue.dropped[priority], counter.inc)
        for code, total in hub.closed.items():
            self._count_up(f"closed {code}", total, metrics.closed[code].inc)

    def _count_up(self, name: str, total: int, count: Callable[[float], None]) -> None:
        if total > self._exported[name]:
            count(total - self._exported[name])
            self._exported[name] = total
