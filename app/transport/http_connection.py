"""HTTP connections that can go on in another worker, between two requests.

aiohttp reads and answers on them; what is added is the knowledge that a connection is at rest:
nothing of a request has arrived and no answer is owed. Then its descriptor is all there is of it.

aiohttp drops what arrives on any connection once its own shutdown has begun, so it must not begin
while a request is in progress.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from app.transport.http_guard import Guard, GuardedConnection, GuardedRunner, GuardedServer, Waiting

logger = logging.getLogger("realtime.http")

_END = b"\r\n\r\n"
"""Of a head, and of a body in chunks."""
_KEPT = len(_END) - 1
_UNKNOWN = -1


class HttpConnection(GuardedConnection):
    """A connection of aiohttp's server that knows whether it is between two requests.

    It counts the bytes of each body. Where it cannot follow (requests that are sent before the
    last one was answered), it says that the connection is not at rest, which only means that it
    stays with its worker until the next request, or until the worker ends.
    """

    __slots__ = ("_chunked", "_first", "_last", "_missing", "_refusal")

    _missing: int
    """Bytes of the body that are still to come; 0: a request is to begin; -1: not known."""
    _chunked: StreamReader | None
    """A body in chunks that has not ended."""
    _last: bytes
    """The last bytes of a head or of chunks that have not ended: the end may be cut."""
    _first: bytes
    """What was read before aiohttp had the connection."""
    _refusal: Exception | None
    """Why its first request is refused, if that was found out before."""

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._missing, self._chunked, self._last = 0, None, b""
        self._first, self._refusal = b"", None

    def begins_with(self, place: Waiting, data: bytes, refusal: Exception | None) -> None:
        """Go on with a connection that was read from; to be called before `connection_made`.

        Args:
            place: what stands in the guard's row for it.
            data: what was read.
            refusal: for `take_refusal`.
        """
        self._place, self._first, self._refusal = place, data, refusal

    def take_refusal(self) -> Exception | None:
        """Why the request is refused, if that was found out before it was aiohttp's; once."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A request is to begin, or has begun."""
        super().connection_made(transport)
        first, self._first = self._first, b""
        if first:
            self.data_received(first)

    def data_received(self, data: bytes) -> None:
        """Let aiohttp parse, and follow where a request ends."""
        before = self._request_count
        super().data_received(data)
        arrived = self._request_count - before
        if arrived == 1 and self._messages:
            message, payload = self._messages[-1]
            self._begin(message, payload, self._last + data)
        elif arrived:
            self._missing, self._chunked, self._last = _UNKNOWN, None, b""
        elif self._missing > 0:
            self._missing = max(self._missing - len(data), _UNKNOWN)
        elif self._chunked is not None:
            self._follow_chunks(self._chunked, self._last + data)
        elif data:
            self._missing = _UNKNOWN
            self._last = (self._last + data)[-_KEPT:]

    def _begin(self, message: Any, payload: StreamReader, data: bytes) -> None:
        """Find out how much of a body is to come when `data` has completed the head."""
        self._missing, self._chunked, self._last = _UNKNOWN, None, b""
        # An upgraded connection is HTTP no more; what is no request is answered with 400, and closed.
        if not isinstance(message, RawRequestMessage) or message.upgrade:
            return
        if message.chunked:
            self._follow_chunks(payload, data)
            return
        length = message.headers.get(hdrs.CONTENT_LENGTH, "0")
        end = data.find(_END)
        if end >= 0 and length.isdecimal():
            self._missing = max(int(length) - (len(data) - end - len(_END)), _UNKNOWN)

    def _follow_chunks(self, payload: StreamReader, data: bytes) -> None:
        if not payload.is_eof():
            self._missing, self._chunked, self._last = _UNKNOWN, payload, data[-_KEPT:]
            return
        # What follows the last chunk and is no request cannot end like one.
        self._missing = 0 if data.endswith(_END) else _UNKNOWN
        self._chunked, self._last = None, b""

    @property
    def requests(self) -> int:
        """Requests that were made on it, at workers before this one as well."""
        return self._request_count

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is owed to either side: another worker can go on with it."""
        transport = self.transport
        return (
            self._missing == 0
            and self._waiter is not None
            and not self._waiter.done()
            and not self._messages
            and not self._message_tail
            and not self._upgraded
            and not self._close
            and not self._force_close
            and transport is not None
            and not transport.is_closing()
            and transport.get_write_buffer_size() == 0
        )

    @property
    def is_answering(self) -> bool:
        """Whether the head of a request has arrived and its answer has not left."""
        return bool(
            self._request_in_progress
            or self._messages
            or (self.transport is not None and self.transport.get_write_buffer_size())
        )

    def pause(self) -> None:
        """Read nothing more."""
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again, if it is still open."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def descriptor(self) -> int:
        """The descriptor; it stays this connection's.

        Raises:
            OSError: the connection has just ended.
        """
        if self.transport is None or self.transport.is_closing():
            raise OSError("the connection has just ended")
        number: int = self.transport.get_extra_info("socket").fileno()
        return number

    def let_go(self) -> None:
        """Close the descriptor; the connection lives on by a duplicate."""
        if self.transport is not None:
            self.transport.abort()


class HttpServer(GuardedServer):
    """Makes `HttpConnection`s, of sockets that were accepted here or by another worker."""

    connection_class: type[HttpConnection] = HttpConnection

    def __init__(self, made: web.Server, guard: Guard) -> None:
        super().__init__(made, guard)
        self._beginning: set[asyncio.Task[None]] = set()

    def all(self) -> Iterator[HttpConnection]:
        """Connections that are open now, upgraded ones excepted."""
        return (one for one in self.connections if isinstance(one, HttpConnection))

    def begin(
        self, stream: socket.socket, place: Waiting, data: bytes, refusal: Exception | None
    ) -> HttpConnection:
        """Go on with a connection that was accepted elsewhere in this worker.

        Args:
            stream: non-blocking; the server owns it.
            place: what stands in the guard's row for it.
            data: what was read from it.
            refusal: why its first request is refused, if that is known.
        """
        connection = self.connection_class(self, loop=self._loop, **self._kwargs)
        connection.begins_with(place, data, refusal)
        task = self._loop.create_task(self._begin(connection, stream, place))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        return connection

    async def _begin(
        self, connection: HttpConnection, stream: socket.socket, place: Waiting
    ) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, stream)
        except OSError as error:
            logger.debug("A connection ended before it was served: %s", error)
            self.guard.heard(place)
            stream.close()

    async def all_begun(self) -> None:
        """Wait until aiohttp has the connections that it was given."""
        if self._beginning:
            await asyncio.wait(self._beginning)

    async def adopt(self, descriptor: int, requests: int) -> None:
        """Go on with a connection that was at rest at another worker; owns the descriptor.

        Args:
            descriptor: of the connection.
            requests: that were made on it so far.

        Raises:
            OSError: it cannot be served; the descriptor is closed.
        """
        connection = self()
        connection._request_count = requests
        try:
            stream = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            raise
        try:
            await self._loop.connect_accepted_socket(lambda: connection, stream)
        except BaseException:
            stream.close()
            raise


class HttpRunner(GuardedRunner):
    """Runs an application on an `HttpServer`."""

    __slots__ = ()

    server_class = HttpServer
