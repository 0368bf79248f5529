"""A shared server, a machine with a replica of it, and a way between the two that can be hurt."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import redis

from app.backplane.client import Backplane
from app.backplane.publisher import StreamPublisher
from app.backplane.reader import StreamReader
from app.backplane.replica import ReplicaFile, ReplicaRoute
from app.clock import steady_time
from app.config import Settings
from app.errors import BackplaneUnavailable
from app.types import Gap, Message, Position
from tests.support.backplane import draft
from tests.support.waiting import until
from workers.leader import replica, valkey
from workers.shared import paths

LONG = 30.0
"""Seconds within which everything must be over."""


class Way:
    """Connections to a server, of which those of its replicas can be cut or frozen.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._replicas: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.refuses = False
        """Whether replicas are sent away."""
        self.links = 0
        """Connections that replicas have opened."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def freeze(self) -> None:
        """Let nothing more reach the replicas, with their connections open."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """End the connections of replicas."""
        for writer in list(self._replicas):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            upstream, up = await asyncio.open_connection("127.0.0.1", self._target)
            for coroutine in (self._up(reader, up, writer), self._down(upstream, writer)):
                task = asyncio.create_task(coroutine)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _up(
        self,
        reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    if b"REPLCONF" in data or b"PSYNC" in data:
                        self.links += writer not in self._replicas
                        self._replicas.add(writer)
                        if self.refuses:
                            break
                    upstream.write(data)
                    await upstream.drain()
        finally:
            self._replicas.discard(writer)
            upstream.transport.abort()
            writer.transport.abort()

    async def _down(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await upstream.read(65536):
                    if writer in self._replicas:
                        await self._open.wait()
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.transport.abort()


class Reading:
    """One worker that reads."""

    def __init__(self, settings: Settings, place: tuple[str, Path], number: int) -> None:
        url, note = place
        self.backplane = Backplane(settings.backplane_url, settings, f"reader{number}")
        self.route = ReplicaRoute(
            url, f"read-{number}", ReplicaFile(note).read, self.backplane.note_well
        )
        self.reader = StreamReader(self.backplane, steady_time, self.route)
        self.seen: list[Message | Gap] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.backplane.connect(asyncio.get_running_loop().time() + 5)
        await self.reader.start()
        self._tasks = [
            asyncio.create_task(self.route.watch()),
            asyncio.create_task(self._read()),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.route.close()
        await self.backplane.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _read(self) -> None:
        while True:
            self.seen += (await self.reader.read()).messages

    @property
    def bodies(self) -> list[bytes]:
        return [item.body for item in self.seen if isinstance(item, Message)]

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.seen if isinstance(item, Gap)]


class Machine:
    """The replica of a machine with its leader, workers that read, and one far away that publishes.

    Args:
        url: of the shared server.
        workers: that read.
        memory: bytes that the replica may take.
        follows: whether there is a replica at first.
    """

    def __init__(
        self,
        url: str,
        workers: int = 2,
        memory: int = 2**40,
        *,
        follows: bool = True,
        **settings: object,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="yj-r-")
        self.data_dir = Path(self._directory.name)
        self.settings = dataclasses.replace(
            Settings(),
            backplane_url=url,
            backplane_replica="auto",
            data_dir=self.data_dir,
            workers=max(2, workers),
            **settings,  # type: ignore[arg-type]
        )
        where = replica.url(self.settings)
        assert where is not None
        self._url = where
        self._memory = memory
        self._follows = follows
        self.notes = ReplicaFile(paths.replica_note(self.data_dir))
        place = (where, paths.replica_note(self.data_dir))
        self.workers = [Reading(self.settings, place, number) for number in range(workers)]
        self._publishing = Backplane(url, self.settings, "publisher")
        self._publisher = StreamPublisher(self._publishing, {}, time.time)
        self.stored: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._leader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        paths.make_private(paths.runtime_dir(self.data_dir))
        await self._publishing.connect(asyncio.get_running_loop().time() + 5)
        if self._follows:
            self.lead()
        for worker in self.workers:
            await worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.unlead()
            for worker in self.workers:
                await worker.close()
            await self._publishing.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                self.cont()  # a stopped one would not end
            await asyncio.to_thread(valkey.stop, self.data_dir)
            replica.forget(self.data_dir)
            self._directory.cleanup()

    def lead(self) -> None:
        """Let a leader run the replica."""
        self._leader = asyncio.create_task(replica.Replica(self.settings, self._memory).run())

    async def unlead(self) -> None:
        """End the leader; the replica goes on running."""
        if self._leader is not None:
            self._leader.cancel()
            await asyncio.wait([self._leader])
            self._leader = None

    @property
    def pid(self) -> int:
        found = valkey.find(self.data_dir, paths.replica_place)
        if found is None:
            raise ProcessLookupError
        return found

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A client of the replica."""
        place = paths.replica_place(self.data_dir)
        return redis.Redis(unix_socket_path=str(place.socket), decode_responses=True)

    async def reads(self, *, replica: bool) -> None:
        """Wait until all workers read from the replica, or from the primary."""
        what = "the replica" if replica else "the primary"
        await until(
            lambda: all(worker.route.is_read is replica for worker in self.workers),
            f"all read from {what}",
            LONG,
        )

    @contextlib.asynccontextmanager
    async def stream(self, pause: float = 0.005) -> AsyncIterator[None]:
        """Publish numbered messages one after another meanwhile."""
        task = asyncio.create_task(self._publish(pause))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def publish(self, number: int) -> None:
        """Publish one of them, however often that takes."""
        body = b'{"n":%d' % number
        async with asyncio.timeout(LONG):
            while True:
                with contextlib.suppress(BackplaneUnavailable):
                    deadline = asyncio.get_running_loop().time() + 5
                    (position,) = await self._publisher.store(
                        [draft(body, id=f"stream-{number}")], deadline
                    )
                    assert isinstance(position, Position)
                    break
        self.stored.append(body)

    async def _publish(self, pause: float) -> None:
        while True:
            await self.publish(len(self.stored) + 1)
            await asyncio.sleep(pause)

    async def goes_on(self, count: int = 50) -> None:
        """Wait until so many more are stored, and read by all."""
        wanted = len(self.stored) + count
        await until(
            lambda: (
                len(self.stored) >= wanted
                and all(len(worker.bodies) >= wanted for worker in self.workers)
            ),
            "the stream goes on for all",
            LONG,
        )

    async def assert_nothing_lost(self) -> None:
        """Every worker has read everything once, in order, and no gap."""
        await until(
            lambda: all(len(worker.seen) >= len(self.stored) for worker in self.workers),
            "all have read everything",
            LONG,
        )
        for worker in self.workers:
            assert worker.gaps == []
            assert worker.bodies[: len(self.stored)] == self.stored
            assert len(worker.bodies) <= len(self.stored) + 1
