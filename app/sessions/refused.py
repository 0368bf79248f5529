"""Refusals of clients: what is counted of them, and those that a page can see.

For the latter a connection is made only to be closed with a code.
Browsers tell their pages nothing of an HTTP answer to a handshake; the page sees 1006 and tries
for ever. So it gets the upgrade, the error, and a close frame. The connection has no place in the
cap and no session, and few exist at a time: the others are refused over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from socketio import packet as sio_packet

from app.errors import ClientError, CloseCode, ErrorCode
from app.protocol.codecs import PLAIN
from app.protocol.envelope import encode_json, error_envelope, new_id
from app.refusals import Refusals
from app.sessions.socketio.engine import OpenPacket, message_frame
from app.sessions.token_keys import KeysUnavailable
from app.transport.connection import Connection
from app.transport.hub import Hub

MAX_AT_ONCE = 64
"""Refused connections of one worker that wait for the answer to their close frame."""
MAX_A_SECOND = 100
"""Those that one worker accepts to refuse them within a second."""


_REASONS = {
    ErrorCode.UNAUTHORIZED: "token",
    ErrorCode.FORBIDDEN: "types",
    ErrorCode.INVALID_TYPE: "types",
    ErrorCode.SUBSCRIPTION_INVALID: "types",
    ErrorCode.INVALID_PAYLOAD: "query",
    ErrorCode.PARSE_ERROR: "query",
    ErrorCode.MESSAGE_TOO_LARGE: "query",
    ErrorCode.BACKPLANE_UNAVAILABLE: "backplane",
    ErrorCode.QUEUE_OVERFLOW: "backplane",
}
"""Of refusals after the handshake, as of those at it; what is not here is noted where a place is claimed."""


def note_refusal(refusals: Refusals, error: ClientError) -> None:
    """Count and log that a client is refused after its handshake.

    Args:
        refusals: of this worker.
        error: as it is reported to the client.
    """
    reason = "keys" if isinstance(error, KeysUnavailable) else _REASONS.get(error.code)
    if reason is not None:
        refusals.note(reason, None, error.message)


class RefusedConnection(Connection):
    """A connection that is closed as soon as it is there."""

    __slots__ = ("_on_gone",)

    def __init__(self, hub: Hub, fd: int, on_gone: Callable[[], None]) -> None:
        super().__init__(hub, fd, new_id())
        self._on_gone = on_gone

    def on_detached(self) -> None:
        """Make room for the next one."""
        self._on_gone()


class Refuser:
    """Closes connections of browsers with a code.

    Args:
        hub: the connections of this worker.
        open_packet: what an Engine.IO session begins with.
    """

    def __init__(self, hub: Hub, open_packet: OpenPacket) -> None:
        self._hub = hub
        self._open_packet = open_packet
        self._open = 0
        self._second = 0.0
        self._count = 0

    def has_room(self, now: float) -> bool:
        """Whether one more connection may be made; counts it.

        Args:
            now: monotonic seconds.
        """
        if now - self._second >= 1.0:
            self._second, self._count = now, 0
        if self._open >= MAX_AT_ONCE or self._count >= MAX_A_SECOND:
            return False
        self._count += 1
        return True

    def refuse(
        self,
        fd: int,
        handshake: bytes,
        protocol: str,
        close: tuple[CloseCode, str],
        error: tuple[str, str],
    ) -> None:
        """Complete a handshake and close.

        Args:
            fd: of the connection, which is this object's from now on.
            handshake: the answer to the upgrade request.
            protocol: what the client speaks.
            close: code and reason of the close frame.
            error: code and message of the error.
        """
        connection = RefusedConnection(self._hub, fd, self._gone)
        self._open += 1
        self._hub.attach(connection)
        connection.send(handshake)
        code, message = error
        if protocol == "plain":
            connection.send(PLAIN.event("error", error_envelope(code, message)))
        else:
            connection.send(self._open_packet.frame(connection.id))
            if close[0].is_final:
                # With it a client does not come back by itself.
                reason = encode_json({"message": message, "data": {"code": code}}).decode()
                connection.send(message_frame(f"{sio_packet.CONNECT_ERROR}{reason}"))
        connection.close(*close)

    def _gone(self) -> None:
        self._open -= 1
