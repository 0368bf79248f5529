"""Connections over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvloop
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side

from app.protocol.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, build_frame
from app.seconds import seconds_of
from app.sessions.socketio.session import SocketIOSession
from app.transport import hub as hub_module
from app.transport.connection import (
    CLOSED,
    CLOSING,
    HIGH_WATER,
    INPUT_PAUSE,
    OPEN,
    OUTPUT_LIMIT,
    Connection,
    Pending,
)
from app.transport.hub import Hub
from app.transport.output import CHUNK_COST, OutputAccount
from app.turns import SLICE
from tests.support.delivery import turn
from tests.support.descriptors import open_files
from tests.support.waiting import DEADLINE, until

MAX_MESSAGE = 100_000
MAX_INCOMING = 250_000


# pytest-asyncio's hook for loops works in a conftest only, for all tests at once.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")


@pytest.fixture(
    params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"]
)
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


def make_hub(interval: float = 30.0) -> Hub:
    return Hub(
        heartbeat_interval=interval,
        heartbeat_timeout=2 * interval,
        max_message=MAX_MESSAGE,
        max_incoming=MAX_INCOMING,
    )


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = make_hub()
    yield hub
    hub.stop()


@pytest.fixture
async def quick_hub() -> AsyncIterator[Hub]:
    """Its clock ticks every few milliseconds, and close frames must be answered at once."""
    hub = make_hub(0.02)
    yield hub
    hub.stop()


class Server(Connection):
    """Notes what happens to it."""

    def __init__(self, hub: Hub, fd: int, id: str = "c") -> None:
        super().__init__(hub, fd, id)
        self.got: list[str | bytes] = []
        self.events: list[object] = []
        self.on_message: Callable[[str | bytes], None] = lambda _: None

    def on_text(self, text: str) -> None:
        self.got.append(text)
        self.on_message(text)

    def on_binary(self, data: bytes) -> None:
        self.got.append(data)
        self.on_message(data)

    def on_too_large(self) -> None:
        self.events.append("too large")

    def on_oversized(self) -> None:
        self.events.append("unusable")
        self.send(build_frame(TEXT, b"unusable"))

    def on_drained(self) -> None:
        self.events.append("drained")

    def on_lost(self, code: int, reason: str) -> None:
        self.events.append((code, reason))

    def on_detached(self) -> None:
        self.events.append("detached")


class Client:
    """The peer: frames by websockets."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.parser = Protocol(Side.CLIENT, max_size=None)
        self.eof = False
        self.frames: list[Frame] = []

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def say(self, *texts: str) -> None:
        self.send(b"".join(frame(TEXT, text.encode()) for text in texts))

    def read(self) -> list[Frame]:
        """What has arrived by now."""
        try:
            while data := self.sock.recv(1 << 20):
                self.parser.receive_data(data)
            self.eof = True
        except BlockingIOError:
            pass
        self.frames += self.parser.events_received()  # type: ignore[arg-type]
        return self.frames

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(DEADLINE):
            while not self.read():
                assert not self.eof, "the connection has ended"
                await self._arrival()
        read = self.frames.pop(0)
        return int(read.opcode), bytes(read.data)

    async def _arrival(self) -> None:
        """Wait for the socket: large frames come in many small pieces."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.sock, arrived.set)
        try:
            await arrived.wait()
        finally:
            loop.remove_reader(self.sock)

    async def end(self) -> None:
        """The other side has ended its sending."""
        await until(lambda: self.read() is None or self.eof)


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    return Frame(Opcode(opcode), payload, fin).serialize(mask=True)


def closing(code: int, reason: str = "") -> tuple[int, bytes]:
    return CLOSE, Close(code, reason).serialize()


Connect = Callable[..., tuple[Server, Client]]


@pytest.fixture
def connect(hub: Hub) -> Iterator[Connect]:
    """Makes connected pairs; `kind` SOCK_SEQPACKET shows each write by itself."""
    socks = []

    def make(
        hub: Hub = hub, *, kind: int = socket.SOCK_STREAM, small: bool = False, id: str = "c"
    ) -> tuple[Server, Client]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        for sock in (ours, theirs):
            sock.setblocking(False)
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        socks.append(theirs)
        server = Server(hub, ours.detach(), id)
        hub.attach(server)
        return server, Client(theirs)

    yield make
    for sock in socks:
        sock.close()


def traces(hub: Hub) -> dict[str, int]:
    """How many entries each table of a hub has."""
    return {
        "connections": len(hub.connections()),
        "count": len(hub),
        "backed up": len(hub._backed_up),
        "paused": len(hub._paused),
        "unfinished": len(hub.input._unfinished),
        "outbox": len(hub._outbox),
        "wheel": sum(map(bool, hub.wheel._places)),
        "incoming": hub.input.total,
    }


NO_TRACES = dict.fromkeys(
    ("connections", "count", "backed up", "paused", "unfinished", "outbox", "wheel", "incoming"), 0
)


# Receiving.


async def test_messages_arrive_in_order(hub: Hub, connect: Connect) -> None:
    server, client = connect()
    client.say("one")
    await until(lambda: server.got)
    client.say("two", "three")
    client.send(frame(BINARY, b"\xff"))
    await until(lambda: len(server.got) == 4)
    assert server.got == ["one", "two", "three", b"\xff"]
    assert hub.bytes_received == 9 + 9 + 11 + 7


async def test_a_reader_lives_only_while_something_is_unfinished(
    hub: Hub, connect: Connect
) -> None:
    server, client = connect()
    data = frame(TEXT, b"in two parts")
    client.send(data[:9])
    await until(lambda: server.reader)
    assert hub.input.total == 9
    assert traces(hub)["unfinished"] == 1
    client.send(data[9:])
    await until(lambda: server.got)
    assert server.got == ["in two parts"]
    assert server.reader is None
    assert hub.input.total == 0
    assert traces(hub)["unfinished"] == 0


async def test_fragments_with_a_ping_between(connect: Connect) -> None:
    server, client = connect()
    client.send(frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b"))
    assert await client.frame() == (PONG, b"p")
    assert server.got == ["ab"]


async def test_too_large_messages_are_announced(connect: Connect) -> None:
    server, client = connect()
    client.send(frame(TEXT, b"x" * (MAX_MESSAGE + 1)))
    client.say("next")
    await until(lambda: server.got)
    assert server.events == ["too large"]
    assert server.state == OPEN


async def test_far_too_large_messages_end_the_connection(connect: Connect) -> None:
    server, client = connect()
    client.send(b"\x81\xff" + (100 * 1024**2).to_bytes(8, "big") + b"mask" + b"x" * 100)
    assert await client.frame() == (TEXT, b"unusable")
    opcode, payload = await client.frame()
    assert opcode == CLOSE
    assert payload[:2] == (1009).to_bytes(2, "big")
    assert server.events[0] == "unusable"
    assert server.state == CLOSING


async def test_violations_are_answered_with_their_code(hub: Hub, connect: Connect) -> None:
    for data, code in ((b"\x81\x02hi", 1002), (frame(TEXT, b"\xff"), 1007)):
        server, client = connect()
        client.send(data)
        opcode, payload = await client.frame()
        assert opcode == CLOSE
        assert int.from_bytes(payload[:2], "big") == code
        assert server.events == [(code, payload[2:].decode())]
        assert hub.closed[code] == 1
        # What follows is noise, and the end counts.
        client.send(b"\x00" * 1000 + b"\x81\x02hi")
        client.sock.close()
        await until(lambda: server.state == CLOSED)  # noqa: B023
        assert server.events[1:] == ["detached"]


async def test_an_error_in_a_handler_costs_its_connection_only(
    hub: Hub, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    bad, client = connect(id="bad")
    good, other = connect()

    def fail(_: object) -> None:
        raise RuntimeError("on purpose")

    bad.on_message = fail
    client.say("x")
    other.say("y")
    await until(lambda: good.got and bad.state == CLOSED)
    assert good.state == OPEN
    assert bad.events == [(1006, "internal error"), "detached"]
    assert len(hub) == 1
    assert "on purpose" in caplog.text


# Sending.


async def test_what_is_sent_in_one_pass_leaves_in_one_write(connect: Connect) -> None:
    server, client = connect(kind=socket.SOCK_SEQPACKET)
    for word in (b"a", b"b", b"c"):
        server.send(build_frame(TEXT, word))
    await turn(3)
    server.send(build_frame(TEXT, b"d"))
    await turn(3)
    first = b"".join(build_frame(TEXT, word) for word in (b"a", b"b", b"c"))
    assert client.sock.recv(1000) == first
    assert client.sock.recv(1000) == build_frame(TEXT, b"d")


async def test_all_answers_to_one_read_leave_in_one_write(connect: Connect) -> None:
    server, client = connect(kind=socket.SOCK_SEQPACKET)
    server.on_message = lambda text: server.send(build_frame(TEXT, str(text).upper().encode()))
    client.say("a", "b", "c")
    await until(lambda: len(server.got) == 3)
    await turn()
    expected = b"".join(build_frame(TEXT, word) for word in (b"A", b"B", b"C"))
    assert client.sock.recv(1000) == expected


async def test_taken_frames_are_not_sent_twice(hub: Hub, connect: Connect) -> None:
    server, client = connect(kind=socket.SOCK_SEQPACKET)
    server.send(b"queued")
    server.write(hub.take_queued(server) + b" and more")
    assert hub.take_queued(server) == b""
    await turn()
    assert client.sock.recv(1000) == b"queued and more"
    with pytest.raises(BlockingIOError):
        client.sock.recv(1000)


async def test_a_broadcast_skips_connections_with_unsent_bytes(hub: Hub, connect: Connect) -> None:
    fresh, gone, queued, clogged, later = (connect(small=True) for _ in range(5))
    gone[1].sock.close()
    queued[0].send(b"queued")
    clogged[0].write(b"x" * 300_000)
    before = hub.bytes_sent
    lacking = {pair[0]: pair[0].fd for pair in (later, clogged, queued, gone, fresh)}
    data = build_frame(TEXT, b"news")
    assert hub.broadcast(lacking, data, 4) == [queued[0], clogged[0]]
    assert list(lacking) == [later[0]]
    assert await fresh[1].frame() == (TEXT, b"news")
    await turn()
    assert gone[0].events == [(1006, "transport close"), "detached"]
    big = build_frame(BINARY, b"x" * 300_000)
    assert hub.broadcast(lacking, big, 4) == []
    assert later[0].pending is not None
    assert hub.bytes_sent >= before + len(data) + len(big)
    assert await later[1].frame() == (BINARY, b"x" * 300_000)


async def test_those_that_a_broadcast_finds_gone_are_dropped_in_turn(
    hub: Hub, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All may have gone at once: a flush writes to the others, and the rest of the pass is theirs."""
    pairs = [connect() for _ in range(40)]
    for _, client in pairs:
        client.sock.close()

    class Time:
        """Every step takes a tenth of a slice."""

        now = 1000.0
        thread_time = staticmethod(lambda: 0.0)

        @classmethod
        def monotonic(cls) -> float:
            cls.now += SLICE / 10
            return cls.now

    monkeypatch.setattr("app.transport.hub.time", Time)
    data = build_frame(TEXT, b"news")
    for _ in range(2):
        assert hub.broadcast({server: server.fd for server, _ in pairs}, data, 40) == []
    left = [sum(server.state != CLOSED for server, _ in pairs)]
    assert left == [40]
    while left[-1]:
        await asyncio.sleep(0)
        left.append(sum(server.state != CLOSED for server, _ in pairs))
    most = max(before - after for before, after in itertools.pairwise(left))
    assert most <= 2 * 12, "as many as fit into a slice, and those that epoll tells of"
    assert all(server.events == [(1006, "transport close"), "detached"] for server, _ in pairs)


