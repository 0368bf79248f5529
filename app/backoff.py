"""How long to wait before each further attempt: twice as long as before the last, within bounds."""

from __future__ import annotations

_MOST_DOUBLINGS = 60
"""More would be no number that a clock knows."""


def pause_after(failures: int, first: float, longest: float) -> float:
    """Seconds to wait after so many failures, 1 or more, in a row."""
    return min(longest, first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))


class Backoff:
    """The pauses of one row of attempts.

    Args:
        first: seconds of the first pause.
        longest: seconds that no pause exceeds.
    """

    __slots__ = ("_failures", "_first", "_longest")

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def take(self) -> float:
        """Count a failure; the seconds to wait now."""
        self._failures += 1
        return pause_after(self._failures, self._first, self._longest)
