"""python-engineio's server over detached connections: the session object is its own `eio_sid`.

The hooks that python-socketio needs, and nothing of the stock server's transports, queues and
tasks; see the layers in ARCHITECTURE.md.
"""

from __future__ import annotations

import asyncio
from typing import Any

from engineio import packet as eio_packet

from app.config import Settings
from app.errors import CloseCode
from app.protocol.envelope import encode_json
from app.protocol.frames import BINARY, TEXT, build_frame
from app.sessions.socketio.client import SocketIOClient
from app.sessions.socketio.private import EngineServer
from app.transport.connection import OPEN

_ID_PLACE = b"0" * 36


def message_frame(data: str | bytes) -> bytes:
    """The frame of an Engine.IO MESSAGE packet."""
    if isinstance(data, str):
        return build_frame(TEXT, b"4" + data.encode())
    return build_frame(BINARY, bytes(data))


class OpenPacket:
    """The OPEN packet of Engine.IO 4, made once but for the id.

    A client gives up when no ping came for interval and timeout together.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        interval = settings.heartbeat_interval
        fields = {
            "sid": _ID_PLACE.decode(),
            "upgrades": [],
            "pingInterval": round(interval * 1000),
            "pingTimeout": round((settings.heartbeat_timeout - interval) * 1000),
            "maxPayload": settings.max_message_size,
        }
        frame = build_frame(TEXT, b"0" + encode_json(fields))
        self._head, _, self._tail = frame.partition(_ID_PLACE)

    def frame(self, id: str) -> bytes:
        """The frame that begins the session with this id."""
        return self._head + id.encode() + self._tail


class DetachedEngine(EngineServer):
    """Engine.IO 4 on the WebSocket transport only."""

    def find_socket(self, sid: SocketIOClient | None) -> SocketIOClient:
        """The session itself, while it is open."""
        if sid is None or sid.state != OPEN:
            raise KeyError("Session is disconnected")
        return sid

    def transport(self, sid: SocketIOClient) -> str:
        """The one transport that there is."""
        return "websocket"

    async def send(self, sid: SocketIOClient, data: str | bytes) -> None:
        """Send a MESSAGE packet."""
        sid.send(message_frame(data))

    async def send_packet(self, sid: SocketIOClient, pkt: eio_packet.Packet) -> None:
        """Send any packet."""
        encoded = pkt.encode()
        if isinstance(encoded, str):
            sid.send(build_frame(TEXT, encoded.encode()))
        else:
            sid.send(build_frame(BINARY, encoded))

    async def get_session(self, sid: SocketIOClient | None) -> dict[str, Any]:
        """The user session, by namespace; it is there until the disconnect handlers are done."""
        if sid is None:
            raise KeyError("Session not found")
        return sid.need_extra().session

    async def save_session(self, sid: SocketIOClient, session: dict[str, Any]) -> None:
        """Keep the user session."""
        sid.need_extra().session = session

    async def disconnect(self, sid: SocketIOClient | None = None) -> None:
        """Close one connection."""
        if sid is not None:
            sid.end(CloseCode.NORMAL, "server disconnect")

    async def handle_request(self, *args: Any, **kwargs: Any) -> Any:
        """Not an entry point: connections come from app/http/upgrade.py."""
        raise NotImplementedError("connections are upgraded by the service's own route")

    async def shutdown(self) -> None:
        """Nothing runs in the background."""
        await asyncio.sleep(0)
