"""The broadcast queue over a Cluster: one batch of each type at a time, not one of all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from app.broadcast.queue import BATCH_BYTES, BATCH_MESSAGES, BroadcastQueue, Entry, Outcome
from app.errors import BackplaneUnavailable


class LanedQueue(BroadcastQueue):
    """As `BroadcastQueue`, but a type that its node does not take holds up no other type."""

    def _leave(self) -> None:
        """Let `_run` begin with what waits."""
        self._wake.set()

    async def _run(self) -> None:
        lanes: set[str] = set()
        async with asyncio.TaskGroup() as flights:
            while True:
                await self._wake.wait()
                self._wake.clear()
                for type, batch in self._next_batches(lanes).items():
                    lanes.add(type)
                    flights.create_task(self._fly(type, batch, lanes))
                if any(self._waiting):
                    self._watch()
                self._show()

    async def _fly(self, type: str, batch: list[Entry], lanes: set[str]) -> None:
        self._flying = [*self._flying, *batch]
        outcomes: Sequence[Outcome] = [BackplaneUnavailable()] * len(batch)
        try:
            outcomes = await self._store(batch)
        finally:
            lanes.discard(type)
            landed = set(map(id, batch))
            self._flying = [entry for entry in self._flying if id(entry) not in landed]
            self._land(batch, outcomes)
            if any(self._waiting):
                self._wake.set()
            elif not (self._newcomers or self._flying):
                self._rest()

    def _next_batches(self, busy: set[str]) -> dict[str, list[Entry]]:
        """Take what can be stored now: of each type that is not under way, up to a full batch."""
        batches: dict[str, list[Entry]] = {}
        sizes: dict[str, int] = {}
        full = set(busy)
        for entries in self._waiting:
            left: list[Entry] = []
            for entry in entries:
                type = entry.draft.type
                if type not in full:
                    batch = batches.setdefault(type, [])
                    size = sizes[type] = sizes.get(type, 0) + entry.size
                    if not batch or (len(batch) < BATCH_MESSAGES and size <= BATCH_BYTES):
                        batch.append(entry)
                        continue
                    full.add(type)
                left.append(entry)
            entries.clear()
            entries.extend(left)
        return batches
