"""What a connection may cost: messages, bytes, frames that carry none, and time of the loop.

Each has a share a second of each. A connection that uses more first *waits*: nothing is read from
it until its share has grown to what it used. When that has gone on for `REFUSE_SECONDS` its messages
are refused, unread, and after `CLOSE_SECONDS` it is closed. Messages over their number are refused at
once, and frames over theirs close at once: they cost less to send than to wait for.

All connections of a worker together may use `INPUT_SHARE` of its time. Beyond that
connections wait that used more than an even part of it, so that there is always time for
deliveries and for light clients. No connection is closed for this. When many come back at once they may
use more for some seconds.

Only connections that sent something in this second, and those that wait, have an entry here.
"""

from __future__ import annotations

import enum
import random
import time
import types
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from app.config import Settings
from app.transport.connection import OPEN, Connection
from app.transport.hub import FLOOD

FLOOD_FACTOR = 10
"""A client that sends this many times RATE_LIMIT in a second is closed."""
MAX_EXTRA_FRAMES = 1000
"""Control frames and fragments a second that close a connection."""
MAX_PAUSE = 5.0
"""Seconds that a connection waits at once, at most: it must not seem dead."""
SPREAD = 1.5
"""Factor by which the longest of equal waits for all together exceeds the shortest: those that were held
back in one moment must not come back in one."""
REFUSE_SECONDS = 5.0
"""A connection that has waited again and again for so long gets its messages refused."""
CLOSE_SECONDS = 15.0
"""The same until it is closed; also for messages that were refused in each of so many seconds."""
CALM_SECONDS = 1.0
"""Without a wait for so long, a connection is as good as any."""
INPUT_SHARE = 0.2
"""Part of its time that a worker uses for what clients send, before some of them wait."""
LEAST_SHARE = 0.0005
"""Seconds a second that a connection may use however many there are: some ten requests. So that after a
failure all can come back at once. Not for one that sends more than it takes to come back."""
LIGHT_FRAMES, LIGHT_BYTES = 10, 8 * 1024
"""Messages, other frames, and bytes in a second that it takes at most."""
STORM_SECONDS = 3
"""Seconds for which all together may use more than `INPUT_SHARE` by that; what lasts longer is no
return of clients."""
_FULL = 0.8
"""Part of `INPUT_SHARE` from which on a second counts as one in which it was used."""
_HEADSTART = 0.03
"""Seconds of a share that can be used at the beginning of a second."""


T = TypeVar("T")


class Verdict(enum.Enum):
    """What becomes of a message."""

    TAKE = enum.auto()
    REFUSE = enum.auto()
    CLOSE = enum.auto()


@dataclass(frozen=True, slots=True)
class Limits:
    """Shares of a connection, each for one second; 0: no limit."""

    messages: int
    """Those beyond it are refused."""
    flood: int
    """Messages that close a connection."""
    bytes: int
    seconds: float
    """Of the loop's time."""

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """What the settings allow a connection."""
        return cls(
            messages=settings.rate_limit,
            flood=settings.rate_limit * FLOOD_FACTOR,
            bytes=settings.rate_limit_bytes
            and max(settings.rate_limit_bytes, settings.max_message_size),
            seconds=settings.rate_limit_time,
        )


class _Usage:
    """What one connection has used in this second."""

    __slots__ = ("bytes", "extras", "messages", "seconds")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.extras = 0
        self.seconds = 0.0

    @property
    def is_light(self) -> bool:
        """Whether it may be that of a client that comes back, and does no more."""
        return (
            self.messages <= LIGHT_FRAMES
            and self.extras <= LIGHT_FRAMES
            and self.bytes <= LIGHT_BYTES
        )

    @classmethod
    def of(cls, first: int | None) -> _Usage:
        """The usage of a connection that has a short entry, or none."""
        usage = cls()
        if first is not None:
            usage.messages = 1
            if first != _MESSAGE:
                usage.bytes = _SHORT
                usage.seconds = first * _STEP
        return usage


# Most connections send one short message in a second, and after a failure all do so in the same one.
# The entry of such a connection is a number that exists anyway: its time, in steps.
_SHORT = 64
"""Bytes that such a message has at most, and counts for if another follows."""
_STEP = 2e-5
"""Seconds of a step."""
_MOST_STEPS = 255
"""What takes longer has an entry of its own."""
_MESSAGE = -1
"""The entry of a connection that has sent one message whose cost is not known yet."""


class _Episode:
    """Waits of one connection that follow each other."""

    __slots__ = ("began", "until")

    def __init__(self, began: float) -> None:
        self.began = began
        self.until = began


