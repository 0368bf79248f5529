"""The guard of aiohttp's server, with a clock of the test's own, and its answers."""

from __future__ import annotations

import asyncio
import heapq
import json
import re
import resource
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from app.transport.door import DoorRunner
from app.transport.http_guard import (
    GUARD,
    HEAD_SECONDS,
    MAX_FIELD,
    MAX_FIELDS,
    MAX_HEAD,
    Guard,
)
from app.transport.takeover import DetachedResponse, detach
from tests.support.delivery import turn
from tests.support.waiting import until


class Served:
    """A guarded server on a free port."""

    def __init__(self, descriptors: int | None = None) -> None:
        self.seconds = 100.0
        self.reasons: list[str] = []
        self.details: list[str] = []
        self.tails: list[bytes] = []
        self.handled: list[str] = []
        """Targets of the requests that were handled."""
        self.guard = Guard(self._note, descriptors, now=lambda: self.seconds)
        app = web.Application()
        app[GUARD] = self.guard
        app.router.add_get("/", self._answer)
        app.router.add_get("/take", self._take)
        app.router.add_get("/fail", self._fail)
        app.router.add_get("/gone", self._gone)
        app.router.add_post("/read", self._read)
        self.runner = DoorRunner(app)

    def _note(self, reason: str, _: None = None, detail: str = "") -> None:
        self.reasons.append(reason)
        self.details.append(detail)

    async def _answer(self, request: web.Request) -> web.Response:
        self.handled.append(request.raw_path)
        return web.Response(text="{}")

    async def _take(self, request: web.Request) -> web.StreamResponse:
        fd, tail = detach(request)
        self.tails.append(tail)
        socket.socket(fileno=fd).close()
        return DetachedResponse(status=101)

    async def _fail(self, _: web.Request) -> web.Response:
        raise RuntimeError("an inside")

    async def _gone(self, _: web.Request) -> web.Response:
        raise ConnectionResetError("the client is gone")

    async def _read(self, request: web.Request) -> web.Response:
        self.handled.append(request.raw_path)
        try:
            await request.read()
        except web.RequestPayloadError:
            return web.Response(status=400, text="{}")
        return web.Response(text="{}")

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.runner.addresses[0][:2]
        return await asyncio.open_connection(host, port)

    async def reached(self, waiting: int) -> None:
        await until(lambda: self.guard.waiting == waiting)

    async def received(self, size: int) -> None:
        """Wait until so many bytes of a head have come."""
        server: Any = self.runner.server
        await until(lambda: any(one._head == size for one in server.connections))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    it = Served()
    await it.runner.setup()
    await web.TCPSite(it.runner, "127.0.0.1", 0).start()
    yield it
    await it.runner.cleanup()


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    assert int(headers["content-length"]) == len(body)
    return int(lines[0].split()[1]), headers, body


def error(answer: bytes) -> tuple[int, str]:
    status, headers, body = parse(answer)
    assert headers["content-type"].startswith("application/json")
    assert headers["connection"] == "close"
    assert headers.get("server", "yujian-presence") == "yujian-presence"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    value = json.loads(body)
    assert set(value) == {"error", "code"}
    return status, value["code"]


async def read(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        return await reader.read()


async def test_a_silent_connection_is_closed_without_a_word(served: Served) -> None:
    reader, writer = await served.open()
    await served.reached(1)
    served.seconds += HEAD_SECONDS - 0.1
    served.guard.sweep()
    assert served.guard.waiting == 1
    served.seconds += 0.1
    served.guard.sweep()
    with pytest.raises((ConnectionError, EOFError)):
        assert await asyncio.wait_for(reader.readexactly(1), 5)
    assert served.reasons == ["silent"]
    writer.close()


@pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"\r\n"])
async def test_half_a_head_is_answered(served: Served, part: bytes) -> None:
    reader, writer = await served.open()
    writer.write(part)
    await served.reached(1)
    await served.received(len(part))
    served.seconds += HEAD_SECONDS
    served.guard.sweep()
    assert error(await read(reader)) == (408, "REQUEST_TIMEOUT")
    writer.close()


async def test_bytes_do_not_put_the_deadline_off(served: Served) -> None:
    reader, writer = await served.open()
    size = 0
    for part in (b"GET ", b"/ HT", b"TP/1."):
        writer.write(part)
        size += len(part)
        await served.received(size)
        served.seconds += HEAD_SECONDS / 2
    served.guard.sweep()
    assert error(await read(reader)) == (408, "REQUEST_TIMEOUT")
    writer.close()


