"""Connections are taken from a real aiohttp server, on both event loops."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from app.transport import aiohttp_private
from app.transport.takeover import DetachedResponse, detach, handshake_response
from tests.support.descriptors import open_files
from tests.support.waiting import until

# pytest-asyncio's hook for loops works in a conftest only, for all tests at once.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy")

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY.encode() + b"\r\n\r\n"
)


@pytest.fixture(
    params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"]
)
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture(scope="module", autouse=True)
def no_older_objects() -> None:
    """Take what other tests have left out of the sight of the collector, which runs often here."""
    gc.collect()
    gc.freeze()


def handlers() -> list[object]:
    return [it for it in gc.get_objects() if type(it) is RequestHandler]


class Service:
    """An aiohttp server whose handler detaches each connection."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, bytes]] = []
        self.errors: list[Exception] = []
        self.before: Callable[[web.Request], Awaitable[None]] | None = None
        self.kept: list[weakref.ref[Any]] = []
        gc.collect()
        self.older = handlers()  # of other tests
        app = web.Application()
        app.router.add_get("/ws", self.handle)
        self.runner = web.AppRunner(app)
        self.address = ("", 0)

    async def start(self) -> None:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.address = self.runner.addresses[0]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        self.kept += [weakref.ref(it) for it in (request, task)]
        if self.before is not None:
            await self.before(request)
        try:
            self.taken.append(detach(request))
        except (OSError, AttributeError) as error:
            self.errors.append(error.with_traceback(None))
        return DetachedResponse(status=101)

    async def client(self, data: bytes = REQUEST) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, self.address)
            await loop.sock_sendall(sock, data)
        except BaseException:
            sock.close()
            raise
        return sock

    async def next(self) -> tuple[socket.socket, bytes]:
        """The next connection that is taken."""
        await until(lambda: self.taken)
        fd, received = self.taken.pop(0)
        assert not os.get_blocking(fd)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        return sock, received

    def alive(self) -> list[object]:
        """What aiohttp still has of its connections; its protocols take no weak references."""
        gc.collect()
        kept = [it for reference in self.kept if (it := reference()) is not None]
        return kept + [it for it in handlers() if not any(it is old for old in self.older)]


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    await service.start()
    yield service
    await service.runner.cleanup()


async def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        assert part, "the connection ended"
        data += part
    return data


def test_the_answer_to_the_key_of_the_rfc() -> None:
    lines = handshake_response(KEY).split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in lines
    assert lines[-2:] == [b"", b""]


async def test_the_descriptor_is_the_connection(service: Service) -> None:
    with await service.client() as client:
        server, received = await service.next()
        with server:
            assert received == b""
            await until(lambda: not service.alive())
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(server, b"hello")
            # Nothing came before it.
            assert await receive(client, 5) == b"hello"
            await loop.sock_sendall(client, b"answer")
            assert await receive(server, 6) == b"answer"
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


@pytest.mark.parametrize("size", [1, 1000, 100_000])
async def test_bytes_that_come_with_the_request_arrive(service: Service, size: int) -> None:
    early = os.urandom(size)
    with await service.client(REQUEST + early) as client:
        server, received = await service.next()
        with server:
            if size == 1:
                assert received == early
            assert received + await receive(server, size - len(received)) == early
            await asyncio.get_running_loop().sock_sendall(client, b"later")
            assert await receive(server, 5) == b"later"


async def test_bytes_that_come_while_the_handler_runs_arrive(service: Service) -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    async def wait(_: web.Request) -> None:
        entered.set()
        await go.wait()

    service.before = wait
    loop = asyncio.get_running_loop()
    with await service.client(REQUEST + b"one ") as client:
        await entered.wait()
        await loop.sock_sendall(client, b"two ")
        for _ in range(10):
            await asyncio.sleep(0)
        await loop.sock_sendall(client, b"three")
        go.set()
        server, received = await service.next()
        with server:
            assert received + await receive(server, 13 - len(received)) == b"one two three"


async def test_a_request_in_pieces(service: Service) -> None:
    loop = asyncio.get_running_loop()
    with await service.client(REQUEST[:50]) as client:
        for _ in range(10):
            await asyncio.sleep(0)
        await loop.sock_sendall(client, REQUEST[50:] + b"early")
        server, received = await service.next()
        with server:
            assert received + await receive(server, 5 - len(received)) == b"early"


async def test_aiohttp_keeps_nothing(service: Service) -> None:
    files = open_files()
    clients = [await service.client(REQUEST + b"early") for _ in range(10)]
    await until(lambda: len(service.taken) == 10)
    await until(lambda: not service.alive())
    assert service.runner.server is not None
    assert service.runner.server.connections == []
    await until(lambda: open_files() == files + 20)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for fd, _ in service.taken:
        os.close(fd)
    for client in clients:
        client.close()
    assert open_files() == files


async def test_a_client_that_has_gone_leaves_no_descriptor(service: Service) -> None:
    files = open_files()

    async def wait(request: web.Request) -> None:
        transport = request.protocol.transport
        (await_close,) = clients
        await_close.close()
        await until(lambda: request.protocol.transport is None or transport is None)

    clients: list[socket.socket] = []
    go = asyncio.Event()

    async def before(request: web.Request) -> None:
        await go.wait()
        await wait(request)

    service.before = before
    clients.append(await service.client())
    go.set()
    await until(lambda: service.errors or service.taken)
    assert service.taken == []
    assert isinstance(service.errors[0], ConnectionResetError)
    await until(lambda: not service.alive())
    assert open_files() == files


async def test_a_client_that_does_not_read_is_not_taken(service: Service) -> None:
    async def clog(request: web.Request) -> None:
        transport = request.transport
        assert transport is not None
        while not transport.get_write_buffer_size():
            transport.write(b"x" * 1_000_000)

    service.before = clog
    with await service.client():
        files = open_files()
        await until(lambda: service.errors or service.taken)
        assert service.taken == []
        assert isinstance(service.errors[0], ConnectionResetError)
        assert open_files() <= files + 1


def test_a_missing_private_name_is_reported_at_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RequestHandler, "_message_tail")
    spec = importlib.util.spec_from_file_location("again", aiohttp_private.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"aiohttp .*_message_tail"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
