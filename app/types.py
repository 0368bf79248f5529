"""Values that pass between the layers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

GapReason = Literal["history", "latest", "epoch"]


class Priority(enum.IntEnum):
    """Rank in the broadcast queue; when it is full, the largest value goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


@dataclass(slots=True, unsafe_hash=True)
class Position:
    """The last message of one type that a client or worker has; `seq` 0 is before the first.

    Never changed; it is not frozen, which would make it cost twice.
    """

    epoch: str
    seq: int
    maybe_known: bool = field(default=False, compare=False)
    """Of a message that was published with an id: it may have been stored by an earlier call."""


@dataclass(slots=True)
class Draft:
    """A message on its way into the stream of its type; never changed.

    It is not frozen, which would make it cost twice.

    `body` is the envelope as JSON, UTF-8, without its closing brace and without `seq` and
    `epoch`, which only the stream can give: `Message.envelope` appends them.
    """

    type: str
    event: str
    id: str
    body: bytes
    accepted: float
    """Unix time in seconds at which the service took the message."""
    priority: Priority = Priority.NORMAL
    once: bool = False
    """The publisher chose the id: within five minutes the same id is stored once."""


class Message:
    """A message as it stands in a stream. Wire codecs cache their frames on it."""

    __slots__ = ("_position", "accepted", "body", "epoch", "event", "frames", "seq", "type")

    def __init__(
        self, type: str, epoch: str, seq: int, event: str, body: bytes, accepted: float
    ) -> None:
        self.type = type
        self.epoch = epoch
        self.seq = seq
        self.event = event
        self.body = body
        self.accepted = accepted
        self.frames: dict[str, bytes] = {}
        self._position: Position | None = None

    @property
    def position(self) -> Position:
        """Where a client stands that has got this message last."""
        position = self._position
        if position is None:
            position = self._position = Position(self.epoch, self.seq)
        return position

    @property
    def envelope(self) -> bytes:
        """The complete envelope as JSON."""
        return b'%b,"seq":%d,"epoch":"%b"}' % (self.body, self.seq, self.epoch.encode())


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages `first` to `last` of a type that will not come, and where it goes on.

    With reason `epoch` the numbers count in the new epoch, and `last` is where live begins.
    """

    type: str
    epoch: str
    first: int
    last: int
    reason: GapReason

    @property
    def position(self) -> Position:
        """Where a client stands that has got this gap last."""
        return Position(self.epoch, self.last)


@dataclass(frozen=True, slots=True)
class Subscribers:
    """How many are subscribed to a type."""

    connections: int
    users: int
    """A client without a name counts as one of its own."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker as the slot table shows it."""

    index: int
    pid: int
    started: float
    """Unix time in seconds."""
    generation: int
    state: Literal["starting", "ready", "leaving"]
    connections: int
    stats: dict[str, object]
    """What the worker last said of itself, at most a second or two old; {} before that."""
    updated: float = 0.0
    """Unix time in seconds at which it said so; 0 before that."""
