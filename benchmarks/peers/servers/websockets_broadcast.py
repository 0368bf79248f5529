"""`websockets`: its `broadcast`, which its documentation advises, without compression.

Its server answers no POST: requests to publish come to aiohttp, on the next port.
"""

from __future__ import annotations

import itertools
import json
from http import HTTPStatus
from typing import Any

import uvloop
from aiohttp import web
from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.peers.wire import arguments, envelope, messages

numbers = itertools.count(1)
connections: set[ServerConnection] = set()


async def client(connection: ServerConnection) -> None:
    """Keep a connection for as long as it is open."""
    connections.add(connection)
    try:
        await connection.wait_closed()
    finally:
        connections.discard(connection)


async def publish(request: web.Request) -> web.Response:
    """Broadcast each message of the request."""
    body = messages(await request.json())
    for message in body:
        wrapped = envelope(message, next(numbers))
        broadcast(connections, json.dumps(wrapped, separators=(",", ":")))
    return web.json_response({"taken": len(body)})


def status(connection: ServerConnection, request: Any) -> Any:
    """Answer what is no upgrade."""
    return connection.respond(HTTPStatus.OK, "{}") if request.path == "/status" else None


async def main() -> None:
    """Run both servers."""
    port = arguments().port
    app = web.Application()
    app.router.add_post("/ws/broadcast", publish)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port + 1).start()
    options: dict[str, Any] = {"compression": None, "ping_interval": None, "backlog": 4096}
    async with serve(client, "127.0.0.1", port, process_request=status, **options) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
