"""Clients that stay for hours: when their connection ends they come back and recover.

Each keeps all that it has received in one list, over all of its connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.support.envelopes import Envelope, flatten
from tests.support.service import Service
from tests.support.waiting import DEADLINE

RETRY = 0.2
"""Seconds between two attempts to connect."""
_LOST = (OSError, EOFError, TimeoutError, websockets.WebSocketException)


class Follower:
    """A client that is subscribed to `status`, whatever happens to its connection."""

    def __init__(self, service: Service, auth: dict[str, str]) -> None:
        self.received: list[Envelope] = []
        self.connections = 0
        self.auth = auth
        self._url = f"ws://127.0.0.1:{service.port}"
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Leave for good."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def last(self) -> Envelope | None:
        """The newest message, or gap, of the stream."""
        for got in reversed(flatten(self.received[-200:])):
            if got["type"] == "status" and ("seq" in got or got["event"] == "gap"):
                return got
        return None

    def has(self, epoch: str, seq: int) -> bool:
        """Whether it stands at or behind this message."""
        got = self.last
        if got is None:
            return False
        if got["event"] == "gap":
            return bool(got["data"]["epoch"] == epoch and got["data"]["last"] >= seq)
        return bool(got["epoch"] == epoch and got["seq"] >= seq)

    async def _follow(self) -> None:
        while True:
            try:
                async with connect(
                    self._url + self._path(),
                    compression=None,
                    max_size=None,
                    ping_interval=None,
                    open_timeout=DEADLINE,
                    close_timeout=1,
                    proxy=None,
                ) as socket:
                    self.connections += 1
                    await self._serve(socket)
            except _LOST:
                pass
            await asyncio.sleep(RETRY)

    def _path(self) -> str:
        raise NotImplementedError

    async def _serve(self, socket: ClientConnection) -> None:
        raise NotImplementedError


class PlainFollower(Follower):
    """Over plain JSON: says in its first message what it has."""

    def _path(self) -> str:
        query = "&".join(f"{name}={value}" for name, value in self.auth.items())
        return f"/ws/realtime?types=&{query}"

    async def _serve(self, socket: ClientConnection) -> None:
        last, recover = self.last, {}
        if last is not None:
            data = last["data"] if last["event"] == "gap" else last
            recover = {"status": {"epoch": data["epoch"], "seq": data.get("seq", data.get("last"))}}
        payload: dict[str, Any] = {"types": ["status"]}
        if recover:
            payload["recover"] = recover
        await socket.send(json.dumps({"action": "subscribe", "id": 1, "payload": payload}))
        async for text in socket:
            got = json.loads(text)
            assert got["event"] != "error", got
            self.received.append(got)


class SocketIOFollower(Follower):
    """Over Socket.IO: recovers by `pid` and `offset`, as its client library does."""

    known: dict[str, str]

    def _path(self) -> str:
        return "/ws/realtime/?EIO=4&transport=websocket"

    async def _serve(self, socket: ClientConnection) -> None:
        if not hasattr(self, "known"):
            self.known = {}
        async for text in socket:
            assert isinstance(text, str)
            if text.startswith("0"):
                await socket.send("40" + json.dumps(self.auth | self.known))
            elif text == "2":
                await socket.send("3")
            elif text.startswith("40{"):
                pid = json.loads(text[2:])["pid"]
                if pid != self.known.get("pid"):
                    self.known = {"pid": pid}
            elif text.startswith("44"):
                raise ConnectionError(text)
            elif text.startswith("42"):
                event, *arguments = json.loads(text[2:])
                if event == "offset":
                    self.known["offset"] = arguments[0]
                elif arguments and isinstance(arguments[0], dict) and "direction" in arguments[0]:
                    self.received.append(arguments[0])
