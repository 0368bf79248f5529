"""Puts one worker together: every part is made here, by its constructor, and none is completed later.

The parts of sessions among themselves are put together in app/sessions/assembly.py, those of the
HTTP side in app/http/assembly.py. What `workers` calls, in this order: `reach_backplane`,
`make_parts`, `make_application`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app import delivery
from app.attendance import Attendance
from app.backplane.attendance import AttendanceStore
from app.backplane.claims import UserClaims
from app.backplane.client import AnyBackplane, Backplane, until_reached
from app.backplane.cluster.client import ClusterBackplane
from app.backplane.cluster.publisher import ClusterPublisher
from app.backplane.cluster.reader import ClusterReader
from app.backplane.history import History
from app.backplane.publisher import StreamPublisher
from app.backplane.reader import Reader, StreamReader
from app.backplane.replica import ReplicaFile, ReplicaRoute
from app.backplane.scripts import CONTROL
from app.backplane.series import Series
from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.broadcast.lanes import LanedQueue
from app.broadcast.queue import BroadcastQueue
from app.canary import PROBE, Canary
from app.config import Settings
from app.exports import Exports, FlushFigures
from app.figures import Figures, Sources, SubscriberCounts
from app.handlers import load_handlers
from app.http.assembly import Machine, make_application
from app.memory import Memory
from app.metrics import Metrics
from app.parts import Parts
from app.ports import Slots
from app.presence import Presence
from app.publishing import Publishing
from app.sessions.assembly import SessionNeeds, make_context
from app.sessions.auth import TokenVerifier
from app.sessions.context import SessionContext
from app.sessions.names import Names
from app.sessions.rates import Limits, Rates
from app.sessions.token_keys import RemoteKeys
from app.setting_values import cluster_address
from app.supervisor import Supervisor
from app.tick import Tick
from app.transport.endings import Endings
from app.transport.hub import MAX_OUTGOING, Hub
from app.turns import Turns
from app.worker import give_up

__all__ = [
    "Machine",
    "Reached",
    "ReplicaPlace",
    "make_application",
    "make_parts",
    "reach_backplane",
]

logger = logging.getLogger("realtime.worker")

BACKPLANE_SECONDS = 20.0
"""How long a worker waits at its start for the backplane."""
KEYS_FILE = "jwks.json"
"""In DATA_DIR: the last keys of AUTH_JWKS_URL."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A backplane that answers."""

    backplane: AnyBackplane
    """Connected."""
    reader: Reader
    """Started."""
    key: bytes
    """The secret that all workers share."""
    replica: ReplicaRoute | None = None
    """The way to the replica of this machine, if there may be one."""


@dataclass(frozen=True, slots=True)
class ReplicaPlace:
    """Where the replica of this machine is."""

    url: str
    """On which it listens."""
    note: Path
    """File in which the leader says whether it may be read."""


async def reach_backplane(
    settings: Settings, url: str, worker_name: str, replica: ReplicaPlace | None = None
) -> Reached:
    """Wait for the backplane; what a worker needs of it before it can serve.

    Args:
        settings: of the service.
        url: where the streams are.
        worker_name: names this worker among all.
        replica: of this machine, if there may be one.

    Raises:
        BackplaneUnavailable: it did not answer within `BACKPLANE_SECONDS`.
    """
    cluster = cluster_address(url)
    if cluster is not None:
        nodes = ClusterBackplane(cluster, settings, worker_name)
        return await _reach(nodes, lambda: ClusterReader(nodes))
    backplane = Backplane(url, settings, worker_name)
    route = None
    if replica is not None:
        route = ReplicaRoute(
            replica.url,
            f"yujian-read-{worker_name}",
            ReplicaFile(replica.note).read,
            backplane.note_well,
        )
    return await _reach(backplane, lambda: StreamReader(backplane, replica=route), route)


