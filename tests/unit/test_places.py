"""Places in the cap: exact where the cap is near, and few locks where clients come at once."""

from __future__ import annotations

import asyncio

from app.config import Settings
from app.config import load as load_settings
from app.sessions.places import AT_ONCE, Places
from tests.support.clock import Clock
from tests.support.slots import TableSlots, new_table


class Counted(TableSlots):
    """Slots that tell how often they were asked."""

    calls = 0

    def reserve_connections(self, most: int) -> int:
        self.calls += 1
        return super().reserve_connections(most)

    def release_connections(self, count: int) -> None:
        self.calls += 1
        super().release_connections(count)


def settings(cap: int) -> Settings:
    return load_settings({"MAX_TOTAL_CONNECTIONS": str(cap)})


async def test_clients_that_come_at_once_are_counted_together() -> None:
    slots = Counted(settings(10_000))
    clock = Clock(1.0)
    places = Places(slots, clock)
    assert all(places.reserve_connection() for _ in range(1 + 2 * AT_ONCE - 3))
    assert slots.calls == 7
    assert slots.connections == 40, "counted ahead"
    await pass_of_the_loop(clock)
    assert slots.connections == 2 * AT_ONCE - 2
    slots.calls = 0
    assert all(places.reserve_connection() for _ in range(AT_ONCE))
    assert slots.calls == 1, "as many as before"
    await pass_of_the_loop(clock)
    slots.calls = 0
    for _ in range(AT_ONCE):
        places.release_connection()
    assert slots.calls == 1
    assert places.reserve_connection(), "one of those that were given back"
    await pass_of_the_loop(clock)
    assert slots.connections == 2 * AT_ONCE - 1
    assert slots.calls == 2


async def test_clients_that_come_one_after_the_other_are_counted_one_by_one() -> None:
    slots = Counted(settings(10_000))
    clock = Clock(1.0)
    places = Places(slots, clock)
    for _ in range(20):
        assert places.reserve_connection()
        assert slots.connections == 1
        places.release_connection()
        await pass_of_the_loop(clock)
        assert slots.connections == 0
    assert slots.calls == 40


async def test_the_cap_is_exact() -> None:
    table = new_table()
    slots, other = TableSlots(settings(40), table=table), TableSlots(settings(40), table=table)
    places, theirs = Places(slots, Clock(1.0)), Places(other, Clock(1.0))
    taken = [places.reserve_connection() and theirs.reserve_connection() for _ in range(20)]
    assert all(taken)
    assert not places.reserve_connection()
    assert not theirs.reserve_connection()
    places.release_connection()
    assert places.reserve_connection()
    assert slots.connections == 40


async def pass_of_the_loop(clock: Clock) -> None:
    """Let what was planned for the end of this pass happen."""
    await asyncio.sleep(0)
    clock.now += 0.001
