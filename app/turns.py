"""How one pass of the loop is divided, and tasks that take turns.

Messages come first. While one is on its way through this worker, it needs several passes, and all
that comes between delays it. So everything else asks for a slice of each pass. While a message is on
its way there is one short slice in a millisecond for all of them together, and the kinds of work take turns.

A read that hundreds of requests share wakes all of them in one pass. So those wait for a turn
afterwards, and a pass lets as many go on as fit into its slice.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

SLICE = 0.000_25
"""Seconds of a pass of the loop for one kind of work. In shorter ones each pass serves one client of a storm,
which costs a third more; longer ones save nothing, and a message waits for the pass in which it comes."""
SHORT_SLICE = 0.0001
"""The same while a message is on its way."""
PAUSE_SECONDS = 0.001
"""While a message is on its way, no kind of work gets a slice for so long after the last one of any."""
ASKED_SECONDS = 0.005
"""How long a kind of work that got no slice comes before those that had one after its own last one."""
HURRY_SECONDS = 0.02
"""How long a message is on its way through a worker, if its delivery does not end earlier."""
STEADY_SECONDS = 0.1
"""Messages that are on their way for so long without a pause come as fast as they are delivered: then each kind
of work gets a slice in `PAUSE_SECONDS`, or it would get next to none."""
REST_SECONDS = 0.005
"""A pause between messages is at least so long."""
MOST_AT_ONCE = 16
"""Tasks that go on in one pass, at most."""
_LEAST_COST = 0.000_001
"""Seconds that a step counts as at least."""
_WEIGHT = 0.1
"""Of the newest step in the average of what a step costs."""

Slice = Callable[[], float]
"""Gives the seconds of this pass for one kind of work; 0.0: none, ask again in `PAUSE_SECONDS`."""


class Pace:
    """Knows whether a message is on its way through this worker.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self._since = 0.0
        """Since when messages have been on their way without a pause."""
        self._relaxed = 0.0
        """When the last one was written."""
        self._last = 0.0
        """When any kind of work had its last slice."""
        self._asked: dict[Slice, tuple[float, float]] = {}
        """Kinds of work that wait for a slice: when they had their last one, and when they asked."""

    def hurry(self) -> None:
        """A message is on its way, until `relax`."""
        now = self._clock()
        if now - max(self._until, self._relaxed) >= REST_SECONDS:
            self._since = now
        self._until = now + HURRY_SECONDS

    def relax(self) -> None:
        """The message is written."""
        if self._until:
            self._until = 0.0
            self._relaxed = self._clock()
            self._asked.clear()

    def slices(self) -> Slice:
        """For one kind of work: what tells how much of a pass it may have."""
        last = 0.0

        def slice() -> float:
            nonlocal last
            now = self._clock()
            if now >= self._until:
                last = self._last = now
                return SLICE
            if now - self._since >= STEADY_SECONDS:
                if now - last < PAUSE_SECONDS:
                    return 0.0
            elif now - self._last < PAUSE_SECONDS or self._others_wait(slice, last, now):
                self._asked[slice] = last, now
                return 0.0
            self._asked.pop(slice, None)
            last = self._last = now
            return SHORT_SLICE

        return slice

    def _others_wait(self, kind: Slice, last: float, now: float) -> bool:
        """Whether another kind of work waits for a slice that had none for longer."""
        since = now - ASKED_SECONDS  # what asked before that may have nothing to do by now
        return any(
            other_last < last and asked >= since and other is not kind
            for other, (other_last, asked) in self._asked.items()
        )


class Sliced:
    """Work that is done in slices of passes of the loop, until nothing of it is left.

    Args:
        work: does a part in the seconds that it gets, and returns whether any is left.
        slice: gives these seconds of a pass.
    """

    def __init__(self, work: Callable[[float], bool], slice: Slice) -> None:
        self._work = work
        self._slice = slice
        self._planned = False

    def plan(self) -> None:
        """Begin in a later pass; harmless when that is planned."""
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        slice = self._slice()
        if not slice:
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._go_on)
            return
        self._planned = False
        if self._work(slice):
            self.plan()


class Turns:
    """Lets as many tasks go on in a pass of the loop as have time in it, the oldest first.

    Args:
        slice: gives the seconds that these tasks may have of a pass.
        cost: seconds of a task's step, before any is measured.
    """

    def __init__(self, slice: Slice, cost: float = 0.0001) -> None:
        self._slice = slice
        self._average = cost
        self._left = 0
        """Tasks that may still go on in this pass."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._planned = False

    def __len__(self) -> int:
        return len(self._waiting)

    def spend(self, seconds: float) -> None:
        """Count what a step has cost: a pass has time for fewer where they cost more."""
        self._average += (max(seconds, _LEAST_COST) - self._average) * _WEIGHT

    async def take(self) -> None:
        """Wait for a turn, if this pass has no time left or others wait already."""
        loop = asyncio.get_running_loop()
        if not self._planned:
            self._begin_pass(loop)
        if self._left:
            self._left -= 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            await turn

    def _begin_pass(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let those go on that have time in this pass."""
        self._planned = True
        slice = self._slice()
        if not slice:
            self._left = 0
            loop.call_later(PAUSE_SECONDS, self._end_pass, loop)
            return
        loop.call_soon(self._end_pass, loop)
        self._left = max(1, min(MOST_AT_ONCE, int(slice / self._average)))
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # its task may have been cancelled
                turn.set_result(None)
                self._left -= 1

    def _end_pass(self, loop: asyncio.AbstractEventLoop) -> None:
        self._planned = False
        if self._waiting:
            self._begin_pass(loop)


class AtOnce(Turns):
    """Lets every task go on at once: where few wait for the same."""

    def __init__(self) -> None:
        super().__init__(lambda: SLICE)

    def spend(self, seconds: float) -> None:
        """Count nothing."""

    async def take(self) -> None:
        """Wait for nothing."""


AT_ONCE = AtOnce()
"""It holds nothing, so one is enough."""
