"""What questions to the other workers share: the way there, how many answer, and the wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from app.ports import Slots


class Channel(Protocol):
    """The way to the other workers; see app/sessions/socketio/manager.py."""

    host_id: str
    """Names this worker among all."""

    async def send_and_read_back(self, message: dict[str, Any], /) -> None:
        """Store a message for all workers, and wait until this one has carried it out."""

    async def send_to_all(self, message: dict[str, Any], /) -> None:
        """Store a message for all workers."""

    def start_task(self, work: Coroutine[Any, Any, Any], /) -> object:
        """Run something beside what the stream brings."""


def count_others(slots: Slots) -> int:
    """How many other workers of this machine answer questions."""
    return sum(
        row.index != slots.index and row.state in {"ready", "leaving"} and not row.stats.get("deaf")
        for row in slots.rows()
    )


async def wait_for(news: asyncio.Event, seconds: float, condition: Callable[[], bool]) -> None:
    """Wait until a condition is true, `seconds` at most; it is looked at after each piece of news."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                news.clear()
                await news.wait()
