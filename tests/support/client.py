"""What the clients of tests share: their end, the wait for what comes, and finding all workers."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, Self, TypeVar

from tests.support.waiting import DEADLINE

_T = TypeVar("_T")
_Client = TypeVar("_Client", bound="Client")


class Client(ABC):
    """A client that is closed at the end of its block, or else after its test."""

    _open: ClassVar[set[Client]] = set()

    def __init__(self) -> None:
        self._open.add(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""
        self._open.discard(self)

    @classmethod
    async def close_all(cls) -> None:
        """Close the clients that a failed test has left open."""
        for client in list(cls._open):
            await client.close()


class ReadingClient(Client):
    """A client that reads in the background and keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = False
        """The other side has ended the connection."""
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @abstractmethod
    async def _receive(self) -> None:
        """Keep what comes, and call `_note` each time, until the connection ends."""

    @abstractmethod
    def _got(self) -> str:
        """What has come, for a failed assertion."""

    def _note(self) -> None:
        self._news.set()

    async def _read(self) -> None:
        try:
            await self._receive()
        finally:
            self.ended = True
            self._note()

    async def until(self, condition: Callable[[], _T], what: str, timeout: float = DEADLINE) -> _T:
        """Wait until a condition of what has come is true, and return what it gives."""
        try:
            async with asyncio.timeout(timeout):
                while not (value := condition()):
                    assert not self.ended, f"ended before {what} came; {self._got()}"
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{what} did not come in {timeout:g} s; {self._got()}") from None
        return value


async def dial(port: int, receive_buffer: int = 0) -> socket.socket:
    """A connection to this machine, before any byte.

    Args:
        port: of the service.
        receive_buffer: bytes of the kernel's buffer, to be slow with; 0: as usual.
    """
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:  # also when it is cancelled
        sock.close()  # the collector would warn of it, in whatever test runs by then
        raise
    return sock


def upgrade_request(path: str, host: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A request for a WebSocket; `headers` come beside the usual ones, or in their place."""
    head = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
    } | dict(headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


async def one_of_each_worker(
    open: Callable[[], Awaitable[_Client]],
    worker_of: Callable[[_Client], Awaitable[int]],
    count: int = 2,
    *,
    at_once: int = 8,
) -> list[_Client]:
    """Clients of `count` different workers; the kernel chooses, so connect until it does.

    Args:
        open: makes a client.
        worker_of: the pid of the worker that a client has met.
        count: how many workers are to be met.
        at_once: clients that connect at a time.
    """
    found: dict[int, _Client] = {}
    for _ in range(320 // at_once):
        spare = []
        for client in await asyncio.gather(*(open() for _ in range(at_once))):
            pid = await worker_of(client)
            if pid in found or len(found) == count:
                spare.append(client)
            else:
                found[pid] = client
        await asyncio.gather(*(client.close() for client in spare))
        if len(found) == count:
            return list(found.values())
    raise AssertionError(f"320 connections met only {len(found)} workers")
