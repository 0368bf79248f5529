"""The next full second of this process, for all that is done once a second.

Each wake-up of an idle process costs some 100 us, mostly for caches that others have filled
meanwhile, and as much again for each thing that it does. So whatever recurs waits for the same moment, and
one wake-up does for all. Where in the second it lies is drawn anew in each process: workers that all act
at one moment would wait for the lock that they share.

A process without clients *rests*: what is of use to clients only, or may come a little later, is done every
`REST` seconds. The first client ends that (`Seconds.wake`).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

LEAST_WAIT = 0.2
"""Seconds: a second that begins sooner than that is left out."""
REST = 6
"""Seconds between two times of most of what a process does that rests."""


class SecondCall:
    """Something that is done once, at a full second.

    Args:
        at: number of the second.
        time: loop time at which that begins.
        act: what is done; raises nothing as a rule.
        every: of so many seconds one counts while the process does not rest.
    """

    __slots__ = ("_act", "at", "every", "time")

    def __init__(self, at: int, time: float, act: Callable[[], object], every: int) -> None:
        self.at = at
        self.time = time
        self.every = every
        self._act: Callable[[], object] | None = act

    def cancel(self) -> None:
        """Let it not be done; harmless when it was. See `Seconds.forget`."""
        self._act = None

    def move(self, at: int, time: float) -> None:
        """Let it be done at another second."""
        self.at, self.time = at, time

    def run(self) -> None:
        """Do it, if it was not cancelled."""
        act, self._act = self._act, None
        if act is not None:
            act()


class Seconds:
    """The seconds of one loop.

    Args:
        loop: it.
        phase: by how much they begin later than those of the loop's clock, in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, phase: float) -> None:
        self._loop = loop
        self._phase = phase
        self._calls: list[SecondCall] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._rests = False

    @property
    def rests(self) -> bool:
        """Whether this process has no clients, and nothing has happened for a while."""
        return self._rests

    def rest(self) -> None:
        """From now on what is planned may come as rarely as it said."""
        self._rests = True

    def wake(self) -> None:
        """Rest no longer; what was planned while the process rested comes as soon as it would have otherwise."""
        if not self._rests:
            return
        self._rests = False
        for call in self._calls:
            at = self._next(call.every)
            if at < call.at:
                call.move(at, at + self._phase)
        self._arm_next()

    def call(
        self, act: Callable[[], object], every: int = 1, at_rest: int | None = None
    ) -> SecondCall:
        """Do something once, at the next second whose number is a multiple of `every`.

        Args:
            act: what is done.
            every: of so many seconds one counts.
            at_rest: the same while the process rests; None: as always.
        """
        at = self._next(at_rest if at_rest is not None and self._rests else every)
        call = SecondCall(at, at + self._phase, act, every)
        self._calls.append(call)
        if call.at < self._timer_at:
            self._arm(call.at)
        return call

    def forget(self, call: SecondCall) -> None:
        """Cancel a call, and wake up for it no more; it costs more than `SecondCall.cancel`."""
        call.cancel()
        if call not in self._calls:
            return
        self._calls.remove(call)
        if call.at == self._timer_at and all(other.at > call.at for other in self._calls):
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = None, math.inf
            self._arm_next()

    def _next(self, every: int) -> int:
        now = self._loop.time() - self._phase
        return math.floor((now + LEAST_WAIT) / every + 1) * every

    def _arm(self, at: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at + self._phase, self._arrive)

    def _arrive(self) -> None:
        self._timer, self._timer_at = None, math.inf
        # A timer may come a little before its time.
        now = self._loop.time() - self._phase + LEAST_WAIT / 2
        due = [call for call in self._calls if call.at <= now]
        self._calls = [call for call in self._calls if call.at > now]
        for call in due:
            try:
                call.run()
            except Exception as error:  # noqa: BLE001 (the others do not depend on it)
                self._loop.call_exception_handler(
                    {"message": "a call of this second failed", "exception": error}
                )
        self._arm_next()

    def _arm_next(self) -> None:
        left = min((call.at for call in self._calls), default=None)
        if left is not None and left < self._timer_at:
            self._arm(left)


_ATTRIBUTE = "yujian_seconds"
"""Of a loop: its seconds, which end with it."""


def seconds_of(loop: asyncio.AbstractEventLoop) -> Seconds:
    """Those of a loop, always the same."""
    found: Seconds | None = getattr(loop, _ATTRIBUTE, None)
    if found is None:
        found = Seconds(loop, random.random())  # noqa: S311 (guards nothing)
        setattr(loop, _ATTRIBUTE, found)
    return found


def call_next_second(act: Callable[[], object], at_rest: int | None = None) -> SecondCall:
    """Do something once, in between 0.2 and 1.2 seconds; whatever waits so is done in one wake-up.

    Args:
        act: what is done.
        at_rest: see `Seconds.call`.
    """
    return seconds_of(asyncio.get_running_loop()).call(act, at_rest=at_rest)


async def next_second(every: int = 1, at_rest: int | None = None) -> float:
    """Wait for the next full second of this process; returns the loop time at which it was due.

    Args:
        every: of so many seconds only one counts, the same for all that wait for one of these.
        at_rest: the same while the process rests; None: as always.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    call = seconds_of(loop).call(wake, every, at_rest)
    try:
        await waiter
    finally:
        call.cancel()
    return call.time
