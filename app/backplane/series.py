"""CPU, memory, disk and connections over the last day, of every machine that shares the backplane.

Two streams: one sample every `FINE` seconds and one every `COARSE` seconds. Both are trimmed by
length, so that no clock decides what is kept: sixteen machines have a quarter of an hour of the
one and a day of the other, fewer machines more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from app.backplane.client import FAILURES, AnyBackplane
from app.backplane.faults import reading_answer
from app.errors import BackplaneUnavailable
from app.protocol.envelope import encode_json

FINE, COARSE = 5, 60
"""Seconds between two samples of a machine."""

RANGES: Mapping[str, int] = {"15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400}
"""Seconds that can be asked for."""

COLUMNS = ("cpu", "memory", "disk", "connections")

FRESH = 2.0
"""Seconds for which an answer is given again."""

_LONGEST_FINE = 900
"""Seconds of the longest range that is shown in fine steps."""
_KEYS = {FINE: (b"rt:series:fine", 3_000), COARSE: (b"rt:series:coarse", 24_000)}
"""Stream and entries kept, by step."""
_MOST_READ = 6_000
"""Entries that one answer is made of at most, the newest."""


class Sample(NamedTuple):
    """Means of a machine over one step."""

    cpu: float
    """Percent, as `memory` and `disk`."""
    memory: float
    disk: float
    connections: float


class Series:
    """Stores and reads samples.

    Args:
        backplane: connected.
        monotonic: seconds, for the age of answers.
    """

    def __init__(
        self, backplane: AnyBackplane, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._backplane = backplane
        self._monotonic = monotonic
        self._answers: dict[str, tuple[float, bytes]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def add(self, host: str, step: int, sample: Sample) -> None:
        """Store the sample of one step, `FINE` or `COARSE`, of a machine.

        Raises:
            BackplaneUnavailable: it may or may not be stored.
        """
        key, kept = _KEYS[step]
        values = ",".join(f"{round(value, 1):g}" for value in sample)
        command = (b"XADD", key, b"MAXLEN", b"~", kept, b"*", b"h", host.encode(), b"v", values)
        try:
            await self._backplane.ask([command])
        except FAILURES as error:
            raise BackplaneUnavailable from error

    async def read(self, range: str) -> bytes:
        """The samples of a range of `RANGES` as JSON; concurrent calls share one read.

        Raises:
            BackplaneUnavailable: they cannot be read.
        """
        async with self._locks.setdefault(range, asyncio.Lock()):
            at, answer = self._answers.get(range, (-math.inf, b""))
            if self._monotonic() - at >= FRESH:
                answer = encode_json(await self._read(range))
                self._answers[range] = self._monotonic(), answer
            return answer

    async def _read(self, range: str) -> dict[str, object]:
        span = RANGES[range]
        step = FINE if span <= _LONGEST_FINE else COARSE
        try:
            (now,) = await self._backplane.ask([(b"TIME",)])
            with reading_answer():
                end = int(now[0]) * 1000
            start = end - span * 1000
            (entries,) = await self._backplane.ask(
                [(b"XREVRANGE", _KEYS[step][0], b"+", start, b"COUNT", _MOST_READ)]
            )
            with reading_answer():
                hosts = _by_host(entries, start)
        except FAILURES as error:
            raise BackplaneUnavailable from error
        return {"range": range, "step": step, "start": start, "end": end, "hosts": hosts}


def _by_host(entries: Any, start: int) -> dict[str, dict[str, list[float]]]:
    """The columns of each machine; `start`: Unix time in ms from which seconds are counted."""
    hosts: dict[str, dict[str, list[float]]] = {}
    for id, fields in reversed(entries):
        found = _values(fields)
        if found is None:
            continue
        host, values = found
        columns = hosts.setdefault(host, {name: [] for name in ("t", *COLUMNS)})
        columns["t"].append(round((int(id.partition(b"-")[0]) - start) / 1000))
        for name, value in zip(COLUMNS, values, strict=True):
            columns[name].append(value)
    return hosts


def _values(fields: list[bytes]) -> tuple[str, list[float]] | None:
    """Host and values of an entry; None when another version wrote it in another way."""
    try:
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        values = [float(word) for word in found[b"v"].split(b",")]
        if len(values) != len(COLUMNS) or not all(map(math.isfinite, values)):
            return None
        return found[b"h"].decode(), values
    except (KeyError, ValueError):
        return None
