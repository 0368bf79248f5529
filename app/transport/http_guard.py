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
import re
import resource
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, cast

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import (
    BadHttpMessage,
    HttpProcessingError,
    InvalidHeader,
    InvalidURLError,
    LineTooLong,
)
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
"""Bytes of a head."""
LINGER_SECONDS = 2.0
"""Time in which a body that was answered before its end is read and dropped, so that the client
sees the answer rather than a reset."""
WRITE_SECONDS = 20.0
"""Time in which a client that is written to must take something of it."""
MOST_RESTING = 2000
"""Connections that are kept between two requests."""
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


class Resting(Protocol):
    """What is kept between two requests."""

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is owed to either side."""

    def abort(self) -> None:
        """Close the descriptor at once."""


class Guard:
    """Connections of one worker that have no complete request, and its descriptors.

    Args:
        note_refused: called with the reason of each refusal: `silent`, `head`, `descriptors`, `unread`; with
            `malformed` it also gets an origin, which is None, and what is wrong.
        descriptors: the soft limit of open files; None: that of this process.
        now: monotonic seconds.
        slices: gives what tells how much of a pass of the loop one kind of work may have.
        wake: called when a deadline is set where there was none.
    """

    def __init__(
        self,
        note_refused: Callable[..., object],
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
        self._resting: dict[Resting, None] = {}
        """Connections that have answered a request, that which did so longest ago first; some have begun another."""
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

    def rest(self, connection: Resting) -> None:
        """A connection has answered a request, and waits for the next; the oldest of too many ends."""
        self._resting.pop(connection, None)
        self._resting[connection] = None
        if len(self._resting) > MOST_RESTING and self._end_resting():
            self.note_refused("idle")

    def forget(self, connection: Resting) -> None:
        """A connection is gone."""
        self._resting.pop(connection, None)

    def _end_resting(self) -> bool:
        """End the connection that has been between two requests for the longest; False if none is."""
        while self._resting:
            oldest = next(iter(self._resting))
            del self._resting[oldest]
            if oldest.is_at_rest:
                oldest.abort()
                return True
        return False

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
        those that have been silent for the longest make room, those between two requests last: three
        times as many with each number above the mark, since the next newcomers get the low numbers
        that they leave, and the high ones are free again only when the row has passed.
        """
        if fd < self.most_upgraded:
            return True
        self.note_refused("descriptors")
        most = len(self._waiting) + len(self._resting)
        for _ in range(min(most, 3 ** (fd - self.most_upgraded))):
            self.make_room(connection)
        return fd < self._most

    def make_room(self, newest: Waiting | None = None) -> None:
        """End the connection that has been silent for the longest, if there is one beside `newest`."""
        silent = next((one for one in self._waiting if one is not newest), None)
        if silent is None:
            self._end_resting()
        else:
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
            if connection.has_sent_all:
                del self._unread[connection]
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

    __slots__ = ("_edge", "_guard", "_head", "_left", "_place", "_wire")

    _guard: Guard
    _head: int
    """Bytes of a head that is not complete."""
    _edge: bytes
    """The last three of them, since the end of the head may be cut anywhere."""
    _left: int
    """Bytes that are to come of the body of a request for an upgrade that the parser does not know."""
    _place: Waiting
    """What stands in the row for it: itself, or what it was before its first request."""
    _wire: asyncio.Transport | None
    """The transport, also while it closes, when aiohttp has let go of it."""

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._place = self
        self._head, self._edge, self._left = 0, b"", 0
        self._wire = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve it, unless descriptors are short."""
        self._guard = guard = self._manager.guard  # type: ignore[union-attr]
        self._wire = cast("asyncio.Transport", transport)
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
        self._wire = None
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
        transport = self._wire
        stream = None if transport is None else transport.get_extra_info("socket")
        return 0 if stream is None or stream.fileno() < 0 else kernel.progress(stream.fileno())

    @property
    def has_sent_all(self) -> bool:
        """Whether the socket has taken all that is written."""
        return self._wire is None or not self._wire.get_write_buffer_size()

    def watch_rest(self) -> None:
        """Watch a client that has not taken all of an answer: nothing else ends a connection that is not read from.

        That a little is left pauses nothing, and a transport that is closed waits for it.
        """
        if not self.has_sent_all:
            self._guard.watch_writing(self)

    def data_received(self, data: bytes) -> None:
        """Let aiohttp parse, and follow where a head begins and ends."""
        before = self._request_count
        is_alone = not self._messages and (before == 0 or self._expects_request())
        super().data_received(data)
        arrived = self._request_count - before
        if arrived:
            # What the parser had put aside comes without data.
            self._refuse_unfit(arrived, not data or self._head + len(data) > MAX_HEAD)
            self._guard.end_wait(self._place)
            self._place = self
            behind = b""
            if not self._upgraded and self._messages:
                behind = self._find_behind(data, is_alone and arrived == 1)
            self._head = 0
            self._edge = b""
            if behind:
                known = self._request_count
                GuardedConnection.data_received(self, behind)
                if self._request_count == known:
                    self._expect_rest(behind)
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

    def _refuse_unfit(self, count: int, may_be_long: bool) -> None:
        """Let those of the last requests be refused that aiohttp's parser lets through.

        That are those of a version of HTTP that is not known here, where the answer would say that it is the
        same, and those whose head is long but has come at once.
        """
        for place in range(-count, 0):
            message, payload = self._messages[place]
            if not isinstance(message, RawRequestMessage):
                continue
            if message.version not in _VERSIONS:
                fault = BadHttpMessage(_UNKNOWN_VERSION)
            elif may_be_long and head_size(message.path, message.raw_headers) > MAX_HEAD:
                fault = BadHttpMessage(_TOO_LONG)
            else:
                continue
            self._messages[place] = BadRequest(400, fault, fault.message), payload

    def _expect_rest(self, data: bytes) -> None:
        """Expect the rest of a head whose beginning has come behind a request."""
        if data.strip(b"\r\n"):  # empty lines between requests are ignored
            self._head, self._edge = len(data), data[-3:]
            self._guard.wait(self._place)

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
            if isinstance(exc, LineTooLong) or getattr(exc, "message", "") in _TOO_MUCH:
                self._guard.note_refused("head")
                answer = _error(431, ErrorCode.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_LARGE)
            else:
                words = describe_fault(exc)
                self._guard.note_refused("malformed", None, words)
                answer = _error(400, ErrorCode.BAD_REQUEST, words)
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
        if self._wire is not None:
            self._wire.abort()

    def _answer(self, status: int, code: ErrorCode, message: str) -> None:
        """Answer what aiohttp has made no request of, and close."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        transport.write(http_answers.error(status, code, message, {}))
        self.watch_rest()
        self.force_close()


