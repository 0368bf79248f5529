"""WebSocket frames (RFC 6455) as a pure parser and builder, server side.

An idle connection needs no `FrameReader`: `read_single` handles a frame that arrives complete, and
a reader is made only for frames that arrive in parts. Any RSV bit is an error; `app.protocol.deflate` has
the reader for clients with an extension.
"""

from __future__ import annotations

import struct
import sys
from codecs import utf_8_decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import CloseCode, PresenceError

CONTINUATION = 0x0
TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA

TOO_LARGE = -1
"""A message over the limit was skipped; the payload is `TOO_LARGE_MESSAGE`."""
VIOLATION = -2
"""The peer violated the protocol; the payload is a `Violation`."""

SKIP_ALLOWANCE = 64 * 1024
"""A message at most this much over the limit is skipped; a larger one ends the connection."""

LONG = 2048
"""Bytes of frames after which `FrameReader.feed` takes no more of them, if it is to take only some."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What a peer has done against the protocol, as the close frame says it."""

    code: int
    """Of the close frame."""
    reason: str
    """At most 123 bytes long."""


@dataclass(frozen=True, slots=True)
class PeerClose:
    """A close frame of the peer."""

    code: int
    """That it gives; `NO_CODE` without one."""
    reason: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A message over the limit, of which nothing was kept."""


TOO_LARGE_MESSAGE = TooLarge()
NO_CODE = 1005
"""Stands for a close frame without a code (RFC 6455, 7.1.5); it is never on the wire."""

Event = tuple[int, str | bytes | Violation | PeerClose | TooLarge]
"""Opcode, or one of the two negative values above, and the payload: `str` for TEXT, bytes for BINARY,
PING and PONG, and for the rare others an object that says what has happened.

A pair, since nearly all events are messages.
"""

_MASKED = 0x80
_FIN = 0x80


_HEAD_OF_16, _HEAD_OF_64 = struct.Struct(">BBH").pack, struct.Struct(">BBQ").pack
"""Heads of frames whose length takes 16 or 64 bits."""


def build_frame(opcode: int, payload: bytes) -> bytes:
    """A complete unmasked frame."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65536:
        return _HEAD_OF_16(_FIN | opcode, 126, size) + payload
    return _HEAD_OF_64(_FIN | opcode, 127, size) + payload


def frame_end(data: bytes, offset: int) -> int:
    """Where the frame ends that byte `offset` of finished frames belongs to.

    Args:
        data: unmasked frames, behind the answer to an upgrade request or not.
        offset: at most the length of `data`; where a frame begins, it is the result.
    """
    place = data.find(b"\r\n\r\n") + 4 if data.startswith(b"HTTP/") else 0
    while place < offset:
        size = data[place + 1]
        if size < 126:
            place += 2 + size
        elif size == 126:
            place += 4 + int.from_bytes(data[place + 2 : place + 4], "big")
        else:
            place += 10 + int.from_bytes(data[place + 2 : place + 10], "big")
    return place


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


