"""Ordinary calls are served without aiohttp, and their answers are the same."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import gzip
import json
import logging
import re
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import http_parser

from app.broadcast.queue import Entry
from app.config import load
from app.http.direct import MAX_ARRAY, MAX_BODY, DirectCalls
from app.http.publishing import PublishingCall
from app.transport.door import DoorRunner, Newcomer
from app.transport.http_connection import (
    CALLS,
    INCOMPLETE,
    TAKEN,
    Caller,
    HttpConnection,
    HttpServer,
    Take,
)
from app.transport.http_guard import GUARD, HEAD_SECONDS, Guard
from tests.support.http_side import HttpSide
from tests.support.waiting import until

TOKEN = "publish-token-of-the-tests"
FIELDS = {"Host": "127.0.0.1", "Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
MESSAGE = {"type": "status", "event": "fine", "data": {"n": 1}}
BODY = json.dumps(MESSAGE).encode()


def request(
    body: bytes = BODY, line: str = "POST /ws/broadcast HTTP/1.1", **more: str | None
) -> bytes:
    """A request; `more` are fields with `_` for `-`, and those that are None are left out."""
    fields: dict[str, str | None] = {**FIELDS, **JSON, "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Watched:
    """Notes what became of each request."""

    def __init__(self, calls: DirectCalls) -> None:
        self.calls = calls
        self.found: list[Take] = []

    @property
    def in_progress(self) -> int:
        return self.calls.in_progress

    async def wait_settled(self) -> None:
        await self.calls.wait_settled()

    def take(self, data: bytes, peer: str | None, caller: Caller) -> Take:
        self.found.append(self.calls.take(data, peer, caller))
        return self.found[-1]


class Served:
    """A worker's HTTP side behind a door, with or without direct calls."""

    def __init__(self, direct: bool, **environ: str) -> None:
        self.side = HttpSide(load({"PUBLISH_TOKEN": TOKEN} | environ))
        self.ends_keep_alive = False
        self.calls = Watched(DirectCalls(self.side.context, lambda: self.ends_keep_alive))
        self.seconds = 100.0
        self.guard = Guard(lambda _: None, now=lambda: self.seconds)
        app = self.side.app
        app[GUARD] = self.guard
        if direct:
            app[CALLS] = self.calls
        self.runner = DoorRunner(app, keepalive_timeout=75.0, access_log=None)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: Any = self.listener.getsockname()
        self.site: Any = None
        self.clients: list[asyncio.StreamWriter] = []

    @property
    def connections(self) -> list[HttpConnection]:
        server = self.runner.server
        assert isinstance(server, HttpServer)
        return list(server.all())

    def has_seen(self, requests: int) -> bool:
        """Whether more requests were looked at, or a part of one waits for its rest."""
        return len(self.calls.found) > requests or self.guard.waiting > 0

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address[:2])
        self.clients.append(writer)
        return reader, writer

    async def ask(self, data: bytes) -> bytes:
        """The answer to a request on a connection of its own, until the server closes it."""
        reader, writer = await self.open()
        writer.write(data)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def serve(direct: bool = True, **environ: str) -> AsyncIterator[Served]:
    served = Served(direct, **environ)
    await served.runner.setup()
    served.site = served.runner.make_site([served.listener])
    await served.site.start()
    try:
        yield served
    finally:
        for writer in served.clients:
            writer.transport.abort()
        await served.runner.cleanup()


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"Content-Length: (\d+)", head)
        assert found is not None
        return head + await reader.readexactly(int(found[1]))


def neutral(answer: bytes) -> tuple[str, list[str], str]:
    """Status, fields in an order of their own, and body, without what is new each time."""
    head, _, body = answer.decode().partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    fields = [re.sub(r"(?<=X-Request-ID: )[0-9a-f-]{36}$|(?<=Date: ).*", "*", f) for f in fields]
    body = re.sub(r'"id":"[0-9a-f]{8}-[0-9a-f-]{27}"', '"id":*', body)
    body = re.sub(r"under [0-9a-f-]{36}", "under *", body)
    return status, sorted(fields), body


