"""When a worker rests: on a clock that is not waited for."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from app.seconds import REST, seconds_of
from app.tick import QUIET_LOOKS, Tick
from tests.support.clock import elapse, virtual_time


class Figures:
    """Those of a worker in which nothing happens, until a test says so."""

    def __init__(self) -> None:
        self.quiet_looks = 0
        self.happens = False
        self.looked_at: list[float] = []
        self.shown = 0

    def look(self) -> bool:
        self.looked_at.append(asyncio.get_running_loop().time())
        self.quiet_looks = 0 if self.happens else self.quiet_looks + 1
        return self.happens

    async def show(self) -> None:
        self.shown += 1


def make_tick(figures: Figures) -> Tick:
    parts: Any = SimpleNamespace(
        loop_delay=SimpleNamespace(set=lambda _: None),
        start_second=lambda: None,
        look=lambda *_: None,
        export=lambda: None,
    )
    anything: Any = figures
    return Tick(parts, parts, anything, parts, parts, [], parts)  # type: ignore[arg-type]


@virtual_time
async def test_a_worker_in_which_nothing_happens_rests_until_something_does() -> None:
    figures = Figures()
    seconds = seconds_of(asyncio.get_running_loop())
    task = asyncio.create_task(make_tick(figures).run())
    await elapse(QUIET_LOOKS + 2 * REST + 1.3)
    looks, begins = figures.looked_at, QUIET_LOOKS - 1
    assert seconds.rests
    steps = [later - earlier for earlier, later in pairwise(looks)]
    assert steps[:begins] == pytest.approx([1.0] * begins, abs=0.1)
    assert steps[begins + 1 :] == pytest.approx([REST] * len(steps[begins + 1 :]), abs=0.1)
    assert len(steps) > begins
    # Otherwise its row would look like that of a worker which hangs.
    assert figures.shown == len(looks) - QUIET_LOOKS

    figures.happens = True
    seconds.wake()  # as the first connection does
    at = asyncio.get_running_loop().time()
    await elapse(2.3)
    assert not seconds.rests
    assert [later - at <= number + 1.3 for number, later in enumerate(looks[-2:])] == [True, True]
    assert looks[-1] - looks[-2] == pytest.approx(1.0, abs=0.1)
    task.cancel()
