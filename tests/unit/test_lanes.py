"""The broadcast queue over a Cluster: a type that waits holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from app.broadcast.lanes import LanedQueue
from app.broadcast.queue import BATCH_MESSAGES
from app.errors import BackplaneUnavailable
from app.supervisor import Supervisor
from app.types import Draft, Position, Priority
from tests.support.backplane import draft
from tests.support.queues import futures_of
from tests.support.slots import TableSlots
from tests.support.waiting import until


class World:
    """A queue, and what stores its batches: those of a type in `held` wait."""

    def __init__(self) -> None:
        self.held: dict[str, asyncio.Event] = {}
        self.batches: list[list[Draft]] = []
        self.slots = TableSlots()
        self.queue = LanedQueue(self.slots, self)
        self.queue.start(Supervisor())

    async def store(
        self, drafts: Sequence[Draft], deadline: float
    ) -> list[Position | BackplaneUnavailable]:
        self.batches.append(list(drafts))
        (type,) = {one.type for one in drafts}
        if type in self.held:
            await self.held[type].wait()
        return [Position("e", number) for number, _ in enumerate(drafts, 1)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.queue.close(0)


async def test_a_type_that_waits_holds_up_no_other(world: World) -> None:
    held = world.held["config"] = asyncio.Event()
    first = world.queue.submit(draft(type="config"))
    await until(lambda: len(world.batches) == 1)
    second = world.queue.submit(draft(type="config"))
    assert (await world.queue.submit(draft(type="status"))).seq == 1
    assert (await world.queue.submit(draft(type="status"))).seq == 1
    assert not first.done()
    assert [batch[0].type for batch in world.batches] == ["config", "status", "status"]
    assert world.queue.length() == 2
    held.set()
    await asyncio.gather(first, second)
    assert [batch[0].type for batch in world.batches][3:] == ["config"]
    await until(lambda: not world.queue.length())
    assert world.queue.bytes == 0
    assert world.slots.queue_totals().messages == 0


async def test_messages_of_one_call_go_by_type_and_rank(world: World) -> None:
    drafts = [
        draft(b"1", "status", priority=Priority.LOW),
        draft(b"2", "config"),
        draft(b"3", "status", priority=Priority.HIGH),
    ]
    for future in futures_of(world.queue, drafts):
        assert isinstance(future, asyncio.Future)
        await future
    assert [[one.body for one in batch] for batch in world.batches] == [[b"3", b"1"], [b"2"]]


async def test_a_batch_is_bounded(world: World) -> None:
    futures = [world.queue.submit(draft(type="status")) for _ in range(BATCH_MESSAGES + 1)]
    await asyncio.gather(*futures)
    assert [len(batch) for batch in world.batches] == [BATCH_MESSAGES, 1]


async def test_what_waits_fails_when_it_is_closed() -> None:
    world = World()
    world.held["config"] = asyncio.Event()
    futures = [world.queue.submit(draft(type="config"))]
    await until(lambda: bool(world.batches))
    futures.append(world.queue.submit(draft(type="config")))
    await world.queue.close(0.01)
    for future in futures:
        with pytest.raises(BackplaneUnavailable):
            await future
    assert world.slots.queue_totals().messages == 0
