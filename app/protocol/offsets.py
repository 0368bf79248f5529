"""Where a client stands in each type, as one opaque string (docs/PROTOCOL.md, "Recovery").

socket.io-client keeps the last string argument of any event and sends it back when it
reconnects. Validated but not signed: a client that tampers with it affects only itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.types import Position

_PREFIX = "yj1;"
_BATCH = "batch"
_MAX_LENGTH = 8192


@dataclass(frozen=True, slots=True)
class Offset:
    """Positions by type, and the client's options."""

    positions: dict[str, Position]
    batch: bool


def encode_offset(types: Iterable[str], positions: Mapping[str, Position], batch: bool) -> str:
    """Write an offset; it needs no escapes in JSON."""
    places = [f"{type},{positions[type].epoch},{positions[type].seq}" for type in sorted(types)]
    return _PREFIX + ";".join([*places, _BATCH] if batch else places)


def decode_offset(text: object) -> Offset | None:
    """Read an offset; None when it is not one of ours."""
    if not isinstance(text, str) or not text.startswith(_PREFIX) or len(text) > _MAX_LENGTH:
        return None
    positions: dict[str, Position] = {}
    batch = False
    for part in text[len(_PREFIX) :].split(";"):
        if part == _BATCH:
            batch = True
        elif part:
            words = part.split(",")
            if len(words) != 3 or not words[2].isascii() or not words[2].isdigit():
                return None
            if len(words[2]) > 18:
                return None
            positions[words[0]] = Position(words[1], int(words[2]))
    return Offset(positions, batch)
