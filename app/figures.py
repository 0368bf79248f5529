"""What one worker has counted, shown to the other workers of its machine, and what they show.

Nothing is counted on request: work over all sessions or rows is done once a second at most, in slices
between which the loop gets a turn, and requests read its result. What Prometheus gets is in
app/exports.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

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
from app.machine import figure
from app.metrics import Metrics
from app.ports import Slots
from app.sessions.rates import Rates
from app.sessions.registry import Registry
from app.sessions.socketio.rooms import RoomManager
from app.transport.hub import Hub
from app.types import Priority, Subscribers, WorkerRow

_PRIORITIES = [priority.name.lower() for priority in Priority]

USERS_A_SECOND = 2_000
"""Users whose subscriptions are shown within a second; after a storm of connects it takes longer."""
QUIET_SECONDS = 3
"""Between two times that figures are shown while nothing happens but heartbeats, and the worker does not rest."""
OWN_MESSAGES = 3
"""Messages in the queue that do not count as something that happens: a probe and those of the collector."""
SLICE = 500
"""Sessions that are looked at before the loop gets a turn: some 200 us."""
USERS_SLICE = 50
"""Users whose subscriptions are shown before the loop gets a turn: some 200 us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The parts of a worker that figures are read from."""

    # Messages.
    queue: BroadcastQueue
    publisher: StreamPublisher | ClusterPublisher
    backplane: AnyBackplane
    replica: ReplicaRoute | None
    reader: Reader
    history: History
    fanout: FanOut
    catchup: CatchUp
    canary: Canary

    # Clients.
    hub: Hub
    rates: Rates
    registry: Registry
    manager: RoomManager

    def fault(self) -> Fault | None:
        """What is wrong with the backplane, as this worker sees it; None: nothing."""
        return self.publisher.fault or self.backplane.reading_fault

    def writable(self) -> bool:
        """Whether this worker can publish, by its last attempts."""
        return self.publisher.fault is None and self.backplane.available

    def reads_replica(self) -> bool:
        """Whether this worker reads from the replica of its machine."""
        return self.replica is not None and self.replica.is_read


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
    """Shows the other workers of this machine what this one has counted, and reads what they show.

    Args:
        sources: the parts of this worker.
        slots: where the workers show their figures.
        metrics: shows how many are subscribed to each type.
        subscribers: gets the counts of this machine.
        types: that there are.
    """

    def __init__(
        self,
        sources: Sources,
        slots: Slots,
        metrics: Metrics,
        subscribers: SubscriberCounts,
        types: Iterable[str],
    ) -> None:
        self._sources = sources
        self._slots = slots
        self._metrics = metrics
        self._subscribers = subscribers
        self._types = {type: number for number, type in enumerate(types)}
        self._shown_users: dict[str, int] = {}
        self.silences = Silences()
        """Of the workers of this machine, as often as its figures are shown."""
        self._state: tuple[object, ...] = ()
        self._counted: tuple[int, int] | None = None
        """What said that sessions change when these were counted; None: they have names, and always count anew:"""
        self._sizes: Counter[Group] = Counter()
        """sessions of each group, and"""
        self._unnamed: Counter[Group] = Counter()
        """those of them without a user."""
        self._read: tuple[object, ...] = ()
        """What the workers of this machine show that the counts of subscribers were made of."""
        self._same_looks = 0
        """How often in a row `look` has found that nothing happens, and"""
        self.quiet_looks = 0
        """on a machine without connections."""

    def look(self) -> bool:
        """Whether the figures are due: at each look, or a third of them while nothing happens but heartbeats.

        Only figures of the process itself change then, such as its CPU time.
        """
        hub = self._sources.hub
        queued = self._sources.queue.per_priority()
        state = (
            self._sources.fault(),
            self._sources.writable(),
            self._sources.canary.receives,
            self._sources.canary.is_deaf,
            queued if sum(queued) > OWN_MESSAGES else (),
            sum(self._sources.queue.dropped),
            self._sources.reader.reconnects,
            self._sources.reader.unreadable.total(),
            self._sources.catchup.replayed,
            hub.bytes_received + hub.bytes_sent - hub.heartbeat_bytes,
            hub.output.total,
            sum(hub.closed.values()),
            self._sources.reads_replica(),
            self._session_changes(),
        )
        is_same = state == self._state and not self._has_names()
        self._state = state
        self._same_looks = self._same_looks + 1 if is_same else 0
        self.quiet_looks = 0 if self._slots.total_connections() else self._same_looks
        return self._same_looks % QUIET_SECONDS == 0

    async def show(self) -> None:
        """Put what the other workers may ask for into the slot table."""
        changes = self._session_changes()
        if changes != self._counted:
            users = await self._count_sessions()
            self._show_groups()
            await self._show_users(users)
            self._counted = None if self._has_names() else changes
        else:
            self._show_groups()

    def read(self) -> None:
        """Read what the workers of this machine show; to be called once a second."""
        rows = self._slots.rows()
        self.silences.look(rows)
        by_type = [self._slots.users_of_type(number) for number in self._types.values()]
        found = [row.stats for row in rows], by_type
        if found == self._read:
            return
        self._read = found
        for type, users in zip(self._types, by_type, strict=True):
            connections = sum(figure(row.stats, "subscriptions", type) for row in rows)
            unnamed = sum(figure(row.stats, "unnamed", type) for row in rows)
            self._subscribers.show(type, Subscribers(connections, users + unnamed))

    def _session_changes(self) -> tuple[int, int]:
        """What is another one when sessions were added, removed or renamed, or have asked for other types."""
        return self._sources.registry.changes, self._sources.fanout.asked

    def _has_names(self) -> bool:
        """Whether any session that was counted has a user."""
        return self._unnamed.total() < self._sizes.total()

    async def _count_sessions(self) -> dict[str, int]:
        """Count the sessions of each group; returns the types of each user, as bits."""
        sizes: Counter[Group] = Counter()
        unnamed: Counter[Group] = Counter()
        users: dict[str, int] = {}
        bits: dict[Group, int] = {}
        sessions = self._sources.registry.all()
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
        dropped = self._sources.queue.dropped
        fault = self._sources.fault()
        self._slots.set_stats(
            {
                "plain": protocols["plain"],
                "socketio": protocols["socketio"],
                "sse": protocols["sse"],
                "subscriptions": subscriptions,
                "subscribed": sum(subscriptions.values()),
                "unnamed": unnamed_by_type,
                "queued": dict(zip(_PRIORITIES, self._sources.queue.per_priority(), strict=True)),
                "anonymous": unnamed.total(),
                "dropped": dict(zip(_PRIORITIES, dropped, strict=True)),
                "lag": round(self._sources.reader.lag(), 3),
                "slow": len(self._sources.fanout.slow),
                "hears": self._sources.canary.receives,
                "deaf": self._sources.canary.is_deaf,
            }
            | ({} if fault is None else {"fault": fault.words})
            | ({} if self._sources.writable() else {"unwritable": True})
            | ({"replica": True} if self._sources.reads_replica() else {})
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

    def replica(self) -> dict[str, object] | None:
        """What `GET /status` says of the replica of this machine; None: it has none."""
        if self._sources.replica is None:
            return None
        note = self._sources.replica.note
        rows = [row for row in self._slots.rows() if row.state != "starting"]
        return {
            "state": "the leader has not said anything yet" if note is None else note.words,
            "readers": sum(row.stats.get("replica") is True for row in rows),
            "bytesBehind": None if note is None else note.bytes_behind,
            "secondsBehind": None if note is None else note.seconds_behind,
        }
