"""Lines that others can cause at any rate."""

from __future__ import annotations

from app.log_limit import LogLimit


def test_some_lines_of_each_kind_in_an_interval() -> None:
    now = 100.0
    limit = LogLimit(10.0, 2, lambda: now)
    assert [limit.allows("a") for _ in range(4)] == [True, True, False, False]
    assert limit.allows("b")
    now = 109.9
    assert not limit.allows("a")
    now = 110.0
    assert [limit.allows("a") for _ in range(3)] == [True, True, False]
