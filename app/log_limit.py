"""Keeps what others can cause at any rate from filling the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


class LogLimit:
    """Lets some lines of each kind through in an interval.

    Args:
        interval: in seconds; it begins with the first line of a kind.
        most: lines of one kind in an interval.
        clock: monotonic seconds.
    """

    def __init__(
        self, interval: float = 10.0, most: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = interval
        self._most = most
        self._clock = clock
        self._seen: dict[Hashable, tuple[float, int]] = {}

    def allows(self, kind: Hashable) -> bool:
        """Whether a line may be written now. The kinds must be few and not chosen by others."""
        now = self._clock()
        since, count = self._seen.get(kind, (now, 0))
        if now - since >= self._interval:
            since, count = now, 0
        self._seen[kind] = since, count + 1
        return count < self._most
