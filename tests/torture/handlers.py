"""Handlers of an application that takes whatever clients send, for the torture tests.

No argument makes one of them fail: a traceback in the log of the service is the service's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from socketio import AsyncServer
from socketio.exceptions import SocketIOError

from app.errors import ClientError

NAMESPACES = ("/", "/app")
ASK_SECONDS = 2.0
"""How long a client that is asked may take to answer."""

_REFUSED = (ClientError, SocketIOError, ValueError, TypeError, KeyError)
"""What the service may say of what a client has made a handler send."""

Handler = Callable[..., Awaitable[Any]]


def register(sio: AsyncServer) -> None:
    """Add the handlers to the default namespace and to `/app`."""
    for namespace in NAMESPACES:
        _register(sio, namespace)


def _register(sio: AsyncServer, namespace: str) -> None:
    def on(handler: Handler) -> Handler:
        async def handle(sid: str, *args: Any) -> Any:
            try:
                return await handler(sid, *args)
            except _REFUSED as error:
                return {"refused": type(error).__name__}

        sio.on(handler.__name__, handle, namespace=namespace)
        return handler

    @sio.on("connect", namespace=namespace)
    async def connect(sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        with contextlib.suppress(*_REFUSED):
            await sio.save_session(sid, {"auth": auth}, namespace=namespace)

    @sio.on("disconnect", namespace=namespace)
    async def disconnect(sid: str, reason: str) -> None:
        await sio.get_session(sid, namespace=namespace)

    @on
    async def echo(sid: str, *args: Any) -> Any:
        return args

    @on
    async def relay(sid: str, *args: Any) -> str:
        """Emit what came to a room, through the backplane."""
        await sio.emit("relayed", args, room="room", namespace=namespace)
        return "relayed"

    @on
    async def tell(sid: str, *args: Any) -> str:
        """Emit what came to its sender, under a name of its choice."""
        name = args[0] if args and isinstance(args[0], str) else "reply"
        await sio.emit(name, args[1:], to=sid, namespace=namespace)
        return "reply"

    @on
    async def enter(sid: str, *args: Any) -> str:
        room = args[0] if args and isinstance(args[0], str) else "room"
        await sio.enter_room(sid, room, namespace=namespace)
        return "entered"

    @on
    async def leave(sid: str, *args: Any) -> str:
        room = args[0] if args and isinstance(args[0], str) else "room"
        await sio.leave_room(sid, room, namespace=namespace)
        return "left"

    @on
    async def keep(sid: str, *args: Any) -> Any:
        """Keep what came in the session, and return what was there."""
        before = await sio.get_session(sid, namespace=namespace)
        await sio.save_session(sid, {"kept": args}, namespace=namespace)
        return before

    @on
    async def ask(sid: str, *args: Any) -> Any:
        """Ask the sender, and return its answer."""
        return await sio.call("question", args, to=sid, namespace=namespace, timeout=ASK_SECONDS)

    @on
    async def slow(sid: str, *args: Any) -> str:
        await asyncio.sleep(0.05)
        return "slow"
