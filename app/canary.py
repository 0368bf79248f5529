"""Detects a worker that no longer receives messages from the backplane.

Such a worker looks healthy from outside: its clients are connected but receive nothing. So probes
are sent through the stream that all workers read. A worker that has received none for a while sends
one: one worker does for all, and a deaf one is left with its own. A worker is deaf when it does not
receive a probe that the backplane has stored for it; while the backplane is unavailable, none is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from app.errors import BackplaneUnavailable, QueueOverflow
from app.seconds import REST, next_second, seconds_of

PROBE = b'{"method":"canary"}'
"""The message; it asks nothing of its readers."""
BEAT = 2
"""Seconds between two looks whether a probe is due; see also `REST`."""
INTERVAL = 2.0
"""Seconds without a probe after which this worker sends one."""
_EARLY = 0.25
"""Part of it by which a beat may come early."""
LIMIT = 10.0
"""Seconds for which a stored probe may be on its way."""


class Canary:
    """The canary of one worker.

    Args:
        send: sends a probe, and returns when the backplane has stored it.
        available: whether the backplane answers this worker.
        clock: seconds of a monotonic clock.
        writable: whether this worker could store something lately. While it could not, it sends
            a probe at each interval, even if it receives others, to notice its recovery.
    """

    def __init__(
        self,
        send: Callable[[], Awaitable[object]],
        available: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        writable: Callable[[], bool] = lambda: True,
    ) -> None:
        self._send = send
        self._available = available
        self._clock = clock
        self._writable = writable
        self._received_at: float | None = None
        """When the last probe arrived; None: none has."""
        self._sent_at: float | None = None
        """When this worker sent its last one; None: it has sent none."""
        self._awaited_since: float | None = None
        """When a probe was stored that has not arrived; None: there is none."""
        self._beat_at = clock()
        """When the last beat was."""

    @property
    def receives(self) -> bool:
        """Whether a probe has arrived lately; a new worker has received none yet."""
        return self._received_at is not None and self._clock() - self._received_at < LIMIT

    @property
    def is_deaf(self) -> bool:
        """Whether a probe does not arrive although the backplane has stored it."""
        if self._awaited_since is None:
            return False
        now = self._clock()
        return (
            now - self._awaited_since >= LIMIT
            and now - self._beat_at < LIMIT  # else it is this process that was stopped
            and self._available()
        )

    def note_received(self) -> None:
        """Note that a probe has arrived through the stream."""
        self._received_at = self._clock()
        self._awaited_since = None

    async def beat(self, interval: float | None = None) -> None:
        """Send a probe if it is time for one.

        To be called every `BEAT`, each second while it cannot write, and every `REST` while the worker rests.

        Args:
            interval: seconds between two probes of all workers; None: `INTERVAL`.
        """
        enough = (INTERVAL if interval is None else interval) * (1 - _EARLY)
        now = self._clock()
        if not self._available() or now - self._beat_at >= LIMIT:
            self._awaited_since = None
        self._beat_at = now
        probes = self._received_at, self._sent_at
        is_recent = any(at is not None and now - at < enough for at in probes)
        if is_recent and self._writable():
            return
        self._sent_at = now
        try:
            await self._send()
        except BackplaneUnavailable:
            self._awaited_since = None
        except QueueOverflow:
            pass  # the next one will do
        else:
            received = self._received_at is not None and self._received_at >= now
            if not received and self._awaited_since is None:
                self._awaited_since = self._clock()

    async def run(self) -> None:
        """Beat for ever; the seconds of two workers begin at different times, so one sends first."""
        seconds = seconds_of(asyncio.get_running_loop())
        while True:
            await (next_second(BEAT, REST) if self._writable() else next_second())
            await self.beat(REST if seconds.rests else None)