async def test_what_does_not_fit_waits_and_leaves_in_order(hub: Hub, connect: Connect) -> None:
    server, client = connect(small=True)
    chunks = [bytes([n]) * (7919 * (n % 3 + 1)) for n in range(16)]
    for chunk in chunks:
        server.write(chunk)
    total = sum(map(len, chunks))
    assert server.pending is not None
    assert 0 < server.pending.size < total
    assert hub.unread.total() == server.pending.size
    assert server.pending.content() == b"".join(chunks)[total - server.pending.size :]
    assert hub.bytes_sent == total
    received = b""
    extra = b"written while it drains"
    while len(received) < total + len(extra):
        received += await asyncio.get_running_loop().sock_recv(client.sock, 5000)
        if extra and len(received) > total // 2:
            assert server.pending is not None
            server.write(extra)
            total, extra = total + len(extra), b""
    assert received == b"".join(chunks) + b"written while it drains"
    await until(lambda: server.pending is None)
    assert server.events == ["drained"]
    assert hub.unread.total() == 0
    assert traces(hub)["backed up"] == 0


async def test_unsent_bytes_are_what_no_write_has_taken() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        account = OutputAccount(1000, lambda: None)
        pending = Pending(b"abcdef", 2, account)
        pending.append(b"gh")
        assert (pending.size, pending.content()) == (6, b"cdefgh")
        assert pending.write_to(ours.fileno())
        assert pending.size == 0
        assert account.total == 0
        assert theirs.recv(100) == b"cdefgh"


