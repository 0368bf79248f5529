"""One wake-up a second for all that recurs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.seconds import LEAST_WAIT, REST, call_next_second, next_second, seconds_of
from tests.support.clock import VirtualLoop, elapse, virtual_time


@virtual_time
async def test_all_that_wait_go_on_in_one_pass() -> None:
    due: list[float] = []

    async def wait(after: float) -> None:
        await elapse(after)
        due.append(await next_second())

    first = await next_second()
    await asyncio.gather(*(wait(0.1 * number) for number in range(8)))
    assert due == [pytest.approx(first + 1.0)] * 8
    assert await next_second() == pytest.approx(first + 2.0)


@virtual_time
async def test_what_waits_again_at_once_gets_the_next_second() -> None:
    first = await next_second()
    for number in range(1, 6):
        assert await next_second() == pytest.approx(first + number)


@virtual_time
async def test_a_second_that_begins_soon_is_left_out() -> None:
    first = await next_second()
    await elapse(1.0 - LEAST_WAIT / 2)
    assert await next_second() == pytest.approx(first + 2.0)


@virtual_time
async def test_every_second_one_is_the_same_for_all() -> None:
    even = await next_second(every=2)
    assert await next_second() == pytest.approx(even + 1.0)
    both = await asyncio.gather(next_second(every=2), next_second(every=2))
    assert list(both) == [pytest.approx(even + 2.0)] * 2
    assert await next_second(every=2) == pytest.approx(even + 4.0)


@virtual_time
async def test_an_earlier_second_does_not_wait_for_a_later_one() -> None:
    even = await next_second(every=2)
    later = asyncio.create_task(next_second(every=2))
    await asyncio.sleep(0)
    assert await next_second() == pytest.approx(even + 1.0)
    assert await later == pytest.approx(even + 2.0)


@virtual_time
async def test_a_process_that_rests_does_most_things_rarely() -> None:
    seconds = seconds_of(asyncio.get_running_loop())
    first = await next_second(REST)
    assert not seconds.rests
    assert await next_second(at_rest=REST) == pytest.approx(first + 1.0)
    seconds.rest()
    assert seconds.rests
    assert await next_second() == pytest.approx(first + 2.0)  # what says nothing else goes on
    rarely = [await next_second(every, REST) for every in (1, 2)]
    assert rarely == pytest.approx([first + REST, first + 2 * REST])


@virtual_time
async def test_a_call_that_is_forgotten_wakes_nothing() -> None:
    loop = asyncio.get_running_loop()
    seconds, timers = seconds_of(loop), list[float]()
    call_at = loop.call_at
    loop.call_at = lambda at, act, *rest, **named: (  # type: ignore[method-assign, assignment]
        timers.append(at) or call_at(at, act, *rest, **named)
    )
    first = await next_second(REST)
    timers.clear()
    made: list[str] = []
    late = seconds.call(lambda: made.append("late"), every=REST)
    early = seconds.call(lambda: made.append("early"))
    beside = seconds.call(lambda: made.append("beside"))
    assert timers == pytest.approx([first + REST, first + 1.0])
    seconds.forget(early)
    assert timers[2:] == [], "another call waits for that second"
    seconds.forget(beside)
    assert timers[2:] == pytest.approx([first + REST])
    await elapse(REST + 0.5)
    assert made == ["late"]
    planned = len(timers)
    seconds.forget(late)  # harmless when it was done
    assert len(timers) == planned


@virtual_time
async def test_one_that_wakes_makes_up_for_it_at_once() -> None:
    seconds = seconds_of(asyncio.get_running_loop())
    first = await next_second(REST)
    seconds.rest()
    waiting = [asyncio.create_task(next_second(every, REST)) for every in (1, 2)]
    late = asyncio.create_task(next_second(2 * REST, REST))
    await elapse(0.5)
    seconds.wake()
    assert not seconds.rests
    assert await asyncio.gather(*waiting) == pytest.approx([first + 1.0, first + 2.0])
    assert await late == pytest.approx(first + REST)  # no later than it was planned
    assert await next_second(at_rest=REST) == pytest.approx(first + REST + 1.0)


@virtual_time
async def test_a_call_may_be_cancelled_before_the_process_wakes() -> None:
    seconds = seconds_of(asyncio.get_running_loop())
    seconds.wake()
    seconds.rest()
    made: list[str] = []
    call_next_second(lambda: made.append("cancelled"), REST).cancel()
    seconds.wake()
    await next_second()
    assert made == []


@virtual_time
async def test_a_cancelled_call_is_not_made() -> None:
    made: list[str] = []
    call_next_second(lambda: made.append("first")).cancel()
    kept = call_next_second(lambda: made.append("second"))
    await next_second()
    await next_second()
    assert made == ["second"]
    kept.cancel()


@virtual_time
async def test_a_call_that_fails_is_reported_and_the_others_are_made() -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    made: list[str] = []
    call_next_second(lambda: 1 // 0)
    call_next_second(lambda: made.append("second"))
    await next_second()
    assert made == ["second"]
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]


@virtual_time
async def test_a_wait_that_is_cancelled_ends_at_once() -> None:
    waiting = asyncio.create_task(next_second())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await next_second()


def test_two_loops_have_seconds_of_their_own() -> None:
    """Else the timer of a loop that is closed would be waited for."""
    for _ in range(2):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(next_second())
