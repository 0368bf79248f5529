"""Which worker may leave, on a real slot table with rows of this process in the roles of others."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.clock import elapse, virtual_time
from workers.handoff.waiting import wait_for_successor
from workers.shared.slots import LEAVING, READY, SlotTable


@pytest.fixture
def own(table: SlotTable) -> int:
    row = table.claim_row(master=1)
    table.set_state(row, LEAVING)
    return row


def free(table: SlotTable, row: int) -> None:
    """Free one of the rows of this process; `SlotTable.free` would take the first."""
    with table.lock:
        table._free_row(row)


async def waiting(table: SlotTable, own: int, seconds: float) -> asyncio.Task[bool]:
    """A wait that has not come to an end yet."""
    task = asyncio.create_task(wait_for_successor(table, own))
    await elapse(seconds)
    assert not task.done()
    return task


@virtual_time
async def test_successor_that_gets_ready(table: SlotTable, own: int) -> None:
    successor = table.claim_row(master=1)
    task = await waiting(table, own, 0.5)
    table.set_state(successor, READY)
    assert await task


@virtual_time
async def test_a_successor_that_takes_long_from_its_fork_to_its_row(
    table: SlotTable, own: int
) -> None:
    table.note_fork()
    task = await waiting(table, own, 2)
    successor = table.claim_row(master=1)
    await elapse(0.5)
    assert not task.done()
    table.set_state(successor, READY)
    assert await task


@virtual_time
async def test_a_successor_that_gets_no_row(table: SlotTable, own: int) -> None:
    table.note_fork()
    task = await waiting(table, own, 2)
    table.give_up_claim()
    assert not await task


@virtual_time
async def test_a_forked_process_that_vanished_is_not_waited_for_without_end(
    table: SlotTable, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.note_fork()
    monkeypatch.setattr("workers.shared.slots.FORK_PATIENCE", 0.0)
    assert await wait_for_successor(table, own)


@virtual_time
async def test_successors_that_die(table: SlotTable, own: int) -> None:
    successors = [table.claim_row(master=1) for _ in range(2)]
    task = await waiting(table, own, 0.1)
    free(table, successors[0])
    await elapse(0.1)
    assert not task.done()
    free(table, successors[1])
    assert not await task


@virtual_time
async def test_successors_that_die_while_a_sibling_stays(table: SlotTable, own: int) -> None:
    sibling = table.claim_row(master=1)
    table.set_state(sibling, LEAVING)
    successor = table.claim_row(master=1)
    task = await waiting(table, own, 0.1)
    table.set_state(sibling, READY)
    free(table, successor)
    assert not await task, (
        "the sibling found that there is no successor: that is no successor either"
    )


@virtual_time
async def test_one_successor_of_two_is_enough(table: SlotTable, own: int) -> None:
    successors = [table.claim_row(master=1) for _ in range(2)]
    task = await waiting(table, own, 0.1)
    free(table, successors[0])
    table.set_state(successors[1], READY)
    assert await task


@virtual_time
async def test_service_that_stops(table: SlotTable, own: int) -> None:
    table.set_state(table.claim_row(master=1), LEAVING)
    starting = table.claim_row(master=1)
    task = await waiting(table, own, 0.4)
    table.set_state(starting, LEAVING)  # it got TERM before it was ready
    free(table, starting)
    assert await task


@virtual_time
async def test_sibling_that_is_late_to_leave(table: SlotTable, own: int) -> None:
    sibling = table.claim_row(master=1)
    table.set_state(sibling, READY)
    task = await waiting(table, own, 0.1)
    successor = table.claim_row(master=1)
    table.set_state(sibling, LEAVING)
    await elapse(0.4)
    assert not task.done()
    table.set_state(successor, READY)
    assert await task


@virtual_time
async def test_one_worker_less(table: SlotTable, own: int) -> None:
    table.set_state(table.claim_row(master=1), READY)
    assert await wait_for_successor(table, own)


@virtual_time
async def test_a_worker_leaves_until_its_master_has_noticed_the_death_of_successors(
    table: SlotTable, own: int
) -> None:
    """Until then it gets TERM again, which would be a new one if it had stayed already."""
    table.set_state(table.claim_row(master=1), LEAVING)
    successor = table.claim_row(master=1)
    counted = True
    task = asyncio.create_task(wait_for_successor(table, own, lambda: counted))
    await elapse(0.1)
    free(table, successor)
    await elapse(2)
    assert not task.done()
    counted = False
    assert not await task


@virtual_time
async def test_a_master_that_never_notices_is_not_waited_for_without_end(
    table: SlotTable, own: int
) -> None:
    successor = table.claim_row(master=1)
    task = asyncio.create_task(wait_for_successor(table, own, lambda: True))
    await elapse(0.1)
    free(table, successor)
    await elapse(9)
    assert not task.done()
    await elapse(2)
    assert not await task
