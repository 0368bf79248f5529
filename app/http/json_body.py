"""Bodies of JSON in requests: received within a time and a size, unpacked as they come."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from aiohttp import web

from app.errors import ErrorCode
from app.http.bodies import ReceivedBodies
from app.http.errors import HttpError
from app.protocol.envelope import decode_json
from app.transport.http_connection import HttpConnection

BODY_TIMEOUT = 10.0
"""Seconds that a client may take to send the body of a request, and"""

BODY_RATE = 64 * 1024
"""one more for so many bytes that have come."""

_FORMS = (
    "application/json",
    "text/plain",
    # What curl sends with --data and others with bare bytes; the body is JSON all the same.
    "application/x-www-form-urlencoded",
    "application/octet-stream",
)

_ENCODINGS = ("", "identity", "gzip", "deflate")
"""What the body may be packed with."""


class _Unpacker:
    """Unpacks a body as it comes, so that no more of it is unpacked than is read.

    aiohttp would do so with each body that says it is packed, also with those that nothing reads.

    Args:
        packed: one of `_ENCODINGS`.
    """

    def __init__(self, packed: str) -> None:
        self._packed = packed
        self._inflater: zlib._Decompress | None = None

    def feed(self, chunk: bytes, most: int) -> bytes:
        """What comes out of the next bytes, at most so many.

        Raises:
            zlib.error: they are not packed as they should be.
        """
        if self._inflater is None:
            if self._packed == "gzip":
                bits = 16 + zlib.MAX_WBITS
            else:
                # Some clients leave the frame of zlib out (RFC 9110, 8.4.1.2).
                bits = zlib.MAX_WBITS if chunk[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS
            self._inflater = zlib.decompressobj(bits)
        return self._inflater.decompress(chunk, most)

    @property
    def has_ended(self) -> bool:
        """Whether all of it has come, and nothing more."""
        inflater = self._inflater
        return inflater is not None and inflater.eof and not inflater.unused_data


async def read_json(request: web.Request, limit: int, bodies: ReceivedBodies) -> tuple[Any, int]:
    """Read a body of JSON.

    Args:
        request: its body has not been read yet.
        limit: of the body in bytes, after decompression.
        bodies: where it is counted.

    Returns:
        The value, and the length of the body in bytes.

    Raises:
        HttpError: 400, 408, 413, 415 or 503.
        ClientError: PARSE_ERROR.
    """
    # Several lines are one list, of what was done one after the other (RFC 9110, 8.4).
    packed = ",".join(request.headers.getall("Content-Encoding", ())).strip().lower()
    if packed not in _ENCODINGS:
        message = f"Send the body as it is, or with gzip or deflate, not as {packed[:80]}."
        raise HttpError(415, ErrorCode.UNSUPPORTED_MEDIA_TYPE, message, close=True)
    form = request.content_type
    if "Content-Type" in request.headers and form not in _FORMS and not form.endswith("+json"):
        message = f"Send JSON, not {form[:80]}."
        raise HttpError(415, ErrorCode.UNSUPPORTED_MEDIA_TYPE, message, close=True)
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    received = bytearray()
    unpacker = _Unpacker(packed) if packed not in ("", "identity") else None
    try:
        connection = request.protocol
        waited = connection.take_waited() if isinstance(connection, HttpConnection) else 0.0
        async with asyncio.timeout(max(BODY_TIMEOUT - waited, 0.0)) as limit_of_time:
            due = limit_of_time.when() or 0.0
            if isinstance(connection, HttpConnection):
                connection.let_body_in()
            async for chunk in request.content.iter_any():
                if unpacker is None:
                    received += chunk
                elif chunk:
                    received += unpacker.feed(chunk, limit + 1 - len(received))
                bodies.note(request.content, len(received))
                limit_of_time.reschedule(due + len(received) / BODY_RATE)
                if len(received) > limit:
                    raise _too_large(limit)
        if unpacker is not None and received and not unpacker.has_ended:
            raise zlib.error("incomplete")
    except TimeoutError:
        message = "The body did not arrive in time."
        raise HttpError(408, ErrorCode.REQUEST_TIMEOUT, message, close=True) from None
    except (ConnectionError, web.RequestPayloadError, RuntimeError, zlib.error):
        # RuntimeError: the client was gone before its request had its turn.
        message = "The body ended early, or its compression does not match its headers."
        raise HttpError(400, ErrorCode.PARSE_ERROR, message, close=True) from None
    finally:
        bodies.forget(request.content)
    return decode_json(bytes(received)), len(received)


def _too_large(limit: int) -> HttpError:
    message = f"The request is too large: {limit} bytes are allowed."
    return HttpError(413, ErrorCode.MESSAGE_TOO_LARGE, message, close=True)
