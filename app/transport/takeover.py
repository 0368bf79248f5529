"""Takes an upgraded connection away from aiohttp, as a descriptor of its own.

aiohttp parses and answers HTTP until the upgrade; then its transport is aborted while a
duplicate of the descriptor lives on, so no task, request or protocol object stays behind.
The names of aiohttp that are private stand in this module only.
"""

from __future__ import annotations

import binascii
import errno
import hashlib
import os

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class DetachedResponse(web.StreamResponse):
    """Ends a handler whose connection is no longer aiohttp's: nothing is written."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write nothing."""
        self.force_close()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing."""


def handshake_response(
    key: str, subprotocol: str | None = None, extension: str | None = None
) -> bytes:
    """The answer to an upgrade request with this `Sec-WebSocket-Key` (RFC 6455, 4.2.2)."""
    digest = hashlib.sha1(key.encode() + _WEBSOCKET_GUID, usedforsecurity=False).digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: "
        + binascii.b2a_base64(digest, newline=False)
        + (b"\r\nSec-WebSocket-Protocol: " + subprotocol.encode() if subprotocol else b"")
        + (b"\r\nSec-WebSocket-Extensions: " + extension.encode() if extension else b"")
        + b"\r\n\r\n"
    )


def detach(request: web.Request, most: int = 1 << 30) -> tuple[int, bytes]:
    """Take the socket of a request whose headers asked for an upgrade.

    Args:
        request: it.
        most: descriptors from this number on are kept for other uses.

    Returns:
        A non-blocking descriptor that the caller owns, and bytes the client sent behind the
        request. The answer to the request is the caller's to write.

    Raises:
        ConnectionResetError: the client is gone already.
        OSError: no descriptor is free; aiohttp still has the connection.
    """
    protocol = request.protocol
    transport = protocol.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("client went away before the upgrade")
    if transport.get_write_buffer_size():
        raise ConnectionResetError("client does not read the answers to its earlier requests")
    fd = os.dup(transport.get_extra_info("socket").fileno())
    if fd >= most:
        os.close(fd)
        raise OSError(errno.EMFILE, "the last descriptors are kept for other uses")
    received: bytes = protocol._message_tail
    protocol._message_tail = b""
    transport.abort()
    return fd, received
