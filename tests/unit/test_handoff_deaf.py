"""What a deaf worker does, on a real slot table with rows of this process in all roles."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from app.seconds import REST, next_second, seconds_of
from tests.support.clock import elapse, virtual_time
from workers.handoff.deaf import GRACE, DeafWatch
from workers.shared.slots import READY, SlotTable

MASTER = os.getppid()


class Scene:
    """One worker that may be deaf, and its siblings."""

    def __init__(self, table: SlotTable) -> None:
        self.table = table
        self.deaf = True
        self.sent: list[tuple[int, int]] = []
        self.row = self.worker({"deaf": True})
        self.watch = DeafWatch(
            table,
            self.row,
            lambda: self.deaf,
            MASTER,
            kill=lambda pid, signum: self.sent.append((pid, signum)),
        )

    def worker(self, stats: dict[str, bool]) -> int:
        row = self.table.claim_row(master=MASTER)
        self.table.set_state(row, READY)
        self.table.set_stats(row, stats)
        return row

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.watch.look(1.0)


@pytest.fixture
def scene(table: SlotTable) -> Scene:
    return Scene(table)


def test_leaves_after_a_grace_when_a_sibling_receives(scene: Scene) -> None:
    scene.worker({"hears": True})
    scene.pass_time(GRACE)
    assert scene.sent == []
    scene.pass_time(1)
    assert scene.sent == [(os.getpid(), signal.SIGTERM)]


def test_stays_when_it_comes_round(scene: Scene) -> None:
    scene.worker({"hears": True})
    scene.pass_time(GRACE)
    scene.deaf = False
    scene.pass_time(1)
    scene.deaf = True
    scene.pass_time(GRACE)
    assert scene.sent == []


def test_alone_it_asks_for_another_once_and_leaves_when_that_receives(scene: Scene) -> None:
    scene.pass_time(GRACE + 20)
    assert scene.sent == [(MASTER, signal.SIGTTIN)]
    successor = scene.table.claim_row(master=MASTER)
    scene.pass_time(20)
    scene.table.set_state(successor, READY)
    scene.pass_time(20)
    assert scene.sent == [(MASTER, signal.SIGTTIN)], "the successor has received nothing yet"
    scene.table.set_stats(successor, {"hears": True})
    scene.pass_time(1)
    assert scene.sent[1:] == [(MASTER, signal.SIGTTOU)]


def test_one_asks_for_all(scene: Scene) -> None:
    other = scene.worker({"deaf": True})
    second = DeafWatch(
        scene.table,
        other,
        lambda: True,
        MASTER,
        kill=lambda pid, signum: scene.sent.append((pid, signum)),
    )
    for _ in range(30):
        second.look(1.0)
    assert scene.sent == []
    scene.pass_time(GRACE + 1)
    assert scene.sent == [(MASTER, signal.SIGTTIN)]


def test_gives_the_other_back_when_it_comes_round(scene: Scene) -> None:
    scene.pass_time(GRACE + 1)
    scene.deaf = False
    scene.pass_time(10)
    assert scene.sent == [(MASTER, signal.SIGTTIN), (MASTER, signal.SIGTTOU)]


@virtual_time
async def test_a_look_counts_the_seconds_since_the_one_before() -> None:
    looks: list[float] = []

    class Watch(DeafWatch):
        def look(self, passed: float) -> None:
            looks.append(passed)

    table: Any = None
    task = asyncio.create_task(Watch(table, 0, lambda: False, 0).run())
    await next_second(every=2)
    await elapse(4.5)
    assert looks == pytest.approx([2.0] * 3, abs=0.1)
    seconds_of(asyncio.get_running_loop()).rest()
    await elapse(3 * REST)
    task.cancel()
    assert max(looks[3:]) == pytest.approx(REST, abs=0.1)
