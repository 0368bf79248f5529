"""The sum of what one worker holds of its clients' input, and what is done when it is too much."""

from __future__ import annotations

import asyncio
import logging

from app.errors import CloseCode
from app.log_limit import LogLimit
from app.transport.connection import CLOSING, OPEN, Connection

logger = logging.getLogger("realtime.connection")


class InputAccount:
    """Counts unfinished messages, and all else that is kept of what clients have sent.

    Past the limit the largest holders are closed.

    Args:
        limit: bytes over all connections.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        """Bytes held now, bodies excepted."""
        self.bodies = 0
        """Bytes of the bodies of HTTP requests that are being received, which have a limit of the same size."""
        self._unfinished: dict[Connection, None] = {}
        """Connections whose reader holds a part of a message."""
        self._kept: dict[Connection, int] = {}
        """Bytes that are kept of a connection's input beside that."""
        self._drop_planned = False
        """The largest holders are closed in this pass of the loop."""
        self._closings = LogLimit(1.0)
        self._loop = asyncio.get_running_loop()

    def note_unfinished(self, connection: Connection, change: int) -> None:
        """Account for bytes of unfinished messages that a connection holds more (or less)."""
        reader = connection.reader
        if change and reader is not None and connection.state in (OPEN, CLOSING):
            self.total += change
            if reader.held:
                self._unfinished[connection] = None
            else:
                self._unfinished.pop(connection, None)
            if self.total > self.limit:
                self._drop_largest()

    def forget_unfinished(self, connection: Connection) -> None:
        """Stop accounting for bytes of unfinished messages of a connection."""
        if connection in self._unfinished:
            del self._unfinished[connection]
            if connection.reader is not None:
                self.total -= connection.reader.held

    def keep(self, connection: Connection, change: int) -> None:
        """Count bytes of a peer's input that are kept beside unfinished messages, or given back.

        A connection that is closed may still have some: of what its messages have begun.
        """
        self.total += change
        kept = self._kept.get(connection, 0) + change
        if kept:
            self._kept[connection] = kept
        else:
            self._kept.pop(connection, None)
        if change > 0 and self.total > self.limit and not self._drop_planned:
            self._drop_planned = True
            self._loop.call_soon(self._drop_largest)

    def count_bodies(self, change: int) -> None:
        """Count bytes of bodies that are held more (or less)."""
        self.bodies += change

    def forget_kept(self, connection: Connection) -> None:
        """Another worker keeps its input now."""
        self.total -= self._kept.pop(connection, 0)

    def _held(self, connection: Connection) -> int:
        reader = connection.reader
        unfinished = reader.held if reader is not None else 0
        return unfinished + self._kept.get(connection, 0)

    def _drop_largest(self) -> None:
        """Close the largest holders of input until the others fit under the limit."""
        self._drop_planned = False
        while self.total > self.limit:
            holders = [c for c in {**self._unfinished, **self._kept} if c.state == OPEN]
            holders += [c for c in self._unfinished if c.state == CLOSING]
            if not holders:
                return
            largest, before = max(holders, key=self._held), self.total
            if self._closings.allows("input"):
                logger.warning(
                    "Too much input is held: closing the largest holder",
                    extra={
                        "connection": largest.id,
                        "code": int(CloseCode.TOO_BIG),
                        "held": self._held(largest),
                        "total": self.total,
                    },
                )
            if largest.state == OPEN:
                largest.close(CloseCode.TOO_BIG, "the server holds too much of your input")
            else:
                largest.drop("too many bytes behind the close frame")
            if self.total == before:
                return  # it is given back when its handlers are done
