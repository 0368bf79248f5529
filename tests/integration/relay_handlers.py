"""Handlers that pass on whatever they are given, and some that give what cannot be sent."""

from __future__ import annotations

import logging
from typing import Any

from socketio import AsyncServer, exceptions

from tests.support import handlers

logger = logging.getLogger(__name__)

ODD_ROOMS: dict[str, Any] = {
    "dict": {"a": 1},
    "nested": [["a"]],
    "none": [None],
    "bytes": b"room",
    "float": 1.5,
    "true": True,
    "long": "x" * 1_000_000,
    "object": object(),
}


def register(sio: AsyncServer) -> None:
    """Add the handlers."""
    handlers.register(sio)

    @sio.on("join")
    async def join(sid: str, room: str) -> str:
        await sio.enter_room(sid, room)
        return "joined"

    @sio.on("relay")
    async def relay(sid: str, text: Any) -> str:
        await sio.emit("said", {"text": text}, room="r")
        return "relayed"

    @sio.on("relay_number")
    async def relay_number(sid: str, digits: int) -> str:
        await sio.emit("said", {"text": 10 ** (digits - 1)}, room="r")
        return "relayed"

    @sio.on("publish")
    async def publish(sid: str, data: dict[str, Any]) -> str:
        await sio.emit(data["event"], data["data"], room="status")
        return "published"

    @sio.on("nan")
    async def nan(sid: str) -> float:
        return float("nan")

    @sio.on("infinite")
    async def infinite(sid: str) -> tuple[Any, ...]:
        return 1, {"a": [float("-inf")]}

    @sio.on("thing")
    async def thing(sid: str) -> object:
        return object()

    @sio.on("ask_in_vain")
    async def ask_in_vain(sid: str, times: int) -> str:
        """Ask the sender so many times; what is to take its answers fails."""

        def fail(*answer: Any) -> None:
            raise RuntimeError("a callback that fails on purpose")

        for _ in range(times):
            await sio.emit("question", None, to=sid, callback=fail)
        return "asked"

    @sio.on("relay_here")
    async def relay_here(sid: str, levels: int) -> str:
        """Emit to the sender alone, without the other workers."""
        value: list[Any] = []
        for _ in range(levels):
            value = [value]
        try:
            await sio.emit("said", value, to=sid, ignore_queue=True)
        except ValueError as error:
            return str(error)
        return "relayed"

    @sio.on("odd_room")
    async def odd_room(sid: str, data: dict[str, str]) -> str:
        """Use a room that can be none; returns what python-socketio raises."""
        room, how = ODD_ROOMS[data["room"]], data["how"]
        try:
            if how == "emit":
                await sio.emit("said", 1, room=room)
            elif how == "skip":
                await sio.emit("said", 1, room="r", skip_sid=room)
            elif how == "enter":
                await sio.enter_room(sid, room)
            elif how == "enter elsewhere":
                await sio.enter_room("f" * 36, room)
            elif how == "leave elsewhere":
                await sio.leave_room("f" * 36, room)
            elif how == "close":
                await sio.close_room(room)
            elif how == "disconnect":
                await sio.disconnect(room)
            elif how == "event":
                await sio.emit(room, 1, room="r")
            elif how == "namespace":
                await sio.emit("said", 1, room="r", namespace=room)
        except (ValueError, TypeError) as error:
            return str(error)
        return "done"

    @sio.on("*")
    async def anything(sid_or_event: str, *args: Any) -> dict[str, Any]:
        return {"event": sid_or_event, "sid": args[0], "args": list(args[1:])}

    @sio.on("connect", namespace="/refusing")
    async def refuse(sid: str, environ: dict[str, Any], auth: Any) -> None:
        raise exceptions.ConnectionRefusedError("no", {"limit": float("inf")})

    @sio.on("connect", namespace="/failing")
    async def fail_at_connect(sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        if auth is None:
            raise RuntimeError("a connect handler that fails on purpose")

    @sio.on("disconnect", namespace="/failing")
    async def fail_at_disconnect(sid: str, reason: str) -> None:
        logger.info("a disconnect handler is called")
        raise RuntimeError("a disconnect handler that fails on purpose")
