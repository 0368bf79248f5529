"""When an alarm is raised and cleared, and which events are published."""

from __future__ import annotations

import pytest

from workers.leader.alarms import Alarm


def feed(alarm: Alarm, *values: float, start: float = 0.0, tell: bool = True) -> list[str]:
    """Take samples a second apart; return the events that are published."""
    events = []
    for offset, value in enumerate(values):
        alarm.sample(value, start + offset)
        news = alarm.news()
        if news is not None:
            events.append(news[0])
            if tell:
                alarm.note_published()
    return events


@pytest.fixture
def alarm() -> Alarm:
    return Alarm("cpu", "CPU usage", 80)


def test_it_takes_three_in_a_row_above_the_threshold(alarm: Alarm) -> None:
    assert feed(alarm, 80, 80, 80, 81, 81, 80, 81, 81) == []
    assert feed(alarm, 81) == ["health_alert"]


def test_it_takes_three_in_a_row_well_below_to_clear(alarm: Alarm) -> None:
    feed(alarm, 90, 90, 90)
    assert feed(alarm, 75, 75, 75, 74.9, 74.9, 75, 74.9, 74.9) == []
    assert feed(alarm, 74.9) == ["health_recovery"]


def test_a_value_that_wavers_about_the_threshold_rings_once(alarm: Alarm) -> None:
    assert feed(alarm, *[81, 79] * 20) == []
    assert feed(alarm, *[81, 81, 81, 79, 79, 79] * 20) == ["health_alert"]


def test_a_low_threshold_can_be_cleared_too() -> None:
    alarm = Alarm("disk", "Disk usage", 4)
    assert feed(alarm, 5, 5, 5, 2, 2, 2) == ["health_alert"]
    assert feed(alarm, 1.9, 1.9, 1.9) == ["health_recovery"]


def test_since_is_the_first_sample_above(alarm: Alarm) -> None:
    feed(alarm, 90, 10, 90, 90, 90, start=100, tell=False)
    news = alarm.news()
    assert news is not None
    assert news[1]["since"] == 102_000


def test_an_alert_whose_end_was_never_published_goes_on(alarm: Alarm) -> None:
    feed(alarm, 90, 90, 90, start=100)
    feed(alarm, 10, 10, 10, start=200, tell=False)
    feed(alarm, 90, 90, 90, start=300, tell=False)
    assert alarm.news() is None
    assert feed(alarm, 10, 10, 10, start=400) == ["health_recovery"]
    assert alarm.dump()["since"] == 100


def test_another_leader_goes_on(alarm: Alarm) -> None:
    feed(alarm, 90, 90, 90)
    successor = Alarm("cpu", "CPU usage", 80)
    successor.load(alarm.dump())
    assert feed(successor, 90, 90, 90) == []
    assert feed(successor, 10, 10, 10) == ["health_recovery"]


@pytest.mark.parametrize("dumped", [{}, {"raised": True, "told": True}, {"since": None}])
def test_what_cannot_be_read_changes_nothing(alarm: Alarm, dumped: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        alarm.load(dumped)
    assert feed(alarm, 10, 10, 10) == []
