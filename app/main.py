"""Puts one worker together: every part is made here, by its constructor, and none is completed later.

The parts of sessions among themselves are put together in app/sessions/assembly.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web
from prometheus_client.metrics_core import Metric

from app import __version__, delivery
from app.attendance import Attendance
from app.backplane.attendance import AttendanceStore
from app.backplane.claims import UserClaims
from app.backplane.client import FAILURES, AnyBackplane, Backplane
from app.backplane.cluster.client import ClusterBackplane
from app.backplane.cluster.publisher import ClusterPublisher
from app.backplane.cluster.reader import ClusterReader
from app.backplane.faults import explain
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
from app.errors import BackplaneUnavailable
from app.figures import Figures, FlushFigures, SubscriberCounts
from app.handlers import load_handlers
from app.http.admission import Admission
from app.http.audit import Audit
from app.http.bodies import Bodies
from app.http.budgets import Budgets
from app.http.clients import Clients
from app.http.context import HttpContext
from app.http.cors import Hosts, Origins
from app.http.direct import DirectCalls
from app.http.event_stream import EventStream
from app.http.metrics_page import MetricsPage
from app.http.request_head import EVENTS_PATH, PATH
from app.http.routes import add_routes
from app.http.upgrade import Upgrade
from app.http.writers import Writers
from app.machine import MachineStatus
from app.memory import Memory
from app.metrics import Metrics
from app.parts import Parts
from app.ports import Slots
from app.presence import Presence
from app.publishing import Publishing
from app.sessions.assembly import make_context
from app.sessions.auth import TokenVerifier
from app.sessions.context import SessionContext
from app.sessions.names import Names
from app.sessions.rates import Limits, Rates
from app.sessions.token_keys import RemoteKeys
from app.setting_values import cluster_address
from app.supervisor import Supervisor
from app.tick import Tick
from app.transport.door import ENTRANCE, PASSED, Entrance, Passed
from app.transport.endings import Endings
from app.transport.http_connection import CALLS
from app.transport.http_guard import GUARD, Guard
from app.transport.hub import MAX_OUTGOING, Hub
from app.turns import Turns
from app.worker import Worker, give_up

logger = logging.getLogger("realtime.worker")

BACKPLANE_SECONDS = 20.0
"""How long a worker waits at its start for the backplane."""
KEYS_FILE = "jwks.json"
"""In DATA_DIR: the last keys of AUTH_JWKS_URL."""
MAX_BODY = 64 * 1024 * 1024
"""Bytes of the body of an HTTP request, before any route looks at it."""


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
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BACKPLANE_SECONDS
    while True:
        await backplane.connect(deadline, replica=route is not None)
        reader = make_reader()
        try:
            await reader.start()
            reached = Reached(backplane, reader, await backplane.shared_key(), route)
            break
        except (*FAILURES, BackplaneUnavailable) as error:
            if loop.time() >= deadline:
                raise BackplaneUnavailable(_reason(error)) from error
            await asyncio.sleep(0.1)
    for warning in backplane.warnings():
        logger.warning("%s", warning)
    return reached


def _reason(error: Exception) -> str:
    if isinstance(error, BackplaneUnavailable):
        return error.message
    return f"The backplane cannot be used: {explain(error).words}."


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
    backplane, reader = reached.backplane, reached.reader
    metrics = Metrics(settings.message_types)
    supervisor = Supervisor(lambda name: metrics.loop_failures[name].inc(), give_up)

    # Connections.
    rates = Rates(Limits.of(settings))
    hub = _make_hub(settings, rates, max_outgoing)

    # Messages on their way in, and on their way out.
    publisher, queue = _make_queue(reached, slots, metrics)
    publishing = Publishing(queue, hub.pace.hurry)
    history = History(backplane, reader.positions, hub.output.page, hub.turns)
    flushes = FlushFigures(metrics)
    fanout = FanOut(
        hub,
        reader.positions,
        settings.broadcast_batch_size,
        flushes.count,
        lambda error: supervisor.note(delivery.NAME, error),
    )
    catchup = CatchUp(
        fanout, history, settings.latest_only_types, hub.pace.slices(), Turns(hub.pace.slices())
    )

    # Sessions.
    claims = _make_claims(settings, backplane, slots)
    remote_keys = _make_remote_keys(settings, metrics)
    subscribers = SubscriberCounts(settings.message_types)
    attendance_store = AttendanceStore(backplane, settings.kept_types(), settings.announced_types())
    verifier = TokenVerifier(settings, remote_keys)
    sessions = make_context(
        settings=settings,
        key=reached.key,
        hub=hub,
        rates=rates,
        fanout=fanout,
        catchup=catchup,
        history=history,
        slots=slots,
        claims=claims,
        verifier=verifier,
        metrics=metrics,
        subscribers=subscribers.of,
        names=Names(
            settings.listed_types(),
            needs_claim=verifier.enabled,
            read=attendance_store.page,
        ),
        control_position=reader.positions[CONTROL],
        send_control=publishing.send_control,
        publish=publishing.publish,
        note_unreadable=lambda: reader.unreadable.update([CONTROL]),
    )
    if settings.handlers:
        load_handlers(settings.handlers, sessions.sio)

    # What looks after the others.
    canary = Canary(
        lambda: queue.send_probe(PROBE),
        lambda: backplane.available,
        writable=lambda: publisher.fault is None,
    )
    figures = Figures(
        types=settings.message_types,
        slots=slots,
        metrics=metrics,
        hub=hub,
        fanout=fanout,
        registry=sessions.registry,
        rates=rates,
        manager=sessions.sio.manager,
        catchup=catchup,
        queue=queue,
        reader=reader,
        history=history,
        backplane=backplane,
        publisher=publisher,
        replica=reached.replica,
        canary=canary,
        subscribers=subscribers,
        flushes=flushes,
    )
    return Parts(
        settings=settings,
        slots=slots,
        supervisor=supervisor,
        metrics=metrics,
        publishing=publishing,
        queue=queue,
        backplane=backplane,
        replica=reached.replica,
        history=history,
        series=Series(backplane),
        presence=Presence(backplane.get_presence, backplane.set_presence),
        claims=claims,
        attendance=_make_attendance(
            settings, attendance_store, sessions, slots, publishing, backplane.worker_name
        ),
        delivery=delivery.Delivery(
            reader,
            history,
            fanout,
            catchup,
            sessions.sio.manager,
            canary,
            supervisor,
            settings.broadcast_flush_interval,
        ),
        sessions=sessions,
        remote_keys=remote_keys,
        canary=canary,
        figures=figures,
        tick=Tick(metrics, rates, figures, Memory(), hub, Endings(hub.ended, hub.closed)),
    )


def _make_hub(settings: Settings, rates: Rates, max_outgoing: int) -> Hub:
    return Hub(
        heartbeat_interval=settings.heartbeat_interval,
        heartbeat_timeout=settings.heartbeat_timeout,
        max_message=settings.max_message_size,
        max_incoming=settings.max_incoming_bytes,
        max_outgoing=max_outgoing,
        meter=rates,
    )


def _make_queue(
    reached: Reached, slots: Slots, metrics: Metrics
) -> tuple[StreamPublisher | ClusterPublisher, BroadcastQueue]:
    """What stores messages, and the queue before it."""
    backplane, positions = reached.backplane, reached.reader.positions

    def count(result: str, number: int) -> None:
        metrics.published[result].inc(number)

    if isinstance(backplane, ClusterBackplane):
        nodes = ClusterPublisher(backplane, positions)
        return nodes, LanedQueue(slots, nodes, count)
    server = StreamPublisher(backplane, positions)
    return server, BroadcastQueue(slots, server, count)


def _make_claims(settings: Settings, backplane: AnyBackplane, slots: Slots) -> UserClaims | None:
    if not settings.backplane_url:
        return None
    return UserClaims(backplane, slots, settings.max_connections_per_user)


def _make_remote_keys(settings: Settings, metrics: Metrics) -> RemoteKeys | None:
    if not settings.auth_jwks_url:
        return None
    return RemoteKeys(
        settings.auth_jwks_url,
        settings.data_dir / KEYS_FILE,
        count=lambda result: metrics.key_fetches[result].inc(),
    )


def _make_attendance(
    settings: Settings,
    store: AttendanceStore,
    sessions: SessionContext,
    slots: Slots,
    publishing: Publishing,
    worker_name: str,
) -> Attendance | None:
    if not settings.kept_types():
        return None
    return Attendance(
        store,
        sessions.registry,
        slots,
        kept=settings.kept_types(),
        announced=settings.announced_types(),
        publish=publishing.publish,
        metrics=sessions.metrics,
        worker_name=worker_name,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the other processes of this machine provide."""

    collect_metrics: Callable[[], Iterable[Metric]]
    """Joins the metrics of all workers; may block."""
    other_processes: Callable[[], Mapping[str, int]]
    """Further processes of the service, for the metrics of memory: process ids by name."""
    has_memory: Callable[[], bool]
    """Whether there is memory for more connections."""
    local_faults: Callable[[], Sequence[str]] = tuple
    """What is wrong on this machine beside, for `GET /status`."""


