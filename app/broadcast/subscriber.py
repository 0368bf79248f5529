"""What the fan-out needs of a connection: a codec, a group, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping

from app.protocol.codecs import Codec
from app.transport.connection import Connection
from app.types import Position


class Group:
    """Connections that get the same bytes: same codec, same types, same batch option.

    Args:
        codec: of their protocol.
        types: which they get.
        batch: several messages come as one event.
    """

    __slots__ = ("batch", "codec", "members", "types")

    def __init__(self, codec: Codec, types: frozenset[str], batch: bool) -> None:
        self.codec = codec
        self.types = types
        self.batch = batch
        # A dict, since a set costs three times as much a member and loses the order of arrival.
        self.members: dict[Subscriber, int] = {}
        """Each with its descriptor, so that a flush touches no connection object."""


class Subscriber(Connection):
    """A connection with subscriptions.

    `track` is None while it is live, which means that it has been written all that the fan-out
    has delivered. Otherwise it holds the connection's own position in each of its types, and it
    gets nothing before `CatchUp` has brought it up to date.
    """

    __slots__ = ("group", "track")

    codec: Codec

    group: Group
    track: dict[str, Position] | None

    def is_held(self) -> bool:
        """Whether nothing of its subscriptions may be written yet."""
        return False

    def offset(self, positions: Mapping[str, Position]) -> bytes:
        """What ends a write after which the subscriber stands at `positions`."""
        return self.codec.offset(self.group.types, positions, self.group.batch)
