"""python-socketio as it comes: its AsyncServer on aiohttp, with the handlers of the service."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import socketio
import uvloop
from aiohttp import web

from benchmarks.peers.wire import arguments, envelope, messages

TYPES = ("status", "stats", "health")

sio = socketio.AsyncServer(
    async_mode="aiohttp",
    transports=["websocket"],
    ping_interval=float(os.environ.get("HEARTBEAT_INTERVAL", "25")),
    ping_timeout=float(os.environ.get("HEARTBEAT_TIMEOUT", "60")),
    cors_allowed_origins=[],
)
numbers = itertools.count(1)


@sio.event  # type: ignore[untyped-decorator]
async def connect(sid: str, _environ: dict[str, Any], _auth: Any) -> None:
    """Join the default rooms and greet the client."""
    for type_ in TYPES:
        await sio.enter_room(sid, type_)
    data = {
        "connectionId": sid,
        "user": None,
        "serverTime": int(time.time() * 1000),
        "supportedTypes": ["status", "stats", "health", "config", "system"],
        "subscriptions": list(TYPES),
    }
    message = {"type": "system", "event": "connected", "data": data}
    await sio.emit("connected", envelope(message, 0), to=sid)


@sio.event  # type: ignore[untyped-decorator]
async def subscribe(sid: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Join the rooms that the client names."""
    for type_ in payload["types"]:
        await sio.enter_room(sid, type_)
    return {"types": payload["types"]}


async def publish(request: web.Request) -> web.Response:
    """Emit each message of the request to the room of its type."""
    body = messages(await request.json())
    for message in body:
        wrapped = envelope(message, next(numbers))
        await sio.emit(message["event"], wrapped, room=message["type"])
    return web.json_response({"taken": len(body)})


async def status(_request: web.Request) -> web.Response:
    """Say that the server is up."""
    return web.json_response({"connections": len(sio.eio.sockets)})


async def application() -> web.Application:
    """The application, for gunicorn."""
    app = web.Application()
    sio.attach(app, socketio_path="ws/realtime")
    app.router.add_post("/ws/broadcast", publish)
    app.router.add_get("/status", status)
    return app


def main() -> None:
    """Run the server until it gets a signal."""
    port = arguments().port
    loop = uvloop.new_event_loop()
    web.run_app(
        application(),
        host="127.0.0.1",
        port=port,
        print=None,
        access_log=None,
        loop=loop,
        backlog=4096,
    )


if __name__ == "__main__":
    main()