async def _reach(
    backplane: AnyBackplane, make_reader: Callable[[], Reader], route: ReplicaRoute | None = None
) -> Reached:
    deadline = asyncio.get_running_loop().time() + BACKPLANE_SECONDS

    async def attempt() -> Reached:
        await backplane.connect(deadline, replica=route is not None)
        reader = make_reader()
        await reader.start()
        return Reached(backplane, reader, await backplane.shared_key(), route)

    reached = await until_reached(attempt, deadline)
    for warning in backplane.warnings():
        logger.warning("%s", warning)
    return reached


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What all groups of parts need."""

    settings: Settings
    slots: Slots
    reached: Reached
    metrics: Metrics
    supervisor: Supervisor
    rates: Rates
    hub: Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class _Messages:
    """The way of messages, in and out."""

    publisher: StreamPublisher | ClusterPublisher
    queue: BroadcastQueue
    publishing: Publishing
    history: History
    flushes: FlushFigures
    fanout: FanOut
    catchup: CatchUp


@dataclass(frozen=True, slots=True, kw_only=True)
class _Users:
    """What is known of users."""

    claims: UserClaims | None
    remote_keys: RemoteKeys | None
    attendance: AttendanceStore
    subscribers: SubscriberCounts


def make_parts(
    settings: Settings, slots: Slots, reached: Reached, max_outgoing: int = MAX_OUTGOING
) -> Parts:
    """Make the parts of one worker.

    Args:
        settings: of the service.
        slots: counts that the workers of this machine share.
        reached: the backplane.
        max_outgoing: bytes that this worker holds for clients which do not read them.

    Raises:
        SettingsError: a file of keys cannot be used, or HANDLERS names nothing that can be loaded.
    """
    backplane = reached.backplane
    base = _make_base(settings, slots, reached, max_outgoing)
    messages = _make_messages(base)
    users = _make_users(base)
    sessions = _make_sessions(base, messages, users)
    canary = Canary(
        lambda: messages.queue.send_probe(PROBE),
        lambda: backplane.available,
        writable=lambda: messages.publisher.fault is None,
    )
    types = settings.message_types
    sources = _make_sources(base, messages, sessions, canary)
    figures = Figures(sources, slots, base.metrics, users.subscribers, types)
    exports = Exports(sources, base.metrics, messages.flushes, types)
    return Parts(
        settings=settings,
        slots=slots,
        supervisor=base.supervisor,
        metrics=base.metrics,
        publishing=messages.publishing,
        queue=messages.queue,
        backplane=backplane,
        replica=reached.replica,
        history=messages.history,
        series=Series(backplane),
        presence=Presence(backplane.get_presence, backplane.set_presence),
        claims=users.claims,
        attendance=_make_attendance(base, messages, users, sessions),
        delivery=_make_delivery(base, messages, sessions, canary),
        sessions=sessions,
        remote_keys=users.remote_keys,
        canary=canary,
        sources=sources,
        figures=figures,
        exports=exports,
        tick=_make_tick(base, figures, exports),
    )


def _make_base(settings: Settings, slots: Slots, reached: Reached, max_outgoing: int) -> _Base:
    metrics = Metrics(settings.message_types)
    rates = Rates(Limits.of(settings))
    return _Base(
        settings=settings,
        slots=slots,
        reached=reached,
        metrics=metrics,
        supervisor=Supervisor(
            lambda name, failures: metrics.loop_failures[name].inc(failures), give_up
        ),
        rates=rates,
        hub=Hub(
            heartbeat_interval=settings.heartbeat_interval,
            heartbeat_timeout=settings.heartbeat_timeout,
            max_message=settings.max_message_size,
            max_incoming=settings.max_incoming_bytes,
            max_outgoing=max_outgoing,
            meter=rates,
        ),
    )


def _make_messages(base: _Base) -> _Messages:
    settings, hub, supervisor = base.settings, base.hub, base.supervisor
    backplane, positions = base.reached.backplane, base.reached.reader.positions
    publisher, queue = _make_queue(base)
    history = History(backplane, positions, hub.output.page, hub.turns)
    flushes = FlushFigures(base.metrics)
    fanout = FanOut(
        hub,
        positions,
        settings.broadcast_batch_size,
        flushes.count,
        lambda error: supervisor.note(delivery.NAME, error),
    )
    catchup = CatchUp(
        fanout, history, settings.latest_only_types, hub.pace.slices(), Turns(hub.pace.slices())
    )
    return _Messages(
        publisher=publisher,
        queue=queue,
        publishing=Publishing(queue, hub.pace.hurry),
        history=history,
        flushes=flushes,
        fanout=fanout,
        catchup=catchup,
    )


def _make_queue(base: _Base) -> tuple[StreamPublisher | ClusterPublisher, BroadcastQueue]:
    """What stores messages, and the queue before it."""
    backplane, positions = base.reached.backplane, base.reached.reader.positions

    def count(result: str, number: int) -> None:
        base.metrics.published[result].inc(number)

    if isinstance(backplane, ClusterBackplane):
        nodes = ClusterPublisher(backplane, positions)
        return nodes, LanedQueue(base.slots, nodes, count)
    server = StreamPublisher(backplane, positions)
    return server, BroadcastQueue(base.slots, server, count, server.begin)


def _make_users(base: _Base) -> _Users:
    settings, backplane = base.settings, base.reached.backplane
    shared = bool(settings.backplane_url)
    most = settings.max_connections_per_user
    return _Users(
        claims=UserClaims(backplane, base.slots, most) if shared else None,
        remote_keys=_make_remote_keys(settings, base.metrics),
        attendance=AttendanceStore(backplane, settings.kept_types(), settings.announced_types()),
        subscribers=SubscriberCounts(settings.message_types),
    )


def _make_remote_keys(settings: Settings, metrics: Metrics) -> RemoteKeys | None:
    if not settings.auth_jwks_url:
        return None
    return RemoteKeys(
        settings.auth_jwks_url,
        settings.data_dir / KEYS_FILE,
        count=lambda result: metrics.key_fetches[result].inc(),
    )


def _make_sessions(base: _Base, messages: _Messages, users: _Users) -> SessionContext:
    settings, reader = base.settings, base.reached.reader
    verifier = TokenVerifier(settings, users.remote_keys)
    context = make_context(
        SessionNeeds(
            settings=settings,
            key=base.reached.key,
            hub=base.hub,
            rates=base.rates,
            fanout=messages.fanout,
            catchup=messages.catchup,
            history=messages.history,
            slots=base.slots,
            claims=users.claims,
            verifier=verifier,
            metrics=base.metrics,
            subscribers=users.subscribers.of,
            names=Names(
                settings.listed_types(), needs_claim=verifier.enabled, read=users.attendance.page
            ),
            control_position=reader.positions[CONTROL],
            send_control=messages.publishing.send_control,
            publish=messages.publishing.publish,
            note_unreadable=lambda: reader.unreadable.update([CONTROL]),
        )
    )
    if settings.handlers:
        load_handlers(settings.handlers, context.sio)
    return context


def _make_attendance(
    base: _Base, messages: _Messages, users: _Users, sessions: SessionContext
) -> Attendance | None:
    settings = base.settings
    if not settings.kept_types():
        return None
    return Attendance(
        users.attendance,
        sessions.registry,
        base.slots,
        kept=settings.kept_types(),
        announced=settings.announced_types(),
        publish=messages.publishing.publish,
        metrics=base.metrics,
        worker_name=base.reached.backplane.worker_name,
    )


def _make_delivery(
    base: _Base, messages: _Messages, sessions: SessionContext, canary: Canary
) -> delivery.Delivery:
    return delivery.Delivery(
        base.reached.reader,
        messages.history,
        messages.fanout,
        messages.catchup,
        sessions.sio.manager,
        canary,
        base.supervisor,
        base.settings.broadcast_flush_interval,
    )


def _make_sources(
    base: _Base, messages: _Messages, sessions: SessionContext, canary: Canary
) -> Sources:
    return Sources(
        queue=messages.queue,
        publisher=messages.publisher,
        backplane=base.reached.backplane,
        replica=base.reached.replica,
        reader=base.reached.reader,
        history=messages.history,
        fanout=messages.fanout,
        catchup=messages.catchup,
        canary=canary,
        hub=base.hub,
        rates=base.rates,
        registry=sessions.registry,
        manager=sessions.sio.manager,
    )


def _make_tick(base: _Base, figures: Figures, exports: Exports) -> Tick:
    hub = base.hub
    endings = Endings(hub.ended, hub.closed)
    return Tick(base.metrics, base.rates, figures, exports, Memory(), hub, endings)