def either(upgrade: Entrance, events: Entrance) -> Entrance:
    """The entrance of all connections; most of them ask for an upgrade."""
    start = b"GET " + EVENTS_PATH.encode()

    def enter(fd: int, peer: str | None, data: bytes) -> Passed | None:
        if not data.startswith(b"GET "):
            return PASSED
        return (events if data.startswith(start) else upgrade)(fd, peer, data)

    return enter


def make_application(worker: Worker, machine: Machine) -> web.Application:
    """Make the HTTP side of a worker."""
    parts = worker.parts
    settings, slots, sessions = parts.settings, parts.slots, parts.sessions
    app = web.Application(client_max_size=MAX_BODY)
    clients = Clients(settings.trusted_proxies)
    origins = Origins(settings, clients)
    admission = Admission(
        settings,
        slots,
        sessions.verifier,
        clients,
        origins,
        is_serving=lambda: worker.accepts,
        has_memory=machine.has_memory,
        count_refused=lambda reason: parts.metrics.refused[reason].inc(),
        addresses=sessions.addresses,
    )
    guard = app[GUARD] = Guard(sessions.refusals.note, slices=sessions.hub.pace.slices)
    hosts = Hosts(settings, clients)
    upgrade = Upgrade(
        sessions,
        admission,
        lambda: guard.most_upgraded,
        hosts,
        lambda: parts.metrics.count_request(PATH, "GET", 101),
    )
    upgrade.add_routes(app)
    events = EventStream(
        sessions,
        admission,
        lambda: guard.most_upgraded,
        hosts,
        origins,
        lambda: parts.metrics.count_request(EVENTS_PATH, "GET", 200),
    )
    events.add_routes(app)
    app[ENTRANCE] = either(upgrade.enter, events.enter)
    limits = {
        "max_total_connections": settings.max_total_connections,
        "max_queue_size": settings.max_queue_size,
    }
    page = MetricsPage(
        slots,
        machine.collect_metrics,
        machine.other_processes,
        limits,
        settings.workers,
        shared_for=1.0,
    )
    app.router.add_get("/metrics", page.metrics)
    bodies = Bodies(sessions.hub.output, sessions.hub.unread.close_stalled)
    context = _make_http_context(worker, machine, clients, origins, hosts, bodies)
    add_routes(app, context)
    app.middlewares.insert(0, bodies.middleware())

    async def end_keep_alive(_: web.Request, response: web.StreamResponse) -> None:
        if worker.ends_keep_alive:
            response.force_close()
            # aiohttp has written this header by now; without it the client sends another request.
            response.headers[hdrs.CONNECTION] = "close"

    app.on_response_prepare.append(end_keep_alive)
    app[CALLS] = DirectCalls(context, lambda: worker.ends_keep_alive)
    return app


