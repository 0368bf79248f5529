"""Figures per period from totals that only grow, over restarts and odd clocks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.metrics import LATENCY_BUCKETS, Metrics
from tests.support.clock import Clock
from tests.support.counts import counts_of
from workers.leader.periods import PERIODS, Periods, Totals
from workers.shared.metrics_files import Count


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000.0)


@pytest.fixture
def periods(clock: Clock) -> Periods:
    return Periods(clock)


def buckets(**counts: int) -> tuple[int, ...]:
    """Counts by index of the bucket: `buckets(b3=7)`."""
    row = [0] * (len(LATENCY_BUCKETS) + 1)
    for name, count in counts.items():
        row[int(name[1:])] = count
    return tuple(row)


def run(periods: Periods, clock: Clock, seconds: int, start: int = 0, step: int = 5) -> int:
    """Count one request a second for a while; return the total."""
    for total in range(start, start + seconds + 1, step):
        periods.add(Totals(requests=total))
        clock.now += step
    clock.now -= step
    return start + seconds


def test_each_period_counts_what_fell_into_it(periods: Periods, clock: Clock) -> None:
    # A minute apart is as near as a day is kept; the last hour as the collector counts.
    total = run(periods, clock, 2 * 86_400 - 3600, step=60)
    run(periods, clock, 3600, start=total)
    for name, seconds in PERIODS.items():
        figures = periods.figures(name)
        assert figures["period"] == name
        assert figures["requests"] == figures["seconds"]
        # Half a step off at the most: 5 s up to a quarter of an hour, then a minute.
        assert figures["seconds"] == pytest.approx(seconds, abs=2.5 if seconds <= 900 else 30)


def test_what_happened_before_the_period_is_forgotten(periods: Periods, clock: Clock) -> None:
    periods.add(Totals())
    clock.now += 5
    periods.add(Totals(published=50, deliveries=500, errors=3))
    run(periods, clock, 600)
    # `run` counts from zero again: the rest began anew, and adds nothing.
    assert periods.figures("1m")["published"] == 0
    assert periods.figures("15m")["published"] == 50
    assert periods.figures("15m")["deliveries"] == 500
    assert periods.figures("15m")["errors"] == 3


def test_before_anything_is_known(periods: Periods) -> None:
    assert periods.figures("24h")["requests"] == 0
    assert periods.figures("24h")["seconds"] == 0
    periods.add(Totals(requests=1000))
    figures = periods.figures("24h")
    assert (figures["requests"], figures["seconds"]) == (0, 0)
    assert figures["latency"] == {"count": 0, "avg": None, "p50": None, "p95": None, "p99": None}


def test_a_restart_of_the_counters_loses_nothing(periods: Periods, clock: Clock) -> None:
    for total in (100, 200, 7, 10):
        periods.add(Totals(requests=total, published=1))
        clock.now += 5
    figures = periods.figures("5m")
    assert figures["requests"] == 100 + 7 + 3
    assert figures["published"] == 1


def test_the_last_digit_of_the_latency_is_no_restart(periods: Periods, clock: Clock) -> None:
    periods.add(Totals(requests=5, latency=1.0000006))
    clock.now += 5
    periods.add(Totals(requests=5, latency=1.0000004))
    assert periods.figures("1m")["requests"] == 0
    assert periods.figures("1m")["latency"] == {
        "count": 0, "avg": None, "p50": None, "p95": None, "p99": None,
    }  # fmt: skip


def test_percentiles_are_spread_within_their_bucket(periods: Periods, clock: Clock) -> None:
    periods.add(Totals())
    clock.now += 5
    # 90 between 1 and 2.5 ms, 9 between 50 and 100 ms, 1 over 10 s.
    spread = buckets(b2=90, b7=9, b14=1)
    periods.add(Totals(deliveries=100, latency=2.0, buckets=spread))
    latency = periods.figures("1m")["latency"]
    assert latency == {
        "count": 100,
        "avg": 20.0,
        "p50": pytest.approx(1 + 1.5 * 50 / 90, abs=0.001),
        "p95": pytest.approx(50 + 50 * 5 / 9, abs=0.001),
        "p99": 100.0,
    }
    clock.now += 5
    periods.add(Totals(deliveries=200, latency=2000.0, buckets=buckets(b2=90, b7=9, b14=101)))
    figures: Any = periods.figures("1m")["latency"]
    assert figures["p99"] == 10_000.0  # as far as the buckets tell


@pytest.mark.no_cover
def test_what_is_kept_is_bounded(periods: Periods, clock: Clock) -> None:
    # Days that fill what is kept by the minute, then an hour with more than is kept of it.
    total = run(periods, clock, 3 * 86_400, step=20)
    run(periods, clock, 3600, start=total, step=2)
    dumped = periods.dump()
    assert len(dumped["fine"]) <= 900 / 5 + 2
    assert len(dumped["coarse"]) <= 86_400 / 60 + 2
    assert len(json.dumps(dumped)) < 300_000


def test_another_leader_goes_on(periods: Periods, clock: Clock) -> None:
    total = run(periods, clock, 2 * 3600)
    before = {name: periods.figures(name) for name in PERIODS}
    successor = Periods(clock)
    successor.load(json.loads(json.dumps(periods.dump())))
    assert {name: successor.figures(name) for name in PERIODS} == before
    # What was counted between two looks belongs to the periods as well.
    clock.now += 30
    successor.add(Totals(requests=total + 30))
    assert successor.figures("1h")["requests"] == pytest.approx(3600, abs=30)
    assert successor.figures("1m")["requests"] == pytest.approx(60, abs=3)


def test_after_a_long_break_the_short_periods_begin_anew(periods: Periods, clock: Clock) -> None:
    total = run(periods, clock, 3600)
    clock.now += 3 * 3600
    run(periods, clock, 20, start=total)
    assert periods.figures("1m")["requests"] == 20
    assert periods.figures("1m")["seconds"] == 20
    assert periods.figures("24h")["requests"] == 3620


def test_a_clock_that_is_set_back(periods: Periods, clock: Clock) -> None:
    total = run(periods, clock, 600)
    clock.now -= 3600
    total = run(periods, clock, 300, start=total)
    figures: Any = periods.figures("5m")
    assert figures["requests"] == 300
    assert figures["seconds"] == 300


@pytest.mark.parametrize("damage", ["version", "bounds", "seen", "sum", "fine", "short", "list"])
def test_what_cannot_be_read_changes_nothing(periods: Periods, clock: Clock, damage: str) -> None:
    run(periods, clock, 60)
    dumped: Any = periods.dump()
    if damage == "list":
        dumped = [1]
    elif damage == "short":
        dumped["coarse"][0].pop()
    else:
        dumped[damage] = ["x"]
    successor = Periods(clock)
    run(successor, clock, 10)
    before = successor.figures("1h")
    with pytest.raises(ValueError):
        successor.load(dumped)
    assert successor.figures("1h") == before


def test_totals_come_from_the_joined_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics = Metrics(["status", "stats"])
    metrics.count_request("/status", "GET", 200)
    metrics.requests["ping"].inc(2)
    metrics.published["status"].inc(4)
    metrics.published["stats"].inc(1)
    metrics.delivered["status"].inc(7)
    metrics.errors["PARSE_ERROR"].inc(2)
    metrics.delivery_latency.observe_many(0.002, 6)
    metrics.delivery_latency.observe_many(60, 1)
    counted = counts_of(metrics.registry)
    totals = Totals.of(counted)
    latency: Any = pytest.approx(60.012)
    assert totals == Totals(
        requests=3,
        published=5,
        deliveries=7,
        errors=2,
        latency=latency,
        buckets=buckets(b2=6, b14=1),
    )
    assert Totals.of([]) == Totals()
    joined = Totals.of(counted + counted)
    assert (joined.requests, joined.buckets) == (6, buckets(b2=12, b14=2))
    between = (LATENCY_BUCKETS[3] + LATENCY_BUCKETS[4]) / 2
    other_version = Count("realtime_delivery_latency_seconds_bucket", between, 5)
    assert Totals.of([other_version]).buckets == buckets(b4=5)
