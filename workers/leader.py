"""One worker of the machine leads: it watches over the private Valkey and runs the collector.

The leader is whoever holds the lock of a file. The kernel takes the lock from a process that
dies; a worker that leaves gives it up. The others ask for it a few times a second.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

Duty = Callable[[], Coroutine[Any, Any, None]]

_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 30.0

log = logging.getLogger(__name__)


class Leader:
    """Tries to lead from `start` to `stop`, and does its duties while it does.

    A duty is cancelled when leadership ends, and begun again, ever more slowly, when it raises.

    Args:
        lock: the file. A process has one `Leader` per file.
        interval: seconds between two tries for the lock.
    """

    def __init__(self, lock: Path, interval: float = 0.25) -> None:
        self._lock = lock
        self._interval = interval
        self._duties: list[Duty] = []
        self._running: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.leading = False
        """Whether this process leads."""

    def add(self, duty: Duty) -> None:
        """Add a duty, which begins at once when this process leads already."""
        self._duties.append(duty)
        if self.leading:
            self._begin(duty)

    async def start(self) -> None:
        """Begin to try; does not wait for the lock. Nothing happens when it is running."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Give leadership up, when the duties have ended, and try no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(fd):  # noqa: ASYNC110 (no event: the kernel does not tell)
                await asyncio.sleep(self._interval)
            log.info("This worker leads now")
            self.leading = True
            for duty in self._duties:
                self._begin(duty)
            await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            self.leading = False
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)
            os.close(fd)

    def _begin(self, duty: Duty) -> None:
        task = asyncio.create_task(_keep(duty))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _keep(duty: Duty) -> None:
    delay = _FIRST_BACKOFF
    while True:
        try:
            await duty()
            return
        except Exception:
            log.exception("A duty of the leader failed; it begins again in %g s", delay)
        await asyncio.sleep(delay)
        delay = min(_LONGEST_BACKOFF, delay * 2)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
