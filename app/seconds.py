"""The next full second of this process, for all that is done once a second.

Each wake-up of an idle process costs some 100 us, mostly for caches that others have filled
meanwhile. So whatever recurs waits for the same moment, and one wake-up does for all. Where in the
second it lies is drawn anew in each process: workers that all act at one moment would wait for the
lock that they share.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

LEAST_WAIT = 0.2
"""Seconds: a second that begins sooner than that is left out."""


class SecondCall:
    """Something that is done once, at a full second.

    Args:
        at: number of the second.
        time: loop time at which that begins.
        act: what is done; raises nothing as a rule.
    """

    __slots__ = ("_act", "at", "time")

    def __init__(self, at: int, time: float, act: Callable[[], object]) -> None:
        self.at = at
        self.time = time
        self._act: Callable[[], object] | None = act

    def cancel(self) -> None:
        """Let it not be done; harmless when it was."""
        self._act = None

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

    def call(self, act: Callable[[], object], every: int = 1) -> SecondCall:
        """Do something once, at the next second whose number is a multiple of `every`."""
        now = self._loop.time() - self._phase
        at = math.floor((now + LEAST_WAIT) / every + 1) * every
        call = SecondCall(at, at + self._phase, act)
        self._calls.append(call)
        if call.at < self._timer_at:
            self._arm(call.at)
        return call

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


def call_next_second(act: Callable[[], object]) -> SecondCall:
    """Do something once, in between 0.2 and 1.2 seconds; whatever waits so is done in one wake-up."""
    return seconds_of(asyncio.get_running_loop()).call(act)


async def next_second(every: int = 1) -> float:
    """Wait for the next full second of this process; returns the loop time at which it was due.

    Args:
        every: of so many seconds only one counts, the same for all that wait for one of these.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    call = seconds_of(loop).call(wake, every)
    try:
        await waiter
    finally:
        call.cancel()
    return call.time
