"""Figures for the last minute, five minutes, quarter of an hour, hour and day.

The service only counts up. `Periods` keeps what the counts were at earlier moments, and a period's
figures are the difference between now and the moment nearest to its beginning. Moments are kept
every 5 s for a quarter of an hour and every minute for a day: some 1 600 of 300 bytes.
"""

from __future__ import annotations

import bisect
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from app.metrics import LATENCY_BUCKETS
from workers.shared.metrics_files import Count

PERIODS = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "24h": 86_400}
"""Seconds of each period."""

_FINE_STEP = 5.0
_FINE_SPAN = 900
_COARSE_STEP = 60.0
_COARSE_SPAN = 86_400

_COUNTED = ("requests", "published", "deliveries", "errors")
_LATENCY = len(_COUNTED)
_BUCKETS = _LATENCY + 1
_WIDTH = _BUCKETS + len(LATENCY_BUCKETS) + 1
_VERSION = 1
_LARGEST = 2**53
"""No count of a service is as large; sums of such numbers stay within 8 bytes."""
_MOST_ROWS = 4_000
"""Rows of one step that are kept at most, with room to spare."""

_SOURCES = {
    "realtime_http_requests_total": 0,
    "realtime_actions_total": 0,
    "realtime_messages_published_total": 1,
    "realtime_messages_delivered_total": 2,
    "realtime_errors_total": 3,
}
"""Which counters make up which of the counts."""

_LATENCY_SUM = "realtime_delivery_latency_seconds_sum"
_LATENCY_BUCKET = "realtime_delivery_latency_seconds_bucket"


@dataclass(frozen=True, slots=True)
class Totals:
    """What the service has counted since it began."""

    requests: int = 0
    """HTTP requests and actions over sockets."""
    published: int = 0
    deliveries: int = 0
    errors: int = 0
    latency: float = 0.0
    """Sum of the seconds from accepting to writing, over all deliveries."""
    buckets: tuple[int, ...] = (0,) * (len(LATENCY_BUCKETS) + 1)
    """Deliveries by latency: up to each of `LATENCY_BUCKETS`, not counting those before it, and
    beyond the last."""

    @classmethod
    def of(cls, counts: Iterable[Count]) -> Totals:
        """Add up what all processes have counted."""
        sums = [0.0] * len(_COUNTED)
        latency = 0.0
        buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        for name, bound, value in counts:
            if name in _SOURCES:
                sums[_SOURCES[name]] += value
            elif name == _LATENCY_SUM:
                latency += value
            elif name == _LATENCY_BUCKET and bound is not None:
                # A dead worker of another version may have had other bounds.
                buckets[bisect.bisect_left(LATENCY_BUCKETS, bound)] += int(value)
        requests, published, deliveries, errors = map(int, sums)
        return cls(requests, published, deliveries, errors, latency, tuple(buckets))

    def row(self) -> array[int]:
        """The figures as integers, the latency in microseconds."""
        counts = (self.requests, self.published, self.deliveries, self.errors)
        return array("q", (*counts, round(self.latency * 1e6), *self.buckets))


class _Ring:
    """Rows at least `step` seconds apart, going back `span` seconds."""

    def __init__(self, step: float, span: float) -> None:
        self._step = step
        self._span = span
        self.rows: list[tuple[float, array[int]]] = []

    def add(self, now: float, row: array[int]) -> None:
        while self.rows and self.rows[-1][0] > now:  # the clock was set back
            self.rows.pop()
        if not self.rows or now - self.rows[-1][0] >= self._step:
            self.rows.append((now, row))
        # One row from before the span stays, so that the span is covered.
        first = bisect.bisect_right(self.rows, now - self._span, key=lambda item: item[0])
        del self.rows[: max(first - 1, 0)]

    def nearest(self, moment: float) -> tuple[float, array[int]] | None:
        index = bisect.bisect_left(self.rows, moment, key=lambda item: item[0])
        near = self.rows[max(index - 1, 0) : index + 1]
        return min(near, key=lambda item: abs(item[0] - moment), default=None)


