"""Passes of the loop are divided: messages first, and many tasks that wake up at once in turn."""

from __future__ import annotations

import asyncio

from app.turns import (
    ASKED_SECONDS,
    HURRY_SECONDS,
    MOST_AT_ONCE,
    PAUSE_SECONDS,
    REST_SECONDS,
    SHORT_SLICE,
    SLICE,
    Pace,
    Sliced,
    Turns,
)
from tests.support.waiting import until


class Clock:
    now = 100.0


def test_a_message_that_is_on_its_way_makes_slices_rare() -> None:
    clock = Clock()
    pace = Pace(clock=lambda: clock.now)
    input, door = pace.slices(), pace.slices()
    assert input() == input() == SLICE
    pace.hurry()
    assert (input(), door()) == (0.0, 0.0)
    clock.now += PAUSE_SECONDS * 1.01
    assert (input(), door()) == (0.0, SHORT_SLICE), "it has had none for longer"
    clock.now += PAUSE_SECONDS * 1.01
    assert (input(), door()) == (SHORT_SLICE, 0.0), "one slice for all of them"
    pace.relax()
    assert input() == SLICE
    pace.hurry()
    clock.now += HURRY_SECONDS
    assert input() == SLICE, "it was lost on its way"


def test_kinds_of_work_take_turns_while_messages_are_on_their_way() -> None:
    clock = Clock()
    pace = Pace(clock=lambda: clock.now)
    kinds = [pace.slices() for _ in range(6)]
    got = dict.fromkeys(range(len(kinds)), 0)
    for number in range(600):
        if number % 15 == 0:
            pace.relax()
            clock.now += REST_SECONDS * 1.01
        pace.hurry()
        given = [number for number, slice in enumerate(kinds) if slice()]
        assert len(given) <= 1, "a message waits for one at most"
        for kind in given:
            got[kind] += 1
        clock.now += PAUSE_SECONDS * 1.01
    assert min(got.values()) >= 90, got


def test_work_goes_on_beside_messages_without_end() -> None:
    """Where they come as fast as they are delivered, other work gets what it got before."""
    clock = Clock()
    pace = Pace(clock=lambda: clock.now)
    kinds = [pace.slices() for _ in range(6)]
    given = []
    for number in range(200):
        if number % 10 == 0:
            pace.relax()
        pace.hurry()
        given.append(sum(bool(slice()) for slice in kinds))
        clock.now += PAUSE_SECONDS * 1.01
    assert max(given[1:90]) == 1
    assert given[-90:] == [len(kinds)] * 90


def test_work_that_asks_no_more_keeps_no_other_waiting() -> None:
    clock = Clock()
    pace = Pace(clock=lambda: clock.now)
    gone, stays = pace.slices(), pace.slices()
    gone()
    clock.now += 1
    stays()
    pace.hurry()
    assert gone() == 0.0
    clock.now += PAUSE_SECONDS * 1.01
    assert stays() == 0.0, "the other was first"
    clock.now += ASKED_SECONDS
    assert stays() == SHORT_SLICE


async def _pass() -> None:
    """One pass of the loop."""
    await asyncio.sleep(0)


async def test_sliced_work_goes_on_until_nothing_is_left() -> None:
    left, given = 3, []

    def work(seconds: float) -> bool:
        nonlocal left
        given.append(seconds)
        left -= 1
        return left > 0

    sliced = Sliced(work, lambda: SLICE)
    sliced.plan()
    sliced.plan()
    assert given == []
    for count in (1, 2, 3, 3):
        await _pass()
        assert given == [SLICE] * count
    sliced.plan()
    await _pass()
    assert given == [SLICE] * 4, "it can be planned anew"


async def test_sliced_work_waits_while_there_is_no_slice() -> None:
    slices, given = [0.0, SHORT_SLICE], []

    def work(seconds: float) -> bool:
        given.append(seconds)
        return False

    sliced = Sliced(work, lambda: slices.pop(0))
    sliced.plan()
    await _pass()
    sliced.plan()
    await _pass()
    assert (given, slices) == ([], [SHORT_SLICE]), "it asks again after a pause, once"
    await until(lambda: not slices)
    assert given == [SHORT_SLICE]


async def test_sliced_work_that_fails_can_be_planned_again() -> None:
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))

    def work(_: float) -> bool:
        raise ValueError("on purpose")

    sliced = Sliced(work, lambda: SLICE)
    for count in (1, 2):
        sliced.plan()
        await _pass()
        assert len(failed) == count


class Work:
    """Tasks that take a turn, and then cost what a step costs."""

    def __init__(self, turns: Turns, cost: float) -> None:
        self.turns = turns
        self.cost = cost
        self.done: list[int] = []

    async def one(self, number: int) -> None:
        await self.turns.take()
        self.done.append(number)
        self.turns.spend(self.cost)

    def begin(self, count: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.one(number)) for number in range(count)]


async def test_a_pass_has_time_for_few_and_all_come_in_their_order() -> None:
    work = Work(Turns(lambda: SLICE, cost=SLICE / 2), SLICE / 2)
    tasks = work.begin(50)
    before = 0
    for _ in range(200):
        await _pass()
        assert len(work.done) - before <= 4
        before = len(work.done)
    assert work.done == list(range(50))
    await asyncio.gather(*tasks)
    assert len(work.turns) == 0


async def test_cheap_steps_are_many_in_a_pass() -> None:
    work = Work(Turns(lambda: SLICE, cost=SLICE / 1000), SLICE / 1000)
    tasks = work.begin(10 * MOST_AT_ONCE)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert work.done == list(range(10 * MOST_AT_ONCE))


async def test_without_a_slice_tasks_wait_until_there_is_one() -> None:
    slice = 0.0
    work = Work(Turns(lambda: slice), SLICE)
    tasks = work.begin(3)
    for _ in range(20):
        await _pass()
    assert work.done == []
    slice = SLICE
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert work.done == [0, 1, 2]


async def test_a_task_that_is_cancelled_while_it_waits_takes_no_turn_from_others() -> None:
    slice = 0.0
    work = Work(Turns(lambda: slice, cost=SLICE), SLICE)
    tasks = work.begin(3)
    await _pass()
    tasks[0].cancel()
    slice = SLICE
    await asyncio.wait_for(asyncio.gather(*tasks[1:]), 5)
    assert work.done == [1, 2]
