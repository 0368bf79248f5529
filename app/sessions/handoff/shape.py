"""The shape of a session's state with its bytes in place: whether `dump_session` has written it.

A state may come from another version of this service, or be cut short. What does not have the
right shape is refused before anything is made of it, so that the worker which has the session
drains it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.protocol.deflate import LEAST_BITS, MOST_BITS, InflatingReader
from app.protocol.frames import FrameReader

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether it is an integer that may count or name something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**40


def _is_ack(value: Any) -> bool:
    """Whether it can be the number that a client gives an acknowledgement: of any length."""
    return _is_int(value) and value >= 0


def _is_room(value: Any) -> bool:
    """Whether it can name a room: applications may use numbers."""
    return is_text(value) or (_is_int(value) and abs(value) < 2**63)


def is_bytes(value: Any) -> bool:
    """Whether it is bytes, as the payload has them."""
    return isinstance(value, bytes)


def none_or(check: Check) -> Check:
    """Also null."""
    return lambda value: value is None or check(value)


def list_of(check: Check, length: int | None = None) -> Check:
    """A list, of this length if one is given; a tuple becomes one on its way."""
    return lambda value: (
        isinstance(value, list | tuple)
        and (length is None or len(value) == length)
        and all(map(check, value))
    )


def row_of(*checks: Check) -> Check:
    """A list of as many values, each of which passes its own check."""
    return lambda value: (
        isinstance(value, list | tuple)
        and len(value) == len(checks)
        and all(check(one) for check, one in zip(checks, value, strict=True))
    )


is_position = row_of(is_text, is_count)
"""Whether it is an epoch and a `seq`."""


def dict_of(check: Check) -> Check:
    """An object whose values pass."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def fields(checks: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with these fields; others are not looked at."""

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(name in value and one(value[name]) for name, one in checks.items())
            and all(one(value[name]) for name, one in (optional or {}).items() if name in value)
        )

    return check


_is_home = row_of(is_text, _is_room, is_text, is_count)
"""Whether it names an awaited acknowledgement: host, sid or room, namespace, number."""


def _are_homes(value: Any) -> bool:
    return dict_of(_is_home)(value) and all(name.isdecimal() for name in value)


_ACKS = fields({"next": is_count, "homes": _are_homes})
_PACKET = fields(
    {
        "type": is_count,
        "namespace": none_or(is_text),
        "id": none_or(_is_ack),
        "data": lambda value: isinstance(value, list),
        "count": is_count,
        "attachments": list_of(is_bytes),
    }
)
_SOCKETIO = fields(
    {
        "namespaces": dict_of(is_text),
        "rooms": list_of(row_of(is_text, _is_room)),
        "session": lambda value: isinstance(value, dict),
        "environ": none_or(lambda value: isinstance(value, dict)),
        "acks": dict_of(none_or(_ACKS)),
        "packet": none_or(_PACKET),
    }
)
_PAGE = fields(
    {
        "type": is_text,
        "limit": lambda value: is_count(value) and value > 0,
        "before": none_or(is_count),
        "reply_to": none_or(lambda value: is_text(value) or _is_int(value)),
        "ack": none_or(_is_ack),
        "is_one": is_flag,
    }
)
_WISHES = fields(
    {"types": none_or(list_of(is_text)), "batch": is_flag, "resume": none_or(is_text)},
    {"history": none_or(is_count)},
)
_STATE: dict[str, Check] = {
    "protocol": lambda value: value in ("plain", "socketio", "sse"),
    "id": lambda value: is_text(value) and 0 < len(value) <= 128,
    "user": none_or(is_text),
    "claimed": is_flag,
    "welcomed": is_flag,
    "held": is_flag,
    "positions": dict_of(is_position),
    "batch": is_flag,
    "times": list_of(is_number, 2),
    "exported_at": is_number,
    "reader": none_or(lambda value: isinstance(value, dict)),
    "unsent": list_of(is_bytes),
    "offset": is_count,
    "headless": is_flag,
    "inbox": list_of(lambda value: is_text(value) or is_bytes(value)),
    "pages": list_of(_PAGE),
    "expires_at": none_or(is_number),
    "wishes": none_or(_WISHES),
}

_RARE: dict[str, Check] = {
    "allowed": list_of(is_text),
    "listed": list_of(is_text),
    "tokenless": is_flag,
    "deflate": lambda value: is_count(value) and LEAST_BITS <= value <= MOST_BITS,
}


def fault(state: Any) -> str | None:
    """What is wrong with the shape of a state; None if nothing is."""
    if not isinstance(state, dict):
        return "it is no object"
    for name, check in _STATE.items():
        if name not in state:
            return f"it has no {name}"
        if not check(state[name]):
            return f"its {name} is not as this version writes it"
    for name, check in _RARE.items():
        if name in state and not check(state[name]):
            return f"its {name} is not as this version writes it"
    if state["offset"] > len(state["unsent"][0]) if state["unsent"] else state["offset"]:
        return "more is sent of its first chunk than there is"
    if state["claimed"] and state["user"] is None:
        return "it has claimed a place for no user"
    if state["reader"] is not None:
        try:
            reader_class = InflatingReader if "deflate" in state else FrameReader
            reader_class.load(0, state["reader"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return "its reader is not as this version writes it"
    if state["protocol"] == "socketio":
        socketio: Any = state.get("socketio")
        if not _SOCKETIO(socketio) or not set(socketio["namespaces"].values()) <= set(
            socketio["acks"]
        ):
            return "its socketio is not as this version writes it"
    return None
