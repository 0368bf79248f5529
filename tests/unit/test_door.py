"""The door of a worker: what is taken before aiohttp has it, and what goes on there."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from app.transport import door, kernel
from app.transport.door import ENTRANCE, PASSED, DoorRunner, Passed
from app.transport.http_connection import HttpConnection, HttpServer
from app.transport.http_guard import GUARD, HEAD_SECONDS, Guard
from app.transport.kernel import has_syn_cookies
from app.turns import SLICE, Turns

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Served:
    """A door on a free port; what begins with `UPGRADE` is taken."""

    def __init__(self, descriptors: int | None = None) -> None:
        self.seconds = 100.0
        self.reasons: list[str] = []
        self.details: list[str] = []
        self.taken: list[tuple[int, str | None, bytes]] = []
        self.refusal: Exception | None = None
        self.refusals: list[Exception | None] = []
        self.slice = SLICE
        self.guard = Guard(
            self._note,
            descriptors,
            now=lambda: self.seconds,
            slices=lambda: lambda: self.slice,
        )
        app = web.Application()
        app[GUARD] = self.guard
        app[ENTRANCE] = self.enter
        app.router.add_get("/", self._answer)
        app.router.add_get("/ws", self._answer)
        self.runner = DoorRunner(app)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: Any = self.listener.getsockname()
        self.site: Any = None

    def _note(self, reason: str, _: None = None, detail: str = "") -> None:
        self.reasons.append(reason)
        self.details.append(detail)

    def enter(self, fd: int, peer: str | None, data: bytes) -> Passed | None:
        if not data.startswith(UPGRADE) or self.refusal is not None:
            return PASSED if self.refusal is None else Passed(self.refusal)
        self.taken.append((fd, peer, data))
        return None

    async def _answer(self, request: web.Request) -> web.Response:
        assert isinstance(request.protocol, HttpConnection)
        self.refusals.append(request.protocol.take_refusal())
        return web.Response(text=request.remote or "")

    async def start(self, listener: socket.socket | None = None) -> None:
        await self.runner.setup()
        self.site = self.runner.make_site([listener or self.listener])
        await self.site.start()

    async def open(self) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(client, self.address)
        except BaseException:
            client.close()
            raise
        return client

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not is_so():
                await asyncio.sleep(0)

    @property
    def connections(self) -> list[HttpConnection]:
        server = self.runner.server
        assert isinstance(server, HttpServer)
        return list(server.all())

    async def stop(self) -> None:
        await self.runner.cleanup()
        for fd, _, _ in self.taken:
            os.close(fd)


@pytest.fixture(autouse=True)
def all_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel keeps no connection back: a silent one would take a second to get here."""
    monkeypatch.setattr(kernel, "has_syn_cookies", lambda: False)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    it = Served()
    await it.start()
    yield it
    await it.stop()


async def received(client: socket.socket) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(client, 100_000)


async def test_a_request_that_the_entrance_takes_is_never_aiohttps(served: Served) -> None:
    with await served.open() as client:
        client.send(UPGRADE + b"behind it")
        await served.until(lambda: bool(served.taken))
        ((fd, peer, data),) = served.taken
        assert (peer, data) == ("127.0.0.1", UPGRADE + b"behind it")
        assert not os.get_blocking(fd)
        with socket.socket(fileno=os.dup(fd)) as ours:
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        os.write(fd, b"welcome")
        assert await received(client) == b"welcome"
        assert not served.connections
        assert served.guard.waiting == 0


class CountedListener(socket.socket):
    """A listening socket that counts how often the kernel is asked for a connection."""

    asked = 0

    def _accept(self) -> Any:
        self.asked += 1
        return super()._accept()  # type: ignore[misc]


async def test_the_kernel_is_asked_once_for_one_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = itertools.count(100.0)  # one passes between any two looks at the clock
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr("app.transport.door.time", clock)
    monkeypatch.setattr(kernel, "has_syn_cookies", lambda: True)
    served = Served()
    served.slice = 1000.0
    listener = CountedListener(fileno=served.listener.detach())
    await served.start(listener)
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)
    for number in (1, 2, 3):
        with await served.open() as client:
            client.send(UPGRADE)
            await served.until(lambda number=number: len(served.taken) == number)  # type: ignore[misc]
    assert listener.asked == 3
    await served.stop()


async def test_silent_connections_fill_no_queue_of_a_kernel_without_cookies(served: Served) -> None:
    assert served.listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 0
    with await served.open():
        await served.until(lambda: served.guard.waiting == 1)


@pytest.mark.parametrize(
    ("text", "has"), [("0\n", False), ("1\n", True), ("2\n", True), (None, False)]
)
def test_whether_the_kernel_has_syn_cookies(tmp_path: Path, text: str | None, has: bool) -> None:
    file = tmp_path / "tcp_syncookies"
    if text is not None:
        file.write_text(text)
    assert has_syn_cookies(file) is has


