"""WebSocket frames (RFC 6455) as a pure parser and builder, server side.

An idle connection needs no `FrameReader`: `read_single` handles what arrives whole, and a reader
is made only for what arrives in parts. Extensions are never negotiated, so any RSV bit is an
error.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from app.errors import CloseCode

CONTINUATION = 0x0
TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA

TOO_LARGE = -1
"""A message over the limit was skipped; its payload was not kept."""
VIOLATION = -2
"""The peer broke the protocol; the payload is that of the close frame to answer with."""

SKIP_ALLOWANCE = 64 * 1024
"""A message at most this much over the limit is skipped; a larger one ends the connection."""

Event = tuple[int, str | bytes]
"""Opcode, or one of the two negative values above, and the payload: `str` for TEXT only."""

_MASKED = 0x80
_FIN = 0x80


def build_frame(opcode: int, payload: bytes) -> bytes:
    """A whole unmasked frame."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65536:
        return b"%c%c%b%b" % (_FIN | opcode, 126, size.to_bytes(2, "big"), payload)
    return b"%c%c%b%b" % (_FIN | opcode, 127, size.to_bytes(8, "big"), payload)


def build_close(code: int, reason: str = "") -> bytes:
    """A close frame; the reason is cut at 123 bytes, the most that fits (RFC 6455, 5.5)."""
    return build_frame(CLOSE, close_payload(code, reason))


def close_payload(code: int, reason: str) -> bytes:
    """Status code and reason as they stand in a close frame."""
    cut = reason.encode()[:123].decode("utf-8", "ignore").encode()
    return int(code).to_bytes(2, "big") + cut


