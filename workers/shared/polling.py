"""Waits until a condition holds that only looking can tell: rows, processes, files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

INTERVAL = 0.02
"""Seconds between two looks."""


async def wait_until(
    condition: Callable[[], bool], seconds: float, interval: float = INTERVAL
) -> bool:
    """Look until a condition holds; False when it did not within `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(interval)
    return True


def block_until(condition: Callable[[], bool], seconds: float, interval: float = INTERVAL) -> bool:
    """The same in a process without a loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True
