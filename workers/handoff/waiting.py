"""Decides by the slot table whether a worker may exit after TERM.

A reload, a change of masters, one worker less and a stop of the service all look alike to a
worker: TERM. What differs are the other workers.
"""

from __future__ import annotations

import asyncio

from workers.shared.slots import READY, STARTING, SlotTable

_INTERVAL = 0.02
_SETTLED = 0.3
"""Seconds that a picture must last: workers get TERM together, but not at the same moment."""


async def wait_for_successor(slots: SlotTable, own_row: int) -> bool:
    """Wait until another worker serves (True), or the successors have died (False: stay).

    True also when all workers leave: the service is stopping, and no worker will come.
    """
    failed_before = slots.failed_starts
    loop = asyncio.get_running_loop()
    successors: set[int] = set()
    seen: bool | None = None
    since = 0.0
    while True:
        slots.sweep()
        others = [row for row in slots.rows() if row.number != own_row]
        starting = {row.generation for row in others if row.state == STARTING}
        ready = {row.generation for row in others if row.state == READY}
        successors |= starting
        if ready & successors:
            return True
        if starting or slots.is_forking():
            seen = None
        elif slots.failed_starts != failed_before:
            return False
        elif seen is not bool(ready):
            # Siblings: one worker less, if they go on serving; if not, they leave as well.
            seen, since = bool(ready), loop.time()
        elif loop.time() - since >= _SETTLED:
            return True
        await asyncio.sleep(_INTERVAL)