def unmask(payload: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    """XOR with the repeated mask, as one operation on two long integers."""
    size = len(payload)
    repeated = mask * (size // 4 + 1)
    return (int.from_bytes(payload, "little") ^ int.from_bytes(repeated[:size], "little")).to_bytes(
        size, "little"
    )


def read_single(data: bytes) -> Event | None:
    """The event in `data` if that is exactly one final, short, valid text or pong frame.

    Returns None for everything else, which is then a matter for `FrameReader`.
    """
    size = len(data)
    if size < 6:
        return None
    first, length = data[0], data[1]
    if first == _FIN | TEXT:
        if size == 6 + length - _MASKED and length <= _MASKED + 125:
            try:
                return TEXT, unmask(data[6:], data[2:6]).decode()
            except UnicodeDecodeError:
                return None
        return None
    if first == _FIN | PONG and size == 6 + length - _MASKED and length <= _MASKED + 125:
        return PONG, b""
    return None


class _ProtocolError(Exception):
    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.payload = close_payload(code, reason)


class FrameReader:
    """Parses a stream of masked frames into messages and control frames.

    Args:
        limit: largest message in bytes, inclusive.
    """

    __slots__ = ("_buffer", "_fragments", "_limit", "_opcode", "_skip", "_skipped", "_total")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._fragments: bytearray | None = None
        """Payload so far of a fragmented message; None while it is being skipped."""
        self._opcode = 0
        """Opcode of the fragmented message under way, 0 when there is none."""
        self._total = 0
        """Bytes of the fragmented message so far, kept or skipped."""
        self._skip = 0
        """Bytes of the current frame that are still to be thrown away."""
        self._skipped = False
        """The frame that `_skip` belongs to is the last one of its message."""

    @property
    def held(self) -> int:
        """Bytes kept in memory for what is unfinished."""
        return len(self._buffer) + (len(self._fragments) if self._fragments is not None else 0)

    @property
    def idle(self) -> bool:
        """Nothing is unfinished, so the reader can be thrown away."""
        return not (self._buffer or self._opcode or self._skip)

    def dump(self) -> dict[str, Any]:
        """What is unfinished, as JSON values, for another process to go on with."""
        fragments = self._fragments
        return {
            "buffer": base64.b64encode(self._buffer).decode(),
            "fragments": None if fragments is None else base64.b64encode(fragments).decode(),
            "opcode": self._opcode,
            "total": self._total,
            "skip": self._skip,
            "skipped": self._skipped,
        }

    @classmethod
    def load(cls, limit: int, dumped: Mapping[str, Any]) -> FrameReader:
        """The reader that `dump` has described.

        Raises:
            KeyError, TypeError, ValueError: it is not such a description.
        """
        reader = cls(limit)
        reader._buffer += base64.b64decode(dumped["buffer"])
        if dumped["fragments"] is not None:
            reader._fragments = bytearray(base64.b64decode(dumped["fragments"]))
        reader._opcode = int(dumped["opcode"])
        reader._total = int(dumped["total"])
        reader._skip = int(dumped["skip"])
        reader._skipped = bool(dumped["skipped"])
        return reader

    def feed(self, data: bytes) -> list[Event]:
        """Take received bytes; return what they complete, in order.

        After a VIOLATION, which is always last, the reader must not be fed again.
        """
        self._buffer += data
        events: list[Event] = []
        try:
            while self._next(events):
                pass
        except _ProtocolError as error:
            self._buffer.clear()
            self._fragments = None
            events.append((VIOLATION, error.payload))
        return events

    def _next(self, events: list[Event]) -> bool:
        """Take one step; whether another may be possible."""
        buffer = self._buffer
        if self._skip:
            return self._skip_on(events)
        available = len(buffer)
        if available < 2:
            return False
        first, second = buffer[0], buffer[1]
        opcode, final = first & 0x0F, bool(first & _FIN)
        self._check_header(first, second, opcode, final)
        size, start = second & 0x7F, 6
        if size == 126:
            start = 8
        elif size == 127:
            start = 14
        if available < start - 4:
            return False
        if size == 126:
            size = int.from_bytes(buffer[2:4], "big")
        elif size == 127:
            size = int.from_bytes(buffer[2:10], "big")
        if opcode < CLOSE and self._too_large(opcode, size):
            if available < start:
                return False
            del buffer[:start]
            self._start_skipping(opcode, size, final)
            return self._skip_on(events)
        if available < start + size:
            return False
        with memoryview(buffer) as view:
            payload = unmask(view[start : start + size], bytes(view[start - 4 : start]))
        del buffer[: start + size]
        if opcode >= CLOSE:
            events.append(self._control(opcode, payload))
        else:
            self._data(opcode, payload, final, events)
        return True

    def _check_header(self, first: int, second: int, opcode: int, final: bool) -> None:
        if first & 0x70:
            raise _ProtocolError(CloseCode.PROTOCOL_ERROR, "no extension was negotiated")
        if not second & _MASKED:
            raise _ProtocolError(CloseCode.PROTOCOL_ERROR, "frames of a client must be masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise _ProtocolError(CloseCode.PROTOCOL_ERROR, "unknown opcode")
            if not final or second & 0x7F > 125:
                raise _ProtocolError(
                    CloseCode.PROTOCOL_ERROR, "control frames are short and not fragmented"
                )
        elif opcode > BINARY:
            raise _ProtocolError(CloseCode.PROTOCOL_ERROR, "unknown opcode")
        elif opcode == CONTINUATION and not self._opcode:
            raise _ProtocolError(CloseCode.PROTOCOL_ERROR, "nothing to continue")
        elif opcode != CONTINUATION and self._opcode:
            raise _ProtocolError(CloseCode.PROTOCOL_ERROR, "the message before is unfinished")

    def _too_large(self, opcode: int, size: int) -> bool:
        total = self._total + size if opcode == CONTINUATION else size
        if total > self._limit + SKIP_ALLOWANCE:
            raise _ProtocolError(
                CloseCode.TOO_BIG, f"messages are at most {self._limit} bytes long"
            )
        return total > self._limit

    def _start_skipping(self, opcode: int, size: int, final: bool) -> None:
        self._opcode = opcode or self._opcode
        self._total = self._total + size if opcode == CONTINUATION else size
        self._fragments = None
        self._skip = size
        self._skipped = final

    def _skip_on(self, events: list[Event]) -> bool:
        gone = min(self._skip, len(self._buffer))
        del self._buffer[:gone]
        self._skip -= gone
        if self._skip:
            return False
        if self._skipped:
            self._finish()
            events.append((TOO_LARGE, b""))
        return True

    def _control(self, opcode: int, payload: bytes) -> Event:
        if opcode == CLOSE and payload:
            if len(payload) == 1:
                raise _ProtocolError(CloseCode.PROTOCOL_ERROR, "close frame of one byte")
            code = int.from_bytes(payload[:2], "big")
            if not _is_valid_close_code(code):
                raise _ProtocolError(CloseCode.PROTOCOL_ERROR, "invalid close code")
            _decode(payload[2:])
        return opcode, payload

    def _data(self, opcode: int, payload: bytes, final: bool, events: list[Event]) -> None:
        if opcode == CONTINUATION:
            self._total += len(payload)
            if self._fragments is not None:
                self._fragments += payload
                payload = bytes(self._fragments) if final else b""
        if not final:
            if opcode != CONTINUATION:
                self._opcode = opcode
                self._total = len(payload)
                self._fragments = bytearray(payload)
            return
        opcode = self._opcode or opcode
        self._finish()
        events.append((TEXT, _decode(payload)) if opcode == TEXT else (BINARY, payload))

    def _finish(self) -> None:
        self._opcode = 0
        self._total = 0
        self._fragments = None
        self._skipped = False


def _decode(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _ProtocolError(CloseCode.INVALID_DATA, "text must be valid UTF-8") from None


def _is_valid_close_code(code: int) -> bool:
    """Codes that may appear on the wire: RFC 6455, 7.4, and the IANA registry."""
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999
