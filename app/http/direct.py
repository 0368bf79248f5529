"""`POST /ws/broadcast` without a request object or a task, where the request is an ordinary one.

Publishers call often, and aiohttp's way to a handler costs more than storing and delivering their
message. What is served here is one complete `POST` with a publish token, of a program and not of a
page, in the form that clients' libraries send; the answer is that of `publishing.broadcast`, byte
for byte. Everything else is aiohttp's, which also refuses what has no token or no budget.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

from app.errors import ClientError, ErrorCode
from app.http.audit import Write
from app.http.context import HttpContext
from app.http.errors import HttpError, error_body
from app.http.publishing import LARGEST_ARRAY, PublishingCall
from app.http.request_head import parse_call
from app.http.writers import Writer
from app.protocol.envelope import decode_json, encode_decoded, new_id
from app.protocol.http_answers import JSON_DATA_HEADERS
from app.transport.http_connection import INCOMPLETE, PASS, TAKEN, Caller, Take

PATH = "/ws/broadcast"
MAX_BODY = 64 * 1024
"""Bytes of a body that is read here."""
MAX_ARRAY = 200
"""Messages of an array that is answered here: the answer fits into a socket as a rule."""
KNOWN_HEADS = 256
"""Heads whose meaning is remembered: those of one publisher differ by the length at most."""
MAX_KNOWN_HEAD = 2048
"""Bytes of a head that is remembered."""

_CALL = f"POST {PATH}"
_START = f"{_CALL} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"
_FORMS = {
    "",
    "application/json",
    "application/json; charset=utf-8",
    "application/json;charset=utf-8",
    "text/plain",
    "text/plain; charset=utf-8",
    "text/plain;charset=utf-8",
    "application/x-www-form-urlencoded",
    "application/octet-stream",
}
"""Values of Content-Type, in lower case."""

logger = logging.getLogger(__name__)


class _Head(NamedTuple):
    """What a head says."""

    length: int
    """Of the body in bytes."""
    writer: Writer
    address: str
    keep: bool
    """Whether the client wants to use the connection again."""
    request_id: str | None
    """Given by a trusted proxy."""


class DirectCalls:
    """Serves such requests; `app.transport.http_connection.Calls`.

    Args:
        context: parts of the service.
        ends_keep_alive: whether connections end with the next answer.
    """

    def __init__(self, context: HttpContext, ends_keep_alive: Callable[[], bool]) -> None:
        self._context = context
        self._ends_keep_alive = ends_keep_alive
        self._heads: dict[tuple[bytes, str | None], _Head] = {}
        self._open = 0
        self._settled: asyncio.Future[None] | None = None
        """What waits until no request is in progress."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._fixed = _lines([*JSON_DATA_HEADERS.items(), *context.origins.plain_headers()])
        self._starts: dict[int, str] = {}
        """By status how an answer begins, up to the id of its request."""
        self._second = 0
        self._date = ""

    @property
    def in_progress(self) -> int:
        """Requests that are not answered yet."""
        return self._open

    async def wait_settled(self) -> None:
        """Wait until no request is in progress."""
        if self._open:
            if self._settled is None:
                self._settled = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._settled)

    def _note_end(self) -> None:
        """Let those go on that wait for the last request."""
        if not self._open and self._settled is not None:
            self._settled.set_result(None)
            self._settled = None

    def take(self, data: bytes, peer: str | None, caller: Caller) -> Take:
        """Serve a request; see `Calls.take`."""
        if not data.startswith(_START):
            return PASS
        end = data.find(_END) + len(_END)
        if end < len(_END):
            return PASS
        key = data[:end], peer
        head = self._heads.get(key) or self._parse(key)
        if head is None:
            return PASS
        missing = head.length - (len(data) - end)
        if missing:
            return INCOMPLETE if missing > 0 else PASS
        context = self._context
        try:
            context.writers.check_budget(head.writer)
        except HttpError:
            return PASS
        answering = _Answering(self, head, caller)
        self._open += 1
        try:
            value = decode_json(data[end:])
            if isinstance(value, list) and len(value) > MAX_ARRAY:
                self._open -= 1
                self._note_end()
                return PASS
            answering.begin(value, context)
        except Exception as error:  # noqa: BLE001 (it is answered)
            answering.fail(error)
        return TAKEN

    def _parse(self, key: tuple[bytes, str | None]) -> _Head | None:
        data, peer = key
        context = self._context
        parsed = parse_call(data, PATH, peer)
        if parsed is None:
            return None
        headers = parsed.headers
        length = int(headers["Content-Length"])
        writer = context.writers.publisher(headers)
        if (
            writer is None
            or not 0 < length <= min(MAX_BODY, context.settings.max_message_size * LARGEST_ARRAY)
            or headers.get("Connection", "keep-alive").lower() not in {"keep-alive", "close"}
            or headers.get("Content-Type", "").lower() not in _FORMS
            or not context.hosts.allows(parsed)
        ):
            return None
        head = _Head(
            length,
            writer,
            context.clients.address(parsed),
            headers.get("Connection", "").lower() != "close",
            context.clients.proxy_request_id(parsed),
        )
        if len(data) <= MAX_KNOWN_HEAD and head.request_id is None:
            if len(self._heads) >= KNOWN_HEADS:
                self._heads.clear()
            self._heads[key] = head
        return head

    def finish(
        self,
        head: _Head,
        caller: Caller,
        write: Write,
        status: int,
        body: bytes,
        error: HttpError | None = None,
        id: str | None = None,
    ) -> None:
        """Count, log and send an answer; `id` is that of the request, where it has one already."""
        self._open -= 1
        context = self._context
        id = id or head.request_id or new_id()
        context.audit.note(_CALL, write, head.address, status, "" if error is None else error.code)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: %d", _CALL, status, extra={"request": id})
        context.count_request(PATH, "POST", status)
        keep = head.keep and not self._ends_keep_alive() and not (error is not None and error.close)
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        further = "" if error is None else _lines(error.headers.items())
        if not keep:
            further += "Connection: close\r\n"
        start = self._starts.get(status)
        if start is None:
            line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            start = self._starts[status] = f"{line}{self._fixed}X-Request-ID: "
        top = (
            f"{start}{id}\r\n{further}Content-Length: {len(body) + 1}\r\nDate: {self._date}\r\n\r\n"
        )
        caller.reply(b"%b%b\n" % (top.encode(), body), keep)
        if self._settled is not None:
            self._note_end()

    def finish_later(self, answering: _Answering, call: PublishingCall) -> None:
        """Answer when the history has said what is known of its messages."""
        task = asyncio.get_running_loop().create_task(answering.ask_history(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Answering:
    """One request on its way to its answer."""

    __slots__ = ("_call", "_caller", "_calls", "_head", "_write")

    def __init__(self, calls: DirectCalls, head: _Head, caller: Caller) -> None:
        self._calls = calls
        self._head = head
        self._caller = caller
        self._write = Write(head.writer)
        self._call: PublishingCall | None = None

    def begin(self, value: object, context: HttpContext) -> None:
        """Queue its messages; raises what `PublishingCall` does."""
        head = self._head
        call = self._call = PublishingCall(
            value, head.length, self._write, head.writer, context, self._answer
        )
        if call.is_settled:
            self._answer()

    def _answer(self) -> None:
        """Answer: all messages are settled."""
        call, self._call = self._call, None  # the call holds this, and its messages
        assert call is not None
        try:
            if call.needs_history:
                self._calls.finish_later(self, call)
            else:
                self._finish(*call.answer())
        except Exception as error:  # noqa: BLE001 (it is answered)
            self.fail(error)

    async def ask_history(self, call: PublishingCall) -> None:
        """Answer when the history has said what is known."""
        try:
            self._finish(*await call.outcome())
        except Exception as error:  # noqa: BLE001 (it is answered)
            self.fail(error)

    def _finish(self, value: object, status: int) -> None:
        self._calls.finish(self._head, self._caller, self._write, status, encode_decoded(value))

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        id = None
        # The frames of its traceback may hold the error, in a cycle with the body of the request.
        if isinstance(error, ClientError):
            answer = HttpError.of(error.with_traceback(None))
        elif isinstance(error, HttpError):
            answer = error.with_traceback(None)
        else:
            id = self._head.request_id or new_id()
            logger.error("%s failed", _CALL, exc_info=error, extra={"request": id})
            message = f"An internal error occurred; the log has details under {id}."
            answer = HttpError(500, ErrorCode.INTERNAL_ERROR, message)
        self._calls.finish(
            self._head, self._caller, self._write, answer.status, error_body(answer), answer, id
        )


def _lines(fields: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in fields)
