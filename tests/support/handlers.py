"""Application handlers that the service loads for these tests (setting HANDLERS).

They are ordinary python-socketio handlers; clients drive the server with them.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from socketio import AsyncServer, exceptions

NAMESPACES = ("/", "/app")


def register(sio: AsyncServer) -> None:
    """Add the handlers to the default namespace and to `/app`."""
    for namespace in NAMESPACES:
        _register(sio, namespace)


def _register(sio: AsyncServer, namespace: str) -> None:
    @sio.on("connect", namespace=namespace)
    async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any] | None) -> None:
        wish = auth if isinstance(auth, dict) else {}
        if wish.get("refuse"):
            raise exceptions.ConnectionRefusedError("not you", {"why": "asked for it"})
        if wish.get("greet"):
            await sio.emit("greeting", {"hello": sid}, to=sid, namespace=namespace)
        await sio.save_session(sid, {"name": wish.get("name")}, namespace=namespace)

    @sio.on("disconnect", namespace=namespace)
    async def disconnect(sid: str, reason: str) -> None:
        session = await sio.get_session(sid, namespace=namespace)
        gone = {"sid": sid, "reason": reason, "name": session.get("name")}
        await sio.emit("gone", gone, room="watchers", namespace=namespace)

    @sio.on("whoami", namespace=namespace)
    async def whoami(sid: str) -> dict[str, Any]:
        session = await sio.get_session(sid, namespace=namespace)
        rooms = sio.rooms(sid, namespace=namespace)
        return {"pid": os.getpid(), "sid": sid, "name": session.get("name"), "rooms": rooms}

    @sio.on("echo", namespace=namespace)
    async def echo(sid: str, *args: Any) -> tuple[Any, ...]:
        return args

    @sio.on("nap", namespace=namespace)
    async def nap(sid: str, seconds: float, *rest: Any) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @sio.on("rename", namespace=namespace)
    async def rename(sid: str, name: str) -> None:
        async with sio.session(sid, namespace=namespace) as session:
            session["name"] = name

    @sio.on("enter", namespace=namespace)
    async def enter(sid: str, data: dict[str, str]) -> str:
        await sio.enter_room(data.get("sid", sid), data["room"], namespace=namespace)
        return "entered"

    @sio.on("leave", namespace=namespace)
    async def leave(sid: str, data: dict[str, str]) -> str:
        await sio.leave_room(data.get("sid", sid), data["room"], namespace=namespace)
        return "left"

    @sio.on("close", namespace=namespace)
    async def close(sid: str, room: str) -> str:
        await sio.close_room(room, namespace=namespace)
        return "closed"

    @sio.on("say", namespace=namespace)
    async def say(sid: str, data: dict[str, Any]) -> str:
        """Emit as the client asks: event, data, and `room`, `to` or `skip_sid`."""
        options = {name: data[name] for name in ("room", "to") if name in data}
        if data.get("skip_me"):
            options["skip_sid"] = sid  # type: ignore[index]
        await sio.emit(data["event"], data["data"], namespace=namespace, **options)
        return "said"

    @sio.on("say_text", namespace=namespace)
    async def say_text(sid: str, data: Any) -> None:
        await sio.send(data, to=sid, namespace=namespace)

    @sio.on("ask", namespace=namespace)
    async def ask(sid: str, data: dict[str, Any]) -> Any:
        """Call another client and return its ack."""
        return await sio.call(
            data["event"], data["data"], to=data["sid"], namespace=namespace, timeout=10
        )

    @sio.on("kick", namespace=namespace)
    async def kick(sid: str, target: str) -> str:
        await sio.disconnect(target, namespace=namespace)
        return "kicked"

    @sio.on("fail", namespace=namespace)
    async def fail(sid: str) -> None:
        raise RuntimeError("a handler that fails on purpose")
