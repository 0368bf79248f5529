"""aiohttp's server under guard: deadlines for heads of requests, and a reserve of descriptors.

What cannot be parsed is answered in JSON, and the bytes behind every upgrade request are kept. A
connection waits for a head from when it is accepted until its first request is parsed, and again from
the first byte of each later request. All waiting connections of a worker stand in one row by their
deadlines, so one timer serves them. Between two requests aiohttp's own keep-alive timeout applies.

The private names of aiohttp that this needs are checked at import.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from app.errors import ErrorCode
from app.protocol import http_answers
from app.protocol.envelope import encode_json
from app.transport import kernel
from app.transport.aiohttp_private import BadRequest, RequestHandler
from app.turns import SLICE, Slice

logger = logging.getLogger("realtime.http")

HEAD_SECONDS = 10.0
"""Time for the head of a request: from the accept for the first one, else from its first byte."""
MAX_FIELD = 16 * 1024
"""Bytes of a request line or of one header field."""
MAX_FIELDS = 128
"""Header fields of a request."""
MAX_HEAD = 64 * 1024
"""Bytes of a head that is not complete yet."""
LINGER_SECONDS = 2.0
"""Time in which a body that was answered before its end is read and dropped, so that the client
sees the answer rather than a reset."""
WRITE_SECONDS = 20.0
"""Time in which a client that is written to must take something of it."""
MOST_RESERVED = 64
LEAST_RESERVED = 8
"""Descriptors that are kept back from WebSocket connections: an eighth of all, within these."""

_END_OF_HEAD = b"\r\n\r\n"
_VERSIONS = (HttpVersion10, HttpVersion11)


class Waiting(Protocol):
    """What has a place in the row of those whose request has not come."""

    def abort(self) -> None:
        """Close the descriptor at once."""

    def give_up(self) -> None:
        """Close: the head of the request has not come in time."""


class Guard:
    """Connections of one worker that have no complete request, and its descriptors.

    Args:
        note_refused: called with the reason of each refusal: `silent`, `malformed`, `head`,
            `descriptors`.
        descriptors: the soft limit of open files; None: that of this process.
        now: monotonic seconds.
        slices: gives what tells how much of a pass of the loop one kind of work may have.
        wake: called when a deadline is set where there was none.
    """

    def __init__(
        self,
        note_refused: Callable[[str], object],
        descriptors: int | None = None,
        now: Callable[[], float] | None = None,
        slices: Callable[[], Slice] = lambda: lambda: SLICE,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        self._wake = wake
        self.note_refused = note_refused
        self.slices = slices
        self.now = now or asyncio.get_running_loop().time
        self._descriptors = descriptors
        self.most_upgraded = 0
        """A WebSocket connection's descriptor is below this number."""
        self._most = 0
        """Any other connection's is below this one."""
        self._look_at_limit()
        self._waiting: dict[Waiting, float] = {}
        """By deadline, the earliest first, since every wait is equally long."""
        self._unread: dict[GuardedConnection, tuple[float, int]] = {}
        """Connections that take less than is written: when and how much they took at last."""

    def _look_at_limit(self) -> None:
        """Take the limit of open files as it is now: an operator may have changed it (prlimit)."""
        descriptors = self._descriptors
        if descriptors is None:
            descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if descriptors < 0:  # RLIM_INFINITY
            descriptors = 1 << 30
        reserved = min(MOST_RESERVED, max(LEAST_RESERVED, descriptors // 8))
        self.most_upgraded = descriptors - reserved
        self._most = descriptors - reserved // 2

    @property
    def waiting(self) -> int:
        """Connections that have no complete head of a request."""
        return len(self._waiting)

    @property
    def has_deadlines(self) -> bool:
        """Whether any connection must do something in time."""
        return bool(self._waiting or self._unread)

    def waits(self, connection: Waiting) -> bool:
        """Whether a connection has its place in the row still."""
        return connection in self._waiting

    def wait(self, connection: Waiting) -> None:
        """Expect the head of a request within `HEAD_SECONDS`; one that waits already keeps its place."""
        if not self._waiting:
            self._wake()
        if connection not in self._waiting:
            self._waiting[connection] = self.now() + HEAD_SECONDS

    def end_wait(self, connection: Waiting) -> None:
        """The head is complete, or the connection is gone."""
        self._waiting.pop(connection, None)

    def watch_writing(self, connection: GuardedConnection) -> None:
        """Expect it to take something of what is written within each `WRITE_SECONDS`."""
        self._wake()
        self._unread.setdefault(connection, (self.now(), -1))

    def has_written(self, connection: GuardedConnection) -> None:
        """It takes what is written, or is gone."""
        self._unread.pop(connection, None)

    def has_room(self, connection: Waiting | None, fd: int) -> bool:
        """Whether a connection with this descriptor may stay.

        The kernel gives out the lowest free number, so a high one says that few are left. Then
        those that have been silent for the longest make room: three times as many with each number above
        the mark, since the next newcomers get the low numbers that they leave, and the high ones
        are free again only when the row has passed.
        """
        if fd < self.most_upgraded:
            return True
        self.note_refused("descriptors")
        for _ in range(min(len(self._waiting), 3 ** (fd - self.most_upgraded))):
            self.make_room(connection)
        return fd < self._most

    def make_room(self, newest: Waiting | None = None) -> None:
        """End the connection that has been silent for the longest, if there is one beside `newest`."""
        silent = next((one for one in self._waiting if one is not newest), None)
        if silent is not None:
            # Its descriptor is free a moment later; the next newcomer needs that of another one.
            self.end_wait(silent)
            silent.abort()

    def sweep(self) -> None:
        """End the connections whose time is over."""
        self._look_at_limit()
        now = self.now()
        for connection, (since, taken) in list(self._unread.items()):
            if now - since < WRITE_SECONDS / 4:
                continue
            now_taken = connection.taken()
            if now_taken != taken:
                self._unread[connection] = now, now_taken
            elif now - since >= WRITE_SECONDS:
                del self._unread[connection]
                self.note_refused("unread")
                _end(connection.abort)
        while self._waiting:
            waiting, due = next(iter(self._waiting.items()))
            if due > now:
                return
            del self._waiting[waiting]
            self.note_refused("silent")
            _end(waiting.give_up)


def _end(end: Callable[[], object]) -> None:
    """End one connection; the deadlines of the others must not depend on it."""
    try:
        end()
    except Exception:
        logger.exception("A connection cannot be ended")


GUARD = web.AppKey("GUARD", Guard)
"""Where an application keeps the guard of its server."""


class GuardedConnection(RequestHandler):
    """A connection of aiohttp's server under a `Guard`."""

    __slots__ = ("_edge", "_guard", "_head", "_left", "_place")

    _guard: Guard
    _head: int
    """Bytes of a head that is not complete."""
    _edge: bytes
    """The last three of them, since the end of the head may be cut anywhere."""
    _left: int
    """Bytes that are to come of the body of a request for an upgrade that the parser does not know."""
    _place: Waiting
    """What stands in the row for it: itself, or what it was before its first request."""

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._place = self
        self._head, self._edge, self._left = 0, b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve it, unless descriptors are short."""
        self._guard = guard = self._manager.guard  # type: ignore[union-attr]
        super().connection_made(transport)
        if self._request_count == 0:
            guard.wait(self._place)
        stream = transport.get_extra_info("socket")
        if stream is not None and self._place is self:  # else the door has looked at that
            fd = stream.fileno()
            if fd >= guard.most_upgraded and not guard.has_room(self, fd):
                self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._guard.end_wait(self._place)
        self._guard.has_written(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes less than is written."""
        super().pause_writing()
        self._guard.watch_writing(self)

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self._guard.has_written(self)
        super().resume_writing()

    def taken(self) -> int:
        """A number that changes when the client takes something of what is written."""
        transport = self.transport
        stream = None if transport is None else transport.get_extra_info("socket")
        return 0 if stream is None or stream.fileno() < 0 else kernel.progress(stream.fileno())

    def data_received(self, data: bytes) -> None:
        """Let aiohttp parse, and follow where a head begins and ends."""
        before = self._request_count
        is_alone = not self._messages and (before == 0 or self._expects_request())
        super().data_received(data)
        arrived = self._request_count - before
        if arrived:
            self._refuse_versions(arrived)
            self._guard.end_wait(self._place)
            self._place = self
            behind = b""
            if not self._upgraded and self._messages:
                behind = self._find_behind(data, is_alone and arrived == 1)
            self._head = 0
            self._edge = b""
            if behind:
                GuardedConnection.data_received(self, behind)
        elif self._left:
            left, self._left = self._left, max(0, self._left - len(data))
            if len(data) > left and not self._upgraded:
                GuardedConnection.data_received(self, data[left:])
        elif data and (before == 0 or self._expects_request()):
            self._edge = self._with_edge(data)[-3:]
            self._head += len(data)
            self._guard.wait(self._place)
            if self._head > MAX_HEAD:
                self._guard.note_refused("head")
                self._answer(431, ErrorCode.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_LARGE)

    def _refuse_versions(self, count: int) -> None:
        """Let the last requests be answered with 400 that are of no version of HTTP known here.

        aiohttp's parser also lets HTTP/0.9 and HTTP/2.0 through, and the answer would say that it is the same.
        """
        for place in range(-count, 0):
            message, payload = self._messages[place]
            if isinstance(message, RawRequestMessage) and message.version not in _VERSIONS:
                fault = BadHttpMessage("unknown version of HTTP")
                self._messages[place] = BadRequest(400, fault, fault.message), payload

    def _expects_request(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _with_edge(self, data: bytes) -> bytes:
        """What has come of a head, from some byte of it on; without empty lines before it."""
        return self._edge + data if self._edge else data.lstrip(b"\r\n")

    def _find_behind(self, data: bytes, is_alone: bool) -> bytes:
        """What follows a request for an upgrade that aiohttp's parser does not know, to be parsed next.

        The parser stops behind such a request, and drops what follows. Where the place of that is not
        known, the connection ends with the answer: what is read later may begin anywhere.

        Args:
            data: has completed the head of the request.
            is_alone: nothing of another request is in it before that.
        """
        message, payload = self._messages[-1]
        if not isinstance(message, RawRequestMessage) or not message.upgrade:
            return b""
        text = self._with_edge(data)
        end = text.find(_END_OF_HEAD)
        length = message.headers.get("Content-Length", "0")
        if is_alone and end >= 0 and not message.chunked and length.isdecimal():
            rest = text[end + len(_END_OF_HEAD) :]
            behind, self._left = rest[int(length) :], max(0, int(length) - len(rest))
            if (
                payload.is_eof()
                and "websocket" in ",".join(message.headers.getall("Upgrade", ())).lower()
            ):
                self._upgraded = True  # a handler may take it
                self._message_tail = behind
                return b""
            if payload.is_eof() or not behind:
                return behind
        self._messages[-1] = message._replace(should_close=True), payload
        return b""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what cannot be parsed, or what has failed, in JSON; bytes of it go nowhere.

        Raises:
            ConnectionError: an answer has begun already.
        """
        if status < 500:
            if isinstance(exc, LineTooLong) or getattr(exc, "message", "") == _TOO_MANY_FIELDS:
                self._guard.note_refused("head")
                answer = _error(431, ErrorCode.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_LARGE)
            else:
                self._guard.note_refused("malformed")
                answer = _error(400, ErrorCode.BAD_REQUEST, _MALFORMED)
        else:
            level = logging.DEBUG if isinstance(exc, ConnectionError) else logging.ERROR
            logger.log(level, "A request failed", exc_info=exc)
            answer = _error(status, ErrorCode.INTERNAL_ERROR, "Something went wrong here.")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        return answer

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log what aiohttp did not expect; a body that is not as its headers say is counted."""
        if isinstance(kwargs.get("exc_info"), (HttpProcessingError, web.RequestPayloadError)):
            self._guard.note_refused("malformed")
        else:
            super().log_exception(*args, **kwargs)

    def give_up(self) -> None:
        """The head has not come in time: say so to a client that has sent a part of it."""
        if self._head:
            self._answer(408, ErrorCode.REQUEST_TIMEOUT, _TOO_SLOW)
        else:
            self.abort()

    def abort(self) -> None:
        """Close the descriptor at once."""
        transport = self.transport
        if transport is not None:
            transport.abort()

    def _answer(self, status: int, code: ErrorCode, message: str) -> None:
        """Answer what aiohttp has made no request of, and close."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(http_answers.error(status, code, message, {}))
        self.force_close()


_TOO_SLOW = f"The head of the request did not come within {HEAD_SECONDS:g} seconds."
_TOO_LARGE = (
    f"The request line and each header field may have {MAX_FIELD} bytes,"
    f" and there may be {MAX_FIELDS} fields."
)
_TOO_MANY_FIELDS = "Too many headers received"
"""How aiohttp's parser says so: it has no class for that."""
_UNKNOWN_CODINGS = ("br", "zstd")
_PACKED = "Send the body as it is, or with gzip or deflate."
_MALFORMED = "This is not a valid HTTP/1.1 request; it must have exactly one Host header."


def _error(status: int, code: ErrorCode, message: str) -> web.Response:
    answer = web.Response(
        body=encode_json({"error": message, "code": code}) + b"\n",
        status=status,
        headers={
            **http_answers.JSON_DATA_HEADERS,
            # aiohttp leaves it out in answers to what it could not parse.
            "Connection": "close",
            # In place of aiohttp's own, which names its version and Python's.
            "Server": "yujian-presence",
        },
    )
    answer.force_close()
    return answer


def with_known_codings(
    handler: Callable[[Any], Awaitable[web.StreamResponse]], guard: Guard
) -> Callable[[Any], Awaitable[web.StreamResponse]]:
    """Refuse what this service cannot do for any request.

    That is every `Expect` but 100-continue (aiohttp quotes it, and fails if it is not UTF-8), and
    bodies that are packed in a way which no handler unpacks.
    """

    async def refuse_expectation() -> web.StreamResponse:
        return _error(
            417, ErrorCode.EXPECTATION_FAILED, "Only 'Expect: 100-continue' is known here."
        )

    async def refuse_coding() -> web.StreamResponse:
        guard.note_refused("malformed")
        return _error(415, ErrorCode.UNSUPPORTED_MEDIA_TYPE, _PACKED)

    # No coroutine of its own: it would cost every request.
    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        headers = request.headers
        expected = headers.get("Expect")
        if expected is not None and expected.lower() != "100-continue":
            return refuse_expectation()
        if (
            "Content-Encoding" in headers
            and headers["Content-Encoding"].lower() in _UNKNOWN_CODINGS
        ):
            return refuse_coding()
        return handler(request)

    return handle
