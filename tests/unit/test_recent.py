"""What workers have counted for keys lately, in few words."""

from __future__ import annotations

import random
from array import array

import pytest

from workers.shared.recent import RecentTable

SETS = 8


@pytest.fixture
def table() -> RecentTable:
    return RecentTable(memoryview(array("Q", [0] * (SETS * 8))))


def test_a_window_begins_with_the_first_count(table: RecentTable) -> None:
    assert [table.count(7, 100.5, 1.0) for _ in range(3)] == [1, 2, 3]
    assert table.count(7, 101.4, 1.0) == 4
    assert table.count(7 + SETS, 101.4, 1.0) == 1
    assert table.count(7, 101.5, 1.0) == 1
    assert table.count(7, 102.4, 1.0) == 2


def test_what_comes_often_stays_counted(table: RecentTable) -> None:
    chance = random.Random(1)
    for number in range(1, 200):
        for _ in range(2):
            count = table.count(5, 10.0, 1.0)
        assert count == 2 * number
        for _ in range(8):
            table.count(chance.getrandbits(64), 10.0, 1.0)


def test_a_line_is_begun_once_in_a_window(table: RecentTable) -> None:
    assert table.begin(9, 50.0, 60.0, waiting=0) == 0
    assert table.begin(9, 50.0, 60.0, waiting=0) is None
    assert table.begin(9, 100.0, 60.0, waiting=10) is None
    assert table.begin(9, 110.0, 60.0, waiting=3) == 1 + 11 + 3
    assert table.begin(9, 170.0, 60.0, waiting=0) == 0


@pytest.mark.parametrize("time", [0.0, 5.0, 1e6])
def test_any_words_are_counted_on(time: float) -> None:
    words = array("Q", random.Random(2).randbytes(SETS * 64))
    table = RecentTable(memoryview(words))
    for key in (*words[::2], 0, 2**64 - 1):
        first = table.count(key, time, 1.0)
        assert table.count(key, time, 1.0) == min(first + 1, 2**24 - 1)
        begun = table.begin(key, time, 1.0, 3)
        assert begun is None or begun >= 3


def test_a_key_may_be_zero(table: RecentTable) -> None:
    assert [table.count(0, 1.0, 1.0) for _ in range(3)] == [1, 2, 3]
