"""From the streams to the clients of this worker: read, write, carry out, one batch at a time."""

from __future__ import annotations

import asyncio
import logging
import time

from app.backplane.history import History
from app.backplane.reader import Batch, Reader
from app.backplane.scripts import CONTROL
from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.canary import PROBE, Canary
from app.sessions.socketio.manager import StreamManager
from app.supervisor import Supervisor
from app.types import Message

logger = logging.getLogger("realtime.worker")

NAME = "delivery"
_SHORTEST_PAUSE = 0.002
"""Seconds: a shorter rest is owed until there is more of it."""
_REST = 0.5
"""Seconds of rest for each second of writing: so writing takes two thirds of the time at most."""


class Rests:
    """How long delivery rests between flushes, so that new connections and input get their turn.

    What it has waited for messages counts as rest: only messages that come faster than they can be
    written wait for one another.

    Args:
        longest: seconds.
        now: monotonic seconds.
    """

    def __init__(self, longest: float, now: float) -> None:
        self._longest = longest
        self._ended = now
        self._owed = 0.0

    def after(self, began: float, ended: float) -> float:
        """Seconds to rest after a flush between these two times; 0.0: none."""
        owed = max(0.0, self._owed - (began - self._ended)) + (ended - began) * _REST
        self._owed, self._ended = min(owed, self._longest), ended
        return self._owed if self._owed > _SHORTEST_PAUSE else 0.0


class Delivery:
    """Delivers what the reader reads.

    What cannot be delivered is skipped and counted; everything else arrives in its order.

    Args:
        reader: started.
        history: remembers what was read.
        fanout: writes messages to subscribers.
        catchup: brings those up to date that a fault has kept from it.
        manager: carries out control messages between workers.
        canary: is notified of probes.
        supervisor: notes what was skipped.
        flush_interval: seconds to rest at most after a flush.
    """

    def __init__(
        self,
        reader: Reader,
        history: History,
        fanout: FanOut,
        catchup: CatchUp,
        manager: StreamManager,
        canary: Canary,
        supervisor: Supervisor,
        flush_interval: float,
    ) -> None:
        self._reader = reader
        self._history = history
        self._fanout = fanout
        self._catchup = catchup
        self._manager = manager
        self._canary = canary
        self._supervisor = supervisor
        self._flush_interval = flush_interval

    async def run(self) -> None:
        """Deliver for ever, one flush after the other."""
        rests = Rests(self._flush_interval, time.monotonic())
        while True:
            batch = await self._reader.read()
            began = time.monotonic()
            await self._deliver(batch)
            rest = rests.after(began, time.monotonic())
            if rest:
                await asyncio.sleep(rest)

    async def _deliver(self, batch: Batch) -> None:
        """Deliver a batch. Raises nothing but cancellation."""
        if batch.messages:
            try:
                self._history.remember(batch.messages)
            except Exception as error:  # noqa: BLE001 (it can be read again from the stream)
                self._supervisor.note(NAME, error)
            try:
                await self._fanout.deliver(batch.messages)
            except Exception as error:  # noqa: BLE001 (those that were not written catch up)
                self._supervisor.note(NAME, error)
            for subscriber in self._fanout.take_awaiting():
                self._catchup.start(subscriber)
        if batch.control_lost:
            logger.warning(
                "The backplane lost its data: control messages between workers are missing"
            )
        if batch.control:
            try:
                self._history.remember(batch.control)
            except Exception as error:  # noqa: BLE001 (it can be read again from the stream)
                self._supervisor.note(NAME, error)
        for message in batch.control:
            await self._carry_out(message)
        self._manager.reach(self._reader.positions[CONTROL])

    async def _carry_out(self, message: Message) -> None:
        try:
            if message.body == PROBE:
                self._canary.note_received()
            await self._manager.handle_control(message)
        except Exception as error:  # noqa: BLE001 (the next messages do not depend on it)
            self._supervisor.note(NAME, error)
