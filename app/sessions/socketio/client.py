"""A Socket.IO session as python-socketio's server and client manager see it.

Their library calls them and they call the session back; so that this is no circle of modules, what
they ask of a session stands here, and `session.py` implements it on top of them.
"""

from __future__ import annotations

from typing import Any

from app.errors import ClientError
from app.sessions.session import OUTSIDE, Session, Work

MAIN = "/"
"""The main namespace."""


class SocketIOClient(Session):
    """What the server and the manager ask of a session."""

    __slots__ = ()

    @property
    def is_entering(self) -> bool:
        """Whether a connect handler or a claim is at work for it, or it is in a namespace."""
        return self.phase != OUTSIDE or (self.extra is not None and bool(self.extra.namespaces))

    # How it enters a namespace, and leaves.

    def identify(self, data: Any) -> Work | None:
        """Identify the client from its CONNECT packet, and claim its place.

        Raises:
            ClientError: it may not connect.
        """
        raise NotImplementedError

    def authenticate(self, data: Any, *, anew: bool = False, may_fetch: bool = True) -> None:
        """Become the user that the token of a CONNECT packet names, where tokens are needed.

        Args:
            data: of the packet.
            anew: look at its token even if the session has a user already.
            may_fetch: whether keys may be fetched for it.

        Raises:
            ClientError: the token is wrong, or it is missing and the session has no user yet.
        """
        raise NotImplementedError

    def note_refusal(self, error: ClientError | None) -> None:
        """Count and log that a CONNECT packet is refused; None: a handler of the application does so."""
        raise NotImplementedError

    def connect_answer(self) -> str:
        """What the CONNECT packet says, as JSON."""
        raise NotImplementedError

    def accepted(self, namespace: str) -> Work | None:
        """The CONNECT packet is sent: greet, and let out what handlers emitted before it.

        Returns what remains to be awaited.
        """
        raise NotImplementedError

    def left(self, namespace: str) -> None:
        """Out of a namespace; a client that is in none must enter one in time."""
        raise NotImplementedError

    def forget(self) -> None:
        """Remove this session from the registry, when the disconnect handlers are done."""
        raise NotImplementedError

    # Sending.

    def send_packet(self, packet: Any) -> None:
        """Send a packet without attachments."""
        raise NotImplementedError

    def hold_frames(self, namespace: str, frames: bytes) -> None:
        """Keep what is emitted before the CONNECT packet of a namespace, up to a limit."""
        raise NotImplementedError

    def take_held(self, namespace: str) -> list[bytes]:
        """What was kept for a namespace, which is kept no more."""
        raise NotImplementedError

    def drop_packet(self) -> bool:
        """Forget the packet that waits for its attachments; whether there was one."""
        raise NotImplementedError
