"""permessage-deflate (RFC 7692) without contexts: what is negotiated, written and read.

Neither side keeps a context from message to message (`server_no_context_takeover` and
`client_no_context_takeover` are in every answer), so a compressed message is the same bytes for all
clients of a window size, and a connection needs no memory for it. Messages of streams are
compressed, once for all receivers; answers to single clients are sent as they are.

A window of 8 bits cannot be had from zlib (it takes 9 in its place): such offers are declined.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from app.errors import CloseCode
from app.protocol.codecs import PLAIN, SOCKETIO, Codec
from app.protocol.frames import (
    BINARY,
    TEXT,
    TOO_LARGE,
    Event,
    FrameReader,
    ViolationError,
    build_frame,
    frame_end,
)
from app.types import Message

LEAST_SIZE = 128
"""Bytes of a message below which compressing it gains nothing."""
LEVEL, LARGE_LEVEL = 6, 1
"""Levels of zlib: of messages as they are, and of those of `LARGE_SIZE`, which would take long."""
LARGE_SIZE = 16 * 1024
LARGEST_SIZE = 256 * 1024
"""Bytes of a message that is sent as it is: the loop would stand still for milliseconds."""
LEAST_BITS, MOST_BITS = 9, 15
MAX_OFFERS = 8
"""Offers of a request that are looked at."""
MAX_PARAMETERS = 4
"""Parameters that an offer can have."""

_RSV1 = 0x40
_FIN = 0x80
_TAIL = b"\x00\x00\xff\xff"
_BITS = re.compile(r"[89]|1[0-5]", re.ASCII)


def negotiate(offers: Iterable[str]) -> int | None:
    """The window size of the first offer that can be accepted, in bits; None: of none.

    Args:
        offers: the values of `Sec-WebSocket-Extensions`, one for each line.
    """
    for offer in ",".join(offers).split(",", MAX_OFFERS)[:MAX_OFFERS]:
        bits = _accept(offer)
        if bits is not None:
            return bits
    return None


def _accept(offer: str) -> int | None:
    name, *parameters = (part.strip() for part in offer.split(";", MAX_PARAMETERS + 1))
    if name.lower() != "permessage-deflate":
        return None
    seen: dict[str, str | None] = {}
    for parameter in parameters:
        key, equals, value = (part.strip() for part in parameter.partition("="))
        key = key.lower()
        if key in seen:
            return None
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        seen[key] = value if equals else None
    window = seen.pop("server_max_window_bits", str(MOST_BITS))
    limit = seen.pop("client_max_window_bits", None)
    if seen.pop("server_no_context_takeover", None) or seen.pop("client_no_context_takeover", None):
        return None  # they have no value
    if seen or (limit is not None and not _BITS.fullmatch(limit)):
        return None
    if window is None or not _BITS.fullmatch(window) or int(window) < LEAST_BITS:
        return None
    return int(window)


def answer(bits: int) -> str:
    """The header `Sec-WebSocket-Extensions` of the answer."""
    window = f"; server_max_window_bits={bits}" if bits < MOST_BITS else ""
    return f"permessage-deflate; server_no_context_takeover; client_no_context_takeover{window}"


def compress(payload: bytes, bits: int, opcode: int = TEXT) -> bytes:
    """A frame whose payload is compressed, if that makes it smaller."""
    size = len(payload)
    if not LEAST_SIZE <= size <= LARGEST_SIZE:
        return build_frame(opcode, payload)
    level = LEVEL if size < LARGE_SIZE else LARGE_LEVEL
    deflater = zlib.compressobj(level, zlib.DEFLATED, -bits)
    made = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
    if len(made) - len(_TAIL) >= size:
        return build_frame(opcode, payload)
    frame = bytearray(build_frame(opcode, made[: -len(_TAIL)]))
    frame[0] |= _RSV1
    return bytes(frame)


def decompress(payload: bytes, limit: int) -> bytes:
    """What a client has compressed.

    Args:
        payload: of a message.
        limit: bytes of the result; no more are made.

    Raises:
        ViolationError: it has more, or cannot be read.
    """
    inflater = zlib.decompressobj(-MOST_BITS)
    try:
        data = inflater.decompress(payload + _TAIL, limit + 1)
    except zlib.error:
        raise ViolationError(
            CloseCode.INVALID_DATA, "the message is not compressed as it says"
        ) from None
    if len(data) > limit:
        raise ViolationError(
            CloseCode.TOO_BIG, f"messages are at most {limit} bytes long, also decompressed"
        )
    return data


class DeflatedCodec(Codec):
    """Another codec, whose messages of streams are compressed.

    Args:
        codec: the other one.
        bits: the window size.
    """

    def __init__(self, codec: Codec, bits: int) -> None:
        self.bits = bits
        self.name = f"{codec.name}-deflate-{bits}"
        self.protocol = codec.protocol
        self._codec = codec

    def message(self, message: Message) -> bytes:
        """The frame of a stream's message, compressed once for all that get it."""
        frame = message.frames.get(self.name)
        if frame is None:
            plain = self._codec.event(message.event, message.envelope)
            frame = message.frames[self.name] = _compressed(plain, self.bits)
        return frame

    def batch(self, messages: Sequence[Message]) -> bytes:
        """One compressed `batch_update` frame for several messages."""
        return _compressed(self._codec.batch(messages), self.bits)

    def event(self, event: str, envelope: bytes) -> bytes:
        """The frame of any envelope, as it is."""
        return self._codec.event(event, envelope)

    def offset(self, types: Iterable[str], positions: Mapping[str, Any], batch: bool) -> bytes:
        """As it is."""
        return self._codec.offset(types, positions, batch)