MANY = json.dumps([MESSAGE] * 3).encode()
MIXED = json.dumps(
    [MESSAGE, MESSAGE | {"type": "nothing"}, MESSAGE | {"id": "a", "data": 2}]
).encode()

DIRECT = {
    "one message": request(),
    "an array": request(MANY),
    "an empty array": request(b"[]"),
    "an array with errors": request(MIXED),
    "an id": request(json.dumps(MESSAGE | {"id": "x"}).encode()),
    "no JSON": request(b"{nothing"),
    "NaN": request(b'{"type":"status","event":"e","data":NaN}'),
    "no UTF-8": request(b'"\xff"'),
    "too deep": request(b"[" * 200 + b"]" * 200),
    "an unknown type": request(json.dumps(MESSAGE | {"type": "nothing"}).encode()),
    "a reserved event": request(json.dumps(MESSAGE | {"event": "gap"}).encode()),
    "a number": request(b"7"),
    "text": request(Content_Type="text/plain"),
    "no form": request(Content_Type=None),
    "a form of curl": request(Content_Type="application/x-www-form-urlencoded"),
    "the other field": request(Authorization=None, X_Publish_Token=TOKEN),
    "a field in lower case": request(Authorization=None) .replace(b"Host", b"authorization: bearer " + TOKEN.encode() + b"\r\nhost"),
    "an id of a stranger": request(X_Request_ID="chosen"),
}  # fmt: skip
PASSED = {
    "no token": request(Authorization=None),
    "a wrong token": request(Authorization="Bearer wrong"),
    "a page": request(Origin="https://lab.example"),
    "another host": request(Host="evil.example.org"),
    "another path": request(line="POST /ws/broadcast?x=1 HTTP/1.1"),
    "HTTP/1.0": request(line="POST /ws/broadcast HTTP/1.0"),
    "another form": request(Content_Type="image/png"),
    "no length": request(Content_Length=None),
    "chunks": request(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), Content_Length=None, Transfer_Encoding="chunked"),
    "two lengths": request().replace(b"Content-Length", b"Content-Length: 9\r\nContent-Length"),
    "two hosts": request().replace(b"Host", b"Host: a\r\nHost"),
    "no host": request(Host=None),
    "an odd length": request(Content_Length="+12"),
    "a coding": request(Content_Encoding="br"),
    "an expectation": request(Expect="200-maybe"),
    "a large body": request(b" " * MAX_BODY + BODY),
    "a large array": request(json.dumps([MESSAGE] * (MAX_ARRAY + 1)).encode()),
    "an old name of Connection": request(Proxy_Connection="close"),
    "a field on two lines": request().replace(b"Host", b"X: a\r\n b\r\nHost"),
}  # fmt: skip


@pytest.mark.parametrize("data", [*DIRECT.values(), *PASSED.values()], ids=[*DIRECT, *PASSED])
@pytest.mark.parametrize("origins", ["", "*", "https://lab.example"])
async def test_answers_are_those_of_aiohttp(data: bytes, origins: str) -> None:
    """Also what is counted and logged is the same."""
    data = data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    environ = {"ALLOWED_ORIGINS": origins} if origins else {}
    async with serve(True, **environ) as here, serve(False, **environ) as there:
        answers = [neutral(await served.ask(data)) for served in (here, there)]
        assert answers[0] == answers[1]
        assert here.side.requests == there.side.requests
        assert here.calls.in_progress == 0
        stored = [[d.body[50:] for d in s.side.streams.drafts] for s in (here, there)]
        assert len(stored[0]) == len(stored[1])
        assert (TAKEN in here.calls.found) == (
            data.replace(b"\r\nConnection: close", b"", 1) in DIRECT.values()
        )


@pytest.mark.parametrize("fault", ["away", "full"])
async def test_failures_are_answered_alike(fault: str) -> None:
    data = request(Connection="close")
    answers = []
    for direct in (True, False):
        async with serve(direct) as served:
            setattr(served.side.streams, fault, True)
            answers.append(neutral(await served.ask(data)))
    assert answers[0] == answers[1]
    assert answers[0][0] == "HTTP/1.1 503 Service Unavailable"


