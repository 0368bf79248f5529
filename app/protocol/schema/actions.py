"""What clients ask for over a connection: the table of actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import ErrorCode
from app.protocol.schema.kinds import (
    AnyJson,
    Boolean,
    Field,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Nullable,
    Struct,
    Text,
    TypeName,
)
from app.protocol.schema.limits import (
    MAX_BEFORE,
    MAX_HISTORY,
    MAX_ID,
    MAX_TOKEN,
    MAX_USER,
    MAX_USERS,
)
from app.protocol.schema.payloads import POSITION


@dataclass(frozen=True, slots=True)
class Action:
    """One action."""

    name: str
    about: str
    payload: Kind
    reply: str | None
    """Event of the answer; None: there is none, but an `error`."""
    errors: tuple[ErrorCode, ...] = ()
    """Codes of its own, beside those that every request may get."""


_TYPE_ERRORS = (ErrorCode.INVALID_TYPE, ErrorCode.SUBSCRIPTION_INVALID, ErrorCode.FORBIDDEN)

TABLE = (
    Action(
        "subscribe",
        "Receive the messages of these types; the list is accepted or refused as one.",
        Struct(
            "Subscribe",
            "Payload of `subscribe`.",
            (
                Field(
                    "types", ListOf(TypeName(or_all=True)), "types of messages; `all`: every one"
                ),
                Field(
                    "history",
                    Nullable(Integer(1, MAX_HISTORY)),
                    "newest messages of each type that come first",
                    required=False,
                ),
                Field(
                    "recover",
                    Nullable(MapOf(POSITION, TypeName())),
                    "by type, of those in `types`: the last message that the client has",
                    required=False,
                ),
                Field(
                    "batch",
                    Nullable(Boolean()),
                    "whether messages may come as `batch_update`; as before where it is not given",
                    required=False,
                ),
            ),
        ),
        "subscribed",
        (*_TYPE_ERRORS, ErrorCode.BACKPLANE_UNAVAILABLE),
    ),
    Action(
        "unsubscribe",
        "Receive the messages of these types no longer.",
        Struct(
            "Unsubscribe",
            "Payload of `unsubscribe`.",
            (Field("types", ListOf(TypeName(or_all=True)), "types of messages; `all`: every one"),),
        ),
        "unsubscribed",
        (ErrorCode.INVALID_TYPE, ErrorCode.SUBSCRIPTION_INVALID),
    ),
    Action(
        "get_history",
        "Get old messages of a type.",
        Struct(
            "GetHistory",
            "Payload of `get_history`.",
            (
                Field("type", TypeName(), "of the messages"),
                Field(
                    "limit",
                    Nullable(Integer(1, MAX_HISTORY)),
                    "messages; by default the setting `DEFAULT_HISTORY_LIMIT` (50)",
                    required=False,
                ),
                Field(
                    "before",
                    Nullable(Integer(1, MAX_BEFORE)),
                    "only messages with a lower `seq`",
                    required=False,
                ),
            ),
        ),
        "history_data",
        (*_TYPE_ERRORS, ErrorCode.BACKPLANE_UNAVAILABLE),
    ),
    Action("ping", "Measure the round trip, and get the service's time.", AnyJson(), "pong"),
    Action(
        "ack",
        "Note that a message has arrived; it is counted.",
        Struct("Ack", "Payload of `ack`.", (Field("id", Text(1, MAX_ID), "of the message"),)),
        None,
    ),
    Action(
        "presence",
        "Ask how many are subscribed to a type, and which users.",
        Struct(
            "AskPresence",
            "Payload of `presence`.",
            (
                Field("type", TypeName(), "of messages"),
                Field(
                    "limit",
                    Nullable(Integer(1, MAX_USERS)),
                    "users that are named; where it is not given none are",
                    required=False,
                ),
                Field(
                    "after",
                    Nullable(Text(most=MAX_USER)),
                    "with `limit`: only users behind this one",
                    required=False,
                ),
            ),
        ),
        "presence_data",
        (*_TYPE_ERRORS, ErrorCode.BACKPLANE_UNAVAILABLE),
    ),
    Action(
        "auth",
        "Show a token, first or in place of one that expires.",
        Struct("Auth", "Payload of `auth`.", (Field("token", Text(1, MAX_TOKEN), "a JWT"),)),
        "authenticated",
        (ErrorCode.UNAUTHORIZED, ErrorCode.SERVICE_UNAVAILABLE),
    ),
)

ACTIONS: Mapping[str, Action] = {action.name: action for action in TABLE}
"""By name."""
