"""The messages that workers send each other through the control stream, and what they may hold.

What an application gives `emit`, `enter_room` and the like is checked here before it is stored,
and what comes through the stream is checked before it is carried out: it may come from another
version of this service or from another program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from app.errors import ClientError, CloseCode, PresenceError
from app.protocol.envelope import RESERVED_ON_WIRE, decode_json

MAX_NAME = 1024
"""Characters of a room, of a namespace and of the id of a client."""

_LARGEST_NUMBER = 2**63
_COLLECTIONS = (list, tuple, set, frozenset)

Control = dict[str, Any]


class Unreadable(PresenceError):
    """A control message is not one of this version's; the text says why."""


# What applications give. All of these raise ValueError.


def check_event(event: object) -> str:
    """The name of an event that is emitted."""
    if not isinstance(event, str):
        raise ValueError(f"The name of an event is a string, not {_kind(event)}.")
    if event in RESERVED_ON_WIRE:
        raise ValueError(
            f"{event!r} is reserved: clients of Socket.IO close the connection when it comes."
            " Choose another name for the event."
        )
    try:
        event.encode()
    except UnicodeEncodeError:
        raise ValueError("The name of an event holds half of a surrogate pair.") from None
    return event


def check_room(room: object) -> str | int:
    """The name of one room."""
    if isinstance(room, int) and not isinstance(room, bool) and abs(room) < _LARGEST_NUMBER:
        return room
    if not isinstance(room, str):
        raise ValueError(f"The name of a room is a string, not {_kind(room)}.")
    return _short(room, "The name of a room")


def check_rooms(rooms: object) -> str | int | list[str | int] | None:
    """Where an event goes to: a room, several, or (None) all clients of the namespace."""
    if rooms is None:
        return None
    if isinstance(rooms, _COLLECTIONS):
        return [check_room(room) for room in rooms]
    return check_room(rooms)


def check_sid(sid: object) -> str:
    """The id of a client."""
    if not isinstance(sid, str):
        raise ValueError(f"The id of a client is a string, not {_kind(sid)}.")
    return _short(sid, "The id of a client")


def check_skipped(skipped: object) -> str | list[str] | None:
    """The clients that an event skips: one, several, or (None) none."""
    if skipped is None:
        return None
    if isinstance(skipped, _COLLECTIONS):
        return [check_sid(sid) for sid in skipped if sid is not None]
    return check_sid(skipped)


def check_namespace(namespace: object) -> str:
    """The name of a namespace."""
    if not isinstance(namespace, str):
        raise ValueError(f"The name of a namespace is a string, not {_kind(namespace)}.")
    return _short(namespace, "The name of a namespace")


def count_placeholders(value: Any) -> int:
    """Objects that stand for an attachment, wherever they are in a value."""
    count, level = 0, [value]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                count += bool(item.get("_placeholder")) and "num" in item
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        level = inner
    return count


def _short(text: str, what: str) -> str:
    if len(text) > MAX_NAME:
        raise ValueError(f"{what} has at most {MAX_NAME} characters, not {len(text)}.")
    return text


def _kind(value: object) -> str:
    return f"of the type {type(value).__name__}"


# What comes through the stream.


def parse(body: bytes) -> Control:
    """Read a control message.

    Raises:
        Unreadable: it is none, or one of a method of this version with wrong fields. Methods that
            this version does not know are returned as they are.
    """
    try:
        message = decode_json(body)
    except ClientError as error:
        raise Unreadable(error.message) from None
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        raise Unreadable("It is not an object with a method.")
    try:
        check_message(message)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    return message


def check_message(message: Control) -> None:
    """Make sure that `parse` takes a message, once it is JSON.

    Raises:
        ValueError: a field of it is missing or wrong.
    """
    method = message["method"]
    try:
        _optional(message, "host_id", check_sid)
        _optional(message, "n", _number)
        for name, check in _METHODS.get(method, ()):
            check(message[name])
        for name, check in _OPTIONAL.get(method, ()):
            _optional(message, name, check)
        if method == "emit":
            _check_attachments(message)
        elif method == "replace" and message.get("ask") is not None:
            check_sid(message["host_id"])
    except KeyError as error:
        raise ValueError(f"{method!r} lacks the field {error}.") from None
    except ValueError as error:
        raise ValueError(f"{method!r} has a wrong field: {error}") from None


