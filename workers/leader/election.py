"""One worker of the machine leads: it watches over the private Valkey and runs the collector.

The leader is the worker that holds the lock of a file. The kernel takes the lock from a process that
dies; a worker that leaves gives it up. The others ask for it every `INTERVAL`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from app.backoff import Backoff
from app.seconds import REST, next_second
from app.supervisor import Supervisor
from workers.shared.locks import FileLock, is_at, reopen_lock

Duty = Callable[[], Coroutine[Any, Any, None]]

INTERVAL = 2
"""Seconds between two looks at the lock."""
_FIRST_BACKOFF, _LONGEST_BACKOFF = 1.0, 30.0
"""Seconds before a duty that has failed is begun again: the first pause and the longest."""

logger = logging.getLogger(__name__)


async def _next_look() -> None:
    await next_second(INTERVAL, REST)


class Leader:
    """Tries to lead from `start` to `stop`, and does its duties while it does.

    A duty is cancelled when leadership ends, and begun again, ever more slowly, when it raises.

    Args:
        lock: the file. A process has one `Leader` per file.
        pause: waits between two looks.
    """

    def __init__(self, lock: Path, pause: Callable[[], Awaitable[object]] = _next_look) -> None:
        self._lock = lock
        self._pause = pause
        self._duties: list[Duty] = []
        self._running: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.leading = False
        """Whether this process leads."""
        self._fault = ""
        """Why the file could not be opened the last time; empty: it could."""

    def add(self, duty: Duty) -> None:
        """Add a duty, which begins at once when this process leads already."""
        self._duties.append(duty)
        if self.leading:
            self._begin(duty)

    async def start(self) -> None:
        """Begin to try; does not wait for the lock. Nothing happens when it is running."""
        if self._task is None:
            self._task = Supervisor().start("leader", self._run, vital=False)

    async def stop(self) -> None:
        """Give leadership up, when the duties have ended, and try no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        opened: list[int] = []
        try:
            while True:
                await self._acquire(opened)
                logger.info("This worker leads now")
                self.leading = True
                for duty in self._duties:
                    self._begin(duty)
                await self._hold(opened)
                logger.warning(
                    "Another worker leads: %s was removed, and is another file", self._lock
                )
                await self._end_duties()
        finally:
            await self._end_duties()
            for fd in opened:
                os.close(fd)

    async def _acquire(self, opened: list[int]) -> None:
        """Wait for the lock of the file that is there now; its descriptor is the last one."""
        while True:
            if not opened or not is_at(self._lock, opened[-1]):
                if opened:  # removed: the leader, if there is one, is to lock the new one first
                    await self._pause()
                    await self._pause()
                if not self._open(opened):
                    await self._pause()
                    continue
            if FileLock(opened[-1]).try_enter():
                return
            await self._pause()

    async def _hold(self, opened: list[int]) -> None:
        """Return when the file was removed and another process has locked the one in its place."""
        while True:
            await self._pause()
            if is_at(self._lock, opened[-1]):
                continue
            # The locks of the removed ones are kept as well, for processes that still use them.
            if not self._open(opened):
                continue  # nor can another process
            if not FileLock(opened[-1]).try_enter():
                return
            logger.warning("%s was removed; it is there again", self._lock)

    def _open(self, opened: list[int]) -> bool:
        """Open the file that is there now, or make it; False when that cannot be done."""
        try:
            opened.append(reopen_lock(self._lock))
        except OSError as error:
            if str(error) != self._fault:
                logger.error("The leader's lock cannot be opened, which is tried again: %s", error)
            self._fault = str(error)
            return False
        self._fault = ""
        return True

    async def _end_duties(self) -> None:
        self.leading = False
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _begin(self, duty: Duty) -> None:
        task = asyncio.create_task(_keep(duty))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _keep(duty: Duty) -> None:
    pauses = Backoff(_FIRST_BACKOFF, _LONGEST_BACKOFF)
    while True:
        try:
            await duty()
            return
        except Exception:
            delay = pauses.take()
            logger.exception("A task of the leader failed; it restarts in %g s", delay)
        await asyncio.sleep(delay)
