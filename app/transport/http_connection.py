"""HTTP connections that can go on in another worker, between two requests.

aiohttp reads and answers on them; what is added is the knowledge that a connection is at rest:
nothing of a request has arrived and no answer is owed. Then its descriptor is all there is of it.

A frequent request may be served without aiohttp (`Calls`) on a connection that is at rest.

aiohttp drops what arrives on any connection once its own shutdown has begun, so it must not begin
while a request is in progress.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import socket
from collections.abc import Coroutine, Iterator
from typing import Any, Protocol

from aiohttp import hdrs, web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from app.seconds import REST, SecondCall, call_next_second
from app.transport.http_guard import (
    HEAD_SECONDS,
    Guard,
    GuardedConnection,
    Waiting,
    head_size,
    with_what_is_known,
)
from app.turns import Turns

logger = logging.getLogger("realtime.http")

BEGIN_COST = 0.0003
"""Seconds that the first request of a connection of aiohttp's costs, more or less."""
MOST_BEGINNING = 64
"""Connections that wait for their turn to begin, from which on no others are accepted."""
SWEEP_SECONDS = 0.25
"""Between two looks at the deadlines, while there are any; else they are looked at once a second, or rarely at rest."""
_END = b"\r\n\r\n"
"""Of a head, and of a body in chunks."""
_KEPT = len(_END) - 1
_UNKNOWN = -1
MAX_UNREAD = 1024
"""Bytes of a body in chunks that are parsed before its request is let in: chunks of a byte cost 1 us each, and
the body of a request that is refused is never parsed."""
MAX_KEPT = 16 * 1024
"""Bytes of a request that its connection may keep until the next one, or while its answer is held back."""
MAX_LATER = 64 * 1024
"""Bytes behind a request that is served without aiohttp, past which nothing more is read."""


class Take(enum.Enum):
    """What becomes of the bytes of a request."""

    PASS = enum.auto()
    """They are for aiohttp."""
    INCOMPLETE = enum.auto()
    """The rest of the request is to come; it is to be shown again with that."""
    TAKEN = enum.auto()
    """It is served, and its caller gets the answer; it may have got it by now."""


PASS, INCOMPLETE, TAKEN = Take.PASS, Take.INCOMPLETE, Take.TAKEN


class Caller(Protocol):
    """Where an answer goes."""

    def reply(self, answer: bytes, keep: bool) -> None:
        """Send an answer, and close the connection unless it is kept. Raises nothing."""


class Calls(Protocol):
    """Serves frequent requests without aiohttp."""

    @property
    def in_progress(self) -> int:
        """Requests that are not answered yet."""

    async def wait_settled(self) -> None:
        """Wait until no request is in progress."""

    def take(self, data: bytes, peer: str | None, caller: Caller, /) -> Take:
        """Serve a request, if it is one of those. Raises nothing.

        Args:
            data: from the first byte of the request on.
            peer: the address of the peer; "" on a Unix socket, None when it was gone before it was asked for.
            caller: gets the answer, once.
        """


CALLS: web.AppKey[Calls] = web.AppKey("CALLS", Calls)
"""Where an application keeps what serves frequent requests."""