async def test_a_client_that_does_not_read_is_not_read_from(hub: Hub, connect: Connect) -> None:
    server, client = connect(small=True)
    server.on_message = lambda _: server.send(build_frame(BINARY, b"x" * HIGH_WATER))
    needed = INPUT_PAUSE // HIGH_WATER + 2
    for number in range(needed):
        client.say(str(number))
        await turn()
    await until(lambda: server.pending and server.pending.size > INPUT_PAUSE)
    handled = len(server.got)
    client.say("and", "more")
    await turn(100)
    assert len(server.got) == handled
    assert server.state == OPEN
    # It reads again, and so does the server.
    await until(lambda: client.read() is not None and len(server.got) >= needed + 2)
    assert server.got[-2:] == ["and", "more"]
    await until(lambda: len(client.read()) == needed + 2)
    assert server.pending is None


async def test_reading_goes_on_before_everything_has_left(connect: Connect) -> None:
    server, client = connect(small=True)
    server.write(b"x" * 2 * INPUT_PAUSE)
    client.say("unread")
    loop = asyncio.get_running_loop()
    while server.pending is not None and server.pending.size > INPUT_PAUSE:
        await loop.sock_recv(client.sock, 5000)
        await turn(2)
    await until(lambda: server.got)
    assert server.pending is not None


async def test_what_is_queued_for_a_closed_connection_is_forgotten(
    hub: Hub, connect: Connect
) -> None:
    server, _ = connect()
    server.send(b"queued")
    server.drop("gone")
    assert traces(hub) == NO_TRACES


async def test_a_single_large_write_stops_the_reading_too(connect: Connect) -> None:
    server, client = connect(small=True)
    server.write(b"x" * 2 * INPUT_PAUSE)
    client.say("unread")
    await turn(100)
    assert server.got == []
    received = 0
    while received < 2 * INPUT_PAUSE:
        received += len(await asyncio.get_running_loop().sock_recv(client.sock, 100_000))
    await until(lambda: server.got)
    assert server.got == ["unread"]


