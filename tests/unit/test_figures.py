"""When a worker shows its figures."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from app.figures import QUIET_SECONDS, Figures, SubscriberCounts


class Worker:
    """What its figures are made of."""

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {
            "publisher": SimpleNamespace(fault=None),
            "backplane": SimpleNamespace(reading_fault=None, available=True),
            "canary": SimpleNamespace(receives=True, is_deaf=False),
            "queue": SimpleNamespace(per_priority=lambda: [0, 0, 0], dropped=[0, 0, 0]),
            "reader": SimpleNamespace(reconnects=0, unreadable=Counter()),
            "catchup": SimpleNamespace(replayed=0),
            "hub": SimpleNamespace(bytes_received=0, closed={}),
            "registry": [],
        }
        others = ("slots", "metrics", "fanout", "rates", "manager", "history", "replica")
        rest: dict[str, Any] = dict.fromkeys(others)
        self.figures = Figures(
            types=["status"], subscribers=SubscriberCounts(["status"]), **rest, **self.parts
        )

    def seconds(self, count: int) -> list[bool]:
        """Whether the figures are due in each of so many seconds."""
        return [self.figures.look() for _ in range(count)]


QUIET = [False] * (QUIET_SECONDS - 1) + [True]


def test_a_worker_in_which_nothing_happens_shows_them_seldom() -> None:
    worker = Worker()
    assert worker.seconds(1) == [True]
    assert worker.seconds(2 * QUIET_SECONDS) == 2 * QUIET


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("publisher", "fault", SimpleNamespace(words="it is full")),
        ("backplane", "reading_fault", SimpleNamespace(words="it is away")),
        ("backplane", "available", False),
        ("canary", "receives", False),
        ("canary", "is_deaf", True),
        ("queue", "dropped", [0, 1, 0]),
        ("reader", "reconnects", 1),
        ("reader", "unreadable", Counter(status=1)),
        ("catchup", "replayed", 1),
        ("hub", "bytes_received", 1),
        ("hub", "closed", {1000: 1}),
    ],
)
def test_what_happens_is_shown_in_the_same_second(part: str, name: str, value: object) -> None:
    worker = Worker()
    worker.seconds(2)
    setattr(worker.parts[part], name, value)
    assert worker.seconds(1) == [True]
    assert worker.seconds(QUIET_SECONDS) == QUIET


def test_sessions_are_shown_each_second() -> None:
    worker = Worker()
    worker.seconds(2)
    worker.parts["registry"].append("a session")
    assert worker.seconds(5) == [True] * 5
    worker.parts["registry"].clear()
    assert worker.seconds(1 + QUIET_SECONDS) == [True, *QUIET]
