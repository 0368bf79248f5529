"""Callers that want the same at the same time share one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from app.turns import AT_ONCE, Turns

T = TypeVar("T")


class SharedCalls:
    """The calls that are under way, by what they are for; none is repeated while it runs.

    It keeps no results: what comes after the end of a call begins another.

    Args:
        turns: callers that have shared a call go on in turn.
    """

    def __init__(self, turns: Turns = AT_ONCE) -> None:
        self._turns = turns
        self._running: dict[Hashable, asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def running(self, key: Hashable) -> asyncio.Task[Any] | None:
        """What runs under `key`."""
        return self._running.get(key)

    def begin(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Begin a call, unless one runs under `key`; it goes on when its callers have gone."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.get_running_loop().create_task(call())
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    async def share(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `call`, or of the one that already runs under `key`."""
        task = self.begin(key, call)
        await _end_of(task)
        await self._turns.take()
        return task.result()

    async def settle(self, key: Hashable) -> None:
        """Wait for a call that runs under `key`: its answer may be older than the question."""
        if (task := self._running.get(key)) is not None:
            await _end_of(task)

    async def close(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, even if every caller has gone


def _end_of(task: asyncio.Task[Any]) -> asyncio.Future[None]:
    """Done when a task is. A caller that goes away takes nothing with it, and one of thousands is cheap."""
    ended = asyncio.get_running_loop().create_future()

    def end(_: object) -> None:
        if not ended.done():
            ended.set_result(None)

    task.add_done_callback(end)
    return ended
