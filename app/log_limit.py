"""Keeps what others can cause at any rate from filling the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


class LogLimit:
    """Lets one line of each kind through in an interval.

    Args:
        interval: seconds between two lines of one kind.
        clock: monotonic seconds.
    """

    def __init__(self, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._last: dict[Hashable, float] = {}

    def allows(self, kind: Hashable) -> bool:
        """Whether a line may be written now. The kinds must be few and not chosen by others."""
        now = self._clock()
        if now - self._last.get(kind, -self._interval) < self._interval:
            return False
        self._last[kind] = now
        return True
