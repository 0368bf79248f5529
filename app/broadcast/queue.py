"""Messages of this worker that wait to be stored: bounded, by priority, at most five seconds."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from app.backplane.scripts import CONTROL
from app.errors import BackplaneUnavailable, ClientError, QueueOverflow
from app.ports import Slots
from app.supervisor import Supervisor
from app.types import Draft, Position, Priority

logger = logging.getLogger(__name__)

MAX_WAIT = 5.0
"""Seconds after which a publisher gets BACKPLANE_UNAVAILABLE."""
BATCH_MESSAGES, BATCH_BYTES = 256, 1_000_000
POLL_INTERVAL = 0.02
"""Seconds between two looks at what other workers ask of this one, while messages wait."""
ROOM_WAIT = 0.2
"""Seconds that a newcomer waits for another worker to drop a lesser message."""
ROOM_WAITERS, ROOM_BYTES = 2_000, 8_000_000
"""Newcomers that may wait so, and their bytes: they are not counted into the bounds."""
_OVERHEAD = 256  # bytes of a queued message beside its body
_RANKS = tuple(Priority)


class BatchStore(Protocol):
    """What stores a batch: `app.backplane.publisher.StreamPublisher`."""

    async def store(
        self, drafts: Sequence[Draft], deadline: float
    ) -> list[Position | BackplaneUnavailable]:
        """Store what can be, or raise BackplaneUnavailable, at `deadline` (loop time) at last."""


Outcome = Position | ClientError
"""Where a message stands, or why it is not stored."""
Settled = Callable[["Entry"], object]
Begin = Callable[[Sequence[Draft], Callable[[Sequence[Outcome] | None], object]], bool]
"""Begins to store a batch; `app.backplane.publisher.StreamPublisher.begin`."""


class Entry:
    """A message in the queue.

    Args:
        draft: the message.
        settled: called with it once, when its outcome is known.
        now: loop time.
        counted: whether it counts into the bounds.
    """

    __slots__ = ("_settled", "counted", "deadline", "draft", "outcome", "room_until", "size")

    def __init__(self, draft: Draft, settled: Settled, now: float, *, counted: bool = True) -> None:
        self._settled: Settled | None = settled
        self.counted = counted
        self.draft = draft
        self.outcome: Outcome | None = None
        """None: not known yet."""
        self.size = len(draft.body) + _OVERHEAD
        self.deadline = now + MAX_WAIT
        self.room_until = now + ROOM_WAIT

    def settle(self, outcome: Outcome) -> bool:
        """Answer its publisher; False if something else has."""
        settled, self._settled = self._settled, None  # it may hold this entry
        if settled is None:
            return False
        self.outcome = outcome
        try:
            settled(self)
        except Exception:
            # The others of its batch do not depend on it.
            logger.exception("A publisher cannot be answered")
        return True


class _Room(enum.Enum):
    """What came of an attempt to make room for a message."""

    MADE = enum.auto()
    ASKED = enum.auto()
    NONE = enum.auto()


class BroadcastQueue:
    """Feeds the publisher one batch at a time.

    A message that finds the publisher idle leaves at once; those that come while a batch is
    under way form the next one. The bounds are shared by all workers of the machine.

    Call `start` before the first `submit`, and `close` in the end.

    Args:
        slots: counts that the workers share.
        publisher: stores batches.
        count: called with the type and the number of messages that are stored; control messages are
            not counted.
        begin: stores a batch without a task, where that can be done; None: it cannot.
    """

    def __init__(
        self,
        slots: Slots,
        publisher: BatchStore,
        count: Callable[[str, int], object] = lambda *_: None,
        begin: Begin | None = None,
    ) -> None:
        self.bytes = 0
        """Size of all messages that are counted into the bounds, those under way included."""
        self.dropped = [0] * len(_RANKS)
        """Messages pushed out or refused since the start, by priority."""
        self._slots = slots
        self._publisher = publisher
        self._count = count
        self._begin = begin
        self._waiting: tuple[deque[Entry], ...] = tuple(deque() for _ in _RANKS)
        """What waits, by rank, in the order in which it leaves."""
        self._flying: list[Entry] = []
        """The batch that is being stored."""
        self._newcomers: deque[Entry] = deque()
        """What waits until another worker has dropped a lesser message: `ROOM_WAIT` at most."""
        self._newcomers_bytes = 0
        """Their size."""
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        """Set when there is something to store."""
        self._stored = asyncio.Event()
        """Set when a message has left."""
        self._timer: asyncio.TimerHandle | None = None
        """Of the next look at what waits, while anything does."""
        self._shown = [0] * len(_RANKS)
        """Messages that wait by priority, as the other workers know them."""
        self._task: asyncio.Task[None] | None = None

    def start(self, supervisor: Supervisor) -> None:
        """Begin to store messages; the supervisor begins again what fails."""
        self._task = supervisor.start("queue", self._run)
        self._leave()

    async def close(self, timeout: float = MAX_WAIT) -> None:
        """Store what waits, for at most `timeout` seconds, and stop; the rest fails."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.length() or self._newcomers:
                    self._stored.clear()
                    await self._stored.wait()
        left = [*self._flying, *self._newcomers]
        task, self._task = self._task, None  # so that nothing more leaves
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._release(self._flying)
        self._flying = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for entries in self._waiting:
            left += entries
            self._release(entries)
            entries.clear()
        self._newcomers.clear()
        for entry in left:
            entry.settle(BackplaneUnavailable())
        self._show()

    def length(self) -> int:
        """Messages that are counted into the bounds, those under way included."""
        return len(self._flying) + sum(map(len, self._waiting))

    def per_priority(self) -> list[int]:
        """Messages that wait (high, normal, low), without those under way."""
        return list(map(len, self._waiting))

    def submit(self, draft: Draft) -> asyncio.Future[Position]:
        """Take a message.

        The future gives the message's position when it is in its stream; or QueueOverflow when
        it was pushed out, or BackplaneUnavailable: at once where waiting cannot help, else after
        five seconds. Cancelling the future does not take the message back.

        Raises:
            QueueOverflow: the queue is full of messages that rank no lower.
        """
        future = self._loop.create_future()
        self._take(Entry(draft, functools.partial(answer, future), self._loop.time()))
        return future

    def submit_all(self, drafts: Sequence[Draft], settled: Settled) -> list[Entry | QueueOverflow]:
        """Take messages of one call, in their order; see `submit`.

        Args:
            drafts: the messages.
            settled: called with each that is taken, when its outcome is known; that is later.

        Returns:
            For each its entry, or the error where it is refused.
        """
        now = self._loop.time()
        entries = [Entry(draft, settled, now) for draft in drafts]
        size = sum([entry.size for entry in entries])
        if not self._newcomers and self._slots.reserve_queue(size, len(entries)):
            self.bytes += size
            waiting = self._waiting
            for entry in entries:
                waiting[entry.draft.priority].append(entry)
            self._announce()
            return [*entries]
        # There is no room for all: each for itself.
        results: list[Entry | QueueOverflow] = []
        for entry in entries:
            try:
                self._take(entry)
            except QueueOverflow as error:
                results.append(error.with_traceback(None))
            else:
                results.append(entry)
        return results

    def send_control(self, data: bytes) -> asyncio.Future[Position]:
        """Send opaque bytes to all workers, this one included, through the control stream."""
        draft = Draft(CONTROL, CONTROL, "", data, time.time(), Priority.HIGH)
        return self.submit(draft)

    def send_probe(self, data: bytes) -> asyncio.Future[Position]:
        """As `send_control`, but outside of the limits: it displaces no message of a full queue."""
        draft = Draft(CONTROL, CONTROL, "", data, time.time(), Priority.HIGH)
        future = self._loop.create_future()
        settled = functools.partial(answer, future)
        self._accept(Entry(draft, settled, self._loop.time(), counted=False))
        return future

    def _take(self, entry: Entry) -> None:
        """Let it wait for its turn or for room, or refuse it: QueueOverflow."""
        priority = entry.draft.priority
        if self._newcomers and any(other.draft.priority <= priority for other in self._newcomers):
            self._slots.ask_to_evict(priority)
            self._let_wait(entry)  # keeps its place behind earlier messages
        elif self._slots.reserve_queue(entry.size):
            self._accept(entry)
        else:
            room = self._make_room(entry)
            if room is _Room.MADE:
                self._accept(entry)
            elif room is _Room.ASKED or self._slots.ask_to_evict(priority):
                self._let_wait(entry)
            else:
                self.dropped[priority] += 1
                raise QueueOverflow

    # Bounds

    def _accept(self, entry: Entry) -> None:
        if entry.counted:
            self.bytes += entry.size
        self._waiting[entry.draft.priority].append(entry)
        self._announce()

    def _announce(self) -> None:
        """Something waits that did not."""
        if self._flying:
            self._show()  # at once: another worker may need the room before the next tick
            self._watch()
        self._leave()

    def _release(self, entries: Sequence[Entry] | deque[Entry]) -> None:
        sizes = [entry.size for entry in entries if entry.counted]
        if sizes:
            size = sum(sizes)
            self.bytes -= size
            self._slots.release_queue(len(sizes), size)

    def _make_room(self, entry: Entry, local_only: bool = False) -> _Room:
        """Drop lesser messages that wait here, the least first, until `entry` is reserved.

        Stops at a rank of which this worker holds no messages and another, which is asked, does.
        """
        for rank in reversed(_RANKS[entry.draft.priority + 1 :]):
            while self._waiting[rank]:
                self._drop_newest(rank)
                if self._slots.reserve_queue(entry.size):
                    return _Room.MADE
            if not local_only and self._slots.ask_to_evict(Priority(rank - 1)):
                return _Room.ASKED
        return _Room.NONE

    def _may_wait(self, entry: Entry) -> bool:
        return (
            len(self._newcomers) < ROOM_WAITERS and self._newcomers_bytes + entry.size <= ROOM_BYTES
        )

    def _let_wait(self, entry: Entry) -> None:
        if not self._may_wait(entry):
            self.dropped[entry.draft.priority] += 1
            raise QueueOverflow
        self._newcomers.append(entry)
        self._newcomers_bytes += entry.size
        self._watch()

    def _drop_newest(self, rank: Priority) -> None:
        entry = self._waiting[rank].pop()
        self._release([entry])
        self.dropped[rank] += 1
        entry.settle(QueueOverflow())

    def _evict(self, count: int) -> None:
        """Drop what other workers need the room of; the highest rank is never asked for."""
        for rank in (Priority.LOW, Priority.NORMAL):
            while count > 0 and self._waiting[rank]:
                self._drop_newest(rank)
                count -= 1

    def _admit_newcomers(self, now: float) -> None:
        waiting = sorted(self._newcomers, key=lambda entry: entry.draft.priority)
        self._newcomers.clear()
        for entry in waiting:
            if self._slots.reserve_queue(entry.size):
                self._accept(entry)
            elif now < entry.room_until:
                self._newcomers.append(entry)
            elif self._make_room(entry, local_only=True) is _Room.MADE:
                self._accept(entry)
            else:
                self.dropped[entry.draft.priority] += 1
                entry.settle(QueueOverflow())
        self._newcomers_bytes = sum(entry.size for entry in self._newcomers)
        # Room that was made for these may have been taken by messages of other workers.
        unasked = len(self._newcomers) - self._slots.evictions_awaited()
        for entry in list(self._newcomers)[: max(0, unasked)]:
            self._slots.ask_to_evict(entry.draft.priority)

    # Time

    def _watch(self) -> None:
        """Tick: a message waits. One that leaves at once is answered in time all the same."""
        if self._timer is None:
            self._timer = self._loop.call_later(POLL_INTERVAL, self._tick)

    def _rest(self) -> None:
        """Nothing is here any more: so a message that came alone costs no tick."""
        self._show()
        self._slots.end_evictions(self._slots.evictions_asked())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        """Every 20 ms while anything is here: expiry, room, and what other workers ask for."""
        self._timer = self._loop.call_later(POLL_INTERVAL, self._tick)  # also if this one fails
        now = self._loop.time()
        for entries in self._waiting:
            while entries and entries[0].deadline <= now:
                entry = entries.popleft()
                self._release([entry])
                entry.settle(BackplaneUnavailable())
        for entry in self._flying:
            if entry.deadline <= now:
                entry.settle(BackplaneUnavailable())
        # Shown first: once the others see that nothing waits here they ask for nothing more, and
        # no request is left behind to hit a later message.
        self._show()
        asked = self._slots.evictions_asked()
        self._evict(asked)
        self._slots.end_evictions(asked)  # last: until the room is there, its request stands
        if self._newcomers:
            self._admit_newcomers(now)
        self._show()
        self._stored.set()
        if not (self._flying or self._newcomers or any(self._waiting)):
            self._timer.cancel()
            self._timer = None

    def _show(self) -> None:
        counts = self.per_priority()
        if counts != self._shown:
            self._shown = counts
            self._slots.set_queued(counts)

    # Storing

    def _leave(self) -> None:
        """Begin with the next batch, if none is under way."""
        if self._flying or self._task is None:
            return
        batch = self._flying = self._next_batch()
        if not batch:
            return
        if any(self._waiting):
            self._watch()
        self._show()
        begun = False
        try:
            if self._begin is not None:
                begun = self._begin([entry.draft for entry in batch], self._land_all)
        except Exception:
            # A bug must not end publishing for good: `_run` finds out what becomes of the batch.
            logger.exception("Cannot begin to store a batch")
        if not begun:
            self._wake.set()

    def _land_all(self, outcomes: Sequence[Outcome] | None) -> None:
        """Go on when the batch under way is stored, or cannot be stored without `_run`."""
        if outcomes is None:
            self._wake.set()
        elif self._flying:  # else it is closed
            batch, self._flying = self._flying, []
            try:
                self._land(batch, outcomes)
            finally:
                if any(self._waiting):
                    self._leave()
                elif not self._newcomers:
                    self._rest()

    async def _run(self) -> None:
        """Store the batches that need more than one attempt."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            outcomes: Sequence[Outcome] = [BackplaneUnavailable()] * len(self._flying)
            try:
                outcomes = await self._store(self._flying)
            finally:
                self._land_all(outcomes)  # nothing else came of it

    async def _store(self, batch: Sequence[Entry]) -> Sequence[Outcome]:
        """What becomes of each message of a batch."""
        drafts = [entry.draft for entry in batch]
        deadline = max(entry.deadline for entry in batch)
        try:
            return await self._publisher.store(drafts, deadline)
        except BackplaneUnavailable as error:
            # A traceback would keep the batch, and in it the error, until the collector comes.
            return [error.with_traceback(None)] * len(batch)
        except Exception:
            # A bug must not end publishing for good.
            logger.exception("Cannot store a batch")
            return [BackplaneUnavailable()] * len(batch)

    def _land(self, batch: Sequence[Entry], outcomes: Sequence[Outcome]) -> None:
        """Answer a batch that is no longer under way, and count what is stored of it."""
        self._release(batch)
        stored = [
            entry.draft.type
            for entry, outcome in zip(batch, outcomes, strict=True)
            if entry.settle(outcome) and isinstance(outcome, Position)
        ]
        for type in set(stored) - {CONTROL}:
            self._count(type, stored.count(type))
        self._stored.set()

    def _next_batch(self) -> list[Entry]:
        batch: list[Entry] = []
        if self.length() <= BATCH_MESSAGES and self.bytes <= BATCH_BYTES:
            for entries in self._waiting:
                if entries:
                    batch += entries
                    entries.clear()
            return batch
        size = 0
        for entries in self._waiting:
            while entries:
                size += entries[0].size
                if batch and (len(batch) == BATCH_MESSAGES or size > BATCH_BYTES):
                    return batch
                batch.append(entries.popleft())
        return batch


def answer(future: asyncio.Future[Position], entry: Entry) -> None:
    """Give the outcome of a message to what awaits it, if anything still does."""
    if future.done():
        return
    outcome = entry.outcome
    if isinstance(outcome, ClientError):
        future.set_exception(outcome)
        future.exception()  # a publisher that has gone need not fetch it
    elif outcome is not None:
        future.set_result(outcome)