async def test_too_much_unsent_ends_it(
    hub: Hub, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server, _client = connect(small=True)
    chunk = build_frame(BINARY, b"x" * (OUTPUT_LIMIT // 8))
    for _ in range(9):
        server.write(chunk)
    assert server.state == OPEN
    server.write(chunk)
    assert server.state == CLOSED
    # The frame that is being sent is too long to be kept, so there is no close frame.
    assert server.events == [
        (4413, "too many bytes that the client does not read"),
        "detached",
    ]
    assert hub.closed == {4413: 1}
    assert hub.output.total == 0
    assert traces(hub) == NO_TRACES
    assert [getattr(record, "connection", None) for record in caplog.records] == [server.id]


async def test_a_close_frame_is_sent_behind_the_frame_that_is_on_its_way(
    hub: Hub, connect: Connect
) -> None:
    server, client = connect(small=True)
    small = build_frame(BINARY, b"y" * 3000)
    server.write(small * 200)
    while server.state == OPEN:
        server.write(build_frame(BINARY, b"x" * (OUTPUT_LIMIT // 2)))
    assert server.state == CLOSING
    assert hub.output.total < 10_000
    got = [await client.frame()]
    while got[-1][0] != CLOSE:
        got.append(await client.frame())
    assert set(got[:-1]) == {(BINARY, b"y" * 3000)}
    assert got[-1] == closing(4413, "too many bytes that the client does not read")


async def test_one_frame_of_any_size_leaves_room_for_small_ones(hub: Hub, connect: Connect) -> None:
    server, client = connect(small=True)
    large = build_frame(BINARY, b"x" * (2 * OUTPUT_LIMIT))
    server.write(large)
    for _ in range(20):
        server.write(build_frame(TEXT, b"small"))
    assert server.state == OPEN
    assert await client.frame() == (BINARY, b"x" * (2 * OUTPUT_LIMIT))
    for _ in range(20):
        assert await client.frame() == (TEXT, b"small")
    await until(lambda: server.pending is None)
    assert hub.output.total == 0


async def test_bytes_that_many_hold_count_once(hub: Hub, connect: Connect) -> None:
    shared = build_frame(BINARY, b"x" * 1_000_000)
    pairs = [connect(small=True) for _ in range(20)]
    hub.broadcast({server: server.fd for server, _ in pairs}, shared, 20)
    assert all(server.pending is not None for server, _ in pairs)
    assert hub.output.total == len(shared) + CHUNK_COST
    for server, _ in pairs[1:]:
        server.drop("gone")
    assert hub.output.total == len(shared) + CHUNK_COST
    assert await pairs[0][1].frame() == (BINARY, b"x" * 1_000_000)
    await until(lambda: pairs[0][0].pending is None)
    assert hub.output.total == 0


async def test_past_the_account_the_largest_holder_is_closed(
    hub: Hub, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    hub.output.limit = 3_000_000
    shared = build_frame(BINARY, b"x" * 1_200_000)
    sharing = [connect(small=True)[0] for _ in range(10)]
    hub.broadcast({server: server.fd for server in sharing}, shared, 10)
    (small, _), (large, _) = connect(small=True), connect(small=True)
    small.write(build_frame(BINARY, b"a" * 600_000))
    large.write(build_frame(BINARY, b"b" * 1_000_000))
    await turn()
    assert large.state == OPEN
    small.write(build_frame(BINARY, b"c" * 300_000))
    await turn()
    assert (large.state, small.state) == (CLOSED, OPEN)
    assert {server.state for server in sharing} == {OPEN}
    assert hub.closed == {4413: 1}
    assert hub.output.total <= hub.output.limit
    assert [getattr(record, "code", None) for record in caplog.records] == [4413]


async def test_a_socket_that_takes_bytes_is_alive(hub: Hub, connect: Connect) -> None:
    """Its answer to the ping is far behind what it has still to read."""
    server, client = connect(small=True)
    server.write(build_frame(BINARY, b"x" * 2_000_000))
    loop = asyncio.get_running_loop()
    read = 0
    for _ in range(10):
        for _ in range(59):
            hub.wheel.advance()
        assert server.state == OPEN
        before = hub.output.total and server.pending and server.pending.size
        while server.pending is not None and server.pending.size == before:
            read += len(await loop.sock_recv(client.sock, 20_000))
            await turn(2)
    assert server.seen == hub.wheel.now
    for _ in range(66):
        hub.wheel.advance()
    # Nothing is taken any more.
    assert server.state != OPEN
    assert hub.closed == {4408: 1}


async def test_bytes_that_the_kernel_holds_for_a_slow_reader_count_as_well(
    hub: Hub, connect: Connect
) -> None:
    server, client = connect()
    for _ in range(60):
        server.write(build_frame(BINARY, b"x" * 1000))
    assert server.pending is None
    loop = asyncio.get_running_loop()
    for _ in range(63):
        hub.wheel.advance()
    assert server.state == OPEN
    for _ in range(4):
        await loop.sock_recv(client.sock, 10_000)
        for _ in range(5):
            hub.wheel.advance()
        assert server.state == OPEN
    for _ in range(12):
        hub.wheel.advance()
    assert server.state != OPEN


async def test_room_is_made_by_those_that_have_stalled(hub: Hub, connect: Connect) -> None:
    (slow, reading), (stalled, _), (smaller, _) = (connect(small=True) for _ in range(3))
    slow.write(build_frame(BINARY, b"x" * 900_000))
    stalled.write(build_frame(BINARY, b"x" * 800_000))
    smaller.write(build_frame(BINARY, b"x" * 700_000))
    loop = asyncio.get_running_loop()
    for _ in range(10):
        assert not hub.unread.close_stalled()
        hub.wheel.advance()
        for _ in range(8):
            await loop.sock_recv(reading.sock, 5000)
        await turn(2)
    assert hub.unread.close_stalled()
    assert (slow.state, stalled.state, smaller.state) == (OPEN, CLOSED, OPEN)


async def test_writing_to_a_peer_that_has_gone(hub: Hub, connect: Connect) -> None:
    server, client = connect()
    client.sock.close()
    server.write(b"x")
    assert server.events == [(1006, "transport close"), "detached"]
    assert traces(hub) == NO_TRACES


async def test_a_closed_connection_never_writes_to_its_old_descriptor(connect: Connect) -> None:
    server, _ = connect()
    old = server.fd
    server.drop("gone")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reused = ours.fileno() if ours.fileno() == old else os.dup2(ours.fileno(), old)
        server.send(b"a")
        server.write(b"b")
        server.close(1000)
        await turn()
        if reused != ours.fileno():
            os.close(reused)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(100)


# Closing.


async def test_the_server_closes(hub: Hub, connect: Connect) -> None:
    server, client = connect()
    server.send(build_frame(TEXT, b"last words"))
    server.close(4401, "no valid token")
    assert server.state == CLOSING
    assert server.events == [(4401, "no valid token")]
    server.close(1000, "again")
    server.send(build_frame(TEXT, b"too late"))
    await client.end()
    assert [bytes(read.data) for read in client.frames] == [
        b"last words",
        closing(4401, "no valid token")[1],
    ]
    assert len(hub) == 1
    client.say("still under way")
    client.send(frame(CLOSE, bytes(client.frames[-1].data[:2])))
    await until(lambda: server.state == CLOSED)
    assert server.got == []
    assert server.events == [(4401, "no valid token"), "detached"]
    assert hub.closed == {4401: 1}
    assert traces(hub) == NO_TRACES


async def test_the_client_answers_a_close_frame_by_hanging_up(hub: Hub, connect: Connect) -> None:
    server, client = connect()
    server.close(1001)
    await client.end()
    client.sock.close()
    await until(lambda: server.state == CLOSED)
    assert server.events == [(1001, ""), "detached"]
    assert traces(hub) == NO_TRACES


@pytest.mark.parametrize(
    ("payload", "code", "answer"),
    [
        (b"", 1000, b""),
        (Close(1001, "going").serialize(), 1001, b"\x03\xe9"),
        (Close(4000, "").serialize(), 4000, b"\x0f\xa0"),
    ],
)
async def test_the_client_closes(
    hub: Hub, connect: Connect, payload: bytes, code: int, answer: bytes
) -> None:
    server, client = connect()
    client.send(frame(TEXT, b"before") + frame(CLOSE, payload) + frame(TEXT, b"behind"))
    assert await client.frame() == (CLOSE, answer)
    await client.end()
    assert server.got == ["before"]
    assert server.events == [(code, "transport close")]
    client.sock.close()
    await until(lambda: server.state == CLOSED)
    assert server.events == [(code, "transport close"), "detached"]
    assert hub.closed == {code: 1}
    assert traces(hub) == NO_TRACES


async def test_a_close_frame_follows_what_is_unsent(connect: Connect) -> None:
    server, client = connect(small=True)
    big = b"x" * 300_000
    server.write(build_frame(BINARY, big))
    server.send(build_frame(TEXT, b"queued"))
    server.close(1012, "later")
    assert server.pending is not None
    await turn(50)
    assert not client.eof
    await client.end()
    assert [bytes(read.data) for read in client.frames] == [
        big,
        b"queued",
        closing(1012, "later")[1],
    ]
    assert "drained" not in server.events


async def test_a_client_that_ends_its_sending_has_gone(hub: Hub, connect: Connect) -> None:
    server, client = connect()
    client.say("bye")
    client.sock.shutdown(socket.SHUT_WR)
    await client.end()
    assert server.got == ["bye"]
    assert server.events == [(1006, "transport close"), "detached"]
    assert traces(hub) == NO_TRACES


async def test_both_close_at_once(connect: Connect) -> None:
    server, client = connect()
    client.send(frame(CLOSE, Close(1000, "").serialize()))
    server.close(1001, "stop")
    assert await client.frame() == closing(1001, "stop")
    await until(lambda: server.state == CLOSED)
    assert server.events == [(1001, "stop"), "detached"]


async def test_a_peer_that_never_answers_is_cut_off(
    quick_hub: Hub, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "CLOSE_TIMEOUT", 1000.0)
    patient, _ = connect(quick_hub)
    patient.close(1001)
    monkeypatch.setattr(hub_module, "CLOSE_TIMEOUT", 0.0)
    hub = make_hub(0.02)
    try:
        silent, _ = connect(hub)
        noisy, client = connect(hub)
        full, _ = connect(hub, small=True)
        full.write(b"x" * 300_000)
        for server in (silent, noisy, full):
            server.close(1001)

        def all_closed() -> bool:
            client.say("I go on")
            return {silent.state, noisy.state, full.state} == {CLOSED}

        noisy.on_lost = lambda *_: None  # type: ignore[method-assign]
        try:
            await until(all_closed)
        except BrokenPipeError:
            await until(lambda: silent.state == full.state == noisy.state == CLOSED)
        assert silent.events == [(1001, ""), "detached"]
        assert full.events == [(1001, ""), "detached"]
        assert traces(hub) == NO_TRACES
        assert not hub._closing
    finally:
        hub.stop()
    assert patient.state == CLOSING


async def test_a_closing_peer_may_not_hold_memory(
    hub: Hub, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "CLOSE_TIMEOUT", 1000.0)
    pairs = [connect(id=str(n)) for n in range(4)]
    for server, client in pairs:
        server.close(1001)
        client.send(frame(TEXT, b"x" * MAX_MESSAGE)[:90_000])
    await until(lambda: any(server.state == CLOSED for server, _ in pairs))
    await turn(50)
    held = sum(server.reader.held for server, _ in pairs if server.reader is not None)
    assert held <= MAX_INCOMING
    assert hub.input.total == held


# Limits.


async def test_the_largest_holder_of_unfinished_bytes_is_closed(
    hub: Hub, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [40_000, 90_000, 50_000, 60_000]
    pairs = [connect(id=str(size)) for size in sizes]
    for (server, client), size in zip(pairs, sizes, strict=True):
        client.send(frame(BINARY, b"x" * MAX_MESSAGE)[:size])
        await until(lambda: server.reader is not None and server.reader.held == size)  # noqa: B023
    assert hub.input.total == sum(sizes)
    assert [server.state for server, _ in pairs] == [OPEN] * 4
    pairs[0][1].send(b"x" * 11_000)
    opcode, payload = await pairs[1][1].frame()
    assert opcode == CLOSE
    assert payload[:2] == (1009).to_bytes(2, "big")
    assert [server.state for server, _ in pairs] == [OPEN, CLOSING, OPEN, OPEN]
    assert hub.input.total == 51_000 + 50_000 + 60_000
    assert pairs[1][0].reader is None
    assert [getattr(record, "connection", None) for record in caplog.records] == ["90000"]
    # The others finish their messages.
    for (server, client), size in ((pairs[2], 50_000), (pairs[3], 60_000)):
        complete = frame(BINARY, b"x" * MAX_MESSAGE)
        client.send(b"x" * (len(complete) - size))
        await until(lambda: server.got or server.state != OPEN)  # noqa: B023
    assert hub.input.total == 51_000


async def test_the_holder_that_asks_for_more_may_be_the_one(hub: Hub, connect: Connect) -> None:
    small, other = connect()
    other.send(frame(TEXT, b"x" * 50_000)[:100])
    hub.input.limit = 20_000
    large, client = connect()
    client.send(frame(TEXT, b"x" * 50_000)[:30_000])
    opcode, _ = await client.frame()
    assert opcode == CLOSE
    assert (small.state, large.state) == (OPEN, CLOSING)
    assert hub.input.total == 100


async def test_bytes_that_are_kept_count_until_they_are_given_back(
    hub: Hub, connect: Connect
) -> None:
    account = hub.input
    account.limit = 1000
    (small, _), (large, client), (third, _) = (connect(id=name) for name in "abc")
    account.keep(small, 300)
    account.keep(third, 100)
    account.keep(large, 600)
    await turn(3)
    assert [one.state for one in (small, large, third)] == [OPEN] * 3, "as much as there may be"
    # Twice in one pass: one is closed, and what it has is given back when its handlers are done.
    account.keep(large, 10)
    account.keep(third, 10)
    await turn(3)
    assert [one.state for one in (small, large, third)] == [OPEN, CLOSING, OPEN]
    opcode, payload = await client.frame()
    assert (opcode, payload[:2]) == (CLOSE, (1009).to_bytes(2, "big"))
    account.keep(third, -10)
    await turn(3)
    assert [one.state for one in (small, large, third)] == [OPEN, CLOSING, OPEN]
    account.keep(large, -610)
    assert account.total == 400
    account.forget_kept(third)
    account.forget_kept(large)
    assert account.total == 300
    account.keep(third, 900)
    await turn(3)
    assert [one.state for one in (small, third)] == [OPEN, CLOSING]
    account.forget_kept(third)
    account.keep(small, -300)
    assert account.total == 0


# Heartbeats.


async def test_heartbeats(hub: Hub, connect: Connect) -> None:
    answering, client = connect()
    silent, other = connect()
    for tick in range(1, 60):
        hub.wheel.advance()
        if tick == 30:
            assert await client.frame() == (PING, b"")
            client.send(frame(PONG, b""))
            await until(lambda: answering.seen == 30)
    assert silent.state == OPEN
    assert await other.frame() == (
        PING,
        b"",
    )  # a peer that does not even take it in is given longer
    hub.wheel.advance()
    assert await other.frame() == closing(4408, "heartbeat timeout")
    assert silent.events == [(4408, "heartbeat timeout")]
    assert answering.state == OPEN
    other.say("now it speaks")
    other.sock.close()
    await until(lambda: silent.state == CLOSED)
    answering.drop("done")
    assert traces(hub) == NO_TRACES


async def test_heartbeats_of_many_leave_in_parts(
    hub: Hub, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PINGS_AT_ONCE", 2)
    pairs = [connect(kind=socket.SOCK_SEQPACKET) for _ in range(5)]
    for _ in range(29):
        hub.wheel.advance()
    pairs[0][0].send(build_frame(TEXT, b"before"))
    pairs[1][0].drop("gone before its turn")
    hub.wheel.advance()
    pairs[2][0].drop("gone before its turn")
    ping = len(build_frame(PING, b""))
    sent = []
    for _ in range(6):
        await asyncio.sleep(0)
        sent.append(hub.bytes_sent // ping)
    assert sent[-1] - sent[0] >= 1, "not all in one pass"
    assert await pairs[0][1].frame() == (TEXT, b"before")
    for number in (0, 3, 4):
        assert await pairs[number][1].frame() == (PING, b"")
    assert hub.bytes_sent == 3 * ping + len(build_frame(TEXT, b"before"))


async def test_heartbeats_wait_while_a_message_is_on_its_way(hub: Hub, connect: Connect) -> None:
    _, client = connect(kind=socket.SOCK_SEQPACKET)
    hub.pace._clock = lambda: 1000.0
    for _ in range(29):
        hub.wheel.advance()
    hub.pace.hurry()
    hub._ping_work._slice()  # others have had theirs in this pass
    hub._ping_work._slice()
    hub.wheel.advance()
    for _ in range(5):
        await asyncio.sleep(0)
    assert hub.bytes_sent == 0
    hub.pace.relax()
    assert await client.frame() == (PING, b"")


class Metered:
    """Notes what is charged."""

    def __init__(self) -> None:
        self.charged: list[tuple[int, int]] = []

    def spend_shared(self, seconds: float) -> None: ...

    def spend(
        self, connection: Connection, seconds: float, size: int, extras: int, now: float
    ) -> float:
        self.charged.append((size, extras))
        return 0.0


async def test_the_answer_to_a_heartbeat_costs_a_client_nothing(hub: Hub, connect: Connect) -> None:
    """But what else it says does, and pongs that nothing has asked for."""
    meter = hub.meter = Metered()
    server, client = connect()
    pong = frame(PONG, b"")
    for _ in range(3):
        hub.wheel.advance()
    client.send(pong)
    await until(lambda: server.seen == 3)
    assert (meter.charged, hub.extra_frames, hub.bytes_received) == ([], 1, len(pong))
    assert hub.heartbeat_bytes == len(pong)
    client.send(pong)
    await until(lambda: meter.charged)
    assert hub.heartbeat_bytes == len(pong)
    assert (meter.charged, hub.extra_frames) == ([(len(pong), 1)], 2)
    for _ in range(3):
        hub.wheel.advance()
    client.send(pong + pong)
    await until(lambda: len(meter.charged) == 2)
    assert (meter.charged[-1], hub.extra_frames) == ((2 * len(pong), 2), 4)
    client.send(frame(TEXT, b"half of it", fin=False))
    await until(lambda: len(meter.charged) == 3)
    for _ in range(3):
        hub.wheel.advance()
    client.send(pong)
    await until(lambda: len(meter.charged) == 4)
    client.send(frame(CONTINUATION, b", and the rest"))
    await until(lambda: server.got == ["half of it, and the rest"])


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\x33\1\2\3", b"\xff\xfe\xfd\xfc"])
@pytest.mark.parametrize(
    ("opcode", "payload", "fin", "plain", "socketio"),
    [
        (PONG, b"", True, True, False),
        (PONG, b"x", True, False, False),
        (PING, b"", True, False, False),
        (TEXT, b"3", True, False, True),
        (TEXT, b"3", False, False, False),
        (TEXT, b"2", True, False, False),
        (TEXT, b"33", True, False, False),
        (TEXT, b"", True, False, False),
        (BINARY, b"3", True, False, False),
        (CLOSE, b"", True, False, False),
    ],
)
def test_what_is_no_more_than_the_answer_to_a_heartbeat(
    mask: bytes, opcode: int, payload: bytes, fin: bool, plain: bool, socketio: bool
) -> None:
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    data = bytes([opcode | (0x80 if fin else 0), 0x80 | len(payload)]) + mask + masked
    unused: Any = None
    assert Connection.is_pong(unused, data) is plain
    assert SocketIOSession.is_pong(unused, data) is socketio
    assert not Connection.is_pong(unused, data + data)
    assert not SocketIOSession.is_pong(unused, data[:-1])


# Many at once, and the end.


async def test_a_storm_of_aborts_leaves_nothing(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "realtime")
    files = open_files()
    servers: list[Server] = []
    clients: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        for number in range(120):
            client = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            server = Server(hub, accepted.detach(), str(number))
            hub.attach(server)
            servers.append(server)
            clients.append(client)
            match number % 6:
                case 0:
                    client.send(frame(TEXT, b"x" * 5000)[:1000])
                case 1:
                    server.write(b"x" * 8_000_000)
                    assert server.pending is not None
                case 2:
                    server.send(b"queued")
                case 3:
                    server.close(1001)
                case 4:
                    hub.pause(server)
    await turn()
    assert traces(hub)["unfinished"] > 0
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    await until(lambda: all(server.state == CLOSED for server in servers))
    assert traces(hub) == NO_TRACES
    assert open_files() == files
    for server in servers:
        lost = [event for event in server.events if isinstance(event, tuple)]
        assert len(lost) == 1
        assert server.events.count("detached") == 1
        assert server.events[-1] == "detached"


async def test_stop_closes_everything(connect: Connect) -> None:
    files = open_files()
    hub = make_hub()
    pairs = [connect(hub, small=True) for _ in range(5)]
    pairs[0][0].send(b"queued")
    pairs[1][0].write(b"x" * 300_000)
    pairs[2][0].close(1001)
    hub.stop()
    assert {server.state for server, _ in pairs} == {CLOSED}
    assert all(server.events[-1] == "detached" for server, _ in pairs)
    assert open_files() == files + len(pairs)
    await turn()


# Pausing, and going to another hub.


async def test_the_end_of_the_last_connection_is_waited_for(hub: Hub, connect: Connect) -> None:
    await hub.wait_empty(1000.0)
    (one, _), (two, _) = connect(), connect()
    await hub.wait_empty(0.0)
    assert len(hub) == 2
    waiting = asyncio.create_task(hub.wait_empty(1000.0))
    await turn()
    one.drop("gone")
    await turn()
    assert not waiting.done()
    two.drop("gone")
    await waiting


async def test_a_paused_connection_is_not_read(hub: Hub, connect: Connect) -> None:
    server, client = connect()
    hub.pause(server)
    hub.pause(server)
    client.say("wait")
    await turn(100)
    assert server.got == []
    server.send(build_frame(TEXT, b"it still sends"))
    assert await client.frame() == (TEXT, b"it still sends")
    hub.resume(server)
    await until(lambda: server.got)
    hub.resume(server)
    assert traces(hub)["paused"] == 0


async def test_another_hub_goes_on_where_one_was(hub: Hub, connect: Connect) -> None:
    old, client = connect(small=True)
    big = build_frame(BINARY, b"x" * 200_000)
    old.write(big)
    data = frame(TEXT, b"half of it")
    client.send(data[:10])
    for _ in range(7):
        hub.wheel.advance()
    await until(lambda: old.reader)
    times = hub.wheel.times(old)
    assert hub.release(old)
    assert not hub.release(old)
    assert traces(hub) == NO_TRACES
    successor_hub = make_hub()
    try:
        assert old.pending is not None
        successor = Server(successor_hub, old.fd)
        successor.pending = Pending(old.pending.content(), 0, successor_hub.output, headless=True)
        successor.reader = old.reader
        successor_hub.attach(successor, times)
        assert successor_hub.input.total == 10
        assert successor_hub.wheel.times(successor) == times
        assert times[1] == 23
        client.send(data[10:])
        await until(lambda: successor.got)
        assert successor.got == ["half of it"]
        assert successor_hub.input.total == 0
        assert await client.frame() == (BINARY, b"x" * 200_000)
        await until(lambda: successor.pending is None)
        assert old.events == []
    finally:
        successor_hub.stop()


async def test_what_the_service_ends_is_counted_apart_from_what_peers_end(
    hub: Hub, connect: Connect
) -> None:
    timed_out, _ = connect()
    gone, client = connect()
    left, leaving = connect()
    timed_out.heartbeat_missed()
    client.sock.close()
    leaving.send(frame(CLOSE, struct.pack("!H", 4408)))
    await until(lambda: gone.state == CLOSED and left.state != OPEN)
    assert hub.closed == {4408: 2, 1006: 1}
    assert hub.ended == {4408: 1}


class Fragile(Server):
    """Its end fails."""

    def on_lost(self, code: int, reason: str) -> None:
        raise RuntimeError("a fault in the service")


async def test_a_connection_whose_end_fails_is_gone_and_costs_no_other_one_its_frames(
    hub: Hub, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.setblocking(False)
    fragile = Fragile(hub, ours.detach())
    hub.attach(fragile)
    other, client = connect()
    for connection in (fragile, other):
        connection.send(build_frame(TEXT, b"for each"))
    assert await client.frame() == (TEXT, b"for each")
    assert fragile.state == CLOSED
    assert hub.connections() == [other]
    assert "a fault in the service" in caplog.text


async def test_what_comes_behind_the_end_of_a_connection_leaves_no_trace(
    hub: Hub, connect: Connect
) -> None:
    server, client = connect()
    before = traces(hub)
    frames = b"".join(frame(TEXT, b"%d" % number) for number in range(20))

    def end(_: str | bytes) -> None:
        server.drop("it cannot be written to")

    server.on_message = end
    client.send(frames)
    await until(lambda: server.state == CLOSED)
    # As when it ends in its first step, and its request came with frames behind it.
    server.receive(frames)
    hub.pause(server)
    await turn()
    assert server.got == ["0"]
    assert traces(hub) == {**before, "connections": 0, "count": 0, "wheel": 0}


async def test_a_connection_that_cannot_start_is_gone_and_its_descriptor_is_closed_once(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    server = Server(hub, ours.detach())

    def start() -> None:
        raise RuntimeError("a fault in the service")

    hub.begin(server, start)
    assert server.state == CLOSED
    assert server.events == [(1006, "internal error"), "detached"]
    assert theirs.recv(1) == b""
    assert not len(hub)
    assert "a fault in the service" in caplog.text
    theirs.close()


async def test_the_first_connection_wakes_a_worker_that_rests(hub: Hub) -> None:
    seconds = seconds_of(asyncio.get_running_loop())
    seconds.rest()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        hub.attach(Server(hub, ours.detach()))
        assert not seconds.rests