async def test_connections_that_come_together_are_accepted_together() -> None:
    served = Served()
    served.slice = 5.0
    listener = CountedListener(fileno=served.listener.detach())
    clients = [socket.create_connection(served.address) for _ in range(60)]
    for client in clients:
        client.send(UPGRADE)
    await served.start(listener)
    await served.until(lambda: len(served.taken) == len(clients))
    assert listener.asked <= len(clients) + 5
    for client in clients:
        client.close()
    await served.stop()


class Crowd(Served):
    """As many clients that have sent their request as the queue of the kernel has room for, nearly."""

    def __init__(self) -> None:
        super().__init__()
        self.slice = 60.0
        self.listener.listen(40)
        self.clients: list[socket.socket] = []
        self.found: list[tuple[bool, int]] = []
        """At each first read: whether the queue was half full, and how many were not read from."""

    async def come(self) -> None:
        for _ in range(36):
            self.clients.append(await self.open())
            self.clients[-1].send(UPGRADE)

    def enter(self, fd: int, peer: str | None, data: bytes) -> Passed | None:
        waiting, most = kernel.queue(self.listener) or (0, 0)
        self.found.append((2 * waiting > most, self.guard.waiting))
        return super().enter(fd, peer, data)

    async def stop(self) -> None:
        for client in self.clients:
            client.close()
        await super().stop()


async def test_a_crowded_queue_is_emptied_before_requests_are_read() -> None:
    crowd = Crowd()
    await crowd.come()
    await crowd.start()
    await crowd.until(lambda: len(crowd.taken) == 36)
    assert not any(is_crowded for is_crowded, _ in crowd.found)
    assert max(unread for _, unread in crowd.found) == door.ACCEPTS
    assert crowd.guard.waiting == 0
    await crowd.stop()


async def test_a_crowd_takes_no_descriptors_that_those_waiting_need() -> None:
    crowd = Crowd()
    await crowd.come()
    crowd.guard.most_upgraded = crowd.clients[-1].fileno() + 10
    await crowd.start()
    await crowd.until(lambda: len(crowd.found) >= 10)
    assert 0 < max(unread for _, unread in crowd.found) < 10
    await crowd.stop()


async def test_other_requests_go_on_at_aiohttp(served: Served) -> None:
    with await served.open() as client:
        client.send(GET)
        assert (await received(client)).endswith(b"\r\n\r\n127.0.0.1")
        client.send(UPGRADE)
        assert b"200 OK" in await received(client)
    assert not served.taken, "only the first bytes of a connection are shown"
    assert served.refusals == [None, None]


async def test_a_request_may_be_cut_anywhere(served: Served) -> None:
    for request in (GET, UPGRADE):
        for end in range(1, len(request)):
            with await served.open() as client:
                client.send(request[:end])
                await served.until(lambda: len(served.connections) == 1)
                client.send(request[end:])
                assert b"200 OK" in await received(client)
            await served.until(lambda: not served.connections)
    assert not served.taken


async def test_a_refusal_is_known_to_the_first_request_only(served: Served) -> None:
    served.refusal = LookupError("no room")
    with await served.open() as client:
        client.send(UPGRADE)
        assert b"200 OK" in await received(client)
        client.send(GET)
        assert b"200 OK" in await received(client)
    assert served.refusals == [served.refusal, None]


async def test_silent_connections_are_closed_in_time(served: Served) -> None:
    with await served.open() as client:
        await served.until(lambda: served.guard.waiting == 1)
        served.seconds += HEAD_SECONDS - 0.1
        served.guard.sweep()
        assert served.guard.waiting == 1
        served.seconds += 0.1
        served.guard.sweep()
        assert await received(client) == b""
    assert served.reasons == ["silent"]


async def test_a_connection_keeps_its_deadline_when_aiohttp_gets_it(served: Served) -> None:
    with await served.open() as slow, await served.open() as later:
        await served.until(lambda: served.guard.waiting == 2)
        served.seconds += HEAD_SECONDS - 1
        slow.send(GET[:5])
        await served.until(lambda: len(served.connections) == 1)
        later.send(GET[:5])
        await served.until(lambda: len(served.connections) == 2)
        assert served.guard.waiting == 2
        served.seconds += 1
        served.guard.sweep()
        assert b" 408 " in await received(slow)
        assert b" 408 " in await received(later)
    assert served.reasons == ["silent", "silent"]


async def test_a_silent_connection_makes_room() -> None:
    served = Served(descriptors=10_000)
    await served.start()
    with await served.open() as silent, await served.open() as half:
        await served.until(lambda: served.guard.waiting == 2)
        half.send(GET[:5])
        await served.until(lambda: len(served.connections) == 1)
        served.guard.most_upgraded = 0
        with await served.open() as first, await served.open() as second:
            first.send(UPGRADE)
            assert await received(silent) == b""
            second.send(GET)
            assert b"200 OK" in await received(second)
            assert await received(half) == b"", "it is aiohttp's, and had its place all the same"
    assert set(served.reasons) == {"descriptors"}
    await served.stop()


