"""Requests of clients, validated: JSON in, small values out (docs/PROTOCOL.md, "Actions")."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from app.errors import ClientError, ErrorCode
from app.protocol.envelope import decode_json
from app.protocol.schema.actions import ACTIONS
from app.protocol.schema.limits import (
    MAX_BEFORE,
    MAX_EPOCH,
    MAX_HISTORY,
    MAX_ID,
    MAX_REQUEST_SIZE,
    MAX_SEQ,
    MAX_USER,
    MAX_USERS,
    MAX_VALUES,
)
from app.types import Position

_FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}

_HEAD = 512
"""Characters of a request that is not parsed in which its id is looked for."""
_ID = re.compile(
    r'\s*\{\s*(?:"(?:type|action|timestamp)"\s*:\s*(?:"[^"\\]*"|[0-9.]+)\s*,\s*)*'
    r'"id"\s*:\s*(?:"([^"\\\x00-\x1f]{1,128})"|([0-9]{1,15}))\s*[,}]',
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its payload not checked yet.

    `id` is what the answer's `replyTo` will be; `ack` the id of the Socket.IO acknowledgement
    that the client waits for.
    """

    action: Any
    payload: Any
    id: str | int | None = None
    ack: int | None = None


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Payload of `subscribe`; `batch` None leaves the option as it is."""

    types: frozenset[str]
    history: int | None = None
    recover: dict[str, Position] = field(default_factory=dict)
    batch: bool | None = None


@dataclass(slots=True)
class ConnectOptions:
    """What a client asked for when it connected; never changed.

    It is not frozen, which would make it cost three times as much.
    """

    types: Collection[str] | None = None
    """Subscriptions in place of the default ones."""
    batch: bool = False
    """It wants `batch_update` events."""
    resume: str | None = None
    """Token of a connection that this one takes the place of."""
    history: int | None = None
    """Newest messages of each of its types that it gets before live ones; None: none."""


DEFAULT_OPTIONS = ConnectOptions()
"""Of a client that asked for nothing, as most do."""


@dataclass(frozen=True, slots=True)
class GetHistory:
    """Payload of `get_history`; only messages older than `before`, if given."""

    type: str
    limit: int
    before: int | None


@dataclass(frozen=True, slots=True)
class AskPresence:
    """Payload of `presence`; without a `limit` no users are named."""

    type: str
    limit: int | None
    after: str


def check_cost(text: str, most: int = MAX_REQUEST_SIZE) -> None:
    """Make sure that a request is cheap to parse, without parsing it.

    Args:
        text: its JSON, perhaps with something around it.
        most: characters.

    Raises:
        ClientError: MESSAGE_TOO_LARGE.
    """
    if len(text) > most:
        raise ClientError(
            ErrorCode.MESSAGE_TOO_LARGE, f"A request may have at most {most} characters."
        )
    if len(text) > MAX_VALUES and sum(map(text.count, ",[{")) > MAX_VALUES:
        raise ClientError(
            ErrorCode.MESSAGE_TOO_LARGE, f"A request may have at most {MAX_VALUES} values."
        )


def peek_id(text: str) -> str | int | None:
    """The id of a request that is not parsed, if it is at the beginning; None otherwise."""
    found = _ID.match(text[:_HEAD])
    if found is None:
        return None
    return found[1] if found[1] is not None else int(found[2])


def parse_request(text: str) -> Request:
    """Read a text frame of the plain protocol.

    Raises:
        ClientError: PARSE_ERROR, INVALID_PAYLOAD or INVALID_ACTION.
    """
    value = decode_json(text)
    if not isinstance(value, dict):
        raise _invalid('A request must be a JSON object such as {"action": "ping"}.')
    id = value.get("id")
    if id is not None and (isinstance(id, bool) or not isinstance(id, str | int)):
        raise _invalid("'id' must be a string or an integer.")
    if isinstance(id, str) and len(id) > MAX_ID:
        raise _invalid(f"'id' may have at most {MAX_ID} characters.")
    return Request(value.get("action"), value.get("payload"), id)


def check_action(request: Request) -> None:
    """Make sure the action is one of `ACTIONS`.

    Raises:
        ClientError: INVALID_ACTION.
    """
    action = request.action
    if not isinstance(action, str):
        raise ClientError(ErrorCode.INVALID_ACTION, f"'action' must be one of: {_listed(ACTIONS)}.")
    if action not in ACTIONS:
        raise ClientError(
            ErrorCode.INVALID_ACTION,
            f"Unknown action {action[:64]!r}; known actions: {_listed(ACTIONS)}.",
        )


def parse_subscribe(payload: Any, known: Collection[str]) -> Subscribe:
    """Check the payload of `subscribe`.

    Raises:
        ClientError: INVALID_PAYLOAD, INVALID_TYPE or SUBSCRIPTION_INVALID.
    """
    fields = _object(payload)
    types = parse_types(fields.get("types"), known)
    history = fields.get("history")
    if history is not None:
        history = _number(history, "history", 1, MAX_HISTORY)
    batch = fields.get("batch")
    if batch is not None and not isinstance(batch, bool):
        raise _invalid("'batch' must be true or false.")
    recover = fields.get("recover")
    if recover is None:
        recover = {}
    if not isinstance(recover, dict):
        raise _invalid(
            '\'recover\' must be an object such as {"status": {"epoch": "…", "seq": 1}}.'
        )
    positions: dict[str, Position] = {}
    for type, position in recover.items():
        check_type(type, known)
        if type not in types:
            raise _invalid(f"'recover' names {type!r}, which is not in 'types'.")
        positions[type] = _position(type, position)
    return Subscribe(types, history, positions, batch)


def parse_options(fields: Mapping[str, Any], known: Collection[str]) -> ConnectOptions:
    """Check `types`, `batch` and `history` of a query or of Socket.IO's `auth`.

    A query holds text only, so lists are also taken as names between commas, flags as 1 and 0,
    and numbers as digits.

    Raises:
        ClientError: INVALID_PAYLOAD, INVALID_TYPE or SUBSCRIPTION_INVALID.
    """
    types, batch, history = fields.get("types"), fields.get("batch"), fields.get("history")
    if types is None and batch is None and history is None:
        return DEFAULT_OPTIONS
    if isinstance(types, str):
        types = [name for name in map(str.strip, types.split(",")) if name]
    if isinstance(batch, str):
        batch = _FLAGS.get(batch, batch)
    if batch is not None and not isinstance(batch, bool):
        raise _invalid("'batch' must be 1 or 0.")
    if isinstance(history, str):
        if history and not (history.isascii() and history.isdecimal() and len(history) < 10):
            raise _invalid(f"'history' must be a number from 1 to {MAX_HISTORY}.")
        history = int(history) if history else None
    if history is not None:
        history = _number(history, "history", 1, MAX_HISTORY)
    chosen = None if types is None else parse_types(types, known)
    return ConnectOptions(chosen, bool(batch), history=history)


def parse_types(value: Any, known: Collection[str]) -> frozenset[str]:
    """Check a list of subscription types, accepted or rejected as one; `all` stands for every type.

    Raises:
        ClientError: INVALID_PAYLOAD, INVALID_TYPE or SUBSCRIPTION_INVALID.
    """
    if not isinstance(value, list) or not all(isinstance(type, str) for type in value):
        raise _invalid('\'types\' must be a list of strings such as ["status", "stats"].')
    for type in value:
        if type != "all":
            check_type(type, known)
    return frozenset(known) if "all" in value else frozenset(value)


class Allowed(frozenset[str]):
    """Of the types that there are, those that the token of a client allows."""

    known: Collection[str] = ()
    """All that there are."""

    @classmethod
    def of(cls, known: Collection[str], types: Collection[str]) -> Allowed:
        """Those of `known` that are among `types`."""
        allowed = cls(name for name in types if name in known)
        allowed.known = known
        return allowed


def check_type(type: str, known: Collection[str]) -> None:
    """Make sure a type exists and may be subscribed to.

    Raises:
        ClientError: INVALID_TYPE, SUBSCRIPTION_INVALID or, with `Allowed`, FORBIDDEN.
    """
    if type in known:
        return
    if isinstance(known, Allowed) and type in known.known:
        raise ClientError(ErrorCode.FORBIDDEN, f"The token does not allow the type {type!r}.")
    if type == "error":
        raise ClientError(ErrorCode.SUBSCRIPTION_INVALID, "'error' is not a subscribable type.")
    raise ClientError(
        ErrorCode.INVALID_TYPE, f"Unknown type {type[:64]!r}; known types: {_listed(known)}."
    )


def parse_get_history(payload: Any, known: Collection[str], default_limit: int) -> GetHistory:
    """Check the payload of `get_history`.

    Raises:
        ClientError: INVALID_PAYLOAD, INVALID_TYPE or SUBSCRIPTION_INVALID.
    """
    fields = _object(payload)
    type = parse_one_type(fields, known)
    limit = fields.get("limit")
    before = fields.get("before")
    return GetHistory(
        type,
        default_limit if limit is None else _number(limit, "limit", 1, MAX_HISTORY),
        None if before is None else _number(before, "before", 1, MAX_BEFORE),
    )


def parse_presence(payload: Any, known: Collection[str]) -> AskPresence:
    """Check the payload of `presence`.

    Raises:
        ClientError: INVALID_PAYLOAD, INVALID_TYPE, SUBSCRIPTION_INVALID or FORBIDDEN.
    """
    fields = _object(payload)
    type = parse_one_type(fields, known)
    limit, after = fields.get("limit"), fields.get("after")
    if limit is not None:
        limit = _number(limit, "limit", 1, MAX_USERS)
    if after is not None and (
        not isinstance(after, str) or len(after) > MAX_USER or not _is_text(after)
    ):
        raise _invalid(f"'after' must be a string of at most {MAX_USER} characters.")
    return AskPresence(type, limit, after or "")


def parse_one_type(payload: Any, known: Collection[str]) -> str:
    """Check a payload with a single `type`.

    Raises:
        ClientError: INVALID_PAYLOAD, INVALID_TYPE or SUBSCRIPTION_INVALID.
    """
    type = _object(payload).get("type")
    if not isinstance(type, str):
        raise _invalid("'type' must be a string such as 'status'.")
    check_type(type, known)
    return type


def parse_string(payload: Any, name: str, longest: int) -> str:
    """Check a payload with one string field that must be there.

    Raises:
        ClientError: INVALID_PAYLOAD.
    """
    value = _object(payload).get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise _invalid(f"'{name}' must be a string of 1 to {longest} characters.")
    return value


def _is_text(text: str) -> bool:
    """Whether it can be sent: JSON can express half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _object(payload: Any) -> dict[str, Any]:
    if payload is None:
        return {}
    if not isinstance(payload, dict):
        raise _invalid("The payload must be a JSON object.")
    return payload


def _number(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _invalid(f"'{name}' must be an integer from {least} to {most}.")
    return value


def _position(type: str, value: Any) -> Position:
    if isinstance(value, dict):
        epoch, seq = value.get("epoch"), value.get("seq")
        if isinstance(epoch, str) and len(epoch) <= MAX_EPOCH and _is_count(seq):
            return Position(epoch, seq)
    raise _invalid(f'\'recover\' of {type!r} must be {{"epoch": "…", "seq": n}} as last received.')


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEQ


def _invalid(message: str) -> ClientError:
    return ClientError(ErrorCode.INVALID_PAYLOAD, message)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
