"""What clients send is handled in turn, held back or cut off; over real sockets, no real time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.protocol.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, build_frame
from app.transport import hub as hub_module
from app.transport.connection import CLOSED, CLOSING, FRAMES_AT_ONCE, Connection
from app.transport.hub import FLOOD, Hub
from app.turns import SLICE
from tests.support.delivery import turn
from tests.support.raw import encode
from tests.support.waiting import until


class Server(Connection):
    """Notes its messages, each of which takes as long as the test says."""

    def __init__(self, hub: Hub, fd: int, order: list[str]) -> None:
        super().__init__(hub, fd, "c")
        self.order = order
        self.cost = 0.0
        self.stopped = 0.0
        self.codes: list[int] = []
        self.last = ""
        """The message with which the connection is over."""

    def on_text(self, text: str) -> None:
        self.order.append(text)
        clock.now += self.cost + self.stopped
        clock.cpu += self.cost
        if text == self.last:
            self.drop("over")

    def on_binary(self, data: bytes) -> None:
        self.order.append(data.decode())

    def on_too_large(self) -> None: ...

    def on_lost(self, code: int, reason: str) -> None:
        self.codes.append(code)


class Clock:
    now = 1000.0
    cpu = 10.0


clock = Clock()


class World:
    def __init__(self) -> None:
        self.hub = Hub(
            heartbeat_interval=30.0,
            heartbeat_timeout=60.0,
            max_message=100_000,
            max_incoming=1_000_000,
        )
        self.order: list[str] = []
        self.sockets: list[socket.socket] = []
        self.reported: list[tuple[float, int, int]] = []
        self.shared: list[float] = []
        self.pause = 0.0

    def spend_shared(self, seconds: float) -> None:
        self.shared.append(round(seconds, 6))

    def spend(
        self, connection: Connection, seconds: float, size: int, extras: int, _: float
    ) -> float:
        self.reported.append((round(seconds, 6), size, extras))
        return self.pause

    def connect(self, *, small: bool = False) -> tuple[Server, socket.socket]:
        ours, theirs = socket.socketpair()
        for one in (ours, theirs):
            one.setblocking(False)
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.sockets.append(theirs)
        server = Server(self.hub, ours.detach(), self.order)
        self.hub.attach(server)
        return server, theirs


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World()
    world.hub.meter = world

    class Time:
        monotonic = staticmethod(lambda: clock.now)
        thread_time = staticmethod(lambda: clock.cpu)

    for module in ("app.transport.hub", "app.transport.connection"):
        monkeypatch.setattr(f"{module}.time", Time)
    yield world
    world.hub.stop()
    for one in world.sockets:
        one.close()


def texts(name: str, count: int) -> bytes:
    return b"".join(encode(TEXT, f"{name}{n}".encode()) for n in range(count))


async def test_one_with_much_to_say_lets_others_in(world: World) -> None:
    """300 messages that came in one segment take ten passes, and another has its turn between."""
    busy, one = world.connect()
    _, two = world.connect()
    busy.cost = SLICE / 10
    one.send(texts("a", 300))
    await until(lambda: world.order)
    two.send(texts("b", 1))
    await until(lambda: len(world.order) == 301)
    assert 4 <= world.order.index("b0") < 150
    assert [said for said in world.order if said[0] == "a"] == [f"a{n}" for n in range(300)]
    assert busy.reader is None
    one.send(texts("later", 1))
    await until(lambda: world.order[-1] == "later0")


async def test_the_costs_of_a_connection_are_reported(world: World) -> None:
    server, client = world.connect()
    server.cost = 0.25
    client.send(encode(TEXT, b"hello"))
    await until(lambda: world.reported)
    assert world.reported == [(0.25, 11, 0)]
    client.send(encode(PONG) + encode(TEXT, b"a", fin=False) + encode(CONTINUATION, b"b"))
    await until(lambda: len(world.reported) == 2)
    assert world.reported[1] == (0.25, 6 + 7 + 7, 2)
    client.send(encode(BINARY, b"x" * 50_000)[:100])
    await until(lambda: len(world.reported) == 3)
    assert world.reported[2] == (0.0, 100, 0), "a message that comes in pieces is one frame"


@pytest.mark.parametrize(("count", "last"), [(1, "a0"), (300, "a50")], ids=["read", "put off"])
async def test_what_a_connection_costs_that_is_over_is_no_connections(
    world: World, count: int, last: str
) -> None:
    server, client = world.connect()
    server.cost, server.last = SLICE / 10, last
    client.send(texts("a", count))
    await until(lambda: server.state == CLOSED)
    spent = sum(world.shared) + sum(seconds for seconds, _, _ in world.reported)
    assert world.shared[-1] > 0
    assert spent == pytest.approx(len(world.order) * server.cost)
    assert len(world.order) < 300


async def test_a_worker_that_was_stopped_does_not_charge_for_that(world: World) -> None:
    server, client = world.connect()
    server.cost, server.stopped = 0.002, 4.0
    client.send(texts("a", 2))
    await until(lambda: len(world.order) == 2)
    assert sum(seconds for seconds, _, _ in world.reported) == pytest.approx(0.004)


def let_go(world: World, server: Server) -> None:
    """As if the time had passed for which a connection is held back."""
    hub: Any = world.hub
    hub._held[server] = 0
    hub._holds = {0: [server]}
    hub._release()


async def test_a_connection_that_is_held_back_is_not_read_for_a_while(world: World) -> None:
    server, client = world.connect()
    world.pause = 60.0
    client.send(texts("a", 1))
    await until(lambda: world.order)
    world.pause = 0.0
    client.send(texts("b", 1))
    await turn(100)
    assert world.order == ["a0"]
    server.send(build_frame(TEXT, b"it is still served"))
    await turn()
    assert client.recv(100) == build_frame(TEXT, b"it is still served")
    let_go(world, server)
    await until(lambda: world.order[-1] == "b0")


async def test_the_time_of_a_wait_ends(world: World) -> None:
    _, client = world.connect()
    world.pause = 0.001
    client.send(texts("a", 1))
    await until(lambda: world.order)
    world.pause = 0.0
    client.send(texts("b", 1))
    await until(lambda: world.order[-1] == "b0")


async def test_what_was_put_off_waits_as_well(world: World) -> None:
    server, client = world.connect()
    server.cost = SLICE / 10
    world.pause = 60.0
    client.send(texts("a", 200))
    await until(lambda: world.order)
    seen = len(world.order)
    assert seen < 200
    await turn(100)
    assert len(world.order) == seen
    world.pause = 0.0
    let_go(world, server)
    await until(lambda: len(world.order) == 200)


async def test_a_flood_gets_its_close_frame_and_costs_nothing_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "FLOOD_SECONDS", 0.05)
    server, client = world.connect()
    world.pause = FLOOD
    client.send(encode(PING) * 1000)
    await until(lambda: server.state == CLOSING)
    reported = len(world.reported)
    client.send(encode(PING) * 1000)
    await turn(100)
    assert len(world.reported) == reported
    assert server.codes == [4429]
    assert b"\x88" + bytes([2 + 5]) + (4429).to_bytes(2, "big") + b"flood" in client.recv(100_000)
    await until(lambda: server.state == CLOSED)


async def test_junk_behind_a_close_frame_ends_it(world: World) -> None:
    server, client = world.connect()
    server.close(1001)
    world.pause = 1.0
    client.send(texts("a", 3))
    await until(lambda: server.state == CLOSED)
    assert server.codes == [1001]


async def test_one_pong_is_owed_to_a_client_that_does_not_read(world: World) -> None:
    server, client = world.connect(small=True)
    server.write(build_frame(BINARY, b"x" * 200_000))
    assert server.pending is not None
    size = server.pending.size
    for number in range(50):
        client.send(encode(PING, b"%d" % number))
        await turn()
    assert server.pending.size == size
    got = bytearray()
    while not got.endswith(build_frame(PONG, b"49")):
        try:
            got += client.recv(65536)
        except BlockingIOError:
            await asyncio.sleep(0)
    assert len(got) == len(build_frame(BINARY, b"x" * 200_000)) + 4
    client.send(encode(PING, b"a") + encode(PING, b"b"))
    await turn()
    assert client.recv(100) == build_frame(PONG, b"a") + build_frame(PONG, b"b")


async def test_another_hub_goes_on_with_what_was_put_off(world: World) -> None:
    server, client = world.connect()
    server.cost = SLICE
    client.send(texts("a", 100))
    await until(lambda: world.order)
    assert len(world.order) == FRAMES_AT_ONCE
    assert world.hub.release(server)
    untyped: Any = world.hub
    assert (untyped._backlog, untyped._paused) == ({}, {})
    world.hub.attach(server)
    await until(lambda: len(world.order) == 100)


async def test_a_close_frame_in_what_was_put_off_is_seen(world: World) -> None:
    server, client = world.connect()
    server.cost = SLICE
    client.send(texts("a", 100) + encode(CLOSE, b"\x03\xe8"))
    client.shutdown(socket.SHUT_WR)
    await until(lambda: server.state == CLOSED)
    assert len(world.order) == 100
    assert server.codes == [1000]


async def test_input_waits_while_a_message_is_on_its_way(world: World) -> None:
    server, client = world.connect()
    world.hub.pace.hurry()
    world.hub._input_slice()  # this kind of work has just had its slice
    client.send(texts("a", 1))
    await turn()
    assert world.order == []
    world.hub.pace.relax()
    await until(lambda: world.order == ["a0"])
    assert server.state != CLOSED
