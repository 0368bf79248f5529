"""What all workers have lately counted for a key: a small table in the header of the slot file.

It remembers as many keys as have room. Each has four places where it may stand; when others have all of
them, the one with the lowest count gives way, so what comes often stays counted. Callers hold
the lock of the slot file. A process that is killed between two stores leaves a count of another key at most.
"""

from __future__ import annotations

_WAYS = 4
"""Places where a key may stand."""
_COUNT_BITS = 24
_MOST = (1 << _COUNT_BITS) - 1
_TIMES = 1 << 64 - _COUNT_BITS


class RecentTable:
    """Counts by key, each for a window of time that begins with the first count in it.

    Args:
        words: of the file, 8 bytes each and zero in a new file: two for each place.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._sets = len(words) // (2 * _WAYS)

    def count(self, key: int, now: float, window: float) -> int:
        """Count once for a key; returns the count of its window, this one included.

        Args:
            key: 64 bits, evenly drawn.
            now: seconds of a clock that all processes share.
            window: in seconds.
        """
        at, count, is_open = self._find(key, now, window)
        count = min(count, _MOST - 1) + 1 if is_open else 1
        self._store(at, key, None if is_open else now, count)
        return count

    def begin(self, key: int, now: float, window: float, waiting: int) -> int | None:
        """Begin a window, unless one is open.

        Args:
            key: 64 bits, evenly drawn.
            now: seconds of a clock that all processes share.
            window: in seconds.
            waiting: what the caller has counted for the key since its last call.

        Returns:
            What was counted since the last window began, by all; None: it is open, and has counted this call
            and what was waiting.
        """
        at, count, is_open = self._find(key, now, window)
        if is_open:
            self._store(at, key, None, min(count + waiting + 1, _MOST))
            return None
        self._store(at, key, now, 0)
        return count + waiting

    def _find(self, key: int, now: float, window: float) -> tuple[int, int, bool]:
        """Where a key is, or the one that gives way; its count, and whether its window is open."""
        words = self._words
        first = key % self._sets * 2 * _WAYS
        places = range(first, first + 2 * _WAYS, 2)
        for at in places:
            if words[at] == key and words[at + 1]:
                return at, words[at + 1] & _MOST, _is_open(words[at + 1], now, window)
        # One whose window is over before one that still counts.
        at = min(
            places, key=lambda at: (_is_open(words[at + 1], now, window), words[at + 1] & _MOST)
        )
        return at, 0, False

    def _store(self, at: int, key: int, began: float | None, count: int) -> None:
        words = self._words
        time = words[at + 1] >> _COUNT_BITS if began is None else round(began * 1000) % _TIMES
        words[at] = key
        words[at + 1] = time << _COUNT_BITS | count


def _is_open(word: int, now: float, window: float) -> bool:
    """Whether the window that a word says the beginning of is not over; nor is one of the future open."""
    return bool(word) and 0 <= now - (word >> _COUNT_BITS) / 1000 < window