async def test_without_any_room_newcomers_are_closed() -> None:
    served = Served(descriptors=3)
    await served.start()
    with await served.open() as client:
        client.send(UPGRADE)
        with pytest.raises(ConnectionResetError):
            assert await received(client) == b""
            raise ConnectionResetError
    assert not served.taken
    await served.stop()


async def test_a_silent_connection_goes_on_when_the_door_is_closed(served: Served) -> None:
    with await served.open() as client:
        await served.until(lambda: served.guard.waiting == 1)
        await served.site.stop()
        (connection,) = served.connections
        await served.until(lambda: connection.is_at_rest)
        assert served.guard.waiting == 1
        client.send(GET)
        assert b"200 OK" in await received(client)
    with pytest.raises(ConnectionRefusedError):
        await served.open()


async def test_a_client_that_leaves_without_a_word_is_forgotten(served: Served) -> None:
    client = await served.open()
    await served.until(lambda: served.guard.waiting == 1)
    client.close()
    await served.until(lambda: served.guard.waiting == 0)
    assert not served.connections


async def test_a_failure_costs_only_its_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    with monkeypatch.context() as patched:
        patched.setattr(served.site._door, "_enter", fail)
        with await served.open() as client:
            client.send(UPGRADE)
            with pytest.raises(ConnectionResetError):
                assert await received(client) == b""
                raise ConnectionResetError
    assert "a mistake" in caplog.text
    with await served.open() as client:
        client.send(UPGRADE)
        await served.until(lambda: bool(served.taken))


class Failing:
    """A listening socket that the kernel cannot accept from at first."""

    def __init__(self, listener: socket.socket, error: int) -> None:
        self._listener = listener
        self._error = error
        self.failures = 0

    def _accept(self) -> object:
        if self.failures < 1:
            self.failures += 1
            raise OSError(self._error, os.strerror(self._error))
        return self._listener._accept()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._listener, name)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOBUFS])
async def test_when_the_kernel_cannot_accept_it_is_asked_again_later(
    error: int, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served()
    failing: Any = Failing(served.listener, error)
    await served.start(failing)
    with await served.open() as client:
        client.send(GET)
        assert b"200 OK" in await received(client)
    assert failing.failures == 1
    assert (served.reasons, served.details) == (["accept"], [os.strerror(error)])
    assert not caplog.records, "the refusals are logged, once a minute"
    await served.stop()


async def test_a_unix_socket_has_no_address(tmp_path: Path) -> None:
    served = Served()
    served.listener.close()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "door"))
    listener.listen()
    await served.start(listener)
    loop = asyncio.get_running_loop()
    for request in (UPGRADE, GET):
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await loop.sock_connect(client, str(tmp_path / "door"))
            client.send(request)
            if request is GET:
                assert b"200 OK" in await received(client)
            else:
                await served.until(lambda: bool(served.taken))
    assert served.taken[0][1] == ""
    await served.stop()


async def test_no_connection_begins_while_there_is_no_slice(served: Served) -> None:
    """Neither a new connection, nor one that has been silent, nor one that is to be aiohttp's."""
    with await served.open() as silent, await served.open() as request:
        await served.until(lambda: len(served.site._door) == 2)
        served.slice = 0.0
        request.send(GET)
        silent.send(UPGRADE)
        with await served.open() as client:
            client.send(UPGRADE)
            for _ in range(20):
                await asyncio.sleep(0)
            assert (served.taken, served.refusals) == ([], [])
            served.slice = SLICE
            await served.until(lambda: len(served.taken) == 2 and len(served.refusals) == 1)


async def test_connections_begin_a_few_at_a_time(served: Served) -> None:
    """Many that come with a request at once begin one after the other, and none is lost."""
    clients = [await served.open() for _ in range(40)]
    for client in clients:
        client.send(GET)
    most, before = 0, 0
    async with asyncio.timeout(5):
        while len(served.refusals) < len(clients):
            await asyncio.sleep(0)
            most = max(most, len(served.connections) - before)
            before = len(served.connections)
    assert 1 <= most <= 4
    for client in clients:
        client.close()


async def test_one_that_makes_room_while_it_waits_for_its_turn_is_closed(served: Served) -> None:
    with await served.open() as client:
        await served.until(lambda: len(served.site._door) == 1)
        server = served.runner.server
        assert isinstance(server, HttpServer)
        server._turns = Turns(lambda: 0.0)
        client.send(GET)
        await served.until(lambda: not len(served.site._door))
        served.guard.make_room()
        server._turns._slice = lambda: SLICE
        assert await received(client) == b""
        assert served.refusals == []
