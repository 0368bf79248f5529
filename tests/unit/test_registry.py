"""The sessions of a worker by id: added, renamed, removed."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.delivery import turn
from tests.support.sessions import Worker


async def test_a_session_is_found_under_its_new_id_only(worker: Worker) -> None:
    registry, session = worker.context.registry, worker.client("a").session
    registry.rename(session, "b")
    assert registry.by_id == {"b": session}
    assert session.id == "b"
    registry.rename(session)
    assert session.id not in {"a", "b"}
    assert registry.by_id == {session.id: session}


async def test_a_session_that_has_ended_is_not_renamed_but_removed(worker: Worker) -> None:
    registry, session = worker.context.registry, worker.client("a").session
    session.drop("gone")
    registry.add(session)
    registry.rename(session, "b")
    assert len(registry) == 0
    assert session.id == "a"


async def test_another_session_with_the_same_id_stays(worker: Worker) -> None:
    registry, old = worker.context.registry, worker.client("a").session
    new = worker.client("a").session
    registry.forget(old)
    assert registry.all() == [new]
    registry.discard("a")
    registry.discard("a")
    assert registry.all() == []


async def test_all_are_ended_when_the_service_stops(worker: Worker) -> None:
    clients = [worker.client("a"), worker.client("b")]
    worker.context.registry.end_all()
    assert [await client.close_code() for client in clients] == [1001, 1001]


@pytest.mark.parametrize("how", ["forget", "discard", "rename"])
async def test_an_id_becomes_free_when_its_session_is_removed(worker: Worker, how: str) -> None:
    registry, session = worker.context.registry, worker.client("a").session
    waiting = [asyncio.create_task(registry.wait_free("a", 1000.0)) for _ in range(3)]
    other = asyncio.create_task(registry.wait_free("b", 1000.0))
    await turn()
    assert other.done(), "no session has it"
    waiting[0].cancel()
    await turn()
    assert not waiting[1].done()
    match how:
        case "forget":
            session.drop("gone")
        case "discard":
            registry.discard("a")
        case _:
            registry.rename(session, "b")
    await asyncio.gather(*waiting[1:])


async def test_the_wait_for_an_id_ends_in_time(worker: Worker) -> None:
    registry = worker.context.registry
    worker.client("a")
    await registry.wait_free("a", 0.0)
    assert "a" in registry.by_id
    later = asyncio.create_task(registry.wait_free("a", 1000.0))
    await turn()
    registry.discard("a")
    await later
