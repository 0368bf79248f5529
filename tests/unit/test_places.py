"""Places in the cap: exact where the cap is near, and few locks where clients come at once."""

from __future__ import annotations

import asyncio

import uvloop

from app.config import Settings
from app.config import load as load_settings
from app.sessions.places import AT_ONCE, Places
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


def test_clients_that_come_at_once_are_counted_together() -> None:
    async def come_and_go() -> None:
        slots = Counted(settings(10_000))
        places = Places(slots)
        assert all(places.reserve_connection() for _ in range(1 + 2 * AT_ONCE - 3))
        assert slots.calls == 3
        assert slots.connections == 1 + 2 * AT_ONCE, "counted ahead"
        await pass_of_the_loop()
        assert slots.connections == 2 * AT_ONCE - 2
        slots.calls = 0
        for _ in range(AT_ONCE):
            places.release_connection()
        assert slots.calls == 1
        assert places.reserve_connection(), "one of those that were given back"
        await pass_of_the_loop()
        assert slots.connections == AT_ONCE - 1
        assert slots.calls == 2

    uvloop.run(come_and_go())


def test_the_cap_is_exact() -> None:
    async def come() -> None:
        table = new_table()
        slots, other = TableSlots(settings(40), table=table), TableSlots(settings(40), table=table)
        places, theirs = Places(slots), Places(other)
        taken = [places.reserve_connection() and theirs.reserve_connection() for _ in range(20)]
        assert all(taken)
        assert not places.reserve_connection()
        assert not theirs.reserve_connection()
        places.release_connection()
        assert places.reserve_connection()
        assert slots.connections == 40

    uvloop.run(come())


async def pass_of_the_loop() -> None:
    """Let the pass end, and the time of the loop go on."""
    await asyncio.sleep(0.005)
