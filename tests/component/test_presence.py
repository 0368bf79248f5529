"""The presence state: what may be said, how it ages, and reads while the backplane is away."""

from __future__ import annotations

import pytest

from app.presence import SILENCE, Presence
from tests.support.backplane import MakeNode
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000.0)


async def test_workers_agree_on_since(make_node: MakeNode, clock: Clock) -> None:
    began = round(clock.now * 1000)
    workers = [
        Presence(node.backplane.get_presence, node.backplane.set_presence, clock, clock)
        for node in [await make_node(), await make_node()]
    ]
    await workers[0].update("working", "a")
    for _ in range(2):
        clock.now += 500
        await workers[1].update("working", "a")
    assert (await workers[1].read())[0].since == began
    clock.now += SILENCE + 1
    later = round(clock.now * 1000)
    await workers[1].update("working", "a")
    assert (await workers[0].read())[0].since == later
