"""Gives memory back after a storm: a collector that goes by growth, and malloc's free pages.

Most memory is freed by reference counts, and what C allocates in large pieces goes back to the
kernel at once. What is left after a storm are reference cycles, which a collector that counts
objects does not look for while few but large ones pile up, and free pages between used ones in
malloc's heap. Measurements are in docs/design/memory.md.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Callable

GROWTH = 32 * 1024 * 1024
"""Bytes by which resident memory must have grown since the last time for anything to be done."""
PAUSE = 10.0
"""Seconds between two times."""
SETTLED_CHANGE = 500
"""Change of the number of connections from which on the collector is adjusted."""
LARGE = 256 * 1024
"""Bytes from which on malloc takes memory from the kernel for each piece, and gives it back."""
THRESHOLDS = 1000, 5, 4000
"""Of the collector: new objects, and collections of the generation below. A thousand objects take half a
millisecond where requests that fail leave them in cycles, five thousand 2 ms, and twenty thousand 10 ms, in which
nothing is delivered; a full collection is what `Memory` is for.
"""

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_ARENAS = 2
"""Heaps of malloc: the loop's, and one that all other threads share."""
_PAGE = resource.getpagesize()


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 (once a second)
        return int(file.read(100).split()[1]) * _PAGE


def prepare() -> None:
    """Set the collector and malloc, if this is glibc's, before the worker serves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)
        mallopt(_M_ARENA_MAX, _ARENAS)


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Memory:
    """Looks once a second at what this process uses, more rarely while nothing happens.

    Args:
        resident: bytes in RAM.
        collect: runs the collector.
        trim: gives malloc's free pages to the kernel.
        now: monotonic seconds.
    """

    def __init__(
        self,
        resident: Callable[[], int] = resident_bytes,
        collect: Callable[[], object] = gc.collect,
        trim: Callable[[], object] = _trim,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resident = resident
        self._collect = collect
        self._trim = trim
        self._now = now
        self._settled_at = 0
        self._last_count = 0
        self._last = self._least = resident()
        self._done_at = now()

    def look(self, connections: int) -> None:
        """Collect and trim if it is time to, which takes some milliseconds.

        Args:
            connections: of this worker. Long-lived ones are taken out of the collector's sight
                after a storm of connects: a full collection over ten thousand of them stops the
                loop for 50 ms.
        """
        settled = connections == self._last_count
        if settled and abs(connections - self._settled_at) >= SETTLED_CHANGE:
            self._settled_at = connections
            self._collect()
            gc.freeze()
        self._last_count = connections
        resident = self._resident()
        rises, self._last = resident > self._last, resident
        self._least = min(self._least, resident)
        # While it rises there is a storm, in which the loop has no time for this; but then it
        # must not rise for ever.
        limit = GROWTH * 4 if rises else GROWTH
        if resident - self._least < limit or self._now() - self._done_at < PAUSE:
            return
        self._collect()
        self._trim()
        self._done_at = self._now()
        self._last = self._least = self._resident()
