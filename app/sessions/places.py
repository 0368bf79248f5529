"""The places of this worker's connections in the cap of the machine.

A count that all processes share costs a lock each time. When clients come or go at once, several places
are counted at a time, and what is left over at the end of the pass of the loop is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.ports import Slots

AT_ONCE = 16
"""Places that are taken together, where the cap is far."""


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
        self._pass = -1.0
        """Time of the loop of the last call, which is the same throughout a pass."""
        self._spare = 0
        """Places that are counted and not taken."""

    def reserve_connection(self) -> bool:
        """Count one connection more; False when the machine is at its cap."""
        if self._spare:
            self._spare -= 1
            return True
        if not self._is_same_pass():
            return self._slots.reserve_connection()
        counted = self._slots.reserve_connections(AT_ONCE)
        if counted > 1:
            self._keep(counted - 1)
        return counted > 0

    def release_connection(self) -> None:
        """Count one connection less."""
        if self._is_same_pass():
            self._keep(1)
        else:
            self._slots.release_connection()

    def _is_same_pass(self) -> bool:
        before, self._pass = self._pass, self._now()
        return before == self._pass

    def _keep(self, count: int) -> None:
        if not self._spare:
            self._loop.call_soon(self._settle)
        self._spare += count

    def _settle(self) -> None:
        spare, self._spare = self._spare, 0
        if spare:
            self._slots.release_connections(spare)
