"""Calls that are shared by those that want the same at the same time."""

from __future__ import annotations

import asyncio

import pytest

from app.shared_calls import SharedCalls
from app.turns import SLICE, Turns


class Source:
    """Answers when it is let, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.open = asyncio.Event()

    async def read(self) -> int:
        self.calls += 1
        number = self.calls
        await self.open.wait()
        return number


async def turn() -> None:
    await asyncio.sleep(0)


async def test_those_that_want_the_same_share_a_call_and_later_ones_get_another() -> None:
    calls, source = SharedCalls(), Source()
    tasks = [asyncio.create_task(calls.share("key", source.read)) for _ in range(3)]
    other = asyncio.create_task(calls.share("other", source.read))
    await turn()
    assert len(calls) == 2
    source.open.set()
    assert await asyncio.gather(*tasks) == [1, 1, 1]
    assert await other == 2
    assert await calls.share("key", source.read) == 3
    assert len(calls) == 0


async def test_a_caller_that_leaves_cancels_no_other() -> None:
    calls, source = SharedCalls(), Source()
    tasks = [asyncio.create_task(calls.share("key", source.read)) for _ in range(3)]
    await turn()
    tasks[0].cancel()
    await turn()
    source.open.set()
    assert await asyncio.gather(*tasks[1:]) == [1, 1]
    assert tasks[0].cancelled()
    assert len(calls) == 0


async def test_an_error_goes_to_all_and_is_not_kept() -> None:
    calls = SharedCalls()

    async def fail() -> None:
        raise OSError("away")

    results = await asyncio.gather(
        *(calls.share("key", fail) for _ in range(2)), return_exceptions=True
    )
    assert [str(result) for result in results] == ["away", "away"]
    assert len(calls) == 0


async def test_what_runs_is_known_and_can_be_waited_for() -> None:
    calls, source = SharedCalls(), Source()
    assert calls.running("key") is None
    await calls.settle("key")
    task = calls.begin("key", source.read)
    assert calls.begin("key", source.read) is calls.running("key") is task
    settling = asyncio.create_task(calls.settle("key"))
    await turn()
    assert not settling.done()
    source.open.set()
    await settling
    assert (task.result(), calls.running("key")) == (1, None)


async def test_at_the_end_what_runs_is_cancelled() -> None:
    calls, source = SharedCalls(), Source()
    waiting = asyncio.create_task(calls.share("key", source.read))
    await turn()
    await calls.close()
    assert len(calls) == 0
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await calls.close()


async def test_those_that_share_a_call_go_on_in_turn() -> None:
    turns = Turns(lambda: SLICE, cost=SLICE)
    calls = SharedCalls(turns)
    done: list[str] = []

    async def read() -> str:
        await turn()
        return "page"

    async def ask() -> None:
        done.append(await calls.share("key", read))
        turns.spend(SLICE)

    tasks = [asyncio.create_task(ask()) for _ in range(30)]
    before = most = 0
    while len(done) < 30:
        await turn()
        most, before = max(most, len(done) - before), len(done)
    assert most <= 2
    await asyncio.gather(*tasks)
