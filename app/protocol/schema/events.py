"""What the service sends over a connection: the table of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.protocol.schema import payloads
from app.protocol.schema.kinds import Kind, Text


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    name: str
    about: str
    data: Kind
    type: Literal["system", "config", "error", "any"] | str  # noqa: PYI051 - the names explain it
    """`type` of its envelope: that of an answer, or the type of messages; `any`: every one."""
    is_stream: bool = False
    """Whether it is a message of a stream, which the service publishes as any publisher may."""
    is_bare: bool = False
    """Over Socket.IO only, with the data alone and no envelope."""


TABLE = (
    Event(
        "connected",
        "the first message; with tokens, once authenticated",
        payloads.CONNECTED,
        "system",
    ),
    Event("subscribed", "answers `subscribe`", payloads.SUBSCRIBED, "config"),
    Event("unsubscribed", "answers `unsubscribe`", payloads.UNSUBSCRIBED, "config"),
    Event(
        "history_data",
        "answers `get_history`, and follows `subscribe` with `history`",
        payloads.HISTORY_DATA,
        "any",
    ),
    Event("pong", "answers `ping`", payloads.PONG, "config"),
    Event("presence_data", "answers `presence`", payloads.SUBSCRIBERS, "config"),
    Event("authenticated", "answers `auth`", payloads.AUTHENTICATED, "config"),
    Event(
        "batch_update",
        "several messages, only if asked for; has no `seq` of its own",
        payloads.BATCH,
        "system",
    ),
    Event("gap", "messages of this type that will not come", payloads.GAP, "any"),
    Event("token_expiring", "send `auth` with a new token", payloads.TOKEN_EXPIRING, "system"),
    Event(
        "connection_closing",
        "server-sent events only: the last one",
        payloads.CONNECTION_CLOSING,
        "system",
    ),
    Event("error", "`replyTo` where it answers something", payloads.ERROR_DATA, "error"),
    Event(
        "offset",
        "Socket.IO only: an opaque string, to be sent back when connecting anew",
        Text(),
        "any",
        is_bare=True,
    ),
    Event(
        "status_update",
        "the complete state of a machine, see below",
        payloads.STATUS_UPDATE,
        "status",
        is_stream=True,
    ),
    Event(
        "stats_update",
        "figures of one period, of all, and the connections",
        payloads.STATS_UPDATE,
        "stats",
        is_stream=True,
    ),
    Event(
        "health_alert",
        "a threshold was crossed, or an alert fires",
        payloads.HEALTH,
        "health",
        is_stream=True,
    ),
    Event("health_recovery", "the end of that", payloads.HEALTH, "health", is_stream=True),
    Event(
        "join",
        "users came, with the setting `JOIN_LEAVE`",
        payloads.ATTENDANCE,
        "system",
        is_stream=True,
    ),
    Event("leave", "users went, likewise", payloads.ATTENDANCE, "system", is_stream=True),
)

EVENTS: Mapping[str, Event] = {event.name: event for event in TABLE}
"""By name."""