async def test_a_bug_is_answered_with_500(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as served:

        def fail(_: object) -> None:
            raise RuntimeError("a secret of the inside")

        monkeypatch.setattr(served.side.streams, "submit", fail)
        answer = await served.ask(request(Connection="close"))
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"a secret" not in answer
        (id,) = re.findall(rb"under ([0-9a-f-]{36})", answer)
        assert b"X-Request-ID: " + id in answer
        assert "a secret" in caplog.text
        assert id.decode() in str([vars(record) for record in caplog.records])
        assert served.calls.in_progress == 0


async def test_an_id_that_stands_for_another_message_is_answered_alike() -> None:
    chosen = MESSAGE | {"id": "x"}
    other = chosen | {"data": "another"}
    for bodies in ([chosen, other], [chosen, chosen], [[chosen], [other, MESSAGE]]):
        answers = []
        for direct in (True, False):
            async with serve(direct) as served:
                answers.append(
                    [
                        neutral(
                            await served.ask(request(json.dumps(b).encode(), Connection="close"))
                        )
                        for b in bodies
                    ]
                )
        assert answers[0] == answers[1]


async def test_the_log_has_a_line_for_each_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "realtime.audit")
    lines = []
    for direct in (True, False):
        async with serve(direct) as served:
            caplog.clear()
            await served.ask(request(MIXED, Connection="close"))
            await served.ask(request(b"x", Connection="close"))
            kept = ("who", "address", "call", "status", "code", "messages", "failed", "types")
            lines.append([[getattr(r, name, None) for name in kept] for r in caplog.records])
    assert lines[0] == lines[1]
    assert lines[0][0] == ["default", "127.0.0.1", "POST /ws/broadcast", 207, None, 3, 1, "status"]
    assert lines[0][1][3:5] == [400, "PARSE_ERROR"]


async def test_a_budget_is_kept() -> None:
    async with serve(PUBLISH_RATE_LIMIT="1") as served:
        answers = [await served.ask(request(MANY, Connection="close")) for _ in range(5)]
        assert [answer[9:12] for answer in answers] == [b"200"] * 4 + [b"429"]


# Connections


