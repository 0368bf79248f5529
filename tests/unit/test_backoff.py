"""Pauses between attempts."""

from __future__ import annotations

from app.backoff import Backoff, pause_after


def test_each_pause_is_twice_the_last_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.take() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_any_number_of_failures_has_a_pause() -> None:
    assert pause_after(1, 0.25, 15.0) == 0.25
    assert pause_after(10**9, 0.25, 15.0) == 15.0
