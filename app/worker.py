"""The life of one worker: it starts, serves, drains the connections that are left, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable

from app import delivery
from app.errors import CloseCode
from app.parts import Parts
from app.sessions.retry import retry_reason

logger = logging.getLogger("realtime.worker")

LEAVE_SECONDS = 2.0
"""How long a worker that stops waits for its clients to answer the close frame."""
STEP = 0.05
"""Seconds between two looks whether a drain is to be cut short."""
DRAIN_RATE = 100
"""Connections a second that a drain closes at least, if that takes less than DRAIN_SECONDS."""


def give_up(name: str, error: Exception) -> None:
    """Leave, since a loop keeps failing: clients would wait for ever, and recover elsewhere."""
    logger.critical("The worker exits: %s keeps failing", name, exc_info=error)
    os.kill(os.getpid(), signal.SIGTERM)


class Worker:
    """The life of one worker; each method is a step, in this order.

    What other processes have to do with it (successors, the leader) is in workers/runtime.py.

    Args:
        parts: of this worker.
        is_hurried: whether it stops without a drain. Asked again and again: it becomes true in
            the worker class, which a master of an older version may hold, and which signals nothing.
    """

    def __init__(self, parts: Parts, is_hurried: Callable[[], bool]) -> None:
        self.parts = parts
        self.is_hurried = is_hurried
        self._accepts = True
        self._ends_keep_alive = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to store, to deliver and to count."""
        parts, supervisor = self.parts, self.parts.supervisor
        parts.queue.start(supervisor)
        if parts.claims is not None:
            parts.claims.start(supervisor)
        if parts.attendance is not None:
            parts.attendance.start(supervisor)
        self._tasks = [
            supervisor.start(delivery.NAME, parts.delivery.run),
            supervisor.start("tick", parts.tick.run),
            supervisor.start("canary", parts.canary.run),
        ]
        if parts.replica is not None:
            self._tasks.append(supervisor.start("replica", parts.replica.watch, vital=False))
        if parts.remote_keys is not None:
            self._tasks.append(supervisor.start("keys", parts.remote_keys.run, vital=False))

    # While it serves.

    @property
    def accepts(self) -> bool:
        """Whether it takes new connections."""
        return self._accepts and not self.parts.canary.is_deaf

    @property
    def ends_keep_alive(self) -> bool:
        """Whether HTTP connections end with the next answer."""
        return self._ends_keep_alive

    # It leaves.

    def end_keep_alive(self) -> None:
        """Let HTTP connections end with the next answer: no worker can go on with them."""
        self._ends_keep_alive = True

    async def drain(self) -> None:
        """Close the connections that were not handed over, in even steps.

        So clients do not return at once.
        No new connection is taken from now on; HTTP requests are answered. Answers that handlers
        of this worker await may come meanwhile.
        """
        self._accepts = False
        seconds, manager = self.parts.settings.drain_seconds, self.parts.sessions.sio.manager
        sessions = self.parts.sessions.registry.all()
        self.parts.metrics.handed_over["drained"].inc(len(sessions))
        began = time.monotonic()
        until = began + min(seconds, len(sessions) / DRAIN_RATE)
        for number, session in enumerate(sessions):
            due = began + (until - began) * number / len(sessions)
            await self._wait_until(due, lambda: False)
            session.end(CloseCode.RESTART, retry_reason())
        await self._wait_until(began + seconds, lambda: not manager.awaits_answers())

    async def _wait_until(self, at: float, is_done: Callable[[], bool]) -> None:
        """Wait until a monotonic time, unless something is done before or the worker is hurried."""
        while not self.is_hurried() and not is_done() and (left := at - time.monotonic()) > 0:  # noqa: ASYNC110 (nothing signals it)
            await asyncio.sleep(min(left, STEP))

    # It stops.

    async def stop(self) -> None:
        """Close every connection, store what is queued, and stop."""
        if self._accepts and not self.is_hurried():
            await self.drain()
        self._accepts = False
        await self._end_connections()
        await self.parts.queue.close(LEAVE_SECONDS)
        await self._end_loops()
        if self.parts.claims is not None:
            await self.parts.claims.close()
        if self.parts.attendance is not None:
            await self.parts.attendance.close()
        with contextlib.suppress(Exception):
            self.parts.exports.export()
        if self.parts.replica is not None:
            await self.parts.replica.close()
        await self.parts.backplane.close()

    async def _end_connections(self) -> None:
        hub = self.parts.sessions.hub
        self.parts.sessions.registry.end_all()
        await hub.wait_empty(LEAVE_SECONDS)
        hub.stop()
        self.parts.tick.end()

    async def _end_loops(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