class ViolationError(PresenceError):
    """A frame violates RFC 6455; the connection is closed for the `violation` of this error."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.violation = Violation(code, reason)


class FrameReader:
    """Parses a stream of masked frames into messages and control frames.

    The payload of a data frame is unmasked as it arrives, and text is checked at once: bytes that
    cannot become UTF-8 any more are a violation even in the middle of a frame (RFC 6455, 8.1).
    The cost of a byte does not depend on the pieces in which its message arrives.

    Args:
        limit: largest message in bytes, inclusive.
    """

    __slots__ = (
        "_buffer",
        "_checked",
        "_head",
        "_left",
        "_limit",
        "_message",
        "_opcode",
        "_total",
        "cut",
        "frames",
    )  # fmt: skip

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.frames = 0
        """Frames that the last call of `feed` has completed."""
        self.cut = False
        """The last call of `feed` has left finished frames for the next one."""
        self._buffer = b""
        """An unfinished header or control frame."""
        self._head = b""
        """Header of the data frame under way."""
        self._left = 0
        """Payload bytes of the data frame under way that have not arrived."""
        self._message: bytearray | None = None
        """Payload so far of the message under way; None when it is being skipped."""
        self._opcode = 0
        """Opcode of the message under way, 0 when there is none."""
        self._total = 0
        """Bytes of the message under way up to the end of its frame, kept or skipped."""
        self._checked = 0
        """Bytes of `_message`, if that is text, that are known to be UTF-8."""

    @property
    def held(self) -> int:
        """Bytes kept in memory for what is unfinished; not those of a `cut`, which go on soon."""
        message = self._message
        unfinished = 0 if message is None else len(self._head) + len(message)
        return (0 if self.cut else len(self._buffer)) + unfinished

    @property
    def idle(self) -> bool:
        """Nothing is unfinished, so the reader can be thrown away."""
        return not (self._buffer or self._opcode)

    def dump(self) -> dict[str, Any]:
        """What is unfinished, as bytes and JSON values, for another process to go on with.

        A data frame under way is described as it came over the wire, so `load` finds the state of
        its text again.
        """
        head, left, message = self._head, self._left, self._message
        buffer, opcode, total = self._buffer, self._opcode, self._total
        fragments = message
        if head and message is not None:
            size = _payload_size(head)
            end = len(message) - (size - left)
            buffer = head + unmask(message[end:], head[-4:])
            total -= size
            fragments = message[:end]
            if head[0] & 0x0F != CONTINUATION:
                opcode, fragments = 0, None
        skipping = bool(head) and message is None
        return {
            "buffer": bytes(buffer),
            "fragments": None if fragments is None else bytes(fragments),
            "opcode": opcode,
            "total": total,
            "skip": left if skipping else 0,
            "skipped": skipping and bool(head[0] & _FIN),
        }

    @classmethod
    def load(cls, limit: int, dumped: Mapping[str, Any]) -> FrameReader:
        """The reader that `dump` has described.

        Raises:
            KeyError, TypeError, ValueError: it is not such a description.
        """
        buffer = dumped["buffer"]
        if not isinstance(buffer, bytes):
            raise TypeError("what is unfinished is bytes")
        reader = cls._begin(limit, dumped)
        if buffer and reader.feed(buffer):
            # The process that dumped it has other limits or rules. What these say of it is an
            # event of the next call of `feed`, since there are no events here.
            reader = cls._begin(limit, dumped)
            reader._buffer = buffer
        return reader

    @classmethod
    def _begin(cls, limit: int, dumped: Mapping[str, Any]) -> FrameReader:
        """A reader that stands between two frames, or within one that is skipped."""
        reader = cls(limit)
        fragments = dumped["fragments"]
        if fragments is not None:
            if not isinstance(fragments, bytes):
                raise TypeError("fragments are bytes")
            reader._message = bytearray(fragments)
        reader._opcode = int(dumped["opcode"])
        reader._total = int(dumped["total"])
        reader._left = int(dumped["skip"])
        if reader._left:
            reader._head = bytes((_FIN if dumped["skipped"] else 0,))
        message = reader._message
        if (
            reader._opcode not in (0, TEXT, BINARY)
            or reader._left < 0
            or (message is not None and (len(message) != reader._total or reader._left))
            or (not reader._opcode and (message is not None or reader._total or reader._left))
        ):
            raise ValueError("parts of a message that do not fit together")
        return reader

    def feed(self, data: bytes, most: int = sys.maxsize) -> list[Event]:
        """Take received bytes; return what they complete, in order.

        After a VIOLATION, which is always last, the reader must not be fed again.

        Args:
            data: received bytes; empty to go on with what was left.
            most: frames to take, fewer where they are long; what is behind them is left for the
                next call, see `cut`.
        """
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        events: list[Event] = []
        place, end, taken = 0, len(data), 0
        self.cut = False
        try:
            while place < end:
                if taken == most or (place > LONG and most < sys.maxsize):
                    self._buffer = data[place:]
                    self.cut = True
                    break
                place = self._next(data, place, events)
                if not (self._left or self._buffer):
                    taken += 1
        except ViolationError as error:
            self._message = None
            events.append((VIOLATION, error.violation))
        self.frames = taken
        return events

    def _next(self, data: bytes, place: int, events: list[Event]) -> int:
        """Take a frame, or what there is of it, at `place` of `data`; return its end there."""
        if self._left:
            return self._take(data, place, events)
        available = len(data) - place
        if available < 2:
            return self._wait(data, place)
        first, second = data[place], data[place + 1]
        opcode, final = first & 0x0F, bool(first & _FIN)
        self._check_header(first, second, opcode, final)
        size, start = second & 0x7F, place + 6
        if size > 125:
            width = 2 if size == 126 else 8
            if available < 2 + width:
                return self._wait(data, place)
            start += width
            size = int.from_bytes(data[place + 2 : place + 2 + width], "big")
            _check_length(size, width)
        end = start + size
        if opcode >= CLOSE:
            if len(data) < end:
                return self._wait(data, place)
            payload = unmask(data[start:end], data[start - 4 : start])
            events.append(self._control(opcode, payload))
            return end
        too_large = self._is_too_large(opcode, size)
        if len(data) < start:
            return self._wait(data, place)
        if final and opcode and end <= len(data) and not too_large:
            payload = unmask(data[start:end], data[start - 4 : start])
            events.append((TEXT, _decode(payload)) if opcode == TEXT else (BINARY, payload))
            return end
        if opcode:
            self._opcode, self._total = opcode, size
            self._message, self._checked = bytearray(), 0
        else:
            self._total += size
        if too_large:
            self._message = None
        self._head, self._left = data[place:start], size
        return self._take(data, start, events)

    def _wait(self, data: bytes, place: int) -> int:
        """Keep what stands at `place` until more of it arrives."""
        self._buffer = data[place:]
        return len(data)

    def _take(self, data: bytes, place: int, events: list[Event]) -> int:
        """Take payload of the data frame under way; return where it ends in `data`."""
        head, left, message = self._head, self._left, self._message
        end = min(place + left, len(data))
        self._left = left - (end - place)
        if message is not None and end > place:
            # The byte before the mask is the last one of the length.
            phase = (head[-5] - left) & 3
            mask = head[-4:]
            message += unmask(data[place:end], mask[phase:] + mask[:phase] if phase else mask)
        if self._left or not head[0] & _FIN:
            if message is not None and self._opcode == TEXT:
                self._check_text(message)
            if not self._left:
                self._head = b""
            return end
        opcode = self._opcode
        self._head = b""
        self._message = None
        self._opcode = 0
        self._total = 0
        if message is None:
            events.append((TOO_LARGE, TOO_LARGE_MESSAGE))
        else:
            event = (TEXT, _decode(message)) if opcode == TEXT else (BINARY, bytes(message))
            events.append(event)
        return end

    def _check_text(self, message: bytearray) -> None:
        """Check what was added since the last call; a character may be unfinished at the end."""
        try:
            self._checked += utf_8_decode(message[self._checked :], "strict", False)[1]
        except UnicodeDecodeError:
            raise _not_utf8() from None
        # The decoder knows the first two bytes of a surrogate only by the third.
        rest = message[self._checked :]
        if len(rest) == 2 and rest[0] == 0xED and rest[1] > 0x9F:
            raise _not_utf8()

    def _check_header(self, first: int, second: int, opcode: int, final: bool) -> None:
        if first & 0x70:
            raise ViolationError(CloseCode.PROTOCOL_ERROR, "no extension was negotiated")
        if not second & _MASKED:
            raise ViolationError(CloseCode.PROTOCOL_ERROR, "frames of a client must be masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise ViolationError(CloseCode.PROTOCOL_ERROR, "unknown opcode")
            if not final or second & 0x7F > 125:
                raise ViolationError(
                    CloseCode.PROTOCOL_ERROR, "control frames are short and not fragmented"
                )
        elif opcode > BINARY:
            raise ViolationError(CloseCode.PROTOCOL_ERROR, "unknown opcode")
        elif opcode == CONTINUATION and not self._opcode:
            raise ViolationError(CloseCode.PROTOCOL_ERROR, "nothing to continue")
        elif opcode != CONTINUATION and self._opcode:
            raise ViolationError(CloseCode.PROTOCOL_ERROR, "the message before is unfinished")

    def _is_too_large(self, opcode: int, size: int) -> bool:
        total = self._total + size if opcode == CONTINUATION else size
        if total > self._limit + SKIP_ALLOWANCE:
            raise ViolationError(
                CloseCode.TOO_BIG, f"messages are at most {self._limit} bytes long"
            )
        return total > self._limit

    def _control(self, opcode: int, payload: bytes) -> Event:
        if opcode != CLOSE:
            return opcode, payload
        if not payload:
            return CLOSE, PeerClose(NO_CODE, "")
        if len(payload) == 1:
            raise ViolationError(CloseCode.PROTOCOL_ERROR, "close frame of one byte")
        code = int.from_bytes(payload[:2], "big")
        if not _is_valid_close_code(code):
            raise ViolationError(CloseCode.PROTOCOL_ERROR, "invalid close code")
        return CLOSE, PeerClose(code, _decode(payload[2:]))


def _payload_size(head: bytes) -> int:
    """Payload size that a complete header of a frame states."""
    size = head[1] & 0x7F
    return size if size < 126 else int.from_bytes(head[2:-4], "big")


def _check_length(size: int, width: int) -> None:
    """Refuse a length that is stated in more bytes than it needs (RFC 6455, 5.2).

    Args:
        size: what the `width` bytes behind the first two of a frame say.
        width: 2 or 8.
    """
    if size >> 63:
        raise ViolationError(CloseCode.PROTOCOL_ERROR, "the length's most significant bit is set")
    if size < (126 if width == 2 else 65536):
        raise ViolationError(CloseCode.PROTOCOL_ERROR, "the length is not encoded minimally")


def _decode(payload: bytes | bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _not_utf8() -> ViolationError:
    return ViolationError(CloseCode.INVALID_DATA, "text must be valid UTF-8")


def _is_valid_close_code(code: int) -> bool:
    """Codes that may appear on the wire: RFC 6455, 7.4, and the IANA registry."""
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999