def _make_http_context(
    worker: Worker,
    machine: Machine,
    clients: Clients,
    origins: Origins,
    hosts: Hosts,
    bodies: Bodies,
) -> HttpContext:
    parts = worker.parts
    settings, slots, sessions = parts.settings, parts.slots, parts.sessions
    return HttpContext(
        settings=settings,
        slots=slots,
        publisher=parts.publishing,
        history=parts.history,
        presence=parts.presence,
        verifier=sessions.verifier,
        writers=Writers(settings, sessions.verifier),
        audit=Audit(
            settings.audit_rate,
            lambda label, status: parts.metrics.writes[label, str(status)].inc(),
        ),
        clients=clients,
        origins=origins,
        backplane_available=lambda: parts.backplane.available,
        warnings=parts.backplane.warnings,
        count_request=parts.metrics.count_request,
        hosts=hosts,
        note_refused=sessions.refusals.note,
        started_at=min((row.started for row in slots.rows()), default=time.time()),
        version=__version__,
        silent_for=parts.figures.silences.of,
        backplane_fault=lambda: fault.words if (fault := parts.figures.fault()) else None,
        backplane_writable=parts.figures.writable,
        backplane_replica=parts.figures.replica,
        accepting=lambda: worker.accepts,
        expected_workers=lambda: settings.workers,
        since_death=slots.since_death,
        room=bodies.room,
        budgets=Budgets(settings.http_rate_limit, settings.http_rate_time),
        local_faults=machine.local_faults,
        slice=sessions.hub.pace.slices(),
        series=parts.series.read,
        roster=sessions.sio.manager.roster,
        machine_status=MachineStatus(settings.data_dir).read if settings.collector else dict,
    )
