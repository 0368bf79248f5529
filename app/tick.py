"""What a worker does once a second, or more rarely while it rests."""

from __future__ import annotations

import asyncio
import logging

from app.exports import Exports
from app.figures import Figures
from app.memory import Memory
from app.metrics import Metrics
from app.seconds import REST, next_second, seconds_of
from app.sessions.rates import Rates
from app.transport.endings import Endings
from app.transport.hub import Hub

logger = logging.getLogger("realtime.worker")

QUIET_LOOKS = 5
"""After so many seconds in which nothing has happened the worker rests."""


class Tick:
    """Begins new accounts, shows figures, and looks at the memory.

    Args:
        metrics: shows how late the loop is.
        rates: what connections have used in this second.
        figures: shown to the other workers.
        exports: shown to Prometheus.
        memory: given back after a storm.
        hub: the connections of this worker.
        endings: logs which connections have ended.
    """

    def __init__(
        self,
        metrics: Metrics,
        rates: Rates,
        figures: Figures,
        exports: Exports,
        memory: Memory,
        hub: Hub,
        endings: Endings,
    ) -> None:
        self._metrics = metrics
        self._rates = rates
        self._figures = figures
        self._exports = exports
        self._memory = memory
        self._hub = hub
        self._endings = endings

    async def run(self) -> None:
        """Tick for ever."""
        loop = asyncio.get_running_loop()
        seconds = seconds_of(loop)
        while True:
            due = await next_second(at_rest=REST)
            self._metrics.loop_delay.set(max(0.0, loop.time() - due))
            self._rates.start_second()
            self._endings.look()
            is_due = True
            try:
                is_due = self._figures.look() or seconds.rests
                if self._figures.quiet_looks >= QUIET_LOOKS:
                    seconds.rest()
                elif not self._figures.quiet_looks:
                    seconds.wake()
                if is_due:
                    await self._figures.show()
                    self._exports.export()
                self._figures.read()
            except Exception:
                logger.exception("Cannot update the statistics of this second")
            if is_due:
                self._memory.look(len(self._hub))

    def end(self) -> None:
        """Log what has not been logged; the worker has closed its connections."""
        self._endings.look(is_last=True)
