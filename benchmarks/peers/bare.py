"""The bare loop: what writing to that many sockets costs when there is nothing else.

aiohttp answers the upgrade and then forgets the connection. A POST builds its frames once and
writes them to each transport in turn. No sessions, no subscriptions, no history.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
from typing import cast

import uvloop
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from benchmarks.peers.wire import arguments, envelope, messages, text_frame

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

transports: dict[asyncio.Transport, None] = {}
numbers = itertools.count(1)


class Sink(asyncio.Protocol):
    """Holds a transport for as long as its client stays, and ignores what that says."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transports[transport] = None

    def connection_lost(self, _exc: Exception | None) -> None:
        """Forget the transport of a client that has left."""
        transports.pop(self._transport, None)


class Detached(web.Response):
    """Ends aiohttp's handler without a word to the client."""

    async def prepare(self, _request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write no head."""

    async def write_eof(self, _data: bytes = b"") -> None:
        """Write no end."""


async def upgrade(request: web.Request) -> web.StreamResponse:
    """Answer the upgrade and take the transport over."""
    protocol = request.protocol
    transport = cast("asyncio.Transport", request.transport)
    key = request.headers["Sec-WebSocket-Key"].encode()
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    transport.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
    )
    transport.set_protocol(Sink(transport))
    protocol.transport = None
    protocol.connection_lost(None)
    return Detached()


async def publish(request: web.Request) -> web.Response:
    """Write the frames of one request to every transport, with one write each."""
    body = messages(await request.json())
    frames = b"".join(text_frame(envelope(message, next(numbers))) for message in body)
    for transport in transports:
        transport.write(frames)
    return web.json_response({"taken": len(body)})


async def status(_request: web.Request) -> web.Response:
    """Say that the server is up."""
    return web.json_response({"connections": len(transports)})


def main() -> None:
    """Run the server until it gets a signal."""
    app = web.Application()
    app.router.add_get("/ws/realtime", upgrade)
    app.router.add_post("/ws/broadcast", publish)
    app.router.add_get("/status", status)
    port = arguments().port
    loop = uvloop.new_event_loop()
    web.run_app(
        app, host="127.0.0.1", port=port, print=None, access_log=None, loop=loop, backlog=4096
    )


if __name__ == "__main__":
    main()
