"""One worker: its parts, what keeps them going, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app import delivery
from app.backplane.claims import UserClaims
from app.backplane.client import Backplane
from app.backplane.history import History
from app.backplane.publisher import StreamPublisher
from app.backplane.reader import StreamReader
from app.backplane.scripts import CONTROL
from app.backplane.series import Series
from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.broadcast.queue import BroadcastQueue
from app.canary import PROBE, Canary
from app.clock import steady_time
from app.config import Settings
from app.errors import CloseCode
from app.figures import Figures, SubscriberCounts
from app.memory import Memory
from app.metrics import Metrics
from app.ports import Slots
from app.presence import Presence
from app.protocol import envelope
from app.sessions.assembly import make_context
from app.sessions.auth import TokenVerifier
from app.sessions.rates import Limits, Rates
from app.sessions.retry import retry_reason
from app.sessions.token_keys import RemoteKeys
from app.supervisor import Supervisor
from app.transport.hub import MAX_OUTGOING, Hub
from app.types import Draft, Gap, Message, Position

logger = logging.getLogger("realtime.worker")

KEYS_FILE = "jwks.json"
"""In DATA_DIR: the last keys of AUTH_JWKS_URL."""
LEAVE_SECONDS = 2.0
"""How long a worker that stops waits for its clients to answer the close frame."""
DRAIN_RATE = 100
"""Connections a second that a drain closes at least, if that takes less than DRAIN_SECONDS."""


class Worker:
    """The parts of one worker and what keeps them going.

    Args:
        settings: of the service.
        slots: counts that the workers of this machine share.
        backplane: connected.
        reader: started.
        key: the secret that all workers share.
        max_outgoing: bytes that it holds for clients which do not read them.
    """

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        backplane: Backplane,
        reader: StreamReader,
        key: bytes,
        max_outgoing: int = MAX_OUTGOING,
    ) -> None:
        self.settings = settings
        self.slots = slots
        self.backplane = backplane
        self.reader = reader
        self.is_hurried: Callable[[], bool] = lambda: False
        """Whether the worker stops without a drain."""
        self.closing = False
        """HTTP connections end with the next answer: no worker can go on with them."""
        self.accepting = True
        """Whether this worker takes new connections."""
        self.metrics = Metrics(settings.message_types)
        self.supervisor = Supervisor(
            lambda name: self.metrics.loop_failures[name].inc(), self._give_up
        )
        self.rates = Rates(Limits.of(settings))
        self.hub = Hub(
            heartbeat_interval=settings.heartbeat_interval,
            heartbeat_timeout=settings.heartbeat_timeout,
            max_message=settings.max_message_size,
            max_incoming=settings.max_incoming_bytes,
            max_outgoing=max_outgoing,
            meter=self.rates,
        )
        self.history = History(backplane, reader.positions, self.hub.output.page)
        self.fanout = FanOut(
            self.hub,
            reader.positions,
            settings.broadcast_batch_size,
            self._on_flush,
            lambda error: self.supervisor.note(delivery.NAME, error),
        )
        self.catchup = CatchUp(self.fanout, self.history, settings.latest_only_types)
        self.publisher = StreamPublisher(backplane, reader.positions)
        self.queue = BroadcastQueue(slots, self.publisher)
        self.series = Series(backplane)
        self.claims = (
            UserClaims(backplane, slots, settings.max_connections_per_user)
            if settings.backplane_url
            else None
        )
        self.remote_keys = (
            RemoteKeys(
                settings.auth_jwks_url,
                settings.data_dir / KEYS_FILE,
                count=lambda result: self.metrics.key_fetches[result].inc(),
            )
            if settings.auth_jwks_url
            else None
        )
        self.verifier = TokenVerifier(settings, self.remote_keys)
        self.subscribers = SubscriberCounts(settings.message_types)
        self.context = make_context(
            settings=settings,
            key=key,
            hub=self.hub,
            rates=self.rates,
            fanout=self.fanout,
            catchup=self.catchup,
            history=self.history,
            slots=slots,
            claims=self.claims,
            verifier=self.verifier,
            metrics=self.metrics,
            subscribers=self.subscribers.of,
            control_position=reader.positions[CONTROL],
            send_control=self._send_control,
            publish=self.publish,
            note_unreadable=lambda: reader.unreadable.update([CONTROL]),
        )
        self.registry = self.context.registry
        self.sio = self.context.sio
        self.manager = self.sio.manager
        self.canary = Canary(
            lambda: self.queue.send_probe(PROBE),
            lambda: self.backplane.available,
            writable=lambda: self.publisher.fault is None,
        )
        self.presence = Presence(backplane.get_presence, backplane.set_presence)
        self._tasks: list[asyncio.Task[None]] = []
        self.figures = Figures(
            types=settings.message_types,
            slots=slots,
            metrics=self.metrics,
            hub=self.hub,
            fanout=self.fanout,
            registry=self.registry,
            rates=self.rates,
            manager=self.manager,
            catchup=self.catchup,
            queue=self.queue,
            reader=reader,
            history=self.history,
            backplane=backplane,
            publisher=self.publisher,
            canary=self.canary,
            subscribers=self.subscribers,
        )
        self.delivery = delivery.Delivery(
            reader,
            self.history,
            self.fanout,
            self.manager,
            self.canary,
            self.supervisor,
            settings.broadcast_flush_interval,
        )
        self.memory = Memory()

    # Publishing.

    def submit(self, draft: Draft) -> asyncio.Future[Position]:
        """Queue a message and count it when it is stored."""
        future = self.queue.submit(draft)
        future.add_done_callback(lambda done: self._count_published(draft.type, done))
        return future

    async def publish(self, type: str, event: str, data: Any) -> Position:
        """Store a message of the service's own or of an application's `emit`.

        Raises:
            ClientError: QUEUE_OVERFLOW or BACKPLANE_UNAVAILABLE.
            ValueError, TypeError: `data` is not JSON.
        """
        id = envelope.new_id()
        body = envelope.body(type, event, data, id=id)
        return await self.submit(Draft(type, event, id, body, time.time()))

    def _count_published(self, type: str, done: asyncio.Future[Position]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.metrics.published[type].inc()

    async def _send_control(self, message: dict[str, Any]) -> None:
        await self.queue.send_control(envelope.encode_json(message))

    # Delivering.

    def _on_flush(
        self, items: Sequence[Message | Gap], receivers: Mapping[str, int], began: float
    ) -> None:
        self.figures.count_flush(items, receivers, time.monotonic() - began, steady_time())

    async def _tick(self) -> None:
        """Once a second: rates, figures, and a look at the memory."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 1.0
            await asyncio.sleep(1.0)
            self.metrics.loop_delay.set(max(0.0, loop.time() - due))
            self.rates.start_second()
            if self.context.addresses is not None:
                self.context.addresses.start_second()
            try:
                await self.figures.show()
                self.figures.export()
            except Exception:
                logger.exception("cannot update the statistics of this second")
            self.memory.look(len(self.hub))

    # Beginning and end.

    def start(self) -> None:
        """Begin to store, to deliver and to count."""
        self.queue.start(self.supervisor)
        if self.claims is not None:
            self.claims.start(self.supervisor)
        self._tasks = [
            self.supervisor.start(delivery.NAME, self.delivery.run),
            self.supervisor.start("tick", self._tick),
            self.supervisor.start("canary", self.canary.run),
        ]
        if self.remote_keys is not None:
            self._tasks.append(self.supervisor.start("keys", self.remote_keys.run, vital=False))

    def _give_up(self, name: str, error: Exception) -> None:
        """Leave: clients would wait for ever, and recover on another worker."""
        logger.critical("the worker exits: %s keeps failing", name, exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)

    async def drain(self) -> None:
        """Close the connections that were not handed over, in even steps, so that clients do not return at once.

        No new connection is taken from now on; HTTP requests are answered. Answers that handlers
        of this worker await may come meanwhile.
        """
        self.accepting = False
        sessions = self.registry.all()
        self.metrics.handed_over["drained"].inc(len(sessions))
        began = time.monotonic()
        until = began + min(self.settings.drain_seconds, len(sessions) / DRAIN_RATE)
        for number, session in enumerate(sessions):
            due = began + (until - began) * number / len(sessions)
            while not self.is_hurried() and (left := due - time.monotonic()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(min(left, 0.1))
            session.end(CloseCode.RESTART, retry_reason())
        until = began + self.settings.drain_seconds
        while self.manager.awaits_answers() and not self.is_hurried() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Close every connection, store what is queued, and stop."""
        if self.accepting and not self.is_hurried():
            await self.drain()
        self.accepting = False
        self.registry.end_all()
        deadline = time.monotonic() + LEAVE_SECONDS
        while len(self.hub) and time.monotonic() < deadline:  # noqa: ASYNC110 (polled once)
            await asyncio.sleep(0.02)
        self.hub.stop()
        await self.queue.close(LEAVE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.claims is not None:
            await self.claims.close()
        with contextlib.suppress(Exception):
            self.figures.export()
        await self.backplane.close()
