"""The bytes of a connection to a node: any number of exchanges at once, and notices between.

Where `app.backplane.wire` has one exchange at a time, the types of a node share a connection, and a type
that waits must not keep the others from it. Replies come in the order of the commands.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import InvalidResponse

from app.backplane import redis_private
from app.backplane.wire import CLOSED, MORE, as_failure, new_parser

_PATIENCE = 0.5
"""Seconds without an answer after which a node counts as stopped; a shorter exchange fails alone."""


class _Exchange:
    """Commands whose replies are on their way."""

    __slots__ = ("answers", "done", "missing")

    def __init__(self, replies: int, done: asyncio.Future[list[Any]]) -> None:
        self.answers: list[Any] = []
        self.missing = replies
        self.done = done

    def take(self, answer: Any) -> bool:
        """Take a reply; returns whether it is the last."""
        self.answers.append(answer)
        self.missing -= 1
        return not self.missing


class Pipeline(asyncio.Protocol):
    """Exchanges over one open connection.

    Args:
        connection: of redis-py, open, without a reply to wait for. What it holds is taken from it.
        notice: is given each push of the server.
        lost: is called when the connection has ended.

    Raises:
        LostConnection: it is closed.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        notice: Callable[[list[Any]], None],
        lost: Callable[[Pipeline], None],
    ) -> None:
        writer = redis_private.writer_of(connection)
        if writer is None or writer.transport.is_closing():
            raise LostConnection(CLOSED)
        redis_private.take_streams(connection)
        self._writer = writer  # which would close the transport if nothing referred to it
        self._transport = writer.transport
        self._notice = notice
        self._lost = lost
        self._parser = new_parser(redis_private.reply_error_of(connection))
        self._running: deque[_Exchange] = deque()
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether an exchange can be begun."""
        return not self._transport.is_closing()

    async def exchange(self, packed: bytes, replies: int, timeout: float) -> list[Any]:
        """Send commands, and return their replies; an error reply is an exception among them.

        Args:
            packed: the commands.
            replies: how many they are.
            timeout: seconds. A node that takes so long has stopped: all exchanges of the connection end.

        Raises:
            TimeoutError: the replies have not come in time.
            RedisError: the connection is lost, or a reply says that it cannot be used.
        """
        if not self.is_open:
            raise LostConnection(CLOSED)
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._running.append(_Exchange(replies, done))
        self._transport.write(packed)
        try:
            async with asyncio.timeout(timeout):
                return await done
        except TimeoutError:
            if timeout >= _PATIENCE:
                self.abort()
            raise

    def abort(self) -> None:
        """End the connection."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Hand out replies and pushes."""
        try:
            self._parser.feed(data)
            while (answer := self._parser.gets()) is not MORE:
                if isinstance(answer, hiredis.PushNotification):
                    self._notice(answer)
                else:
                    self._take(answer)
        except Exception as error:  # noqa: BLE001 (it is that of the exchanges)
            self._fail(as_failure(error))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchanges."""
        error = LostConnection(CLOSED)
        error.__cause__ = exc
        self._fail(error)
        self._lost(self)

    def _take(self, answer: Any) -> None:
        if not self._running:
            raise InvalidResponse("a reply to no command")
        if isinstance(answer, LostConnection):
            raise answer
        exchange = self._running[0]
        if exchange.take(answer):
            self._running.popleft()
            if not exchange.done.done():  # else it was cancelled
                exchange.done.set_result(exchange.answers)

    def _fail(self, error: Exception) -> None:
        running, self._running = self._running, deque()
        for exchange in running:
            if not exchange.done.done():
                exchange.done.set_exception(error)