class Periods:
    """Turns ever-growing totals into figures per period.

    Args:
        clock: Unix seconds; rows are kept over restarts, so it has to be the same for all.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._fine = _Ring(_FINE_STEP, _FINE_SPAN)
        self._coarse = _Ring(_COARSE_STEP, _COARSE_SPAN)
        self._seen: array[int] | None = None
        self._sum = array("q", [0] * _WIDTH)
        self._at = 0.0

    def add(self, totals: Totals) -> None:
        """Take the totals of now. Call it every few seconds."""
        seen = totals.row()
        if self._seen is None:
            self._seen = seen
        # Counts that fell began anew, so all that they show was counted since. The latency is
        # a sum of fractions, whose last digit changes with the order of adding: no sign of that.
        before = self._seen
        if any(
            new < old
            for index, (new, old) in enumerate(zip(seen, before, strict=True))
            if index != _LATENCY
        ):
            before = array("q", [0] * _WIDTH)
        self._sum = array(
            "q",
            (
                done + max(new - old, 0)
                for done, new, old in zip(self._sum, seen, before, strict=True)
            ),
        )
        self._seen = seen
        self._at = self._clock()
        self._fine.add(self._at, self._sum)
        self._coarse.add(self._at, self._sum)

    def figures(self, period: str) -> dict[str, object]:
        """What happened in a period of `PERIODS`, up to the last `add`.

        `seconds` is how long it really was: shorter when less is known, and up to half a step
        off. Latencies are in milliseconds, None when nothing was delivered.
        """
        began, base = self._begin(self._at - PERIODS[period])
        row = [now - then for now, then in zip(self._sum, base, strict=True)]
        figures: dict[str, object] = {"period": period, "seconds": round(self._at - began, 1)}
        figures.update(zip(_COUNTED, row, strict=False))
        figures["latency"] = _latency(row[_LATENCY] / 1000, row[_BUCKETS:])
        return figures

    def dump(self) -> dict[str, Any]:
        """All that is known as JSON values, for `load`."""
        return {
            "version": _VERSION,
            "bounds": list(LATENCY_BUCKETS),
            "seen": None if self._seen is None else list(self._seen),
            "sum": list(self._sum),
            "fine": _differences(self._fine.rows),
            "coarse": _differences(self._coarse.rows),
        }

    def load(self, dumped: Any) -> None:
        """Go on where another left off.

        Raises:
            ValueError: it was not made by `dump` of this version; nothing has changed then.
        """
        try:
            if dumped["version"] != _VERSION or dumped["bounds"] != list(LATENCY_BUCKETS):
                raise ValueError("the figures are those of another version")
            seen = None if dumped["seen"] is None else _row(dumped["seen"])
            total = _row(dumped["sum"])
            fine = _rows(dumped["fine"])
            coarse = _rows(dumped["coarse"])
        except (AttributeError, KeyError, TypeError, OverflowError, IndexError) as error:
            raise ValueError(f"the figures are damaged: {error!r}") from error
        self._seen, self._sum = seen, total
        self._fine.rows, self._coarse.rows = fine, coarse
        self._at = max((rows[-1][0] for rows in (fine, coarse) if rows), default=0.0)

    def _begin(self, moment: float) -> tuple[float, array[int]]:
        known = [self._fine.nearest(moment), self._coarse.nearest(moment)]
        rows = [found for found in known if found is not None]
        return min(rows, key=lambda item: abs(item[0] - moment), default=(self._at, self._sum))


def _latency(total: float, buckets: list[int]) -> dict[str, float | int | None]:
    """Average and percentiles in milliseconds.

    Args:
        total: sum of the latencies in milliseconds.
        buckets: deliveries by `LATENCY_BUCKETS`.
    """
    count = sum(buckets)
    return {
        "count": count,
        "avg": round(total / count, 3) if count else None,
        "p50": _percentile(0.50, buckets),
        "p95": _percentile(0.95, buckets),
        "p99": _percentile(0.99, buckets),
    }


def _percentile(share: float, buckets: list[int]) -> float | None:
    """As Prometheus' histogram_quantile: evenly spread within a bucket, none beyond the last."""
    rank = share * sum(buckets)
    if not rank:
        return None
    low = 0.0
    for high, count in zip(LATENCY_BUCKETS, buckets, strict=False):
        if count and rank <= count:
            return round((low + (high - low) * rank / count) * 1000, 3)
        rank -= count
        low = high
    return LATENCY_BUCKETS[-1] * 1000


def _differences(rows: list[tuple[float, array[int]]]) -> list[list[int]]:
    """Rows as `[milliseconds, counts...]`, each less the one before: mostly zeros, so short."""
    flat = [[round(at * 1000), *row] for at, row in rows]
    return flat[:1] + [
        [new - old for new, old in zip(later, earlier, strict=True)]
        for earlier, later in pairwise(flat)
    ]


def _rows(differences: list[list[int]]) -> list[tuple[float, array[int]]]:
    rows: list[tuple[float, array[int]]] = []
    if len(differences) > _MOST_ROWS:
        raise ValueError("the figures are damaged: there are too many")
    last = [0] * (_WIDTH + 1)
    for difference in differences:
        last = [old + new for old, new in zip(last, difference, strict=True)]
        at = _checked(last)[0] / 1000
        if rows and at <= rows[-1][0]:
            raise ValueError("the figures are damaged: their times do not rise")
        rows.append((at, array("q", last[1:])))
    return rows


def _checked(numbers: list[int]) -> array[int]:
    """The numbers of a row, with or without its time.

    Raises:
        ValueError: one is not a count, or there are not as many as there should be.
    """
    if any(type(number) is not int or not 0 <= number < _LARGEST for number in numbers):
        raise ValueError("the figures are damaged: a number is no count")
    return array("q", numbers)


def _row(numbers: list[int]) -> array[int]:
    if len(numbers) != _WIDTH:
        raise ValueError("the figures are damaged: a row has the wrong length")
    return _checked(numbers)
