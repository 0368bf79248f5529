"""Brings subscribers that are behind up to date from history, and then makes them live.

Behind are those that have just subscribed, that recover, or that did not read for a while. One whose
messages memory holds is live in one step. Another one reads them in turns, each of which tries that step
first: where there is much to do, new messages come faster than turns.

Those that are held back for using more than their share stay behind until `LATE_SECONDS` after that: they
get what has come meanwhile together, in rounds that take no time from deliveries.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from app.broadcast.encoding import encode_write
from app.broadcast.fanout import FanOut
from app.broadcast.subscriber import Subscriber
from app.errors import BackplaneUnavailable
from app.transport.connection import HIGH_WATER, OPEN
from app.turns import AT_ONCE, SLICE, Slice, Sliced, Turns
from app.types import Gap, Message, Position

logger = logging.getLogger("realtime.catchup")

CHUNK = 100
"""Messages read from history at once."""
RETRY_SECONDS = 0.05
"""Pause when history cannot go on yet: the backplane is away, or ahead of this worker."""
LATE_SECONDS = 1.0
"""How long a subscriber goes on to get its messages in rounds when it is read from again."""
ROUND_SECONDS = 0.5
"""Seconds between two rounds."""


class HistorySource(Protocol):
    """What catching up reads; see app/backplane/history.py."""

    def recent(self, type: str, epoch: str, seq: int) -> Sequence[Message] | None:
        """Messages after `seq` if memory holds all of them, else None."""

    async def after(self, type: str, epoch: str, seq: int, limit: int) -> Sequence[Message | Gap]:
        """The next messages after `seq`; a gap stands for what is lost."""


class CatchUp:
    """Catches subscribers up.

    Args:
        fanout: tells where live is, and takes those that have arrived there.
        history: what to read from.
        latest_only: types of which only the newest message matters.
        slice: gives the seconds that a round may have of each pass of the loop.
        turns: those that read history go on in turn.
    """

    def __init__(
        self,
        fanout: FanOut,
        history: HistorySource,
        latest_only: frozenset[str],
        slice: Slice = lambda: SLICE,
        turns: Turns = AT_ONCE,
    ) -> None:
        self._fanout = fanout
        self._history = history
        self._latest_only = latest_only
        self._turns = turns
        self._tasks: dict[Subscriber, asyncio.Task[None]] = {}
        self._round: deque[Subscriber] = deque()
        """Those that have had no turn in the present round."""
        self._round_work = Sliced(self._go_on, slice)
        self._round_planned = False
        self.replayed = 0
        """Messages written to subscribers that were behind."""

    def start(self, subscriber: Subscriber) -> None:
        """Bring a subscriber up to date; harmless when that is under way."""
        if subscriber.state != OPEN or subscriber.is_held() or subscriber in self._tasks:
            return
        if subscriber.track is None:
            return
        try:
            done = self._try_now(subscriber)
        except Exception:
            # Its client reconnects and recovers; the caller is not affected.
            logger.exception("Catch-up failed", extra={"connection": subscriber.id})
            subscriber.drop("catch-up failed")
            return
        if not done:
            task = asyncio.get_running_loop().create_task(self._run(subscriber))
            self._tasks[subscriber] = task

    def discard(self, subscriber: Subscriber) -> None:
        """Forget a subscriber that is gone."""
        self._fanout.slow.pop(subscriber, None)
        task = self._tasks.pop(subscriber, None)
        if task is not None:
            task.cancel()

    def put_late(self, subscriber: Subscriber, held: float = 0.0) -> None:
        """Let a subscriber that is held back for `held` seconds get its messages in rounds.

        It does for `LATE_SECONDS` more.
        """
        self._fanout.put_late(subscriber, held)
        if not self._round_planned:
            self._round_planned = True
            asyncio.get_running_loop().call_later(ROUND_SECONDS, self._begin_round)

    def _begin_round(self) -> None:
        late, due = self._fanout.late, time.monotonic() - LATE_SECONDS
        self._round.extend(late)
        for subscriber in [one for one, held_until in late.items() if held_until <= due]:
            del late[subscriber]
        self._round_work.plan()

    def _go_on(self, seconds: float) -> bool:
        """Bring as many up to date as this pass has time for."""
        ends = time.monotonic() + seconds
        while self._round:
            self.start(self._round.popleft())
            if time.monotonic() >= ends:
                break
        if self._round:
            return True
        if self._fanout.late:
            asyncio.get_running_loop().call_later(ROUND_SECONDS, self._begin_round)
        else:
            self._round_planned = False
        return False

    def _live(self, subscriber: Subscriber) -> None:
        self._fanout.slow.pop(subscriber, None)
        self._fanout.join(subscriber)

    def _try_now(self, subscriber: Subscriber) -> bool:
        """Catch up without waiting, if memory holds all that is missing.

        One that comes from a worker which was ahead of this one lacks nothing; it awaits a flush.
        """
        track, live = subscriber.track, self._fanout.positions
        assert track is not None
        missing: list[Message | Gap] = []
        for type in subscriber.group.types if track is not live else ():
            position = track[type]
            if position is live[type] or position == live[type]:
                continue
            if position.epoch != live[type].epoch:
                return False
            if position.seq > live[type].seq:
                self._fanout.await_flush(subscriber)
                return True
            recent = self._history.recent(type, position.epoch, position.seq)
            if recent is None:
                return False
            wanted = self._select(type, position, live[type], recent)
            if wanted is None:
                return False
            missing += wanted
        if missing:
            if sum(len(item.body) for item in missing if isinstance(item, Message)) > HIGH_WATER:
                return False
            data = self._encode(subscriber, missing, live)
            if len(data) > HIGH_WATER or subscriber.pending is not None:
                return False
            subscriber.write_now(data)
            self.replayed += len(missing)
        if subscriber.state == OPEN:
            self._live(subscriber)
        return True

    async def _run(self, subscriber: Subscriber) -> None:
        try:
            if subscriber.track is not None:
                # A fresh subscriber shares the positions of the fan-out.
                subscriber.track = dict(subscriber.track)
            while await self._take_turn(subscriber):
                if subscriber.pending is not None and subscriber.pending.size > HIGH_WATER:
                    # `on_drained` starts again.
                    return
                if subscriber.is_held():
                    # Its history comes first, and starts this again.
                    return
                began = time.monotonic()
                if self._try_now(subscriber):
                    self._turns.spend(time.monotonic() - began)
                    return
                if not await self._advance(subscriber, self._next_type(subscriber)):
                    await asyncio.sleep(RETRY_SECONDS)
        except Exception:
            logger.exception("Catch-up failed", extra={"connection": subscriber.id})
            subscriber.drop("catch-up failed")
        finally:
            if self._tasks.get(subscriber) is asyncio.current_task():
                del self._tasks[subscriber]

    async def _take_turn(self, subscriber: Subscriber) -> bool:
        """Wait for a turn; whether the subscriber is still to be brought up to date."""
        await self._turns.take()
        return subscriber.state == OPEN and subscriber.track is not None

    def _next_type(self, subscriber: Subscriber) -> str:
        """The first type in which a subscriber is behind."""
        track, live = subscriber.track, self._fanout.positions
        assert track is not None
        return next(type for type in sorted(subscriber.group.types) if track[type] != live[type])

    async def _advance(self, subscriber: Subscriber, type: str) -> bool:
        """Write the next stretch of one type; whether there was any."""
        assert subscriber.track is not None
        position = subscriber.track[type]
        try:
            items = await self._read(type, position)
        except BackplaneUnavailable:
            return False
        # Anything may have happened meanwhile: a close, other subscriptions, another flush.
        track = subscriber.track
        if subscriber.state != OPEN or not track or track.get(type) is not position:
            return True
        if subscriber.is_held():
            return True
        live = self._fanout.positions[type]
        wanted = self._select(type, position, live, items)
        if not wanted:
            return False
        taken, size = 0, 0
        while taken < len(wanted) and size < HIGH_WATER:
            item = wanted[taken]
            size += len(item.body) if isinstance(item, Message) else 0
            taken += 1
        wanted = wanted[:taken]
        self.replayed += len(wanted)
        last = wanted[-1]
        track[type] = last.position
        began = time.monotonic()
        subscriber.write_now(self._encode(subscriber, wanted, track))
        self._turns.spend(time.monotonic() - began)
        return True

    async def _read(self, type: str, position: Position) -> Sequence[Message | Gap]:
        live = self._fanout.positions[type]
        if type in self._latest_only and position.epoch == live.epoch and live.seq > position.seq:
            # One message before the newest is enough to see whether it is still there.
            return await self._history.after(type, live.epoch, live.seq - 1, CHUNK)
        return await self._history.after(type, position.epoch, position.seq, CHUNK)

    def _select(
        self, type: str, position: Position, live: Position, items: Sequence[Message | Gap]
    ) -> list[Message | Gap] | None:
        """What of `items` comes next for a subscriber at `position`, up to `live`.

        Returns None when `items` do not lead to `live` and more must be read first.
        """
        wanted: list[Message | Gap] = []
        for item in items:
            if item.epoch != live.epoch:
                return None
            if isinstance(item, Message):
                if item.seq > live.seq:
                    break
            elif item.last > live.seq:
                wanted.append(replace(item, last=live.seq))
                continue
            wanted.append(item)
        if type not in self._latest_only or position.epoch != live.epoch or not wanted:
            return wanted
        newest = wanted[-1]
        if not isinstance(newest, Message) or newest.seq != live.seq:
            return wanted
        if newest.seq == position.seq + 1:
            return [newest]
        skipped = Gap(type, live.epoch, position.seq + 1, newest.seq - 1, "latest")
        return [skipped, newest]

    def _encode(
        self,
        subscriber: Subscriber,
        items: Sequence[Message | Gap],
        positions: Mapping[str, Position],
    ) -> bytes:
        """What brings a subscriber to `positions`."""
        group = subscriber.group
        return encode_write(
            subscriber.codec,
            items,
            group.types,
            positions,
            batch=group.batch,
            failed=self._fanout.failed,
        )
