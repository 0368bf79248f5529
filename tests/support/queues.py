"""Messages in a broadcast queue, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from app.broadcast.queue import BroadcastQueue, Entry, answer
from app.errors import QueueOverflow
from app.types import Draft, Position


def futures_of(
    queue: BroadcastQueue, drafts: Sequence[Draft]
) -> list[asyncio.Future[Position] | QueueOverflow]:
    """Messages of one call: for each its future, or why it is refused."""
    futures: dict[int, asyncio.Future[Position]] = {}

    def future_of(entry: Entry) -> asyncio.Future[Position]:
        made = asyncio.get_running_loop().create_future()
        return futures.setdefault(id(entry), made)

    found = queue.submit_all(drafts, lambda entry: answer(future_of(entry), entry))
    return [one if isinstance(one, QueueOverflow) else future_of(one) for one in found]