async def test_between_two_requests_there_is_no_deadline_but_within_the_next_head(
    served: Served,
) -> None:
    reader, writer = await served.open()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
    assert served.guard.waiting == 0
    served.seconds += 5 * HEAD_SECONDS
    served.guard.sweep()
    writer.write(b"GET /")
    await served.reached(1)
    served.seconds += HEAD_SECONDS
    served.guard.sweep()
    assert error(await read(reader)) == (408, "REQUEST_TIMEOUT")
    writer.close()


async def test_a_client_that_is_gone_is_not_waited_for(served: Served) -> None:
    _, writer = await served.open()
    await served.reached(1)
    writer.close()
    await served.reached(0)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 Cookie: secret\r\n\r\n",
            400,
            "BAD_REQUEST",
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/0.9\r\nHost: x\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400, "BAD_REQUEST"),
        (
            b"POST / HTTP/2.0\r\nHost: x\r\nContent-Length: 9\r\n\r\nxxxxxxxxx",
            400,
            "BAD_REQUEST",
        ),
        (
            b"GET / HTTP/2.0\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            400,
            "BAD_REQUEST",
        ),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400, "BAD_REQUEST"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * (MAX_FIELD + 1) + b"\r\n\r\n",
            431,
            "REQUEST_HEADER_FIELDS_TOO_LARGE",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: zstd\r\nContent-Length: 1\r\n\r\nx",
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: a\r\n" * MAX_FIELDS + b"\r\n",
            431,
            "REQUEST_HEADER_FIELDS_TOO_LARGE",
        ),
        (
            b"GET /" + b"a" * (MAX_FIELD + 1) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            431,
            "REQUEST_HEADER_FIELDS_TOO_LARGE",
        ),
    ],
)
async def test_what_cannot_be_parsed_is_answered_in_json(
    served: Served, caplog: pytest.LogCaptureFixture, sent: bytes, status: int, code: str
) -> None:
    reader, writer = await served.open()
    writer.write(sent)
    assert error(await read(reader)) == (status, code)
    writer.close()
    assert not caplog.records, "the log gets neither bytes nor a traceback"
    assert served.reasons == ["head" if status == 431 else "malformed"]


@pytest.mark.parametrize("path", [b"/", b"/nothing"])
@pytest.mark.parametrize("expected", [b"200-ok", b"\xff", b""])
async def test_expectations_that_are_not_known_are_refused(
    served: Served, caplog: pytest.LogCaptureFixture, expected: bytes, path: bytes
) -> None:
    reader, writer = await served.open()
    writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\nExpect: %b\r\n\r\n" % (path, expected))
    assert error(await read(reader)) == (417, "EXPECTATION_FAILED")
    writer.close()
    assert not caplog.records
    assert served.reasons == ["malformed"]