class HttpConnection(GuardedConnection):
    """A connection of aiohttp's server that knows whether it is between two requests.

    It counts the bytes of each body. Where it cannot follow (requests that are sent before the
    last one was answered), it says that the connection is not at rest, which only means that it
    stays with its worker until the next request, or until the worker ends.
    """

    __slots__ = (
        "_accepted_from",
        "_body",
        "_chunked",
        "_first",
        "_has_ended",
        "_held",
        "_is_answered",
        "_is_calling",
        "_is_let_in",
        "_last",
        "_later",
        "_missing",
        "_owed",
        "_refusal",
        "_unread",
        "_waited",
    )

    _accepted_from: str | None
    """The address of the peer; "" on a Unix socket, None where another worker has accepted it."""
    _missing: int
    """Bytes of the body that are still to come; 0: a request is to begin; -1: not known."""
    _chunked: StreamReader | None
    """A body in chunks that has not ended."""
    _unread: int
    """Bytes of such a body that have come before its request was let in."""
    _body: bytes
    """The beginning of what is not parsed of it."""
    _is_let_in: bool
    """The body of the present request is read by a handler."""
    _is_answered: bool
    """The answer to the present request has begun: what comes of a body that was not let in is dropped."""
    _last: bytes
    """The last bytes of a head or of chunks that have not ended: the end may be cut."""
    _first: bytes
    """What was read before aiohttp had the connection."""
    _has_ended: bool
    """The client has closed its side: nothing more comes."""
    _refusal: Exception | None
    """Why its first request is refused, if that was found out before."""
    _held: bytes
    """The beginning of a request that may be served without aiohttp."""
    _is_calling: bool
    """Such a request is being served, or what came behind it is about to be."""
    _later: bytes
    """What has come behind it."""
    _waited: float
    """Seconds for which the rest of a body was waited for before aiohttp had its request."""
    _owed: tuple[bytes, bool] | None
    """The rest of an answer that was begun before, and whether the connection is kept."""

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._missing, self._chunked, self._last = 0, None, b""
        self._unread, self._body = 0, b""
        self._is_let_in = self._is_answered = False
        self._first, self._refusal = b"", None
        self._held, self._is_calling, self._later, self._owed = b"", False, b"", None
        self._waited = 0.0
        self._has_ended = False
        self._accepted_from = None

    @property
    def peername(self) -> Any:
        """The address of the peer, which the kernel no longer knows when the client has reset the connection."""
        return super().peername if self._accepted_from is None else self._accepted_from

    def begins_with(
        self, place: Waiting, peer: str, data: bytes, refusal: Exception | None, waited: float
    ) -> None:
        """Go on with a connection that was read from; to be called before `connection_made`.

        Args:
            place: what stands in the guard's row for it.
            peer: the address that it was accepted from.
            data: what was read.
            refusal: for `take_refusal`.
            waited: for `take_waited`.
        """
        self._place, self._first, self._refusal = place, data, refusal
        self._accepted_from = peer
        self._waited = waited

    def goes_on(self, peer: str, unsent: bytes, keep: bool) -> None:
        """Go on with a connection whose first request was answered; before `connection_made`.

        Args:
            peer: the address that it was accepted from.
            unsent: the rest of the answer.
            keep: whether another request may follow.
        """
        self._request_count = 1
        self._owed = unsent, keep
        self._accepted_from = peer

    def take_waited(self) -> float:
        """Seconds for which the rest of the body was waited for before; once."""
        waited, self._waited = self._waited, 0.0
        return waited

    def take_refusal(self) -> Exception | None:
        """Why the request is refused, if that was found out before it was aiohttp's; once."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A request is to begin, or has begun."""
        super().connection_made(transport)
        first, self._first = self._first, b""
        if self._request_count and self._owed is None:
            self._guard.rest(self)  # another worker has answered its requests
        if self._owed is not None:
            self._is_calling = True
            self.reply(*self._owed)
        if first:
            self.data_received(first)
            if self._buffer_paused:
                # uvloop begins to read when this returns, whatever was asked for before.
                self._loop.call_soon(self._pause_again)

    def _pause_again(self) -> None:
        if self._buffer_paused:
            self.pause()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._held = self._later = self._body = b""
        self._guard.forget(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it
        """Stay open: a client that closes its side still gets the answers it waits for."""
        self._has_ended = True
        self._fail_bodies()
        # aiohttp may be about to begin with a request.
        self._loop.call_soon(self._end_if_idle)
        return True

    def _end_if_idle(self) -> None:
        if self._expects_request() and not self._is_calling:
            self.force_close()

    def data_received(self, data: bytes) -> None:
        """Let aiohttp parse, unless the request needs no more than a call."""
        if self._is_calling:
            self._later += data
            if len(self._later) > MAX_LATER:
                self.pause()
            return
        if not data or self._manager is None:
            # aiohttp goes on with what it has, for a handler whose client may be gone.
            self._pass(data)
            return
        calls = self._manager.calls  # type: ignore[attr-defined]
        if calls is not None and self.is_between_requests and not self._waited:
            data, self._held = self._held + data, b""
            self._is_calling = True  # the answer may come at once
            found = calls.take(data, self._peer(), self)
            if found is TAKEN:
                self._request_count += 1
                self._guard.end_wait(self._place)
                return
            self._is_calling = False
            if found is INCOMPLETE:
                self._held = data
                self._guard.wait(self._place)
                return
        self._pass(data)

    def reply(self, answer: bytes, keep: bool) -> None:
        """Send the answer to a request that was served without aiohttp."""
        self._owed = None
        transport = self.transport
        if transport is None or transport.is_closing():
            self._is_calling = False
            return
        if answer:
            transport.write(answer)
            self.watch_rest()
        if not keep or (self._has_ended and not self._later):
            self._is_calling = False
            self.force_close()
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._guard.rest(self)
        if self._later:
            # Not at once: answers that are ready at once would nest. What is read until then comes
            # behind, since the connection is calling still.
            self._loop.call_soon(self._go_on)
        else:
            self._is_calling = False

    def _go_on(self) -> None:
        later, self._later, self._is_calling = self._later, b"", False
        if len(later) > MAX_LATER:
            self.resume()
        if self.transport is not None:
            self.data_received(later)

    def _peer(self) -> str | None:
        name = self.peername
        address = name[0] if isinstance(name, tuple) else name
        return None if address is None else address.partition("%")[0]

    def give_up(self) -> None:
        """The rest of a request has not come in time: let aiohttp wait for it, or end it."""
        held, self._held = self._held, b""
        if held and not self._is_calling:
            self._pass(held)
            self._waited = HEAD_SECONDS
        elif self._request_in_progress or self._messages:
            self._guard.wait(self._place)  # the answer to the request before it comes first
        else:
            super().give_up()

    def let_body_in(self) -> None:
        """Let aiohttp parse the body of the present request: a handler reads it."""
        self._is_let_in = True
        body, self._body = self._body, b""
        if body:
            self.resume()  # before aiohttp may pause it again
            self._parse(body)

    def _handle_request(
        self, request: web.BaseRequest, *others: Any
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """The request is in progress from now on: aiohttp says so only when the task of its handler begins."""
        self._request_in_progress, self._current_request = True, request
        return super()._handle_request(request, *others)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Answer; the connection ends with it where a body was not let in, or much of the request remains.

        aiohttp keeps a request until the next one, with what has come of its body and was not read.
        """
        self._is_answered = True
        size = head_size(request.raw_path, request.raw_headers)
        if not request.content.at_eof():
            size += request.content.total_bytes
        if (self._body or size > MAX_KEPT) and isinstance(
            resp, web.StreamResponse
        ):  # else aiohttp says what a handler has returned
            resp.force_close()
        if self._body:
            self._body = b""
            self.resume()
        behind = self._message_tail if self._upgraded else b""
        finished = await super().finish_response(request, resp, start_time)
        if behind and not self._upgraded:
            # Of an upgrade that was declined: aiohttp has parsed it by now.
            self._expect_rest(behind.rpartition(_END)[2])
        self.watch_rest()
        if self.transport is not None:
            self._guard.rest(self)
        if self._has_ended and not self._messages:
            self.close()
        return finished

    def _pass(self, data: bytes) -> None:
        """Let aiohttp parse what is not a body in chunks whose request is not let in yet."""
        end = self._find_end(data)
        if end:
            self._parse(data[:end])
            data = data[end:]
        if self._chunked is not None and not self._is_let_in and data:
            self._unread += len(data)
            if self._unread > MAX_UNREAD:
                if not self._is_answered:
                    self._body += data
                    self.pause()
                return
        self._parse(data)

    def _find_end(self, data: bytes) -> int:
        """Where the head of a request ends in `data`, if a body in chunks may follow in it; else 0."""
        if len(data) <= MAX_UNREAD or self._missing > 0 or self._chunked is not None:
            return 0
        place = (self._last + data).find(_END)
        end = place + len(_END) - len(self._last)
        return end if place >= 0 and (self._last or b"hunked" in data[:end].lower()) else 0

    def _parse(self, data: bytes) -> None:
        """Let aiohttp parse, and follow where a request ends."""
        before = self._request_count
        super().data_received(data)
        arrived = self._request_count - before
        if arrived and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._fail_bodies()
        if arrived and before:
            self._waited = 0.0
        if arrived == 1 and self._messages:
            message, payload = self._messages[-1]
            self._begin(message, payload, self._last + data)
        elif arrived:
            self._missing, self._chunked, self._last = _UNKNOWN, None, b""
            message, _ = self._messages[-1]
            if _has_no_body(message):
                self._expect_rest(data[data.rfind(_END) + len(_END) :])
        elif self._missing > 0:
            further = len(data) - self._missing
            self._missing = max(-further, _UNKNOWN)
            if further > 0:
                self._expect_rest(data[-further:])
        elif self._chunked is not None:
            self._follow_chunks(self._chunked, self._last + data)
        elif data:
            if self._missing == 0 and not self._guard.waits(self._place):
                self._expect_rest(data)  # the request before it is not answered yet
            self._missing = _UNKNOWN
            self._last = (self._last + data)[-_KEPT:]

    def _fail_bodies(self) -> None:
        """A body that has not ended goes on no more: the client has, or what it sends cannot be parsed.

        aiohttp would let its handler wait for the rest, where the fault is in a chunk's size or behind
        the last chunk.
        """
        bodies = [payload for _, payload in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        for body in bodies:
            if not body.is_eof() and body.exception() is None:
                body.set_exception(web.RequestPayloadError("the body ends early"))

    def _begin(self, message: Any, payload: StreamReader, data: bytes) -> None:
        """Find out how much of a body is to come when `data` has completed the head."""
        self._missing, self._chunked, self._last = _UNKNOWN, None, b""
        self._unread, self._is_let_in, self._is_answered = 0, False, False
        # An upgraded connection is HTTP no more; what is no request is answered with 400, and closed.
        if not isinstance(message, RawRequestMessage) or message.upgrade:
            return
        if message.chunked:
            self._follow_chunks(payload, data)
            return
        length = message.headers.get(hdrs.CONTENT_LENGTH, "0")
        end = data.find(_END)
        if end >= 0 and length.isdecimal():
            further = len(data) - end - len(_END) - int(length)
            self._missing = max(-further, _UNKNOWN)
            if further > 0:
                self._expect_rest(data[-further:])

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
        return not self._held and not self._later and self.is_between_requests

    @property
    def is_between_requests(self) -> bool:
        """Whether aiohttp waits for a request, of which it has nothing."""
        transport = self.transport
        return (
            self._missing == 0
            and not self._is_calling
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
            or self._is_calling
            or self._messages
            or (self.transport is not None and self.transport.get_write_buffer_size())
        )

    def pause(self) -> None:
        """Read nothing more."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again, if it is still open and aiohttp does not pause it as well: for what it holds already."""
        if (
            self.transport is not None
            and not self.transport.is_closing()
            and not self._buffer_paused
            and not self._reading_paused
        ):
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


def _has_no_body(message: Any) -> bool:
    return (
        isinstance(message, RawRequestMessage)
        and not message.upgrade
        and not message.chunked
        and message.headers.get(hdrs.CONTENT_LENGTH, "0") == "0"
    )


class HttpServer(web.Server):
    """Makes `HttpConnection`s, of sockets that were accepted here or by another worker.

    Args:
        made: the server that aiohttp has made for an application.
        guard: of its connections.
        calls: serves frequent requests; None: all are aiohttp's.
    """

    def __init__(self, made: web.Server, guard: Guard, calls: Calls | None = None) -> None:
        super().__init__(
            with_what_is_known(made.request_handler, guard),
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
        self.guard = guard
        self.calls = calls
        self._beginning: set[asyncio.Task[None]] = set()
        self._turns = Turns(guard.slices(), BEGIN_COST)
        self._timer: asyncio.TimerHandle | SecondCall = call_next_second(self._sweep)

    def __call__(self) -> HttpConnection:
        """The protocol of a connection that was accepted."""
        return HttpConnection(self, loop=self._loop, **self._kwargs)

    def _sweep(self) -> None:
        self.guard.sweep()
        if self.guard.has_deadlines:
            self._timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        else:
            self._timer = call_next_second(self._sweep, REST)

    async def shutdown(self, timeout: float | None = None) -> None:
        """End every connection."""
        self._timer.cancel()
        await super().shutdown(timeout)

    @property
    def is_behind(self) -> bool:
        """Whether more connections are to begin than can soon."""
        return len(self._beginning) >= MOST_BEGINNING

    def all(self) -> Iterator[HttpConnection]:
        """Connections that are open now, upgraded ones excepted."""
        return (one for one in self.connections if isinstance(one, HttpConnection))

    def begin(
        self,
        stream: socket.socket,
        place: Waiting,
        peer: str,
        data: bytes,
        refusal: Exception | None,
        waited: float = 0.0,
    ) -> HttpConnection:
        """Go on with a connection that was accepted elsewhere in this worker.

        Args:
            stream: non-blocking; the server owns it.
            place: what stands in the guard's row for it.
            peer: the address that it was accepted from; "" on a Unix socket.
            data: what was read from it.
            refusal: why its first request is refused, if that is known.
            waited: seconds for which the rest of a body was waited for.
        """
        connection = self()
        connection.begins_with(place, peer, data, refusal, waited)
        self._start(connection, stream, place, in_turn=True)
        return connection

    def go_on(
        self, stream: socket.socket, place: Waiting, peer: str, unsent: bytes, keep: bool
    ) -> None:
        """Go on with a connection whose first request was answered without aiohttp.

        Args:
            stream: non-blocking; the server owns it.
            place: what stood in the guard's row for it.
            peer: the address that it was accepted from; "" on a Unix socket.
            unsent: the rest of the answer.
            keep: whether another request may follow.
        """
        connection = self()
        connection.goes_on(peer, unsent, keep)
        self._start(connection, stream, place, in_turn=False)

    def _start(
        self, connection: HttpConnection, stream: socket.socket, place: Waiting, *, in_turn: bool
    ) -> None:
        task = self._loop.create_task(self._begin(connection, stream, place, in_turn))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(
        self, connection: HttpConnection, stream: socket.socket, place: Waiting, in_turn: bool
    ) -> None:
        try:
            if in_turn:
                await self._turns.take()
                if not self.guard.waits(place):
                    stream.close()  # it has made room for another one, or was silent for too long
                    return
            await self._loop.connect_accepted_socket(lambda: connection, stream)
        except OSError as error:
            logger.debug("A connection ended before it was served: %s", error)
            self.guard.end_wait(place)
            stream.close()

    @property
    def is_answering(self) -> bool:
        """Whether a request is in progress on some connection, upgraded ones excepted."""
        return any(one.is_answering for one in self.all()) or bool(
            self.calls is not None and self.calls.in_progress
        )

    async def all_begun(self) -> None:
        """Wait until aiohttp has the connections that it was given, and calls are answered."""
        if self.calls is not None:
            await self.calls.wait_settled()
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
