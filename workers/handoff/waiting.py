"""Decides by the slot table whether a worker may exit after TERM.

A reload, a change of masters, one worker less and a stop of the service all look alike to a
worker: TERM. What differs are the other workers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from workers.shared.polling import wait_until
from workers.shared.processes import children, command_line
from workers.shared.slots import READY, STARTING, SlotTable

_INTERVAL = 0.02
_SETTLED = 0.3
"""Seconds that a picture must last: workers get TERM together, but not at the same moment."""
_NOTICE_SECONDS = 10.0
"""Seconds for which it is waited at most until the master has noticed that the successors have died."""


async def wait_for_successor(
    slots: SlotTable, own_row: int, are_counted: Callable[[], bool] = lambda: False
) -> bool:
    """Wait until another worker serves (True), or the successors have died (False: stay).

    True also when all workers leave: the service is stopping, and no worker will come.

    Args:
        slots: the slot table.
        own_row: of this worker.
        are_counted: whether the master counts workers that have died. As long as it does, it has too
            many and sends TERM again, which must not be taken for the end of the service.
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
            await _wait_for_master(are_counted)
            return False
        elif seen is not bool(ready):
            # Siblings: one worker less, if they go on serving; if not, they leave as well.
            seen, since = bool(ready), loop.time()
        elif loop.time() - since >= _SETTLED:
            return True
        await asyncio.sleep(_INTERVAL)


async def _wait_for_master(are_counted: Callable[[], bool]) -> None:
    await wait_until(lambda: not are_counted(), _NOTICE_SECONDS, _INTERVAL)
    # What it has sent until then arrives: this worker is still leaving, so it changes nothing.
    await asyncio.sleep(_INTERVAL)


def counts_dead_workers(master: int, slots: SlotTable) -> bool:
    """Whether a master, the parent of this process, has children that are about to end, or zombies.

    A Valkey that it was left with is neither.
    """
    if os.getppid() != master:
        return False
    command = command_line(master)
    known = {row.pid for row in slots.rows()}
    return any(command_line(pid) in (b"", command) for pid in children(master) - known)
