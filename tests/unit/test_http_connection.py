"""When an HTTP connection is at rest, however its bytes arrive; and that it goes on elsewhere."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.transport import http_guard
from app.transport.door import DoorRunner
from app.transport.http_connection import MAX_KEPT, MAX_UNREAD, HttpConnection, HttpServer
from app.transport.http_guard import GUARD, HEAD_SECONDS, WRITE_SECONDS, Guard

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na\r\n\r\nb\r\nc"
EMPTY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\na\r\n\r\n\r\n7\r\n0\r\n\r\nab\r\n0\r\n\r\n"
)
MISSING = b"GET /missing HTTP/1.1\r\nHost: x\r\n\r\n"
REQUESTS = (GET, POST, EMPTY, CHUNKED, MISSING)


class Memory(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    if request.path == "/missing":
        raise web.HTTPNotFound
    return web.Response(text="ok")


async def settled(connection: HttpConnection) -> None:
    """Let the tasks of a connection run until they wait for bytes."""
    for _ in range(12):
        await asyncio.sleep(0)


async def rests(pieces: Iterator[bytes]) -> list[tuple[int, bool]]:
    """Bytes sent so far, and whether the connection is at rest; after each piece."""
    connection = HttpServer(web.Server(answer), Guard(lambda _: None))()
    connection.connection_made(Memory())
    await settled(connection)  # type: ignore[arg-type]
    seen, sent = [(0, connection.is_at_rest)], 0  # type: ignore[attr-defined]
    for piece in pieces:
        connection.data_received(piece)
        await settled(connection)  # type: ignore[arg-type]
        sent += len(piece)
        seen.append((sent, connection.is_at_rest))  # type: ignore[attr-defined]
    connection.connection_lost(None)
    await settled(connection)  # type: ignore[arg-type]
    return seen


@given(
    st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4),
    st.sets(st.integers(1, 600), max_size=12),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_never_at_rest_within_a_request(requests: list[bytes], cuts: set[int]) -> None:
    """However requests are cut and joined."""
    data = b"".join(requests)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = (data[a:b] for a, b in pairwise(places))
    ends = {0}
    for request in requests:
        ends.add(max(ends) + len(request))
    for sent, at_rest in asyncio.run(rests(pieces)):
        assert not at_rest or sent in ends


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
async def test_at_rest_after_each_request(request_: bytes, size: int) -> None:
    """In pieces of any size, as long as the client waits for its answers."""
    pieces = [request_[at : at + size] for at in range(0, len(request_), size)] * 3
    rested = [sent for sent, at_rest in await rests(iter(pieces)) if at_rest]
    assert rested == [len(request_) * done for done in range(4)]


@pytest.mark.parametrize("request_", [GET, POST, CHUNKED, MISSING])
async def test_answering_from_the_head_of_a_request_to_its_answer(request_: bytes) -> None:
    """At each turn of the loop: a worker that ends may ask at any."""
    connection = HttpServer(web.Server(answer), Guard(lambda _: None))()
    transport = Memory()
    connection.connection_made(transport)
    await settled(connection)
    for _ in range(3):
        transport.written = b""
        connection.data_received(request_)
        turns = 0
        while not transport.written:
            assert connection.is_answering, turns
            assert not connection.is_at_rest, turns
            turns += 1
            await asyncio.sleep(0)
        await settled(connection)
        assert not connection.is_answering
        assert connection.is_at_rest
    connection.connection_lost(None)
    await settled(connection)


@pytest.mark.parametrize("turns", range(8))
async def test_a_client_that_closes_within_a_body_ends_its_request_at_any_turn(turns: int) -> None:
    connection = HttpServer(web.Server(answer), Guard(lambda _: None))()
    connection.connection_made(Memory())
    await settled(connection)
    connection.data_received(POST[:-1])
    for _ in range(turns):
        await asyncio.sleep(0)
    connection.eof_received()
    await settled(connection)
    assert not connection.is_answering
    connection.connection_lost(None)
    await settled(connection)


# Between two servers


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[list[HttpServer]]:
    runners = []
    for _ in range(2):
        app = web.Application()
        app[GUARD] = Guard(lambda _: None)
        app.router.add_route("*", "/", answer)
        runners.append(DoorRunner(app))
        await runners[-1].setup()
    found = [runner.server for runner in runners]
    assert all(isinstance(server, HttpServer) for server in found)
    yield found  # type: ignore[misc]
    for runner in runners:
        await runner.cleanup()


async def test_a_connection_goes_on_at_another_server(servers: list[HttpServer]) -> None:
    loop = asyncio.get_running_loop()
    client, accepted = socket.socketpair()
    client.setblocking(False)
    with client:
        await loop.connect_accepted_socket(servers[0], accepted)
        await loop.sock_sendall(client, POST)
        assert b"200 OK" in await loop.sock_recv(client, 10_000)
        (connection,) = servers[0].all()
        while not connection.is_at_rest:
            await asyncio.sleep(0)
        connection.pause()
        duplicate = socket.dup(connection.descriptor())
        connection.let_go()
        await servers[1].adopt(duplicate, connection.requests)
        (adopted,) = servers[1].all()
        assert adopted.requests == 1
        await loop.sock_sendall(client, GET)
        assert b"200 OK" in await loop.sock_recv(client, 10_000)
        assert adopted.requests == 2


async def test_what_cannot_be_adopted_is_closed(servers: list[HttpServer]) -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError):
        await servers[0].adopt(writing, 0)
    assert os.read(reading, 1) == b"", "the descriptor is closed"
    os.close(reading)


async def test_a_body_is_read_after_its_client_is_gone() -> None:
    """Aiohttp then lets the connection read on, which has neither a server nor a parser any more."""
    connection = HttpServer(web.Server(answer), Guard(lambda _: None))()
    connection.connection_made(Memory())
    connection.data_received(POST[:-5])
    connection.connection_lost(None)
    connection.resume_reading()
    await settled(connection)  # type: ignore[arg-type]


async def test_reading_on_is_no_beginning_of_a_request() -> None:
    guard = Guard(lambda _: None)
    connection = HttpServer(web.Server(answer), guard)()
    connection.connection_made(Memory())
    connection.data_received(GET)
    await settled(connection)  # type: ignore[arg-type]
    connection.resume_reading()
    assert guard.waiting == 0
    connection.connection_lost(None)


async def test_the_wait_for_one_body_is_not_that_for_the_next() -> None:
    """Though nothing has asked for the time that was waited."""
    connection: Any = HttpServer(web.Server(answer), Guard(lambda _: None))()
    connection.begins_with(connection, "192.0.2.1", GET, None, 10.0)
    connection.connection_made(Memory())
    await settled(connection)
    connection.data_received(GET)
    assert connection.take_waited() == 0.0
    connection.connection_lost(None)


async def test_the_wait_for_a_body_is_reported_once() -> None:
    connection: Any = HttpServer(web.Server(answer), Guard(lambda _: None))()
    connection.begins_with(connection, "192.0.2.1", POST[:-5], None, 10.0)
    connection.connection_made(Memory())
    assert [connection.take_waited() for _ in range(2)] == [10.0, 0.0]
    connection.connection_lost(None)
    await settled(connection)


CHUNKS = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"


@pytest.mark.parametrize(
    "rest",
    [
        b"0\r\nX : a\r\n\r\n",
        b"0\r\nX: \0\r\n\r\n",
        b"0\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"0\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
        b"z\r\n",
    ],
    ids=["name", "value", "long trailer", "trailers", "size"],
)
@pytest.mark.parametrize("step", [1 << 20, 1000])
async def test_a_body_whose_chunks_cannot_be_parsed_ends_at_once(rest: bytes, step: int) -> None:
    failed: list[str] = []

    async def read(request: web.BaseRequest) -> web.StreamResponse:
        connection: Any = request.protocol
        connection.let_body_in()
        try:
            await request.read()
        except web.RequestPayloadError:
            failed.append(request.path)
            return web.Response(status=400)
        return web.Response()

    connection = HttpServer(web.Server(read), Guard(lambda _: None))()
    transport = Memory()
    connection.connection_made(transport)
    await settled(connection)  # type: ignore[arg-type]
    connection.data_received(CHUNKS)
    await settled(connection)  # type: ignore[arg-type]
    for start in range(0, len(rest), step):
        connection.data_received(rest[start : start + step])
        await settled(connection)  # type: ignore[arg-type]
    assert failed == ["/"]
    assert transport.written.startswith(b"HTTP/1.1 400 ")


# Bodies in chunks

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL = b"1\r\nx\r\n"


class Flow(Memory):
    """A transport that knows whether it is read from."""

    is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


class Unsent(Flow):
    """A transport whose client takes all but one byte."""

    unsent = 1
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def abort(self) -> None:
        self.aborted = True


async def begin(handler: Any) -> tuple[Any, Flow]:
    connection: Any = HttpServer(web.Server(handler), Guard(lambda _: None))()
    flow = Flow()
    connection.connection_made(flow)
    await settled(connection)
    return connection, flow


@pytest.mark.parametrize("size", [1000, 5000, 200_000])
async def test_a_body_in_chunks_that_is_not_let_in_is_not_parsed(size: int) -> None:
    bodies: list[Any] = []
    gate = asyncio.Event()

    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        bodies.append(request.content)
        await gate.wait()
        return web.Response(status=401)

    connection, flow = await begin(refuse)
    data = HEAD + SMALL * 40_000
    for at in range(0, len(data), size):
        if flow.is_read:
            connection.data_received(data[at : at + size])
            await settled(connection)
    assert not flow.is_read, "the rest waits in the kernel"
    assert bodies[0].total_bytes <= 2 * MAX_UNREAD / len(SMALL)
    gate.set()
    await settled(connection)
    assert flow.written.startswith(b"HTTP/1.1 401")
    assert b"Connection: close" in flow.written
    assert flow.is_read, "or the client would see a reset in place of the answer"
    connection.data_received(SMALL * 10_000)
    assert bodies[0].total_bytes <= 2 * MAX_UNREAD / len(SMALL)
    connection.connection_lost(None)
    await settled(connection)


@pytest.mark.parametrize("size", [1, 7, 60, 5000, 200_000])
async def test_a_body_in_chunks_that_is_let_in_arrives(size: int) -> None:
    got: list[bytes] = []

    async def read(request: web.BaseRequest) -> web.StreamResponse:
        for _ in range(3):
            await asyncio.sleep(0)
        connection: Any = request.protocol
        connection.let_body_in()
        got.append(await request.read())
        return web.Response(text="ok")

    connection, flow = await begin(read)
    body = b"".join(b"%x\r\n%b\r\n" % (n, b"x" * n) for n in range(1, 120))
    for _ in range(2):
        data = HEAD + body + b"0\r\n\r\n" + GET
        for at in range(0, len(data), size):
            for _ in range(100):
                if flow.is_read:
                    break
                await asyncio.sleep(0)
            connection.data_received(data[at : at + size])
        for _ in range(30):
            await settled(connection)
    assert [len(one) for one in got] == [119 * 60, 0] * 2
    assert flow.written.count(b"HTTP/1.1 200") == 4
    connection.connection_lost(None)
    await settled(connection)


async def test_requests_sent_ahead_are_not_read_on_while_an_answer_is_held_back() -> None:
    """At a number of requests aiohttp pauses; another pause that ends does not end that one."""
    read_on: list[bool] = []

    async def hold_back(request: web.BaseRequest) -> web.StreamResponse:
        connection: Any = request.protocol
        connection.pause()
        await asyncio.sleep(0)
        connection.resume()
        read_on.append(flow.is_read)
        return web.Response(status=429)

    connection, flow = await begin(hold_back)
    connection.data_received(GET * 100)
    for _ in range(100):
        await settled(connection)
    assert len(read_on) == 100
    assert not any(read_on[: 100 - MAX_MSG_QUEUE_SIZE])
    assert flow.is_read, "all are answered"
    connection.connection_lost(None)
    await settled(connection)


async def test_requests_sent_ahead_with_the_first_one_are_not_read_on() -> None:
    gate = asyncio.Event()

    async def wait(_: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.Response()

    connection: Any = HttpServer(web.Server(wait), Guard(lambda _: None))()
    connection.begins_with(connection, "192.0.2.1", GET * 100, None, 0.0)
    flow = Flow()
    connection.connection_made(flow)
    flow.is_read = True  # as uvloop does now
    await settled(connection)
    assert not flow.is_read
    gate.set()
    for _ in range(100):
        await settled(connection)
    assert flow.is_read
    assert flow.written.count(b"HTTP/1.1 200") == 100
    connection.connection_lost(None)
    await settled(connection)


async def test_the_address_of_a_client_that_is_gone_is_the_one_that_it_came_from() -> None:
    seen: list[str | None] = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.remote)
        return web.Response()

    for peer in ("192.0.2.1", ""):
        connection: Any = HttpServer(web.Server(note), Guard(lambda _: None))()
        connection.begins_with(connection, peer, GET, None, 0.0)
        connection.connection_made(Memory())  # which knows no address
        await settled(connection)
        connection.connection_lost(None)
        await settled(connection)
    assert seen == ["192.0.2.1", ""]


async def test_a_short_body_in_chunks_needs_not_be_let_in() -> None:
    """What has come with its head, and is refused, keeps the connection."""
    connection, flow = await begin(answer)
    for _ in range(3):
        connection.data_received(CHUNKED)
        await settled(connection)
    assert flow.written.count(b"HTTP/1.1 200") == 3
    assert connection.is_at_rest
    connection.connection_lost(None)
    await settled(connection)


@pytest.mark.parametrize(
    ("fields", "body", "is_kept"),
    [
        (b"", b"x" * 1000, True),
        (b"", b"x" * (MAX_KEPT + 1), False),
        (b"X-A: %b\r\n" % (b"a" * (MAX_KEPT // 3)) * 3, b"", False),
    ],
)
async def test_what_remains_of_a_long_request_is_not_kept_until_the_next(
    fields: bytes, body: bytes, is_kept: bool
) -> None:
    """The last request of a connection is kept by aiohttp, with its body if no handler has read that."""

    async def look_at_nothing(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    connection, flow = await begin(look_at_nothing)
    head = b"GET / HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (fields, len(body))
    connection.data_received(head + body)
    await settled(connection)
    assert flow.written.startswith(b"HTTP/1.1 200")
    assert (b"Connection: close" not in flow.written) is is_kept
    assert flow.closed is not is_kept
    connection.connection_lost(None)
    await settled(connection)


@pytest.mark.parametrize("upgrade", [b"tcp", b"websocket"])
async def test_half_a_head_behind_a_declined_upgrade_has_a_deadline(upgrade: bytes) -> None:
    seconds = [100.0]
    server = HttpServer(web.Server(answer), Guard(lambda _: None, now=lambda: seconds[0]))
    asked = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % upgrade
    for behind, answers, is_ended in (
        (GET[:10], 1, True),
        (GET + GET[:10], 2, True),
        (GET, 2, False),
    ):
        connection, flow = server(), Flow()
        connection.connection_made(flow)
        connection.data_received(asked + behind)
        await settled(connection)
        seconds[0] += HEAD_SECONDS
        server.guard.sweep()
        await settled(connection)
        assert flow.written.count(b"HTTP/1.1 200") == answers
        assert flow.written.count(b" 408 ") == is_ended
        assert flow.closed is is_ended
        connection.connection_lost(None)
        await settled(connection)


@pytest.mark.parametrize("last", [GET, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")])
async def test_a_client_that_takes_all_but_a_little_of_an_answer_is_ended(last: bytes) -> None:
    """What is left pauses nothing, and a transport that is closed waits for it."""
    seconds, reasons = [100.0], list[str]()
    server = HttpServer(web.Server(answer), Guard(reasons.append, now=lambda: seconds[0]))
    made = []
    for unsent in (1, 0):
        connection, flow = server(), Unsent()
        connection.connection_made(flow)
        await settled(connection)
        connection.data_received(GET + last)
        await settled(connection)
        assert flow.written.count(b"HTTP/1.1 200") == 2
        made.append((connection, flow))
        if not unsent:
            flow.unsent = 0  # it has taken all meanwhile
    for _ in range(2):
        server.guard.sweep()
        seconds[0] += WRITE_SECONDS
    server.guard.sweep()
    assert [flow.aborted for _, flow in made] == [True, False]
    assert reasons == ["unread"]
    for connection, _ in made:
        connection.connection_lost(None)
        await settled(connection)


async def test_the_longest_idle_connection_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "MOST_RESTING", 2)
    reasons: list[str] = []
    gate = asyncio.Event()

    async def wait_if_asked(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/missing":
            await gate.wait()
        return web.Response()

    server = HttpServer(web.Server(wait_if_asked), Guard(reasons.append))
    made = []
    for _ in range(4):
        connection, flow = server(), Flow()
        connection.connection_made(flow)
        made.append((connection, flow))
        if len(made) == 3:
            made[0][0].data_received(MISSING)  # busy again
        await settled(connection)
        connection.data_received(GET)
        await settled(connection)
    assert [flow.closed for _, flow in made] == [False, True, False, False]
    assert reasons == ["idle"]
    gate.set()
    await settled(made[0][0])
    assert [flow.closed for _, flow in made] == [False, True, True, False]
    for connection, _ in made:
        connection.connection_lost(None)
        await settled(connection)
    assert not server.guard._resting


async def test_a_client_that_closes_its_side_gets_the_answers_it_waits_for() -> None:
    gate = asyncio.Event()

    async def wait(_: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.Response()

    for waits_for_none in (b"", GET[:10]):
        connection, flow = await begin(wait)
        connection.data_received(waits_for_none)
        connection.eof_received()
        await settled(connection)
        assert flow.closed
        connection.connection_lost(None)
    connection, flow = await begin(wait)
    connection.data_received(GET * 3 + GET[:10])
    await settled(connection)
    assert connection.eof_received()
    gate.set()
    for _ in range(3):
        await settled(connection)
    assert flow.written.count(b"HTTP/1.1 200") == 3
    assert flow.closed
    connection.connection_lost(None)
    await settled(connection)


@pytest.mark.parametrize("request_", [POST[:-1], CHUNKED[:-1]])
async def test_a_body_that_its_client_does_not_end_is_not_waited_for(request_: bytes) -> None:
    async def read(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await request.read()
        except web.RequestPayloadError:
            return web.Response(status=400)
        return web.Response()

    connection, flow = await begin(read)
    connection.data_received(request_)
    await settled(connection)
    assert connection.eof_received()
    await settled(connection)
    assert flow.written.count(b"HTTP/1.1 400") == 1
    assert flow.closed
    connection.connection_lost(None)
    await settled(connection)