async def test_a_connection_is_used_again() -> None:
    async with serve() as served:
        reader, writer = await served.open()
        for _ in range(3):
            writer.write(request())
            answer = await answer_of(reader)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"Connection:" not in answer
        writer.write(b"GET /ws/queue HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b'"maxSize"' in await answer_of(reader)
        writer.write(request())
        assert b" 200 " in await answer_of(reader)
        assert served.calls.found.count(TAKEN) == 4
        (connection,) = served.connections
        await until(lambda: connection.is_at_rest)
        assert connection.requests == 5
        assert served.guard.waiting == 0
        writer.close()
        await until(lambda: not served.connections)


async def test_keep_alive_counts_from_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:
        reader, writer = await served.open()
        writer.write(request())
        await answer_of(reader)
        await until(lambda: len(served.connections) == 1)
        (connection,) = served.connections
        await until(lambda: connection.is_at_rest)
        monkeypatch.setattr(connection, "_next_keepalive_close_time", 0.0)
        writer.write(request())
        await answer_of(reader)
        now = asyncio.get_running_loop().time()
        assert connection._next_keepalive_close_time > now + 70
        connection._process_keepalive()
        assert connection.transport is not None, "its time is not over"
        monkeypatch.setattr(connection, "_next_keepalive_close_time", 0.0)
        connection._process_keepalive()
        assert await reader.read() == b""


async def test_a_worker_that_leaves_ends_its_connections() -> None:
    async with serve() as served:
        served.ends_keep_alive = True
        answer = await served.ask(request())
        assert b"\r\nConnection: close\r\n" in answer
        assert b" 200 " in answer


async def test_a_request_may_be_cut_anywhere() -> None:
    data = request()
    async with serve() as served:
        reader, writer = await served.open()
        for end in range(1, len(data)):
            fresh_reader, fresh = await served.open()
            for stream, answers in ((fresh, fresh_reader), (writer, reader)):
                seen = len(served.calls.found)
                stream.write(data[:end])
                await until(functools.partial(served.has_seen, seen))
                stream.write(data[end:])
                assert b" 200 " in await answer_of(answers), end
            fresh.close()
        assert INCOMPLETE in served.calls.found
        await until(lambda: served.guard.waiting == 0)


async def test_requests_behind_each_other_are_answered_in_their_order() -> None:
    async with serve() as served:
        reader, writer = await served.open()
        ids = [f"m{n}" for n in range(6)]
        bodies = [json.dumps(MESSAGE | {"id": id}).encode() for id in ids]
        writer.write(request(bodies[0]))
        assert b'"m0"' in await answer_of(reader)
        writer.write(b"".join(request(body) for body in bodies[1:4]))
        for id in ids[1:4]:
            assert f'"{id}"'.encode() in await answer_of(reader)
        for body in bodies[4:]:
            writer.write(request(body))
        for id in ids[4:]:
            assert f'"{id}"'.encode() in await answer_of(reader)
        assert [draft.id for draft in served.side.streams.drafts] == ids


def packed_call(body: bytes, coding: str) -> bytes:
    return request(body, Content_Encoding=coding, Connection="close")


RAW = zlib.compressobj(wbits=-15)
PACKED: dict[str, tuple[bytes, str, int]] = {
    "gzip": (gzip.compress(BODY), "gzip", 200),
    "zlib": (zlib.compress(BODY), "deflate", 200),
    "deflate": (RAW.compress(BODY) + RAW.flush(), "deflate", 200),
    "in upper case": (gzip.compress(BODY), "GZIP", 200),
    "cut": (gzip.compress(BODY)[:-4], "gzip", 400),
    "something behind": (gzip.compress(BODY) + b"x", "gzip", 400),
    "another one": (gzip.compress(BODY), "deflate", 400),
    "not packed": (BODY, "gzip", 400),
    "too large": (gzip.compress(b" " * 5_000_000 + BODY), "gzip", 413),
}


@pytest.mark.parametrize(("body", "coding", "status"), PACKED.values(), ids=PACKED)
async def test_packed_bodies(body: bytes, coding: str, status: int) -> None:
    async with serve() as served:
        answer = await served.ask(packed_call(body, coding))
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer


@pytest.mark.parametrize("line", ["POST /nothing HTTP/1.1", "GET /status HTTP/1.1"])
async def test_a_body_that_is_not_read_is_not_unpacked(
    monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """A kilobyte of a stranger would become a megabyte of work."""
    made: list[object] = []

    def unpack(*args: object, **_options: object) -> None:
        made.append(args)

    monkeypatch.setattr(http_parser, "ZLibDecompressor", unpack)
    monkeypatch.setattr(zlib, "decompressobj", unpack)
    async with serve() as served:
        body = gzip.compress(b"0" * 1_000_000)
        data = request(body, line, Content_Encoding="gzip", Connection="close", Authorization=None)
        assert await served.ask(data)
        assert made == []


class Held:
    """Streams whose messages are stored when the test says so."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[tuple[asyncio.Future[Any], Any]] = []
        self._submit = served.side.streams.submit
        monkeypatch.setattr(served.side.streams, "submit", self.submit)

    def submit(self, draft: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((future, draft))
        return future

    def store(self) -> None:
        for place in range(len(self.waiting)):
            self.store_one(place)
        self.waiting.clear()

    def store_one(self, place: int) -> None:
        future, draft = self.waiting[place]
        future.set_result(self._submit(draft).result())


async def open_served(
    served: Served, held: Held
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose first request has been answered."""
    reader, writer = await served.open()
    writer.write(request())
    await until(lambda: len(held.waiting) == 1)
    held.store()
    await answer_of(reader)
    await until(lambda: len(served.connections) == 1)
    return reader, writer


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
async def test_an_array_is_answered_when_its_last_message_is_settled(
    monkeypatch: pytest.MonkeyPatch, order: list[int]
) -> None:
    async with serve() as served:
        held = Held(served, monkeypatch)
        reader, writer = await served.open()
        writer.write(request(json.dumps([MESSAGE] * 3).encode()))
        await until(lambda: len(held.waiting) == 3)
        for place in order:
            await asyncio.sleep(0)
            assert served.calls.in_progress == 1
            held.store_one(place)
        _, _, body = (await answer_of(reader)).partition(b"\r\n\r\n")
        ids = [draft.id for _, draft in held.waiting]
        assert [one["id"] for one in json.loads(body)] == ids
        assert served.calls.in_progress == 0


async def test_what_comes_behind_a_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:
        held = Held(served, monkeypatch)
        reader, writer = await served.open()
        for _ in range(2):
            writer.write(request())
            await until(lambda: len(held.waiting) == 1)
            server = served.runner.server
            assert isinstance(server, HttpServer)
            assert server.is_answering
            assert not any(connection.is_at_rest for connection in served.connections)
            writer.write(b"GET /ws/queue HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            held.store()
            assert b'"seq"' in await answer_of(reader)
            assert b'"maxSize"' in await answer_of(reader)
            assert not server.is_answering


async def test_what_comes_after_an_answer_stays_behind_what_waited_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop may read from the socket between an answer and the work that it has planned."""
    async with serve() as served:
        held = Held(served, monkeypatch)
        reader, _ = await open_served(served, held)
        (connection,) = served.connections
        await until(lambda: connection.is_at_rest)
        ids = [f"m{n}" for n in range(3)]
        first, *others = [request(json.dumps(MESSAGE | {"id": id}).encode()) for id in ids]
        behind = b"".join(others)
        connection.data_received(first)
        connection.data_received(behind[:-20])
        held.store()
        await asyncio.sleep(0)  # the answer has left
        connection.data_received(behind[-20:])
        for id in ids:
            if id != ids[0]:
                await until(lambda: len(held.waiting) == 1)
                held.store()
            assert f'"{id}"'.encode() in await answer_of(reader)
        assert [draft.id for draft in served.side.streams.drafts][1:] == ids


async def test_a_client_that_leaves_costs_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:
        held = Held(served, monkeypatch)
        _, writer = await open_served(served, held)
        writer.write(request())
        await until(lambda: len(held.waiting) == 1)
        writer.transport.abort()
        held.store()
        await until(lambda: served.calls.in_progress == 0)
        await until(lambda: not served.connections)
        assert len(served.side.streams.drafts) == 2
        # And one that aiohttp never had.
        _, writer = await served.open()
        writer.write(request())
        await until(lambda: len(held.waiting) == 1)
        writer.transport.abort()
        held.store()
        await until(lambda: served.calls.in_progress == 0)
        await until(lambda: not served.connections)
        assert len(served.side.streams.drafts) == 3


async def test_a_door_closes_when_its_calls_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as served:
        held = Held(served, monkeypatch)
        reader, writer = await served.open()
        writer.write(request())
        await until(lambda: len(held.waiting) == 1)
        stopping = asyncio.ensure_future(served.site.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        held.store()
        assert b" 200 " in await answer_of(reader)
        await stopping
        writer.close()


async def test_a_body_that_does_not_come_is_aiohttps_in_the_end() -> None:
    """Which has waited for it already then."""
    data = request()
    async with serve() as served:
        fresh_reader, fresh = await served.open()
        reader, writer = await served.open()
        writer.write(data)
        await answer_of(reader)
        await until(lambda: len(served.connections) == 1)
        for stream in (fresh, writer):
            stream.write(data[:-3])
        await until(lambda: served.guard.waiting == 2)
        served.seconds += HEAD_SECONDS
        served.guard.sweep()
        for waiting in (fresh_reader, reader):
            answer = await answer_of(waiting)
            assert b" 408 " in answer
            assert b"did not arrive in time" in answer
        assert served.calls.found.count(TAKEN) == 1


async def test_a_request_whose_turn_does_not_come_in_time_ends_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A busy worker may have no connection of aiohttp's by the deadline of its first request."""
    async with serve() as served:
        server = served.runner.server
        assert isinstance(server, HttpServer)
        turn = asyncio.Event()
        monkeypatch.setattr(server._turns, "take", turn.wait)
        late, silent = await served.open(), await served.open()
        late[1].write(GET)
        await until(lambda: served.guard.waiting == 2)
        served.seconds += HEAD_SECONDS
        served.guard.sweep()
        turn.set()
        for reader, _ in (late, silent):
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(5):
                    assert await reader.read() == b""
        assert served.guard.waiting == 0
        assert caplog.text == ""


GET = b"GET /ws/queue HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
BEHIND: dict[str, tuple[list[bytes], int]] = {
    "a call": ([request() + b"GET /"], 1),
    "aiohttp's request": ([GET + b"POST /ws/broad"], 1),
    "several": ([GET * 3 + b"G"], 3),
    "the end of a body": ([request(TE="trailers")[:-3], request()[-3:] + b"GET /"], 1),
}
"""What is sent and its answers; a part of a head comes in one piece with the end of a request."""


@pytest.mark.parametrize(("pieces", "answers"), BEHIND.values(), ids=BEHIND)
async def test_a_head_that_begins_behind_a_request_has_its_deadline(
    pieces: list[bytes], answers: int
) -> None:
    async with serve() as served:
        reader, writer = await served.open()
        for piece in pieces:
            writer.write(piece)
            await until(lambda: len(served.connections) == 1)
        for _ in range(answers):
            assert (await answer_of(reader)).startswith(b"HTTP/1.1 200 ")
        await until(lambda: not any(one.is_answering for one in served.connections))
        assert served.guard.waiting == 1
        served.seconds += HEAD_SECONDS
        served.guard.sweep()
        assert b" 408 " in await answer_of(reader)


@pytest.mark.parametrize("data", [request(), GET, GET * 2])
async def test_empty_lines_behind_a_request_have_none(data: bytes) -> None:
    async with serve() as served:
        reader, writer = await served.open()
        writer.write(data + b"\r\n")
        await answer_of(reader)
        assert served.guard.waiting == 0


async def test_a_request_that_takes_long_is_not_cut_by_the_head_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve() as served:
        held = Held(served, monkeypatch)
        reader, writer = await served.open()
        writer.write(request(TE="trailers"))
        await until(lambda: len(held.waiting) == 1)
        writer.write(b"GET /")
        await until(lambda: served.guard.waiting == 1)
        served.seconds += HEAD_SECONDS
        served.guard.sweep()
        held.store()
        assert b'"seq"' in await answer_of(reader)
        await until(lambda: not any(one.is_answering for one in served.connections))
        served.seconds += HEAD_SECONDS
        served.guard.sweep()
        assert b" 408 " in await answer_of(reader)


async def test_a_long_answer_to_a_client_that_does_not_read_is_sent_on() -> None:
    """The rest of an answer that a socket does not take at once goes on as aiohttp's."""
    async with serve() as served:
        door = served.site._door
        for keep in (True, False):
            client, ours = socket.socketpair()
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            answer = b"x" * 1_000_000
            Newcomer(door, ours.detach(), socket.AF_UNIX, "").reply(answer, keep)
            client.setblocking(False)
            received = bytearray()
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(5):
                while len(received) < len(answer):
                    received += await loop.sock_recv(client, 65536)
            assert received == answer
            if not keep:
                assert await loop.sock_recv(client, 1) == b""
            client.close()
            await until(lambda: not served.connections)


@pytest.mark.parametrize("body", [BODY, MANY, MIXED, b'[{"type": "no"}]'])
@pytest.mark.parametrize("fault", ["", "away", "full"])
async def test_an_answered_call_is_kept_by_no_cycle(body: bytes, fault: str) -> None:
    """Its messages may be large, and the collector comes seldom."""
    async with serve() as served:
        if fault:
            setattr(served.side.streams, fault, True)
        gc.collect()
        gc.disable()
        try:
            await served.ask(request(body, Connection="close"))
            kept = [one for one in gc.get_objects() if isinstance(one, (PublishingCall, Entry))]
        finally:
            gc.enable()
        assert served.calls.found[-1] is TAKEN
        assert kept == []