_TOO_SLOW = f"The head of the request did not come within {HEAD_SECONDS:g} seconds."
_TOO_LARGE = (
    f"The request line and each header field may have {MAX_FIELD} bytes, all together {MAX_HEAD},"
    f" and there may be {MAX_FIELDS} fields."
)
_UNKNOWN_VERSION = "unknown version of HTTP"
_TOO_LONG = "the head is too long"
_TOO_MUCH = ("Too many headers received", _TOO_LONG)
"""How aiohttp's parser says that there are too many fields, for which it has no class; and what is said here."""
_MOST_PARTS = 16
"""Parts of a path: aiohttp looks for a route at each of them, which for thousands takes some 20 ms."""
_NO_PATH = "No path has so many parts."
_UNKNOWN_CODINGS = ("br", "zstd")
_PACKED = "Send the body as it is, or with gzip or deflate."
_EXPECTED = "Only 'Expect: 100-continue' is known here."
_MALFORMED = "This is not a valid HTTP/1.1 request"
_BAD_TARGET = "the target of its request line is not valid"
_BAD_VERSION = "its request line does not end with HTTP/1.0 or HTTP/1.1"
_BAD_FIELD = "a header field is not valid"
_BAD_LINE = "a line does not end with CR and LF"
_BAD_CHUNKS = "the chunks of its body are not valid"
FAULTS = (
    ("Received HTTPS traffic", "it is TLS, and this port speaks http:// and ws://"),
    ("Pause on PRI|Expected HTTP/2", "it is HTTP/2, which is not spoken here"),
    ("Missing 'Host' header", "it has no Host header"),
    ("Duplicate 'Host' header", "it has more than one Host header"),
    ("Duplicate", "it has a header field twice that may occur once"),
    ("Content-Length can't", "it has both Content-Length and Transfer-Encoding"),
    ("Transfer-Encoding can't", "it has both Content-Length and Transfer-Encoding"),
    (
        "(?:Empty|Invalid character in) Content-Length|Content-Length",
        "its Content-Length is not valid",
    ),
    (
        "(?:Request has i|I)nvalid `Transfer-Encoding`",
        "its Transfer-Encoding does not end with chunked",
    ),
    (
        f"{_UNKNOWN_VERSION}|Expected HTTP/|Invalid HTTP version|Invalid major|Invalid minor",
        _BAD_VERSION,
    ),
    ("Expected dot|Expected (?:CRLF|space) after version|Expected SOURCE method", _BAD_VERSION),
    ("Invalid method|Expected space after method", "its method is not known"),
    (
        "(?:Invalid|Unexpected)(?: start)? char(?:acters)? in url|Unexpected space after start",
        _BAD_TARGET,
    ),
    (".*[Cc]hunk", _BAD_CHUNKS),
    ("Missing expected (?:CR|LF)|Expected (?:CR|LF)", _BAD_LINE),
    ("Invalid header|Unexpected whitespace after header", _BAD_FIELD),
    ("Data after", "it follows a request with 'Connection: close'"),
)
"""How aiohttp's parser begins to say what is wrong (a pattern), and what is answered: nothing that the
client has sent. The first that fits counts."""
_FAULTS = tuple((re.compile(pattern), words) for pattern, words in FAULTS)


