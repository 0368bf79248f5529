"""Workers that are joined in memory: what one sends to all, each carries out at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

from app.sessions.registry import Registry


class JoinedWorker:
    """The way of one worker to the others, `app.sessions.asking.Channel`, without `send_to_all`.

    Args:
        number: of the workers before it.
        stream: all of them; the caller adds it.
    """

    def __init__(self, number: int, stream: Sequence[object]) -> None:
        self.host_id = f"host{number}"
        self.is_mute = False
        self.registry = Registry()
        self.tasks: set[asyncio.Task[Any]] = set()
        self._stream = stream
        self.slots: Any = SimpleNamespace(index=number, rows=self._rows)

    def _rows(self) -> list[Any]:
        return [
            SimpleNamespace(index=number, state="ready", stats={})
            for number in range(len(self._stream))
        ]

    def start_task(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def add(self, *sessions: Any) -> None:
        for session in sessions:
            self.registry.by_id[session.id] = session

    async def send_and_read_back(self, message: dict[str, Any]) -> None:
        await self.send_to_all({**message, "host_id": self.host_id})

    async def send_to_all(self, message: dict[str, Any]) -> None:
        raise NotImplementedError
