"""Loops that fail begin again; those that keep failing end the worker."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from app.supervisor import FIRST_PAUSE, LONGEST_PAUSE, MOST_FAILURES, WINDOW, Supervisor


class Bench:
    """A supervisor without real time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []
        self.counted: Counter[str] = Counter()
        self.given_up: list[tuple[str, str]] = []
        self.supervisor = Supervisor(
            lambda name, failures: self.counted.update({name: failures}),
            lambda name, error: self.given_up.append((name, str(error))),
            lambda: self.now,
            self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


async def test_a_loop_that_fails_begins_again() -> None:
    bench, runs = Bench(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs < 5:
            raise RuntimeError("no luck")

    await bench.supervisor.start("delivery", loop)
    assert runs == 5
    assert bench.counted == {"delivery": 4}
    assert bench.pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert not bench.given_up


async def test_a_loop_that_keeps_failing_is_given_up() -> None:
    bench = Bench()

    async def loop() -> None:
        raise RuntimeError("never")

    await bench.supervisor.start("delivery", loop)
    assert bench.given_up == [("delivery", "never")]
    assert bench.counted["delivery"] == MOST_FAILURES + 1


async def test_failures_far_apart_are_forgiven() -> None:
    bench, runs = Bench(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        bench.now += WINDOW / MOST_FAILURES
        if runs < 100:
            raise RuntimeError("now and then")

    await bench.supervisor.start("delivery", loop)
    assert runs == 100
    assert not bench.given_up


async def test_the_worker_lives_on_without_a_lesser_loop() -> None:
    bench, runs = Bench(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs < 100:
            raise OSError("the disk is full")

    await bench.supervisor.start("sweep", loop, vital=False)
    assert runs == 100
    assert not bench.given_up
    assert max(bench.pauses) == LONGEST_PAUSE


async def test_a_cancelled_loop_ends() -> None:
    bench = Bench()

    async def loop() -> None:
        await asyncio.get_running_loop().create_future()

    task = bench.supervisor.start("tick", loop)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert dict(bench.counted) == {"tick": 0}, "the metric has its series before a failure"


async def test_skipped_items_are_counted_and_logged_at_a_limited_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    for _ in range(1000):
        bench.supervisor.note("delivery", ValueError("poison"))
    assert bench.counted["delivery"] == 1000
    assert len(caplog.records) == 1
    bench.now += 10
    bench.supervisor.note("delivery", ValueError("poison"))
    assert len(caplog.records) == 2
    assert not bench.given_up
