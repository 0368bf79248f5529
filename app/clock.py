"""A clock for durations between processes: Unix time that makes no steps."""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()


def steady_time() -> float:
    """Unix time in seconds, without the changes of the clock since this process started."""
    return _OFFSET + time.monotonic()


def running_time() -> float:
    """Seconds since the machine started, those that it slept included; makes no steps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
