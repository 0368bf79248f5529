"""Where a client that recovers goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.sessions import subscriptions as module
from app.sessions.subscriptions import AHEAD_SECONDS, Subscriptions
from app.types import Position

TYPES = [f"t{n}" for n in range(32)]


async def test_a_client_that_is_ahead_in_many_types_waits_no_longer_than_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    fanout: Any = SimpleNamespace(positions={type: Position("e", 5) for type in TYPES})
    unused: Any = None
    subscriptions = Subscriptions(
        known=frozenset(TYPES),
        fanout=fanout,
        catchup=unused,
        history=unused,
        pages=unused,
        rates=unused,
        metrics=unused,
    )
    starts = await subscriptions.find_starts({type: Position("e", 9) for type in TYPES})
    assert now - 100.0 < AHEAD_SECONDS + module.LONGEST_AHEAD_PAUSE + 0.001
    for start in starts.values():
        assert (start.position, start.recovered) == (Position("e", 4), False)
        assert start.gap is not None
        assert start.gap.reason == "epoch"