def _optional(message: Control, name: str, check: Callable[[Any], object]) -> None:
    if message.get(name) is not None:
        check(message[name])


def _check_attachments(message: Control) -> None:
    data = message["data"]
    if message.get("binary"):
        if not data or not isinstance(data[0], list):
            raise ValueError("data begins with a list of arguments")
        _strings(data[1:])
        if count_placeholders(data[0]) != len(data) - 1:
            raise ValueError("the attachments are not those of the placeholders")


def _check_callback(value: Any) -> None:
    room, namespace, id = _list(value) if len(_list(value)) == 3 else (None, None, None)
    check_room(room)
    check_namespace(namespace)
    _number(id)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a list is needed, not {_kind(value)}")
    return value


def _strings(value: Any) -> None:
    if not all(isinstance(item, str) for item in _list(value)):
        raise ValueError("a list of strings is needed")


def _sids(value: Any) -> None:
    for sid in _list(value):
        check_sid(sid)


def _counts(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"an object is needed, not {_kind(value)}")
    for count in value.values():
        _number(count)


def _text(value: Any) -> None:
    _short(value if isinstance(value, str) else "", "A name")
    if not isinstance(value, str):
        raise ValueError(f"a string is needed, not {_kind(value)}")


def _rows(value: Any) -> None:
    for row in _list(value):
        if not isinstance(row, dict) or not ({"id", "user"} & row.keys()):
            raise ValueError("a list of connections or users is needed")
        _text(row.get("id", row.get("user")))
        if "id" not in row:
            _number(row.get("connections"))


def _page(value: Any) -> None:
    _number(value)
    if value < 1:
        raise ValueError("a number from 1 on is needed")


def _closing(value: Any) -> None:
    _number(value)
    if value not in {CloseCode.OPERATOR, CloseCode.UNAUTHORIZED}:
        raise ValueError(f"connections are not closed with {value}")


def _number(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _LARGEST_NUMBER:
        raise ValueError("an integer is needed")


_METHODS: dict[str, Iterable[tuple[str, Callable[[Any], object]]]] = {
    "emit": (("event", check_event), ("namespace", check_namespace), ("data", _list)),
    "enter_room": (("sid", check_sid), ("namespace", check_namespace), ("room", check_room)),
    "leave_room": (("sid", check_sid), ("namespace", check_namespace), ("room", check_room)),
    "close_room": (("room", check_room), ("namespace", check_namespace)),
    "replace": (("sids", _sids),),
    "probe": (("users", _strings), ("host_id", check_sid), ("ask", _number)),
    "held": (("to", check_sid), ("ask", _number), ("sids", _sids)),
    "alive": (("to", check_sid), ("ask", _number), ("sids", _sids), ("alive", _sids)),
    "list": (("host_id", check_sid), ("ask", _number), ("limit", _page)),
    "listed": (
        ("to", check_sid),
        ("ask", _number),
        ("rows", _rows),
        ("total", _number),
        ("anonymous", _number),
    ),
    "close": (("host_id", check_sid), ("ask", _number), ("code", _closing)),
    "closed": (("to", check_sid), ("ask", _number), ("count", _number)),
    "callback": (
        ("host_id", check_sid),
        ("sid", check_room),
        ("namespace", check_namespace),
        ("id", _number),
        ("args", _list),
        ("attachments", _strings),
    ),
    "disconnect": (("sid", check_sid), ("namespace", check_namespace)),
    "canary": (),
}
"""Fields that the messages of each method have, and what they hold."""

_ROSTER = [(name, _text) for name in ("user", "type", "protocol", "after", "id")]
_OPTIONAL: dict[str, Iterable[tuple[str, Callable[[Any], object]]]] = {
    "emit": (("room", check_rooms), ("skip_sid", check_skipped), ("callback", _check_callback)),
    "replace": (("ask", _number), ("late", _number)),
    "alive": (("users", _counts),),
    "list": _ROSTER,
    "close": _ROSTER,
}
"""Fields that they may have."""

METHODS = frozenset(_METHODS)