class Rates:
    """Accounts of the connections of one worker.

    Args:
        limits: of each connection.
        clock: monotonic seconds.
        draw: a random number between two.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._limits = limits
        self._draw = draw
        self._clock = clock
        self._bytes = limits.bytes or float("inf")
        """Of one connection in a second; infinite without a limit."""
        self._seconds = limits.seconds or float("inf")
        """Of the loop's time, likewise."""
        self._short_seconds = min(self._seconds, _MOST_STEPS * _STEP)
        """What a message may cost whose entry is a number."""
        self._used: dict[Connection, _Usage | int] = {}
        """What connections have used in this second, or the entry of a single short message."""
        self._total = 0.0
        """Seconds of the loop that all have used in this second."""
        self._shared = 0.0
        """Part of the total that no connection was charged with: writing answers."""
        self._began = clock()
        """When this second began (seconds of `clock`)."""
        self._full_seconds = 0
        """Seconds in which all together used their share, less those in which they did not."""
        self._least_share = LEAST_SHARE
        """What each may use of it, whatever the others do."""
        self._waits: dict[Connection, _Episode] = {}
        """Connections that are held back, or were a moment ago."""
        self._refused: dict[Connection, float] = {}
        """Since when messages of a connection have been refused in every second."""
        self._refused_now: set[Connection] = set()
        self.held_back = 0
        """Waits so far."""

    def message(self, connection: Connection) -> Verdict:
        """Count one message."""
        usage = self._used.get(connection)
        if usage is None:
            self._used[connection] = _MESSAGE  # every limit allows one
        else:
            if isinstance(usage, int):
                usage = self._used[connection] = _Usage.of(usage)
            usage.messages += 1
            limit = self._limits.messages
            if limit and usage.messages > limit:
                if usage.messages > self._limits.flood:
                    return Verdict.CLOSE
                return self._refuse(connection)
        if self._waits:
            episode = self._waits.get(connection)
            if episode is not None and episode.until - episode.began > REFUSE_SECONDS:
                return Verdict.REFUSE
        return Verdict.TAKE

    def spend(
        self, connection: Connection, seconds: float, size: int, extras: int, now: float
    ) -> float:
        """Count what reading from a connection, or working for it, has cost.

        Args:
            connection: it.
            seconds: of the loop's time.
            size: bytes that were read.
            extras: frames that were no message: control frames, fragments.
            now: monotonic seconds.

        Returns:
            Seconds for which nothing is to be read from it; 0.0: go on; FLOOD: close it.
        """
        self._total += seconds
        usage = self._used.get(connection)
        own_seconds = seconds
        if usage == _MESSAGE and size <= _SHORT and not extras and seconds < self._short_seconds:
            self._used[connection] = int(seconds / _STEP) + 1
        else:
            if usage is None or isinstance(usage, int):
                usage = self._used[connection] = _Usage.of(usage)
            usage.seconds += seconds
            usage.bytes += size
            own_seconds = usage.seconds
            if extras:
                usage.extras += extras
                if usage.extras > MAX_EXTRA_FRAMES:
                    return FLOOD
            if usage.seconds > self._seconds or usage.bytes > self._bytes:
                used = max(usage.seconds / self._seconds, usage.bytes / self._bytes)
                pause = min(used - (now - self._began), MAX_PAUSE)
                if pause > 0:
                    return self._wait(connection, pause, now)
        elapsed = now - self._began + _HEADSTART
        own = self._total - self._shared
        if self._total > INPUT_SHARE * elapsed and own > 0.0:
            share = INPUT_SHARE * (own / self._total) / len(self._used)
            if share < self._least_share and (not isinstance(usage, _Usage) or usage.is_light):
                share = self._least_share
            pause = min(own_seconds / share - elapsed, MAX_PAUSE / SPREAD)
            if pause > 0:
                self.held_back += 1
                return pause * self._draw(1.0, SPREAD)
        return 0.0

    def charge(self, connection: Connection, seconds: float) -> None:
        """Count what was done for a connection outside of reading from it, and hold it back for that.

        Args:
            connection: it.
            seconds: of the loop's time, or what something else is worth that it had others do.
        """
        pause = self.spend(connection, seconds, 0, 0, self._clock())
        if pause and connection.state == OPEN:
            connection.hub.hold(connection, pause)

    def spend_shared(self, seconds: float) -> None:
        """Count what writing the answers of many connections has cost."""
        self._total += seconds
        self._shared += seconds

    def start_second(self) -> None:
        """Forget what was used in the second that is over."""
        now = self._clock()
        is_full = self._total > _FULL * INPUT_SHARE * (now - self._began)
        count = self._full_seconds + (1 if is_full else -1)
        self._full_seconds = min(max(0, count), 2 * STORM_SECONDS)
        self._least_share = LEAST_SHARE if self._full_seconds <= STORM_SECONDS else 0.0
        self._used = {}
        self._total = self._shared = 0.0
        self._began = now
        if self._waits:
            self._waits = {c: e for c, e in self._waits.items() if e.until + CALM_SECONDS > now}
        if self._refused:
            self._refused = {
                c: since for c, since in self._refused.items() if c in self._refused_now
            }
            self._refused_now = set()

    def _wait(self, connection: Connection, pause: float, now: float) -> float:
        episode = self._waits.get(connection)
        if episode is None or episode.until + CALM_SECONDS < now:
            episode = self._waits[connection] = _Episode(now)
        episode.until = now + pause
        self.held_back += 1
        return FLOOD if episode.until - episode.began > CLOSE_SECONDS else pause

    def _refuse(self, connection: Connection) -> Verdict:
        self._refused_now.add(connection)
        since = self._refused.setdefault(connection, self._began)
        return Verdict.CLOSE if self._began - since >= CLOSE_SECONDS else Verdict.REFUSE


@types.coroutine
def metered(
    work: Awaitable[T], spent: Callable[[float], None], clock: Callable[[], float] = time.monotonic
) -> Generator[Any, Any, T]:
    """Await something, and tell the seconds that its steps took, without those of waiting.

    Args:
        work: what to await.
        spent: called after each step with its seconds.
        clock: monotonic seconds.
    """
    steps: Any = work.__await__()
    step: Callable[[Any], Any] = steps.send
    value: Any = None
    try:
        while True:
            began = clock()
            try:
                awaited = step(value)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                spent(clock() - began)
            try:
                value = yield awaited
                step = steps.send
            except BaseException as error:  # noqa: BLE001 (it belongs to the work)
                value = error
                step = steps.throw
    finally:
        steps.close()