def _compressed(frame: bytes, bits: int) -> bytes:
    size = frame[1]
    start = 2 if size < 126 else 4 if size == 126 else 10
    assert frame_end(frame, 1) == len(frame), "one frame"
    return compress(frame[start:], bits)


@cache
def deflated(protocol: str, bits: int) -> DeflatedCodec:
    """The codec of a protocol for a window size."""
    return DeflatedCodec(PLAIN if protocol == PLAIN.protocol else SOCKETIO, bits)


class InflatingReader(FrameReader):
    """A reader that also takes compressed messages.

    `FrameReader` sees a compressed message as a binary one, so that nothing of it is read as
    text before it is decompressed.
    """

    __slots__ = ("_compressed",)

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._compressed = 0
        """Opcode of the compressed message under way; 0 when there is none."""

    def dump(self) -> dict[str, Any]:
        """As `FrameReader`, and what the message under way really is."""
        return super().dump() | {"compressed": self._compressed}

    @classmethod
    def load(cls, limit: int, dumped: Mapping[str, Any]) -> InflatingReader:
        """The reader that `dump` has described.

        Raises:
            KeyError, TypeError, ValueError: it is not such a description.
        """
        compressed = dumped["compressed"]
        if compressed not in (0, TEXT, BINARY) or isinstance(compressed, bool):
            raise ValueError("a message in progress is text or binary")
        reader = super().load(limit, dumped)
        assert isinstance(reader, InflatingReader)
        reader._go_on(compressed)
        return reader

    def _go_on(self, compressed: int) -> None:
        """Say what the message under way really is, if there is one."""
        self._compressed = compressed if self._opcode or self._left else 0

    def _next(self, data: bytes, place: int, events: list[Event]) -> int:
        if not self._left and data[place] & _RSV1 and not data[place] & 0x30:
            return self._next_compressed(data, place, events)
        opcode = data[place] & 0x0F
        if not self._left and opcode in (TEXT, BINARY) and not self._opcode:
            self._compressed = 0
        count = len(events)
        end = super()._next(data, place, events)
        self._inflate(events, count)
        return end

    def _next_compressed(self, data: bytes, place: int, events: list[Event]) -> int:
        """Take the beginning of a compressed message."""
        first = data[place]
        opcode = first & 0x0F
        if opcode not in (TEXT, BINARY):
            raise ViolationError(CloseCode.PROTOCOL_ERROR, "only a message can be compressed")
        if place + 1 < len(data):
            self._check_header(first & ~_RSV1, data[place + 1], opcode, bool(first & _FIN))
        start = _header_end(data, place)
        if start > len(data):
            # What is put aside must still say that it is compressed.
            return self._wait(data, place)
        size = _stated_size(data, place)
        # Only this frame is copied, not what is behind it.
        frame = bytes((first & _FIN | BINARY,)) + data[place + 1 : start + size]
        self._compressed, count = opcode, len(events)
        end = place + super()._next(frame, 0, events)
        self._inflate(events, count)
        return end

    def _inflate(self, events: list[Event], count: int) -> None:
        """Decompress the message that has become complete, if one has."""
        if not self._compressed or len(events) == count or self._opcode:
            return
        opcode, payload = events[-1]
        if opcode == TOO_LARGE:
            self._compressed = 0
        if opcode != BINARY:
            return
        kind, self._compressed = self._compressed, 0
        events.pop()
        assert isinstance(payload, bytes | bytearray)
        data = decompress(payload, self._limit)
        if kind == BINARY:
            events.append((BINARY, data))
            return
        try:
            events.append((TEXT, data.decode()))
        except UnicodeDecodeError:
            raise ViolationError(CloseCode.INVALID_DATA, "text must be valid UTF-8") from None


def _header_end(data: bytes, place: int) -> int:
    """Where the header of a masked frame ends, which may be behind the data."""
    if place + 1 >= len(data):
        return place + 6
    size = data[place + 1] & 0x7F
    return place + 6 + (0 if size < 126 else 2 if size == 126 else 8)


def _stated_size(data: bytes, place: int) -> int:
    """Payload size of a frame with a complete header."""
    size = data[place + 1] & 0x7F
    width = 0 if size < 126 else 2 if size == 126 else 8
    return int.from_bytes(data[place + 2 : place + 2 + width], "big") if width else size
