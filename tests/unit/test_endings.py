"""The lines of the log about connections that have ended, with a clock by hand."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from app.errors import CloseCode
from app.transport.endings import ABNORMAL, INTERVAL, MANY, Endings


class World:
    """Counts of endings, and what is logged of them."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "realtime.connection")
        self.caplog = caplog
        self.now = 100.0
        self.ended: Counter[int] = Counter()
        self.closed: Counter[int] = Counter()
        self.endings = Endings(self.ended, self.closed, lambda: self.now)

    def end(self, code: int, count: int = 1) -> None:
        """The service ends some connections."""
        self.ended[code] += count
        self.closed[code] += count

    def look(self, *, is_last: bool = False) -> list[tuple[int, int]]:
        """The lines that are logged now: code and number of connections of each."""
        self.caplog.clear()
        self.endings.look(is_last=is_last)
        return [(vars(line)["code"], vars(line)["connections"]) for line in self.caplog.records]


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    return World(caplog)


def test_there_is_one_line_for_all_that_end_at_once(world: World) -> None:
    world.end(CloseCode.HEARTBEAT_TIMEOUT, 1000)
    assert world.look() == [(4408, 1000)]
    assert "no input for too long" in world.caplog.text
    assert world.look() == []


def test_the_next_line_about_a_code_comes_a_minute_later_with_all_that_ended_meanwhile(
    world: World,
) -> None:
    world.end(CloseCode.FLOOD)
    assert world.look() == [(4429, 1)]
    for _ in range(3):
        world.now += INTERVAL / 4
        world.end(CloseCode.FLOOD, 2)
        assert world.look() == []
    world.end(CloseCode.REPLACED)
    assert world.look() == [(4409, 1)], "another code has lines of its own"
    world.now += INTERVAL / 4
    assert world.look() == [(4429, 6)]


def test_at_the_end_nothing_remains_unlogged(world: World) -> None:
    world.end(CloseCode.RESTART, 3)
    assert world.look() == [(1012, 3)]
    world.end(CloseCode.RESTART, 4)
    world.end(ABNORMAL, 2)
    assert world.look(is_last=True) == [(1012, 4), (1006, 2)]
    assert "without a close frame" in world.caplog.text


def test_clients_that_go_have_no_line_unless_many_are_lost_at_once(world: World) -> None:
    for _ in range(10):
        world.closed[ABNORMAL] += MANY - 1
        world.closed[CloseCode.GOING_AWAY] += 10 * MANY
        world.now += 1
        assert world.look() == []
    world.closed[ABNORMAL] += MANY
    world.now += 1
    assert world.look() == [(1006, MANY)]
    assert "cut them" in world.caplog.text
    world.closed[ABNORMAL] += 3 * MANY
    world.now += 1
    assert world.look() == []
    world.now += INTERVAL
    assert world.look() == [(1006, 3 * MANY)]


def test_a_code_that_is_not_known_has_a_line(world: World) -> None:
    world.end(CloseCode.NORMAL)  # a client that has asked for it
    world.end(4999)
    assert world.look() == [(4999, 1)]
