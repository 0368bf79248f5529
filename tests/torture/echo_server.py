"""An echo application on the service's own transport, for the Autobahn suite.

`python -m tests.torture.echo_server [PORT]` prints the port and serves until it is ended. HTTP,
takeover, hub, connections and frames are the service's; only what a message means is not.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web

from app.protocol.deflate import InflatingReader, answer, compress, negotiate
from app.protocol.frames import BINARY, TEXT, build_frame
from app.transport.connection import Connection
from app.transport.hub import Hub
from app.transport.takeover import DetachedResponse, detach, handshake_response

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes: the largest message of the suite."""


class Echo(Connection):
    """Sends each message back."""

    def on_text(self, text: str) -> None:
        """Send it back."""
        self.send(build_frame(TEXT, text.encode()))

    def on_binary(self, data: bytes) -> None:
        """Send it back."""
        self.send(build_frame(BINARY, data))


class DeflatedEcho(Echo):
    """Sends each message back compressed, as its client has negotiated."""

    def __init__(self, hub: Hub, fd: int, bits: int) -> None:
        super().__init__(hub, fd, "echo")
        self.bits = bits

    def receive(self, data: bytes) -> None:
        """Read compressed messages."""
        if self.reader is None and data:
            self.reader = InflatingReader(self.hub.max_message)
        super().receive(data)

    def on_text(self, text: str) -> None:
        """Send it back."""
        self.send(compress(text.encode(), self.bits))

    def on_binary(self, data: bytes) -> None:
        """Send it back."""
        self.send(compress(data, self.bits, BINARY))


async def serve(port: int) -> None:
    """Serve until this is cancelled."""
    hub = Hub(
        heartbeat_interval=60,
        heartbeat_timeout=120,
        max_message=MAX_MESSAGE,
        max_incoming=4 * MAX_MESSAGE,
    )

    async def upgrade(request: web.Request) -> web.StreamResponse:
        key = request.headers["Sec-WebSocket-Key"]
        fd, received = detach(request)
        bits = negotiate(request.headers.getall("Sec-WebSocket-Extensions", ()))
        connection = Echo(hub, fd, "echo") if bits is None else DeflatedEcho(hub, fd, bits)
        hub.attach(connection)
        extension = None if bits is None else answer(bits)
        connection.send(handshake_response(key, extension=extension))
        if received:
            connection.receive(received)
        return DetachedResponse(status=101)

    app = web.Application()
    app.router.add_get("/", upgrade)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        hub.stop()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
