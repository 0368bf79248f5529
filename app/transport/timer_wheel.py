"""Heartbeats of all connections of a worker from one timer.

Each connection stands in one bucket. When its bucket comes up it is closed if it has been silent
for the timeout, else pinged and put where it must be looked at next. Between two looks a
connection costs nothing: receiving only notes the current tick, an integer that all share.

The buckets are numbers in one array with two bytes for each descriptor, which is searched once a tick: some
microseconds for ten thousand connections, while a table for each bucket would take forty bytes for each of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

_SIZE = 2
"""Bytes of the number of a bucket."""
_ROOM = 64
"""Descriptors for which there is room when there is none for a new one."""


class Watched(Protocol):
    """What the wheel needs of a connection."""

    heartbeat_every: ClassVar[float | None]
    """Seconds between two heartbeats at most; None: the interval of the wheel."""
    fd: int
    """Its descriptor."""
    seen: int
    """Tick at which the last byte was received."""

    def heartbeat(self) -> None:
        """Send a ping."""

    def heartbeat_missed(self) -> None:
        """Nothing was received within the timeout."""


def _raise(_: Watched, error: Exception) -> None:
    raise error


class TimerWheel:
    """A wheel of `interval / tick` buckets and one more.

    Args:
        interval: seconds between two pings to a connection.
        timeout: seconds of silence after which a connection is given up.
        connections: by descriptor, those that are watched and maybe others; the caller's.
        fail: called with a connection whose method has raised, and the error; the others of its
            bucket are handled all the same.
        ping: sends the heartbeats of many connections; None: each sends its own.
    """

    def __init__(
        self,
        interval: float,
        timeout: float,
        connections: Sequence[Any],
        fail: Callable[[Any, Exception], object] = _raise,
        ping: Callable[[list[Any]], object] | None = None,
    ) -> None:
        self._connections = connections
        self._fail = fail
        self._ping = ping
        self.tick_length = min(1.0, interval / 10)
        """Seconds between two calls of `advance`."""
        self.timeout = timeout
        """Seconds of silence after which a connection is given up."""
        self.now = 0
        """Ticks since the start."""
        self._interval = max(1, round(interval / self.tick_length))
        self._timeout = max(2, round(timeout / self.tick_length))
        self._buckets = self._interval + 1
        self._bytes = bytearray()
        self._places = memoryview(self._bytes).cast("H")
        """By descriptor, the bucket of its connection, from 1; 0: it is not watched."""

    def add(self, connection: Watched) -> None:
        """Start to watch; the first ping comes after one interval."""
        now = connection.seen = self.now
        every = connection.heartbeat_every
        ticks = self._interval if every is None else self._interval_of(connection)
        self._put(connection, now + ticks)

    def resume(self, connection: Watched, silent: float, due: float) -> None:
        """Go on watching a connection that another wheel has watched.

        Args:
            connection: what to watch.
            silent: seconds since its last byte.
            due: seconds until it must be looked at.
        """
        connection.seen = self.now - round(silent / self.tick_length)
        ticks = min(max(1, round(due / self.tick_length)), self._interval)
        self._put(connection, self.now + ticks)

    def times(self, connection: Watched) -> tuple[float, float]:
        """What `resume` wants to know of a connection: seconds of silence, seconds until due."""
        silent = (self.now - connection.seen) * self.tick_length
        due = (self._places[connection.fd] - 1 - self.now) % self._buckets * self.tick_length
        return silent, due

    def discard(self, connection: Watched) -> None:
        """Stop to watch; harmless when it is not watched."""
        if connection.fd < len(self._places):
            self._places[connection.fd] = 0

    def advance(self) -> None:
        """One tick has passed: handle the bucket that comes up."""
        self.now += 1
        self._handle(self.now, give_up=True)

    def ping_early(self) -> None:
        """Ping what is due at the next tick, so that the ping can share a write."""
        self._handle(self.now + 1, give_up=False)

    def _handle(self, tick: int, *, give_up: bool) -> None:
        bucket = (tick % self._buckets + 1).to_bytes(_SIZE, sys.byteorder)
        usual = tick + self._interval
        usual_bucket = usual % self._buckets + 1
        is_together = give_up and self._ping is not None
        together: list[Watched] = []
        at = self._bytes.find(bucket)
        while at >= 0:
            if at % _SIZE:  # the end of one number and the beginning of the next
                at = self._bytes.find(bucket, at + 1)
                continue
            connection = self._connections[at // _SIZE]
            deadline = connection.seen + self._timeout
            try:
                if deadline > tick:
                    if deadline >= usual and connection.heartbeat_every is None:
                        self._places[at // _SIZE] = usual_bucket  # as `_put`, of most connections
                    else:
                        self._put(connection, min(tick + self._interval_of(connection), deadline))
                    if is_together:
                        together.append(connection)
                    else:
                        connection.heartbeat()
                elif give_up:
                    self.discard(connection)
                    connection.heartbeat_missed()
                else:
                    self._put(connection, tick)
            except Exception as error:  # noqa: BLE001 (the others would never be looked at again)
                self._fail(connection, error)
            at = self._bytes.find(bucket, at + _SIZE)
        if together and self._ping is not None:
            self._ping(together)

    def _interval_of(self, connection: Watched) -> int:
        """Ticks until the next heartbeat of a connection."""
        seconds = connection.heartbeat_every
        if seconds is None:
            return self._interval
        return min(self._interval, max(1, round(seconds / self.tick_length)))

    def _put(self, connection: Watched, tick: int) -> None:
        fd = connection.fd
        if fd >= len(self._places):
            self._bytes = self._bytes.ljust((fd + _ROOM) * _SIZE, b"\0")
            self._places = memoryview(self._bytes).cast("H")
        self._places[fd] = tick % self._buckets + 1
