"""What the log says of connections that have ended: one line a minute for each close code.

Closing a connection only counts; once a second it is looked at what has been counted. So however many
end at once, none ends without a line, and the line has their number.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from app.errors import CloseCode

INTERVAL = 60.0
"""Seconds between two lines about the same code."""
MANY = 100
"""Connections that are lost between two looks, a second as a rule, from which on there is a line:
single clients come and go."""
ABNORMAL = 1006
"""Stands for a connection that has ended without a close frame."""

logger = logging.getLogger("realtime.connection")


class Endings:
    """Logs the endings of the connections of one worker.

    Args:
        ended: connections that the service has ended, by close code, 1006 where no close frame was
            sent; grows.
        closed: all that have ended, by close code; grows.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        ended: Mapping[int, int],
        closed: Mapping[int, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ended = ended
        self._closed = closed
        self._clock = clock
        self._logged: dict[int, int] = {}
        """Connections by code that are in the log."""
        self._next: dict[int, float] = {}
        """When a code may be logged again."""
        self._lost = 0
        """Connections that were lost up to the last look."""
        self._next_lost = float("-inf")
        """When those may be logged again."""
        self._unlogged_lost = 0
        """Those that were lost at once and are not in the log."""

    def look(self, *, is_last: bool = False) -> None:
        """Log what has ended since the last line, where that is long enough ago, or `is_last`."""
        now = self._clock()
        for code, total in self._ended.items():
            if code == CloseCode.NORMAL:
                continue  # the client has asked for it
            count = total - self._logged.get(code, 0)
            if count and (is_last or now >= self._next.get(code, now)):
                self._logged[code], self._next[code] = total, now + INTERVAL
                extra = {"code": int(code), "connections": count}
                logger.info("Connections closed: %s", _why(code), extra=extra)
        self._look_at_lost(now, is_last=is_last)

    def _look_at_lost(self, now: float, *, is_last: bool) -> None:
        lost = self._closed.get(ABNORMAL, 0) - self._ended.get(ABNORMAL, 0)
        count, self._lost = lost - self._lost, lost
        if count >= MANY:
            self._unlogged_lost += count
        if self._unlogged_lost and (is_last or now >= self._next_lost):
            extra = {"code": ABNORMAL, "connections": self._unlogged_lost}
            logger.info(
                "Many connections lost at once: a proxy, the network or the clients cut them",
                extra=extra,
            )
            self._next_lost, self._unlogged_lost = now + INTERVAL, 0


def _why(code: int) -> str:
    if code == ABNORMAL:
        return "without a close frame, since the service could not go on with them"
    try:
        return CloseCode(code).why
    except ValueError:
        return "another reason"