def head_size(target: str, fields: Iterable[tuple[bytes, bytes]]) -> int:
    """About the bytes of the head of a request."""
    return len(target) + sum(len(name) + len(value) for name, value in fields)


def describe_fault(fault: BaseException | None) -> str:
    """What is wrong with a request that cannot be parsed, as a sentence."""
    if isinstance(fault, InvalidURLError):
        found: str | None = _BAD_TARGET
    elif isinstance(fault, InvalidHeader):
        found = _BAD_FIELD
    else:
        text = getattr(fault, "message", "").removeprefix("Bad status line:").lstrip()
        found = next((words for pattern, words in _FAULTS if pattern.match(text)), None)
    return f"{_MALFORMED}: {found}." if found else f"{_MALFORMED}."


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


def with_what_is_known(
    handler: Callable[[Any], Awaitable[web.StreamResponse]], guard: Guard
) -> Callable[[Any], Awaitable[web.StreamResponse]]:
    """Refuse what this service cannot do for any request.

    That is every `Expect` but 100-continue (aiohttp quotes it, and fails if it is not UTF-8),
    bodies that are packed in a way which no handler unpacks, and paths with very many parts.
    """

    async def refuse_expectation() -> web.StreamResponse:
        guard.note_refused("malformed", None, _EXPECTED)
        return _error(417, ErrorCode.EXPECTATION_FAILED, _EXPECTED)

    async def refuse_coding() -> web.StreamResponse:
        guard.note_refused("malformed", None, _PACKED)
        return _error(415, ErrorCode.UNSUPPORTED_MEDIA_TYPE, _PACKED)

    async def refuse_path() -> web.StreamResponse:
        guard.note_refused("malformed", None, _NO_PATH)
        return _error(404, ErrorCode.NOT_FOUND, _NO_PATH)

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
        if request.rel_url.raw_path.count("/") > _MOST_PARTS:
            return refuse_path()
        return handler(request)

    return handle
