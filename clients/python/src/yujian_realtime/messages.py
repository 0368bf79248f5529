"""What a connection delivers and says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Origin = Literal["history", "live", "recovered"]
"""How a message came: from the past that was asked for, as it happened, or after a reconnect."""

Cause = Literal[
    "network",
    "restart",
    "full",
    "silent",
    "slow",
    "flood",
    "protocol",
    "token",
    "origin",
    "operator",
    "user-limit",
    "replaced",
    "left",
]
"""Why there is no connection."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a stream, or an answer."""

    type: str
    event: str
    data: Any
    id: str
    timestamp: int
    """Unix time in milliseconds, by the service's clock."""
    seq: int | None
    """Rises by one from message to message of its type; None on answers."""
    epoch: str | None
    """Changes when the stream of this type began anew."""
    origin: Origin
    envelope: Mapping[str, Any] = field(repr=False)
    """All of it, as it came."""

    @classmethod
    def of(cls, envelope: Mapping[str, Any], origin: Origin) -> Message:
        """The message that an envelope holds."""
        return cls(
            type=str(envelope.get("type", "")),
            event=str(envelope.get("event", "")),
            data=envelope.get("data"),
            id=str(envelope.get("id", "")),
            timestamp=int(envelope.get("timestamp", 0)),
            seq=envelope.get("seq"),
            epoch=envelope.get("epoch"),
            origin=origin,
            envelope=envelope,
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages `first` to `last` of a type that will not come."""

    type: str
    first: int
    last: int
    epoch: str
    reason: str
    """`history`: no longer kept; `latest`: skipped for a newer one; `epoch`: the stream began
    anew; `slow`: dropped here, because a subscription was not read."""


@dataclass(frozen=True, slots=True)
class State:
    """State of a connection."""

    name: Literal["connecting", "open", "waiting", "closed"]
    cause: Cause | None = None
    """Why the last connection ended."""
    code: int | None = None
    """Its close code; 1006 where there was no close frame."""
    message: str = ""
    """What the service said about it."""
    pause: float | None = None
    """Seconds until the next attempt, while `waiting`."""


@dataclass(slots=True)
class Counts:
    """What has happened since the client was made."""

    received: int = 0
    """Messages, live and recovered."""
    recovered: int = 0
    """Messages that came after a reconnect, in place of what was missed."""
    reconnects: int = 0
    gaps: int = 0
    """Gaps that lost messages, and"""
    missed: int = 0
    """how many messages those were."""


@dataclass(frozen=True, slots=True)
class History:
    """A page of the past."""

    messages: list[Message]
    """The newest last."""
    more: bool
    """Whether there are older ones: ask on with `before` and the lowest `seq`."""
