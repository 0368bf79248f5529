"""Sessions of clients with permessage-deflate: classes of their own, so that others pay nothing."""

from __future__ import annotations

from typing import Any, TypeVar

from app.protocol.deflate import InflatingReader, deflated
from app.sessions.protocol_session import ProtocolSession

SessionT = TypeVar("SessionT", bound=ProtocolSession)


_made: dict[tuple[str, int], Any] = {}


def _with_deflate(base: Any, bits: int) -> Any:
    class Deflated(base):
        """A session that reads and writes compressed messages."""

        __slots__ = ()

        codec = deflated(base.protocol, bits)
        deflate = bits

        def receive(self, data: bytes) -> None:
            """Handle received bytes with a reader that knows compressed messages."""
            if self.reader is None and data:  # type: ignore[has-type]
                self.reader = InflatingReader(self.hub.max_message)  # type: ignore[misc]
            super().receive(data)

    return Deflated


def session_class(base: type[SessionT], bits: int | None) -> type[SessionT]:
    """The class of sessions for clients of a protocol.

    Args:
        base: the class for those without an extension.
        bits: window size of permessage-deflate; None where it is not negotiated.
    """
    if bits is None:
        return base
    key = base.protocol, bits
    if key not in _made:
        _made[key] = _with_deflate(base, bits)
    made: type[SessionT] = _made[key]
    return made
