"""What the log says of refusals: one line a minute for each reason and origin."""

from __future__ import annotations

import logging

import pytest

from app.refusals import HINTS, INTERVAL, MAX_KEYS, Refusals


class Noted(Refusals):
    def __init__(self) -> None:
        self.seconds = 0.0
        self.counted: list[str] = []
        super().__init__(self.counted.append, now=lambda: self.seconds)


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
    for number in range(MAX_KEYS + 500):
        noted.note("token", f"https://{number}.example")
    assert len(noted._last) <= MAX_KEYS + 1
    assert len(caplog.records) == MAX_KEYS + 1
    assert "origin" not in vars(caplog.records[-1])
    noted.seconds += INTERVAL
    noted.note("token", "https://new.example")
    assert len(noted._last) <= MAX_KEYS


def test_every_hint_is_one_line() -> None:
    assert all("\n" not in hint and len(hint) < 100 for hint in HINTS.values())
