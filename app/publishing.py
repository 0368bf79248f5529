"""Publishing: a message goes through the queue into its stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from app.broadcast.queue import BroadcastQueue, Entry, Settled
from app.errors import QueueOverflow
from app.protocol import envelope
from app.types import Draft, Position


class Publishing:
    """Where every message of this worker goes in.

    Args:
        queue: bounded over all workers; stores what it holds.
        hurry: called when messages are on their way, so that nothing delays them.
    """

    def __init__(self, queue: BroadcastQueue, hurry: Callable[[], None] = lambda: None) -> None:
        self._queue = queue
        self._hurry = hurry

    def submit(self, draft: Draft) -> asyncio.Future[Position]:
        """Queue a message; see `BroadcastQueue.submit`."""
        self._hurry()
        return self._queue.submit(draft)

    def submit_all(
        self, drafts: Sequence[Draft], settled: Settled
    ) -> Sequence[Entry | QueueOverflow]:
        """Queue the messages of one call; see `BroadcastQueue.submit_all`."""
        self._hurry()
        return self._queue.submit_all(drafts, settled)

    async def publish(self, type: str, event: str, data: Any) -> Position:
        """Store a message of the service's own or of an application's `emit`.

        Raises:
            ClientError: QUEUE_OVERFLOW or BACKPLANE_UNAVAILABLE.
            ValueError, TypeError: `data` is not JSON.
        """
        id = envelope.new_id()
        body = envelope.body(type, event, data, id=id)
        return await self.submit(Draft(type, event, id, body, time.time()))

    async def send_control(self, message: dict[str, Any]) -> None:
        """Store a message from this worker to all workers.

        Raises:
            BackplaneUnavailable, QueueOverflow: it may not have been stored.
            ValueError, TypeError: it is not JSON.
        """
        await self._queue.send_control(envelope.encode_json(message))
