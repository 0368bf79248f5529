"""Connections that do not read what is sent to them: slow ones go on, stalled ones make room.

A socket that takes bytes belongs to a live peer, however far its answer to a ping is behind them. One
that takes nothing for long holds memory that others may need.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from app.errors import CloseCode
from app.transport import kernel
from app.transport.connection import Connection
from app.transport.output import OutputAccount
from app.transport.timer_wheel import TimerWheel

logger = logging.getLogger("realtime.connection")

STALL_SECONDS = 10.0
"""Seconds in which a socket takes nothing after which its connection makes room for others."""
LEAST_LOOK, LOOK_SECONDS = 1.0, 5.0
"""Seconds between two looks at a connection that may only be reading slowly, at least and at most."""
LOG_SECONDS = 1.0
"""Between two log lines about connections that are given up."""


@dataclass(frozen=True, slots=True)
class _Look:
    """When a connection with unsent output was last seen to take some of it."""

    tick: int
    """Of the wheel."""
    acked: int
    """What `kernel.progress` said then."""


class UnreadOutput:
    """Knows the connections with unsent bytes, and the sum of these.

    Past the limit of the account the largest holders are closed.

    Args:
        limit: bytes over all connections.
        wheel: the clock of the heartbeats.
    """

    def __init__(self, limit: int, wheel: TimerWheel) -> None:
        self.account = OutputAccount(limit, self._plan_relief)
        """The sum, and its limit."""
        self.connections: dict[Connection, None] = {}
        """Those with unsent bytes; the hub puts them in and takes them out."""
        self._wheel = wheel
        self._looks: dict[Connection, _Look] = {}
        """Those that were looked at, and when they had last taken something."""
        self._relief_planned = False
        """Holders are closed in a later pass of the loop."""
        self._logged_at = -LOG_SECONDS
        """When the last line was written (seconds of the loop)."""
        self._unlogged = 0
        """Connections that were given up since, without a line."""
        self._loop = asyncio.get_running_loop()

    def total(self) -> int:
        """Bytes written that the sockets have not yet taken, those of shared chunks for each."""
        return sum(c.pending.size for c in self.connections if c.pending is not None)

    def forget(self, connection: Connection) -> None:
        """Forget a connection that is gone."""
        self.connections.pop(connection, None)
        self._looks.pop(connection, None)

    def spare(self, connection: Connection) -> bool:
        """Go on with a connection that is silent, if that is since it reads slowly.

        Its socket may have been taking bytes all the time, with the ping that it did not answer
        behind them.
        """
        wheel = self._wheel
        look = max(LEAST_LOOK, min(LOOK_SECONDS, wheel.timeout / 4))
        before = self._looks.get(connection)
        if before is None and not kernel.count_unsent(connection.fd):
            return False
        if (
            not self._has_moved(connection)
            and before is not None
            and (wheel.now - before.tick) * wheel.tick_length >= look
        ):
            return False
        wheel.resume(connection, max(0.0, wheel.timeout - look), look)
        return True

    def close_stalled(self) -> bool:
        """Make room: close the largest of those whose sockets have taken nothing for a while.

        To be called about once a second while an answer waits for room. Returns whether one was
        closed.
        """
        patience = STALL_SECONDS / self._wheel.tick_length
        stalled = [
            connection
            for connection in self.connections
            if not self._has_moved(connection)
            and self._wheel.now - self._looks[connection].tick >= patience
        ]
        if not stalled:
            return False
        largest = max(stalled, key=_cost)
        largest.give_up("other connections wait for memory that this client's unread output holds")
        return True

    def log_given_up(self, connection: Connection, reason: str) -> None:
        """Log, at most once in `LOG_SECONDS`, that a connection is closed for not reading."""
        now = self._loop.time()
        if now - self._logged_at < LOG_SECONDS:
            self._unlogged += 1
            return
        pending = connection.pending
        logger.warning(
            "Closing a connection that does not read: %s",
            reason,
            extra={
                "connection": connection.id,
                "code": int(CloseCode.NOT_READING),
                "unsent": pending.size if pending is not None else 0,
                "total": self.account.total,
                "closed_since": self._unlogged,
            },
        )
        self._logged_at, self._unlogged = now, 0

    def _has_moved(self, connection: Connection) -> bool:
        """Whether the peer has taken anything since the last look that saw it do so."""
        acked = kernel.progress(connection.fd)
        before = self._looks.get(connection)
        pending = connection.pending
        moved = pending.moved if pending is not None else 0
        if before is not None and acked <= before.acked and moved <= before.tick:
            return False
        self._looks[connection] = _Look(self._wheel.now, acked)
        return True

    def _plan_relief(self) -> None:
        if not self._relief_planned:
            self._relief_planned = True
            self._loop.call_soon(self._relieve)

    def _relieve(self) -> None:
        """Close the largest holders of unsent bytes until all fit under the limit."""
        self._relief_planned = False
        account = self.account
        if account.total <= account.limit:
            return
        for connection in sorted(self.connections, key=_cost, reverse=True):
            connection.give_up("the server holds too much unread output")
            if account.total <= account.limit:
                break


def _cost(connection: Connection) -> float:
    return connection.pending.cost if connection.pending is not None else 0.0
