"""How a worker leaves: others go on with what it serves, or what cannot go on ends in good order.

The old worker answers until no request is in progress, however slowly it arrives, for at most
GRACEFUL_TIMEOUT. Connections that are at rest go on in another worker without their clients
noticing. Where there is none, answers say that the connection ends.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aiohttp import web

from app.worker import Worker
from workers.handoff.giver import Outcome, Succession
from workers.handoff.report import Handoff
from workers.handoff.waiting import wait_for_heir
from workers.leader.election import Leader
from workers.shared.slots import SlotTable

LATE_SECONDS = 0.2
"""How long a worker without a successor still answers on connections that are at rest."""
_INTERVAL = 0.02
_SHARE = 0.9
"""Of GRACEFUL_TIMEOUT: the master kills what takes longer."""

log = logging.getLogger(__name__)


class Departure:
    """The last thing that a worker does before it ends.

    Args:
        parts: of this worker.
        runner: serves its HTTP connections.
        succession: gives connections to other workers.
        leader: of this machine, should this worker be it.
        slots: the slot table.
        row: this worker's row.
        data_dir: of the service.
    """

    def __init__(
        self,
        parts: Worker,
        runner: web.AppRunner,
        succession: Succession,
        leader: Leader,
        slots: SlotTable,
        row: int,
        data_dir: Path,
    ) -> None:
        self._parts = parts
        self._runner = runner
        self._succession = succession
        self._leader = leader
        self._slots = slots
        self._row = row
        self._data_dir = data_dir

    async def run(self) -> bool:
        """Wait for a successor and give it everything; False: stay, there is none."""
        if not await wait_for_heir(self._slots, self._row):
            return False
        succession = self._succession
        first = await succession.give_all()
        if first.orphaned:
            log.error("The workers that took over are gone: this one goes on serving")
            return False
        await self._leader.stop()
        for site in list(self._runner.sites):
            await site.stop()
        last = await self._finish_requests()
        await succession.stop()
        self._parts.metrics.handed_over["passed"].inc(first.passed + last.passed)
        report = Handoff.of(first, last)
        report.save(self._data_dir)
        log.info("%s", report)
        return True

    async def _finish_requests(self) -> Outcome:
        """Answer what is in progress, and give what is at rest.

        What is in progress may turn out to be an upgrade, so sessions are given as well.
        """
        parts, succession = self._parts, self._succession
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome = await succession.give_all()
        until = began + self._seconds(outcome.left)
        drain: asyncio.Task[None] | None = None
        while not parts.is_hurried():
            await succession.give_http()
            if succession.has_takers():
                if succession.http.is_empty():
                    break
            else:
                parts.closing = True
                if drain is None:
                    drain = loop.create_task(parts.drain())
                late = loop.time() - began >= LATE_SECONDS
                if drain.done() and late and not succession.http.is_answering():
                    break
            if loop.time() >= until:
                break
            await asyncio.sleep(_INTERVAL)
            if drain is None and len(parts.registry):
                outcome.add(await succession.give_all())
        if drain is not None:
            await drain
        return outcome

    def _seconds(self, left: int) -> float:
        """How long requests may go on: what is left over is drained after them."""
        settings = self._parts.settings
        seconds = settings.graceful_timeout * _SHARE
        return max(1.0, seconds - settings.drain_seconds) if left else seconds
