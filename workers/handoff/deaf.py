"""Replaces a deaf worker (`app/canary.py`) and hands its connections over.

TERM is enough when a sibling receives messages: the worker hands over to its siblings, and the
master starts another in its place. Otherwise the master is asked for one worker more first (TTIN),
and for one less when that one receives messages (TTOU), which ends the oldest. If it is deaf as well,
everything stays as it is: a deaf worker still answers its clients and lets them recover.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

from app.seconds import REST, next_second
from workers.shared.slots import READY, STARTING, Row, SlotTable

GRACE = 5.0
"""Seconds in which a deaf worker may recover."""
_INTERVAL = 2
"""Seconds between two looks."""

logger = logging.getLogger(__name__)


class DeafWatch:
    """Decides every other second what this worker does about being deaf.

    Args:
        slots: the slot table.
        row: of this worker.
        is_deaf: whether it is deaf now.
        master: pid of its master.
        kill: sends a signal to a process.
    """

    def __init__(
        self,
        slots: SlotTable,
        row: int,
        is_deaf: Callable[[], bool],
        master: int,
        kill: Callable[[int, int], None] = os.kill,
    ) -> None:
        self._slots = slots
        self._row = row
        self._is_deaf = is_deaf
        self._master = master
        self._kill = kill
        self._deaf_for = 0.0
        self._asked = False

    async def run(self) -> None:
        """Look for ever."""
        before = None
        while True:
            due = await next_second(_INTERVAL, REST)
            passed = _INTERVAL if before is None else due - before
            before = due
            self.look(min(passed, REST))  # else it is this process that was stopped

    def look(self, passed: float) -> None:
        """Act, `passed` seconds after the last time."""
        if not self._is_deaf():
            self._deaf_for = 0.0
            self._give_back()
            return
        if not self._deaf_for:
            logger.error("This worker no longer gets messages from the backplane")
        self._deaf_for += passed
        if self._deaf_for <= GRACE:
            return
        rows = self._slots.rows()
        if any(row.number != self._row and _receives(row) for row in rows):
            if not self._give_back():
                logger.error(
                    "Worker no longer receives backplane messages: handing its connections over and exiting"
                )
                self._kill(os.getpid(), signal.SIGTERM)
            self._deaf_for = passed
        elif not self._asked and self._is_first(rows):
            logger.error(
                "No worker receives backplane messages: asking the master for another worker"
            )
            self._asked = True
            self._tell_master(signal.SIGTTIN)

    def _give_back(self) -> bool:
        """Let the master end the worker too many; it takes the oldest. False: there is none."""
        asked, self._asked = self._asked, False
        if asked:
            self._tell_master(signal.SIGTTOU)
        return asked

    def _is_first(self, rows: list[Row]) -> bool:
        """Whether this worker is the one that asks; none does while another worker starts."""
        if any(row.state == STARTING for row in rows):
            return False
        ready = [row for row in rows if row.state == READY]
        deaf = all(row.stats.get("deaf") for row in ready)
        return deaf and bool(ready) and min(row.number for row in ready) == self._row

    def _tell_master(self, signum: signal.Signals) -> None:
        if os.getppid() == self._master:
            self._kill(self._master, signum)


def _receives(row: Row) -> bool:
    return row.state == READY and bool(row.stats.get("hears")) and not row.stats.get("deaf")
