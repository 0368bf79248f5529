"""How a worker leaves: others go on with what it serves, or what cannot go on ends in good order.

The old worker answers until no request is in progress, however slowly it arrives, for at most
GRACEFUL_TIMEOUT. Connections that are at rest go on in another worker without their clients
noticing. Where there is none, answers say that the connection ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from app.worker import Worker
from workers.handoff.giver import Giver
from workers.handoff.report import HandoffReport, Outcome
from workers.handoff.successor import Successor
from workers.handoff.waiting import counts_dead_workers, wait_for_successor
from workers.shared.slots import SlotTable

LATE_SECONDS = 0.2
"""How long a worker without a successor still answers on connections that are at rest."""
_INTERVAL = 0.02
_SHARE = 0.9
"""Of GRACEFUL_TIMEOUT: the master kills what takes longer."""

logger = logging.getLogger(__name__)


class Departure:
    """The last thing that a worker does before it ends.

    Args:
        worker: this one.
        runner: serves its HTTP connections.
        giver: gives its connections to other workers.
        successor: takes those of others over, until it leaves itself.
        stop_leading: gives leadership up, should this worker have it.
        slots: the slot table.
        row: this worker's row.
        master: pid of its master.
        data_dir: of the service.
    """

    def __init__(
        self,
        worker: Worker,
        runner: web.AppRunner,
        giver: Giver,
        successor: Successor,
        stop_leading: Callable[[], Awaitable[None]],
        slots: SlotTable,
        row: int,
        master: int,
        data_dir: Path,
    ) -> None:
        self._worker = worker
        self._runner = runner
        self._giver = giver
        self._successor = successor
        self._stop_leading = stop_leading
        self._slots = slots
        self._row = row
        self._master = master
        self._data_dir = data_dir

    async def run(self) -> bool:
        """Wait for a successor and give it everything; False: stay, there is none."""
        if not await wait_for_successor(
            self._slots, self._row, lambda: counts_dead_workers(self._master, self._slots)
        ):
            return False
        first = await self._giver.give_all()
        if first.orphaned:
            logger.error("The workers that took over are gone: this one goes on serving")
            return False
        await self._stop_leading()
        for site in list(self._runner.sites):
            await site.stop()
        last = await self._finish_requests()
        await self._successor.stop()
        self._worker.parts.metrics.handed_over["passed"].inc(first.passed + last.passed)
        report = HandoffReport.of(first, last)
        report.save(self._data_dir)
        logger.info("%s", report)
        return True

    async def _finish_requests(self) -> Outcome:
        """Answer what is in progress, and give what is at rest.

        What is in progress may turn out to be an upgrade, so sessions are given as well.
        """
        worker, giver = self._worker, self._giver
        registry = worker.parts.sessions.registry
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome = await giver.give_all()
        until = began + self._seconds(outcome.left)
        drain: asyncio.Task[None] | None = None
        while not worker.is_hurried():
            await giver.give_http()
            if giver.has_http_successors():
                if giver.http.is_empty():
                    break
            else:
                worker.end_keep_alive()
                if drain is None:
                    drain = loop.create_task(worker.drain())
                late = loop.time() - began >= LATE_SECONDS
                if drain.done() and late and not giver.http.is_answering():
                    break
            if loop.time() >= until:
                break
            await asyncio.sleep(_INTERVAL)
            if drain is None and len(registry):
                outcome.add(await giver.give_all())
        if drain is not None:
            await drain
        return outcome

    def _seconds(self, left: int) -> float:
        """How long requests may go on: what is left over is drained after them."""
        settings = self._worker.parts.settings
        seconds = settings.graceful_timeout * _SHARE
        return max(1.0, seconds - settings.drain_seconds) if left else seconds