START = b"POST / HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = [
    b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3",
]
WRONG = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "it is TLS"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "it is HTTP/2"),
    (b"SSH-2.0-secret\r\n", "its method"),
    (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", "its method"),
    (b"GET secret HTTP/1.1\r\nHost: x\r\n\r\n", "the target"),
    (b"GET /\x01secret HTTP/1.1\r\nHost: x\r\n\r\n", "the target"),
    (b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n", "the target"),
    (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", "its request line"),
    (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", "its request line"),
    (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", "its request line"),
    (b"GET /secret place HTTP/1.1\r\nHost: x\r\n\r\n", "its request line"),
    (b"GET / HTTPS/1.1\r\nHost: x\r\n\r\n", "its request line"),
    (b"GET / HTTP/1.1\r\n\r\n", "it has no Host"),
    (START + b"Host: secret\r\n\r\n", "it has more than one Host"),
    (START + b"User-Agent: secret\r\nUser-Agent: secret\r\n\r\n", "it has a header field twice"),
    (START + b"Secret : b\r\n\r\n", "a header field"),
    (START + b"A: secret\x01\r\n\r\n", "a header field"),
    (START + b"A: secret\r\n folded\r\n\r\n", "a header field"),
    (START + b"no colon\r\n\r\n", "a header field"),
    (START + b"A: secret\rX\r\n\r\n", "a line"),
    (START + b"Content-Length: secret\r\n\r\n", "its Content-Length"),
    (START + b"Content-Length: \r\n\r\n", "its Content-Length"),
    (START + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n", "its Content-Length"),
    (START + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "it has a header field twice"),
    (START + b"Transfer-Encoding: secret\r\n\r\n", "its Transfer-Encoding"),
    *((START + fields + b"\r\n\r\n", "it has both") for fields in SMUGGLED),
]
"""Heads that cannot be parsed, and how the answer says why."""


@pytest.mark.parametrize(("sent", "why"), WRONG)
async def test_the_answer_says_what_is_wrong_with_a_head_and_repeats_nothing_of_it(
    served: Served, sent: bytes, why: str
) -> None:
    reader, writer = await served.open()
    writer.write(sent)
    _, _, body = parse(await read(reader))
    said = json.loads(body)["error"]
    assert said.startswith(f"This is not a valid HTTP/1.1 request: {why}")
    assert served.details == [said], "the log says so as well"
    assert "secret" not in said.lower()
    writer.close()


async def test_a_body_that_is_not_as_its_header_says_is_no_failure_of_the_server(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be found out while aiohttp reads the rest of a body to drop it."""
    _, writer = await served.open()
    await served.reached(1)
    server: Any = served.runner.server
    (connection,) = server.connections
    for failure in (web.RequestPayloadError(), HttpProcessingError(message="a chunk")):
        connection.log_exception("Unhandled exception", exc_info=failure)
    assert not caplog.records
    assert served.reasons == ["malformed"] * 2
    connection.log_exception("Unhandled exception", exc_info=RuntimeError("an inside"))
    assert "Unhandled exception" in caplog.text
    writer.close()


async def test_a_client_that_leaves_within_its_request_is_no_failure_of_the_server(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await served.open()
    writer.write(b"GET /gone HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await read(reader)
    writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_path_of_thousands_of_parts_is_not_looked_for(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(b"GET " + b"/a" * 7500 + b"?/b/c HTTP/1.1\r\nHost: x\r\n\r\n")
    assert error(await read(reader)) == (404, "NOT_FOUND")
    assert served.reasons == ["malformed"]
    writer.close()


async def test_a_long_head_that_comes_at_once_is_refused(served: Served) -> None:
    reader, writer = await served.open()
    fields = b"".join(b"X-%d: %b\r\n" % (number, b"a" * 8000) for number in range(9))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
    assert error(await read(reader)) == (431, "REQUEST_HEADER_FIELDS_TOO_LARGE")
    assert served.reasons == ["head"]
    writer.close()


async def test_a_header_of_16_kb_is_taken(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * (MAX_FIELD - 3) + b"\r\n\r\n")
    assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_as_many_fields_as_are_allowed(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: a\r\n" * (MAX_FIELDS - 1) + b"\r\n")
    assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_head_without_end_is_refused_before_its_deadline(served: Served) -> None:
    reader, writer = await served.open()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
    await writer.drain()
    for number in range(MAX_HEAD // 8000 + 2):
        writer.write(b"X-%d: %b\r\n" % (number, b"a" * 8000))
        await turn()
    assert error(await read(reader)) == (431, "REQUEST_HEADER_FIELDS_TOO_LARGE")
    writer.close()


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Upgrade: websocket\r\n",
        b"Upgrade: websocket, h2c\r\n",
        b"Upgrade: h2c, websocket\r\n",
        b"Upgrade: WebSocket/13\r\n",
        b"Upgrade: h2c\r\nUpgrade: websocket\r\n",
    ],
)
@pytest.mark.parametrize("cut", [None, -3, -1, 20])
async def test_bytes_behind_an_upgrade_are_kept(
    served: Served, upgrade: bytes, cut: int | None
) -> None:
    _, writer = await served.open()
    head = b"GET /take HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n" + upgrade + b"\r\n"
    request = head + b"early"
    if cut is None:
        writer.write(request)
    else:
        at = cut if cut > 0 else len(head) + cut
        writer.write(request[:at])
        await served.received(at)
        writer.write(request[at:])
    await until(lambda: served.tails)
    assert served.tails == [b"early"]
    writer.close()


async def test_a_request_behind_a_declined_upgrade_is_answered(served: Served) -> None:
    reader, writer = await served.open()
    ask = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    writer.write(ask + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await read(reader)).count(b"HTTP/1.1 200") == 2
    writer.close()


def http(target: str, body: bytes = b"", upgrade: bool = True, chunked: bool = False) -> bytes:
    """A request, which asks for HTTP/2 over plain text as Java's client does in its first ones."""
    head = f"{'POST' if body else 'GET'} {target} HTTP/1.1\r\nHost: x\r\n"
    if upgrade:
        head += (
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        )
    if chunked:
        head += "Transfer-Encoding: chunked\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    elif body:
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


HIDDEN = b"GET /?hidden HTTP/1.1\r\nHost: x\r\n\r\n"
"""A request in a body, which is none."""
DECLINED: dict[str, list[bytes]] = {
    "a body": [http("/read?1", HIDDEN), http("/?2", upgrade=False)],
    "a body and a request": [http("/read?1", HIDDEN) + http("/?2", upgrade=False)],
    "a body that is cut": [http("/read?1", HIDDEN)[:-9], HIDDEN[-9:], http("/?2", upgrade=False)],
    "a body that is cut, and a request": [
        http("/read?1", HIDDEN)[:-9],
        HIDDEN[-9:] + http("/?2", upgrade=False),
    ],
    "chunks": [http("/read?1", HIDDEN, chunked=True), http("/?2", upgrade=False)],
    "chunks and a request": [http("/read?1", HIDDEN, chunked=True) + http("/?2", upgrade=False)],
    "empty lines": [b"\r\n\r\n" + http("/?1") + http("/?2", upgrade=False)],
    "empty lines before": [b"\r\n", b"\r\n" + http("/?1") + http("/?2", upgrade=False)],
    "behind a body": [http("/read?0", b"\r\n\r\n" + HIDDEN, upgrade=False) + http("/?1") + http("/?2")],
    "behind the rest of a body": [
        http("/read?0", b"\r\n\r\n" + HIDDEN, upgrade=False)[:-9],
        HIDDEN[-9:] + http("/?1") + http("/?2"),
    ],
    "twice": [http("/read?1", HIDDEN) + http("/read?2", HIDDEN) + http("/?3", upgrade=False)],
}  # fmt: skip


@pytest.mark.parametrize("pieces", DECLINED.values(), ids=DECLINED)
async def test_what_is_behind_a_declined_upgrade_is_no_other_request(
    served: Served, pieces: list[bytes]
) -> None:
    """Requests are handled in their order, or the connection ends; bodies are no requests."""
    reader, writer = await served.open()
    await served.reached(1)
    server: Any = served.runner.server
    (connection,) = server.connections
    for piece in pieces:
        connection.data_received(piece)  # in segments of their own
        for _ in range(5):
            await turn()
    targets = [word.decode() for word in re.findall(rb"(?:GET|POST) (/\S*\?\d) ", b"".join(pieces))]
    answers = b""
    async with asyncio.timeout(5):
        while answers.count(b"HTTP/1.1 ") < len(targets) and (data := await reader.read(65536)):
            answers += data
    for _ in range(5):
        await turn()
    assert served.handled == targets[: len(served.handled)]
    assert served.handled, "the first is handled"
    assert answers.count(b"HTTP/1.1 200 ") == len(served.handled)
    assert answers.count(b"HTTP/1.1 ") == len(served.handled)
    writer.close()


class Silent:
    """A connection as the guard sees it."""

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


async def test_the_last_descriptors_are_kept() -> None:
    guard = Guard(lambda _: None, 100, now=lambda: 0.0)
    assert guard.most_upgraded == 88
    first, second, newest = Silent(), Silent(), Silent()
    for one in (first, second, newest):
        guard.wait(one)  # type: ignore[arg-type]
    assert guard.has_room(newest, 87)  # type: ignore[arg-type]
    assert not first.aborted
    # The one that has been silent for the longest makes room.
    assert guard.has_room(newest, 88)  # type: ignore[arg-type]
    assert first.aborted
    assert not second.aborted
    # Several may be accepted before the first descriptor is free: each needs one of its own.
    assert not guard.has_room(newest, 94)  # type: ignore[arg-type]
    assert second.aborted


@pytest.mark.no_cover
@pytest.mark.parametrize("descriptors", [64, 120, 1024, 20_000])
async def test_any_number_of_silent_connections_leaves_room_for_one_more(descriptors: int) -> None:
    guard = Guard(lambda _: None, descriptors, now=lambda: 0.0)
    free = list(range(30, descriptors))  # the kernel gives out the lowest

    class Numbered(Silent):
        def __init__(self, fd: int) -> None:
            super().__init__()
            self.fd = fd

        def abort(self) -> None:
            heapq.heappush(free, self.fd)

    for _ in range(3 * descriptors):
        newcomer = Numbered(heapq.heappop(free))
        assert guard.has_room(None, newcomer.fd)
        guard.wait(newcomer)  # type: ignore[arg-type]


async def test_the_limit_of_open_files_is_that_of_now() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    guard = Guard(lambda _: None, now=lambda: 0.0)
    before = guard.most_upgraded
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 100, hard))
    try:
        guard.sweep()
        assert guard.most_upgraded < before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    guard.sweep()
    assert guard.most_upgraded == before


def test_the_first_deadline_wakes_the_worker() -> None:
    """One that rests sweeps rarely."""
    woken: list[int] = []
    guard = Guard(lambda _: None, 100, now=lambda: 0.0, wake=lambda: woken.append(guard.waiting))
    first, second = Silent(), Silent()
    for one in (first, second):
        guard.wait(one)  # type: ignore[arg-type]
    assert woken == [0]
    for one in (first, second):
        guard.end_wait(one)  # type: ignore[arg-type]
    guard.wait(second)  # type: ignore[arg-type]
    assert woken == [0, 0]
