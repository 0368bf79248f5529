"""A real Valkey that tests can hurt, and the backplane side of a worker on top of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from app.backplane.client import Backplane
from app.backplane.publisher import StreamPublisher
from app.backplane.reader import Batch, StreamReader
from app.config import Settings
from app.types import Draft, Gap, Message, Priority

_numbers = itertools.count(1)


class Node:
    """The backplane side of one worker."""

    def __init__(self, url: str, settings: Settings, clock: Callable[[], float]) -> None:
        self.backplane = Backplane(url, settings, "test")
        self.reader = StreamReader(self.backplane)
        self.publisher = StreamPublisher(self.backplane, self.reader.positions, clock)

    async def publish(self, *drafts: Draft, within: float = 5.0) -> list[Any]:
        return await self.publisher.store(drafts, asyncio.get_running_loop().time() + within)

    async def read(self, count: int, within: float = 10.0) -> list[Message | Gap]:
        """Read until `count` messages and gaps have come."""
        items: list[Message | Gap] = []
        async with asyncio.timeout(within):
            while len(items) < count:
                items += (await self.reader.read()).messages
        return items

    async def read_control(self, count: int) -> Batch:
        complete = Batch()
        async with asyncio.timeout(10):
            while len(complete.control) < count:
                batch = await self.reader.read()
                complete.control += batch.control
                complete.control_lost |= batch.control_lost
        return complete


MakeNode = Callable[..., Awaitable[Node]]


def draft(
    body: bytes = b"",
    type: str = "status",
    *,
    id: str = "",
    accepted: float | None = None,
    priority: Priority = Priority.NORMAL,
) -> Draft:
    """A message; with an `id` it is stored once."""
    return Draft(
        type=type,
        event=f"{type}_update",
        id=id or f"id-{next(_numbers)}",
        body=body or b'{"n":%d' % next(_numbers),
        accepted=time.time() if accepted is None else accepted,
        priority=priority,
        once=bool(id),
    )
