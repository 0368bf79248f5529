"""One write per connection and flush, for all subscribers that are up to date.

A flush encodes the bytes of each group once, when its first member is written. A flush takes longer
than pings and replies may wait, so it is divided into slices; a connection that leaves its group
between two slices is written first, which keeps the order of every connection. Large groups go
first, so groups with one member do not delay the others. Connections that have just been held back for
using more than their share are no part of a flush: `CatchUp` brings them up to date now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.broadcast.encoding import Failed, encode_write
from app.broadcast.subscriber import Group, Subscriber
from app.protocol.codecs import Codec
from app.transport.connection import HIGH_WATER
from app.transport.hub import Hub
from app.types import Gap, Message, Position

SLICE = 200
"""Connections written before the loop gets a turn: about 4 ms at 20 us a write."""
GROUP_COST = 5
"""Writes that take as long as making the bytes of a group."""
UNUSED_GROUPS = 256
"""Groups without live members that are kept at least; past it, and past the number of the others,
they are dropped."""
FLUSH_BYTES = 1024 * 1024
"""Bytes of messages per flush, so that what one flush leaves unsent is bounded."""


@dataclass(slots=True)
class _Job:
    """What the current flush has for a group, and the members that still lack it."""

    group: Group
    items: Sequence[Message | Gap]
    positions: Mapping[str, Position]
    """Where the members stand when they have it."""
    waiting: dict[Subscriber, int]
    failed: Failed
    """Called with what cannot be encoded."""
    made: bytes | None = None

    @property
    def data(self) -> bytes:
        """The bytes, made at the first use."""
        if self.made is None:
            group, items = self.group, self.items
            wanted = [item for item in items if item.type in group.types]
            self.made = encode_write(
                group.codec,
                wanted,
                group.types,
                self.positions,
                batch=group.batch,
                failed=self.failed,
            )
        return self.made


class FanOut:
    """Groups of live subscribers and the flush that is under way.

    Args:
        hub: the connections of this worker.
        positions: where the reader stands in each type.
        batch_size: messages per flush.
        on_flush: called after each flush with its items, its receivers per type, and when it
            began (monotonic seconds).
        failed: called with each error that affects a message or a flush.
    """

    def __init__(
        self,
        hub: Hub,
        positions: Mapping[str, Position],
        batch_size: int,
        on_flush: Callable[[Sequence[Message | Gap], Mapping[str, int], float], None],
        failed: Failed = lambda _error: None,
    ) -> None:
        self.positions: dict[str, Position] = dict(positions)
        """What live subscribers have been written; replaced, never changed, by each flush."""
        self.slow: dict[Subscriber, None] = {}
        """Subscribers that have fallen behind, since they did not take their bytes; `CatchUp` takes
        them out when they have caught up."""
        self.late: dict[Subscriber, float] = {}
        """Subscribers that are not live, wherever they stand, since they were held back, and until when
        nothing is read from them (monotonic seconds); `CatchUp` takes them out some time after that."""
        self._awaiting: dict[Subscriber, None] = {}
        """Subscribers that are to catch up after a flush, until `take_awaiting`."""
        self.failed = failed
        self.asked = 0
        """How often a group was asked for: each subscriber that changes its subscriptions does so."""
        self._hub = hub
        self._batch_size = batch_size
        self._on_flush = on_flush
        self._groups: dict[tuple[str, frozenset[str], bool], Group] = {}
        """By codec, types and batch option."""
        self._most_groups = UNUSED_GROUPS
        """So many, and those without live members are dropped."""
        self._jobs: dict[Group, _Job] = {}
        """What the flush under way still has to write, by group."""
        self._before: dict[str, Position] = self.positions
        """`positions` before that flush."""

    def group(self, codec: Codec, types: frozenset[str], batch: bool) -> Group:
        """The one group for these properties."""
        self.asked += 1
        key = codec.name, types, batch
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= self._most_groups:
                self._drop_unused()
            group = self._groups[key] = Group(codec, types, batch)
        return group

    def groups(self) -> list[Group]:
        """Groups with live members, and some that were asked for and have none yet."""
        return list(self._groups.values())

    def _drop_unused(self) -> None:
        """Forget groups without live members; `join` restores one that is still referenced."""
        self._groups = {key: group for key, group in self._groups.items() if group.members}
        self._most_groups = 2 * len(self._groups) + UNUSED_GROUPS

    def join(self, subscriber: Subscriber) -> None:
        """Make a subscriber live, unless it is `late`; it must stand at `positions`."""
        if subscriber in self.late:
            subscriber.track = self.positions
            return
        group = subscriber.group
        if not group.members:
            # The table may have forgotten the group meanwhile, and created it again for another subscriber.
            group = subscriber.group = self._groups.setdefault(_key(group), group)
        group.members[subscriber] = subscriber.fd
        subscriber.track = None

    def leave(self, subscriber: Subscriber) -> dict[str, Position]:
        """Take a live subscriber out of its group, up to date.

        Returns:
            Its position in each of its types, to be its `track`.
        """
        job = self._jobs.get(subscriber.group)
        if job is not None and subscriber in job.waiting:
            subscriber.write_now(job.data)
        self._take_out(subscriber)
        return {type: self.positions[type] for type in subscriber.group.types}

    def discard(self, subscriber: Subscriber) -> None:
        """Forget a subscriber that is gone."""
        self._take_out(subscriber)
        self.late.pop(subscriber, None)
        self._awaiting.pop(subscriber, None)

    def _take_out(self, subscriber: Subscriber) -> None:
        group = subscriber.group
        if group.members.pop(subscriber, None) is not None and not group.members:
            key = _key(group)
            if self._groups.get(key) is group:
                del self._groups[key]
        job = self._jobs.get(group)
        if job is not None:
            job.waiting.pop(subscriber, None)

    def put_late(self, subscriber: Subscriber, held: float = 0.0) -> None:
        """Take a subscriber out of the flushes, until `CatchUp` takes it out of `late`."""
        self.late[subscriber] = time.monotonic() + held
        if subscriber in subscriber.group.members:
            track = self.leave(subscriber)
            if subscriber in self.late:  # else it was written to, and is gone
                subscriber.track = track

    async def deliver(self, items: Sequence[Message | Gap]) -> None:
        """Write messages and gaps, in this order, to every live subscriber."""
        start = size = 0
        for end, item in enumerate(items):
            if end - start >= self._batch_size or size >= FLUSH_BYTES:
                await self._flush(items[start:end])
                start, size = end, 0
            if isinstance(item, Message):
                size += len(item.body)
        if items:
            await self._flush(items[start:])

    def await_flush(self, subscriber: Subscriber) -> None:
        """Let a subscriber that is ahead of the flushes catch up after the next one."""
        self._awaiting[subscriber] = None

    def take_awaiting(self) -> list[Subscriber]:
        """Subscribers that must catch up now: a fault kept them from the flush, or they awaited it."""
        awaiting, self._awaiting = self._awaiting, {}
        return list(awaiting)

    async def _flush(self, items: Sequence[Message | Gap]) -> None:
        began = time.monotonic()
        self._before = self.positions
        newest = {item.type: item for item in items}  # the last one of each
        self.positions = self.positions | {type: one.position for type, one in newest.items()}
        types = set(newest)
        self._plan(items, types)
        receivers = dict.fromkeys(types, 0)
        for group, job in self._jobs.items():
            for type in types & group.types:
                receivers[type] += len(job.waiting)
        if self._jobs:
            self._hub.pace.hurry()
            self._hub.wheel.ping_early()
        try:
            left = SLICE
            for job in sorted(self._jobs.values(), key=lambda job: len(job.waiting), reverse=True):
                while job.waiting:
                    if left <= 0:
                        self._hub.pace.hurry()
                        await asyncio.sleep(0)
                        left = SLICE
                    if job.made is None:
                        left -= GROUP_COST
                    count = max(1, min(left, len(job.waiting)))
                    self._write_slice(job, count)
                    left -= count
        except Exception as error:  # noqa: BLE001 (no subscriber may lose a message)
            self.failed(error)
            self._let_catch_up()
        finally:
            self._jobs = {}
            self._hub.pace.relax()
        self._on_flush(items, receivers, began)

    def _let_catch_up(self) -> None:
        """Put all that the flush has not written back to where they stood before it."""
        missed = [one for job in self._jobs.values() for one in job.waiting]
        for subscriber in missed:
            subscriber.track = {type: self._before[type] for type in subscriber.group.types}
            self._take_out(subscriber)
        self._awaiting |= dict.fromkeys(missed)

    def _plan(self, items: Sequence[Message | Gap], types: set[str]) -> None:
        self._drop_unused()
        for group in self._groups.values():
            if not types.isdisjoint(group.types):
                self._jobs[group] = _Job(
                    group, items, self.positions, group.members.copy(), self.failed
                )

    def _write_slice(self, job: _Job, count: int) -> None:
        for subscriber in self._hub.broadcast(job.waiting, job.data, count):
            try:
                self._write_one(subscriber, job)
            except Exception as error:  # noqa: BLE001 (the others must get theirs)
                self.failed(error)
                subscriber.drop("internal error")

    def _write_one(self, subscriber: Subscriber, job: _Job) -> None:
        pending = subscriber.pending
        if pending is not None and pending.size > HIGH_WATER:
            subscriber.track = {type: self._before[type] for type in subscriber.group.types}
            self._take_out(subscriber)
            self.slow[subscriber] = None
        else:
            subscriber.write_now(job.data)


def _key(group: Group) -> tuple[str, frozenset[str], bool]:
    return group.codec.name, group.types, group.batch
