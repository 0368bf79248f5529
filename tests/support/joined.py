"""Workers that are joined in memory: what one sends to all, each carries out at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from tests.support.sessions import Worker
from tests.support.slots import new_table


class JoinedWorker(Worker):
    """A worker with sessions, and its way to the others: `app.sessions.asking.Channel`.

    What carries out messages is the caller's, in `send_to_all`.

    Args:
        stream: the workers before it; the caller adds it.
    """

    def __init__(self, stream: Sequence[JoinedWorker]) -> None:
        table = stream[0].slots.table if stream else new_table()
        super().__init__(table, max_connections_per_user=10)
        self.host_id = f"host{len(stream)}"
        self.is_mute = False
        self.registry = self.context.registry
        self.tasks: set[asyncio.Task[Any]] = set()

    def start_task(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def send_and_read_back(self, message: dict[str, Any]) -> None:
        await self.send_to_all({**message, "host_id": self.host_id})

    async def send_to_all(self, message: dict[str, Any]) -> None:
        raise NotImplementedError
