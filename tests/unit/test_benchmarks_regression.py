"""How `make regression` judges what it has measured."""

from __future__ import annotations

import pytest

from benchmarks.regression import is_worse, ratio


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    assert ratio([1, 2, 9], [1, 1, 3]) == 2
    assert ratio([1, 8], [0, 2]) == 4
    assert ratio([1, 1], [0, 0]) is None


@pytest.mark.parametrize(
    ("name", "here", "there", "worse"),
    [
        ("sio: CPU per connect, us", [104, 104], [100, 100], True),
        ("sio: CPU per connect, us", [102, 102], [100, 100], False),
        ("sio: CPU per connect, us", [102, 102], [0, 0], False),
        ("handoff: connections closed", [0, 1], [0, 0], True),
        ("handoff: connections closed", [0, 0], [0, 0], False),
        ("handoff: messages missed", [0, 0], [3, 0], False),
        ("handoff: messages repeated", [2, 2], [3, 1], False),
        ("handoff: longest pause of all, ms", [200, 300], [100, 100], True),
    ],
)
def test_what_is_over_the_limit(
    name: str, here: list[float], there: list[float], worse: bool
) -> None:
    assert is_worse(name, here, there, 1.03) is worse
