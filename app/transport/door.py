"""Where connections come in: accepted here, and given to aiohttp only if they need it.

Most clients ask for an upgrade with their first segment. Such a request is shown to the
`Entrance` before a transport, a task or a request object exists; what it does not take goes on as
a connection of aiohttp's, with the bytes that were read. A connection whose first bytes have not
come yet is a `Newcomer`: a descriptor in the epoll of the door, and in the row of the `Guard`,
where its successor keeps its place.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from app.transport import kernel
from app.transport.http_connection import CALLS, INCOMPLETE, TAKEN, HttpConnection, HttpServer
from app.transport.http_guard import GUARD, HEAD_SECONDS, LINGER_SECONDS, MAX_FIELD
from app.turns import PAUSE_SECONDS

ACCEPTS = 16
"""Connections that are accepted from one socket in a pass, at most: other workers are there too."""
EVENTS = 64
"""Newcomers with bytes that are looked at in one pass."""
DEFER_SECONDS = 1
"""For how long the kernel keeps a connection that has sent nothing before it can be accepted."""
FIRST_READ = 16 * 1024
"""Bytes of a connection that are read here, at most."""
FAILURE_SECONDS = 0.1
"""How long nothing is accepted when the kernel could not: descriptors or memory are short."""

logger = logging.getLogger("realtime.http")

if not hasattr(socket.socket, "_accept"):
    # `accept` makes an object and asks the kernel for what is known already.
    raise ImportError("socket.socket has no _accept")


@dataclass(frozen=True, slots=True)
class Passed:
    """A connection that the entrance has not taken."""

    refusal: Exception | None = None
    """Why its request is refused, if that is known already."""


PASSED = Passed()


class Entrance(Protocol):
    """Looks at the first bytes of each connection."""

    def __call__(self, fd: int, peer: str, data: bytes, /) -> Passed | None:
        """Take a connection, or pass it on to aiohttp.

        Args:
            fd: a non-blocking descriptor; the entrance owns it when it takes the connection.
            peer: its address; "" on a Unix socket.
            data: what it has sent.

        Returns:
            None when it is taken.
        """


def _pass_all(_fd: int, _peer: str, _data: bytes) -> Passed | None:
    return PASSED


ENTRANCE: web.AppKey[Entrance] = web.AppKey("ENTRANCE", Entrance)
"""Where an application keeps what looks at its connections first."""


class Newcomer:
    """A connection that has sent no request yet, or its place in the row of those that wait.

    It is also the caller of a request that is served without aiohttp.
    """

    __slots__ = ("_door", "family", "fd", "peer", "received", "successor")

    def __init__(self, door: Door, fd: int, family: int, peer: str) -> None:
        self._door = door
        self.fd = fd
        self.family = family
        self.peer = peer
        self.received = b""
        """The beginning of a request that may be served without aiohttp."""
        self.successor: HttpConnection | None = None
        """The connection that aiohttp has made of it."""

    def abort(self) -> None:
        """Close it at once."""
        if self.successor is not None:
            self.successor.abort()
        else:
            self._door.drop(self)

    def give_up(self) -> None:
        """The head of its request has not come in time."""
        if self.successor is not None:
            self.successor.give_up()
        elif self.received:
            self._door.let_go(self, HEAD_SECONDS)
        else:
            self._door.drop(self)

    def reply(self, answer: bytes, keep: bool) -> None:
        """Send the answer to a request that was served without aiohttp."""
        self._door.reply(self, answer, keep)


class Door:
    """Accepts the connections of one worker.

    Args:
        server: goes on with what the entrance does not take.
        entrance: looks at the first bytes.
    """

    def __init__(self, server: HttpServer, entrance: Entrance = _pass_all) -> None:
        self._server = server
        self._guard = server.guard
        self._enter = entrance
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._on_events)
        self._accept_slice, self._read_slice = self._guard.slices(), self._guard.slices()
        self._is_closed = False
        self._listeners: list[socket.socket] = []
        self._newcomers: dict[int, Newcomer] = {}

    def __len__(self) -> int:
        return len(self._newcomers)

    def open(self, listeners: Sequence[socket.socket]) -> None:
        """Accept from listening sockets, which belong to the door from now on."""
        for listener in listeners:
            family = listener.family
            listener.setblocking(False)
            if family != socket.AF_UNIX:
                # What is accepted inherits them, so they need not be set for each connection.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                # Most clients send at once: so nothing is accepted that has nothing to read yet. Where
                # silent ones could fill the queue of the kernel they are better kept here.
                seconds = DEFER_SECONDS if kernel.has_syn_cookies() else 0
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)
            self._listeners.append(listener)
            self._loop.add_reader(listener, self._accept, listener, family)

    async def close(self) -> None:
        """Accept nothing more; aiohttp goes on with those that have sent nothing."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        for newcomer in list(self._newcomers.values()):
            self.let_go(newcomer)
        self._is_closed = True
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        await self._server.all_begun()

    def drop(self, newcomer: Newcomer) -> None:
        """Close a connection that has sent nothing."""
        if self._newcomers.get(newcomer.fd) is newcomer:
            self._forget(newcomer)
            os.close(newcomer.fd)

    def let_go(self, newcomer: Newcomer, waited: float = 0.0) -> None:
        """Let aiohttp go on with a connection, and with what it has sent; `waited` as in `begin`."""
        self._forget(newcomer)
        self._pass_on(newcomer, newcomer.received, PASSED, waited)

    def reply(self, newcomer: Newcomer, answer: bytes, keep: bool) -> None:
        """Send an answer to a connection that is not aiohttp's, which may go on with it then."""
        fd = newcomer.fd
        try:
            sent = os.write(fd, answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            os.close(fd)
            return
        if keep or sent < len(answer):
            self._server.go_on(_socket(newcomer), newcomer, newcomer.peer, answer[sent:], keep)
        else:
            os.close(fd)

    def _accept(self, listener: socket.socket, family: int) -> None:
        slice = 0.0 if self._server.is_behind else self._accept_slice()
        if not slice:
            self._loop.remove_reader(listener)
            self._loop.call_later(PAUSE_SECONDS, self._resume, listener, family)
            return
        ends = time.monotonic() + slice
        waiting, room = kernel.queue(listener) or (ACCEPTS, ACCEPTS)
        # A client that finds the queue full tries again after a second. So they are read from later then,
        # as long as there are descriptors for others until all of them are.
        is_crowded = 2 * waiting > room > ACCEPTS
        for _ in range(min(waiting, ACCEPTS)):
            try:
                fd, address = listener._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listener, family, error)
                return
            os.set_blocking(fd, False)
            if fd >= self._guard.most_upgraded and not self._guard.has_room(None, fd):
                os.close(fd)
            else:
                peer = address[0].partition("%")[0] if isinstance(address, tuple) else ""
                if is_crowded and fd + len(self._newcomers) < self._guard.most_upgraded:
                    self._wait(Newcomer(self, fd, family, peer))
                else:
                    self._begin(fd, family, peer)
            if time.monotonic() >= ends:
                return

    def _pause(self, listener: socket.socket, family: int, error: OSError) -> None:
        """The kernel could not accept: let others go first, and do not ask again at once."""
        self._guard.note_refused("accept", None, error.strerror)
        self._guard.make_room()
        self._loop.remove_reader(listener)
        self._loop.call_later(FAILURE_SECONDS, self._resume, listener, family)

    def _resume(self, listener: socket.socket, family: int) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener, family)

    def _begin(self, fd: int, family: int, peer: str) -> None:
        """Read from a connection that was accepted: most clients have sent their request by now."""
        try:
            data = os.read(fd, FIRST_READ)
        except BlockingIOError:
            self._wait(Newcomer(self, fd, family, peer))
            return
        except OSError:
            data = b""
        passed = self._show(fd, peer, data)
        if passed is not None:
            self._go_on(Newcomer(self, fd, family, peer), data, passed)

    def _wait(self, newcomer: Newcomer) -> None:
        self._newcomers[newcomer.fd] = newcomer
        self._epoll.register(newcomer.fd, select.EPOLLIN)
        self._guard.wait(newcomer)

    def _forget(self, newcomer: Newcomer) -> None:
        """It waits here no more; its place in the row is another matter."""
        del self._newcomers[newcomer.fd]
        self._epoll.unregister(newcomer.fd)

    def _on_events(self) -> None:
        slice = 0.0 if self._server.is_behind else self._read_slice()
        if not slice:
            self._loop.remove_reader(self._epoll.fileno())
            self._loop.call_later(PAUSE_SECONDS, self._watch_newcomers)
            return
        ends = time.monotonic() + slice
        for fd, _ in self._epoll.poll(0, EVENTS):
            newcomer = self._newcomers.get(fd)
            if newcomer is not None:
                self._read(newcomer)
            if time.monotonic() >= ends:
                return

    def _watch_newcomers(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._epoll.fileno(), self._on_events)

    def _read(self, newcomer: Newcomer) -> None:
        """Read from a connection that has been silent until now."""
        fd = newcomer.fd
        try:
            data = os.read(fd, FIRST_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._forget(newcomer)
        if newcomer.received:
            # What has come so far is no upgrade. If the client is gone, aiohttp finds out.
            self._go_on(newcomer, newcomer.received + data, PASSED)
            return
        passed = self._show(fd, newcomer.peer, data)
        if passed is None:
            self._guard.end_wait(newcomer)
        else:
            self._go_on(newcomer, data, passed)

    def _show(self, fd: int, peer: str, data: bytes) -> Passed | None:
        """Show first bytes to the entrance; None when aiohttp does not get the connection."""
        if data:
            try:
                return self._enter(fd, peer, data)
            except Exception:
                logger.exception("A connection cannot be let in")
        os.close(fd)
        return None

    def _go_on(self, newcomer: Newcomer, data: bytes, passed: Passed) -> None:
        """Serve a request that needs no more than a call, or pass it on."""
        calls = self._server.calls
        if calls is not None and passed is PASSED and len(data) > len(newcomer.received):
            found = calls.take(data, newcomer.peer, newcomer)
            if found is TAKEN:
                self._guard.end_wait(newcomer)
                return
            if found is INCOMPLETE:
                newcomer.received = data
                self._wait(newcomer)
                return
        self._pass_on(newcomer, data, passed)

    def _pass_on(
        self, newcomer: Newcomer, data: bytes, passed: Passed, waited: float = 0.0
    ) -> None:
        self._guard.wait(newcomer)
        stream = _socket(newcomer)
        newcomer.successor = self._server.begin(
            stream, newcomer, newcomer.peer, data, passed.refusal, waited
        )


def _socket(newcomer: Newcomer) -> socket.socket:
    return socket.socket(newcomer.family, socket.SOCK_STREAM, 0, fileno=newcomer.fd)


class DoorSite(web.BaseSite):
    """Serves an application on listening sockets, through a `Door`.

    Args:
        runner: of the application, which is set up.
        listeners: sockets that listen; closed with the site.
    """

    __slots__ = ("_door", "_listeners", "_name")

    def __init__(self, runner: DoorRunner, listeners: Sequence[socket.socket]) -> None:
        super().__init__(runner)
        server = runner.server
        assert isinstance(server, HttpServer)
        self._door = Door(server, runner.app.get(ENTRANCE, _pass_all))
        self._listeners = listeners
        self._name = ", ".join(str(listener.getsockname()) for listener in listeners)

    @property
    def name(self) -> str:
        """The addresses of the sockets."""
        return self._name

    async def start(self) -> None:
        """Accept connections."""
        await super().start()
        self._door.open(self._listeners)

    async def stop(self) -> None:
        """Accept nothing more."""
        await self._door.close()
        await super().stop()


class DoorRunner(web.AppRunner):
    """Runs an application, which has a `GUARD`, on an `HttpServer` whose connections come through a `Door`."""

    __slots__ = ()

    async def _make_server(self) -> HttpServer:
        self._kwargs |= {
            "max_line_size": MAX_FIELD,
            "max_field_size": MAX_FIELD,
            "lingering_time": LINGER_SECONDS,
            # Handlers unpack what they read; what is not read costs nothing.
            "auto_decompress": False,
        }
        made = await super()._make_server()
        return HttpServer(made, self.app[GUARD], self.app.get(CALLS))

    def make_site(self, listeners: Sequence[socket.socket]) -> DoorSite:
        """What serves on listening sockets, once it is started."""
        return DoorSite(self, listeners)
