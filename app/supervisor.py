"""Keeps the endless loops of a worker going: what fails on one item begins again behind it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from app.backoff import pause_after
from app.log_limit import LogLimit

logger = logging.getLogger("realtime.worker")

MOST_FAILURES = 10
WINDOW = 60.0
"""More than MOST_FAILURES within so many seconds are no accident: the worker cannot go on."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds before a loop begins again: the first pause, twice the last one, and the longest."""


class Supervisor:
    """Runs loops, and begins those again that raise.

    Args:
        count: counts failures, by the name of the loop; none when it begins, so that the count is there before
            the first one.
        give_up: called with the name of a loop that keeps failing, and its last error; the loop
            is not run any more.
        clock: monotonic seconds.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        count: Callable[[str, int], None] = lambda _name, _failures: None,
        give_up: Callable[[str, Exception], None] = lambda _name, _error: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._count = count
        self._give_up = give_up
        self._clock = clock
        self._sleep = sleep
        self._log_limit = LogLimit(clock=clock)

    def start(
        self, name: str, loop: Callable[[], Coroutine[Any, Any, None]], *, vital: bool = True
    ) -> asyncio.Task[None]:
        """Run a loop until it returns or its task is cancelled.

        Args:
            name: of the loop, for the log and the metric.
            loop: begins it; called again after each failure.
            vital: the worker is of no use without it, and gives up if it keeps failing. Other
                loops are begun again for ever.
        """
        self._count(name, 0)
        return asyncio.get_running_loop().create_task(self._keep(name, loop, vital), name=name)

    def note(self, name: str, error: Exception) -> None:
        """Count and log that a loop has skipped an item on which it failed."""
        self._count(name, 1)
        if self._log_limit.allows(name):
            logger.error("%s: skipped an item that failed", name, exc_info=error)

    async def _keep(
        self, name: str, loop: Callable[[], Coroutine[Any, Any, None]], vital: bool
    ) -> None:
        failures: deque[float] = deque()
        while True:
            try:
                await loop()
                return
            except Exception as error:
                self._count(name, 1)
                now = self._clock()
                failures.append(now)
                while failures[0] <= now - WINDOW:
                    failures.popleft()
                if vital and len(failures) > MOST_FAILURES:
                    self._give_up(name, error)
                    return
                if self._log_limit.allows(name) or vital:
                    logger.error("%s failed and is restarted", name, exc_info=error)
            await self._sleep(pause_after(len(failures), FIRST_PAUSE, LONGEST_PAUSE))
