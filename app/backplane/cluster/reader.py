"""Reads every stream of a Cluster from where it was, each by itself, and joins what they bring.

A node refuses one XREAD over streams of several slots, even of its own. So each type has a reader, and
the readers of a node share one connection: the node says over it which streams have changed (CLIENT
TRACKING), and these are read. What stops one node stops the readers of its types and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import Any

from app.backplane.client import ANSWER_TIMEOUT, FAILURES, AnyLink
from app.backplane.cluster.client import ClusterBackplane
from app.backplane.cluster.link import SlotMoved
from app.backplane.faults import explain
from app.backplane.reader import Batch, StreamReader
from app.backplane.replica import ReplicaRoute
from app.backplane.scripts import new_epoch, stream_key
from app.errors import BackplaneUnavailable
from app.types import Gap, Position

logger = logging.getLogger(__name__)

START_PATIENCE = 3.0
"""Seconds for which a worker that starts waits for a type whose node does not answer."""
RETRY = 0.2
"""Seconds before a stream whose end could not be found is looked at again."""
NEWS_WAIT = 0.9
"""Seconds after which a stream is read though its node has not said that it has changed."""


class TypeReader(StreamReader):
    """Reads the stream of one type.

    Args:
        backplane: connected.
        type: the message type.
        unreadable: see `StreamReader`.
    """

    def __init__(self, backplane: ClusterBackplane, type: str, unreadable: Counter[str]) -> None:
        super().__init__(backplane, types=(type,), unreadable=unreadable)
        self.drained = asyncio.Event()
        """Set when all that was fetched is taken."""
        self._type = type
        self._key = stream_key(type)
        self._is_nowhere = False
        self._news = asyncio.Event()  # there may be messages after the last one read
        backplane.on_news(type, self._news.set)

    @property
    def pending(self) -> int:
        """What was fetched and is not taken."""
        return len(self._pending)

    def begin_nowhere(self) -> None:
        """Take a position before any message, in an epoch of its own: the stream cannot be read."""
        self._read[self._type] = self.positions[self._type] = Position(new_epoch().decode(), 0)
        self._prints[self._type] = None
        self._is_nowhere = self._is_lost = True

    async def _resume(self) -> None:
        if self._is_nowhere:
            (found,) = await self._locate([self._type])
            self._skip(self._type, Gap(self._type, found.epoch, 1, found.newest, "epoch"))
            self._is_nowhere = False
        await super()._resume()
        self._news.set()

    async def _fill(self, link: AnyLink, replica: ReplicaRoute | None = None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEWS_WAIT):
                await self._news.wait()
        if not link.connected:
            return
        self._news.clear()
        asked = self._count
        try:
            (reply,) = await link.call([self._ask_one(self._type)], ANSWER_TIMEOUT)
        except SlotMoved:
            self._has_moved = True
            return
        entries: list[Any] = (reply or {}).get(self._key, [])
        if len(entries) >= asked:
            self._news.set()
        await self._take_in([(self._key, entries)] if entries else [])


class ClusterReader:
    """As `StreamReader`, over all nodes.

    Args:
        backplane: connected.
    """

    def __init__(self, backplane: ClusterBackplane) -> None:
        self.positions: dict[str, Position] = {}
        """See `StreamReader`."""
        self.unreadable: Counter[str] = Counter()
        """See `StreamReader`."""
        self._backplane = backplane
        self._most = backplane.settings.broadcast_batch_size
        self._readers = {
            type: TypeReader(backplane, type, self.unreadable) for type in backplane.types
        }
        self._ready = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = list(self._readers)

    @property
    def reconnects(self) -> int:
        """Connections made anew after a loss, since the start."""
        return sum(reader.reconnects for reader in self._readers.values())

    async def start(self) -> None:
        """Take the ends of all streams as positions.

        A type whose node does not answer begins with a gap when it does.

        Raises:
            FAILURES: no node answers; may be called again.
        """
        until = asyncio.get_running_loop().time() + START_PATIENCE
        errors = await asyncio.gather(
            *(self._start(type, reader, until) for type, reader in self._readers.items())
        )
        failed = [error for error in errors if error is not None]
        if len(failed) == len(self._readers):
            raise failed[0]
        for type, reader in self._readers.items():
            self.positions[type] = reader.positions[type]

    async def read(self) -> Batch:
        """See `StreamReader`."""
        while True:
            for type, reader in self._readers.items():
                task = self._tasks.get(type)
                if task is None:
                    self._tasks[type] = self._backplane.spawn(self._follow(reader), f"read {type}")
                elif task.done():
                    del self._tasks[type]
                    task.result()
            batch = self._take()
            if batch.messages or batch.control or batch.control_lost:
                return batch
            self._ready.clear()
            await self._ready.wait()

    def lag(self) -> float:
        """See `StreamReader`; the longest of all types."""
        return max(reader.lag() for reader in self._readers.values())

    async def _start(self, type: str, reader: TypeReader, until: float) -> Exception | None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await reader.start()
            except (*FAILURES, BackplaneUnavailable) as error:
                if loop.time() < until:
                    await asyncio.sleep(RETRY)
                    continue
                logger.warning("Cannot read %s yet: %s", type, explain(error).words)
                reader.begin_nowhere()
                return error
            return None

    async def _follow(self, reader: TypeReader) -> None:
        try:
            while True:
                await reader.fetch()
                reader.drained.clear()
                self._ready.set()
                await reader.drained.wait()
        finally:
            self._ready.set()

    def _take(self) -> Batch:
        """What the types have fetched; the one that comes first is another each time."""
        batch = Batch()
        self._turn.append(self._turn.pop(0))
        for type in self._turn:
            reader = self._readers[type]
            room = self._most - len(batch.messages) - len(batch.control)
            if not reader.pending or room < 1:
                continue
            reader.take(batch, room)
            self.positions[type] = reader.positions[type]
            if not reader.pending:
                reader.drained.set()
        return batch
