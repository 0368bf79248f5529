"""Publishing: a message goes through the queue into its stream, and is counted when it is there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from app.broadcast.queue import BroadcastQueue
from app.metrics import Metrics
from app.protocol import envelope
from app.types import Draft, Position


class Publishing:
    """Where every message of this worker goes in.

    Args:
        queue: bounded over all workers; stores what it holds.
        metrics: counts what is stored.
    """

    def __init__(self, queue: BroadcastQueue, metrics: Metrics) -> None:
        self._queue = queue
        self._metrics = metrics

    def submit(self, draft: Draft) -> asyncio.Future[Position]:
        """Queue a message; see `BroadcastQueue.submit`. It is counted when it is stored."""
        future = self._queue.submit(draft)
        future.add_done_callback(lambda done: self._count(draft.type, done))
        return future

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

    def _count(self, type: str, done: asyncio.Future[Position]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._metrics.published[type].inc()
