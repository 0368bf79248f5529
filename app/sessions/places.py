"""The places of this worker's connections in the cap of the machine.

A count that all processes share costs a lock each time. When clients come or go at once, several places
are counted at a time, and what is left over at the end of the pass of the loop is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.ports import Slots

FEW, AT_ONCE = 3, 16
"""Takes of a pass from which on several are taken together, where the cap is far, and how many at most."""


class Places:
    """Takes places for connections, and gives them back.

    Args:
        slots: counts those of all workers.
        now: seconds that are the same throughout a pass; None: the time of the loop.
    """

    def __init__(self, slots: Slots, now: Callable[[], float] | None = None) -> None:
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._now = now or self._loop.time
        self._taken_at = self._released_at = -1.0
        """When the last places were taken from the slots, and given back to them."""
        self._spare = 0
        """Places that are counted and not taken."""
        self._taken = 0
        """Places that were taken in this pass."""

    def reserve_connection(self) -> bool:
        """Count one connection more; False when the machine is at its cap."""
        if self._spare:
            self._spare -= 1
            self._taken += 1
            return True
        # As many as in the pass before, and then as many again.
        wanted = min(self._taken, AT_ONCE) if self._taken >= FEW else 1
        now = self._now()
        if now != self._taken_at:
            self._taken_at, self._taken = now, 0
        counted = self._slots.reserve_connections(wanted)
        if counted > 1:
            self._keep(counted - 1)
        self._taken += 1
        return counted > 0

    def release_connection(self) -> None:
        """Count one connection less."""
        now = self._now()
        if now == self._released_at:
            self._keep(1)
        else:
            self._released_at = now
            self._slots.release_connection()

    def _keep(self, count: int) -> None:
        if not self._spare:
            self._loop.call_soon(self._settle)
        self._spare += count

    def _settle(self) -> None:
        spare, self._spare = self._spare, 0
        if spare:
            self._slots.release_connections(spare)
