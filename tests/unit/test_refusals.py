"""What the log says of refusals: one line a minute for each reason and origin."""

from __future__ import annotations

import logging

import pytest

from app.refusals import HINTS, INTERVAL, MAX_KEYS, PAUSE, Refusals
from tests.support.clock import Clock
from tests.support.slots import TableSlots


class Noted(Refusals):
    def __init__(self) -> None:
        self.seconds = 0.0
        self.counted: list[str] = []
        super().__init__(self.counted.append, now=lambda: self.seconds)


def workers(count: int, seconds: Clock) -> list[Refusals]:
    """The refusals of workers that share a slot table."""
    slots = TableSlots(now=seconds)
    return [Refusals(lambda _: None, slots.begin_line, seconds) for _ in range(count)]


@pytest.fixture
def noted(caplog: pytest.LogCaptureFixture) -> Noted:
    caplog.set_level(logging.INFO, "realtime.refused")
    return Noted()


def test_one_line_a_minute_for_each_reason_and_origin(
    noted: Noted, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        noted.note("origin", "https://a.example", "not allowed")
        noted.note("origin", "https://b.example")
        noted.note("cap")
    assert len(caplog.records) == 3
    assert len(noted.counted) == 15
    first = caplog.records[0]
    assert first.levelno == logging.WARNING
    assert "ALLOWED_ORIGINS" in first.getMessage()
    assert vars(first)["origin"] == "https://a.example"
    noted.seconds += INTERVAL
    noted.note("origin", "https://a.example")
    assert vars(caplog.records[-1])["unlogged"] == 4


def test_many_origins_are_logged_by_reason_alone(
    noted: Noted, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        noted.note("token", f"https://{number}.example")
    assert len(noted._next) <= MAX_KEYS + 1
    assert len(caplog.records) == MAX_KEYS + 1
    assert len(caplog.records) < 100, "any client can write other origins"
    assert "origin" not in vars(caplog.records[-1])
    noted.seconds += INTERVAL
    noted.note("token", "https://new.example")
    assert len(noted._next) <= MAX_KEYS


def test_a_reason_is_logged_however_many_origins_there_are(
    noted: Noted, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MAX_KEYS):
        noted.note("origin", f"https://{number}.example")
    noted.note("cap")
    assert vars(caplog.records[-1])["reason"] == "cap"


def test_one_line_a_minute_of_all_workers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "realtime.refused")
    seconds = Clock(1000.0)
    four = workers(4, seconds)
    for _ in range(int(INTERVAL / PAUSE)):
        for refusals in four:
            refusals.log("origin", "https://a.example")
            refusals.log("cap")
        seconds.now += PAUSE
    assert [vars(line)["reason"] for line in caplog.records] == ["origin", "cap"]
    assert not any("unlogged" in vars(line) for line in caplog.records)
    for refusals in four:
        refusals.log("cap")
    assert [vars(line)["reason"] for line in caplog.records] == ["origin", "cap", "cap"]
    # The worker that has written the first line has its own beside those that the others noted.
    assert vars(caplog.records[-1])["unlogged"] == 4 * INTERVAL / PAUSE - 1


def test_an_origin_may_have_any_bytes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "realtime.refused")
    (refusals,) = workers(1, Clock(1000.0))
    refusals.log("origin", b"https://\xff.example".decode(errors="surrogateescape"))
    assert len(caplog.records) == 1


def test_every_hint_is_one_line() -> None:
    assert all("\n" not in hint and len(hint) < 100 for hint in HINTS.values())
