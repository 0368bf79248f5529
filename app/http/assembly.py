"""Puts the HTTP side of a worker together, in the order in which its parts need each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import hdrs, web
from prometheus_client.metrics_core import Metric

from app import __version__
from app.http.admission import Admission
from app.http.audit import Audit
from app.http.bodies import Bodies, ReceivedBodies
from app.http.budgets import Budgets
from app.http.clients import Clients
from app.http.context import HttpContext
from app.http.cors import Hosts, Origins
from app.http.direct import DirectCalls
from app.http.event_stream import EventStream
from app.http.familiar import Familiar
from app.http.metrics_page import MetricsPage, SharedPage
from app.http.request_head import EVENTS_PATH
from app.http.routes import add_routes
from app.http.session_entrance import Gate
from app.http.upgrade import Upgrade
from app.http.writers import Writers
from app.machine import MachineStatus
from app.seconds import seconds_of
from app.transport.door import ENTRANCE, PASSED, Entrance, Passed
from app.transport.http_connection import CALLS
from app.transport.http_guard import GUARD, Guard
from app.worker import Worker

MAX_BODY = 64 * 1024 * 1024
"""Bytes of the body of an HTTP request, before any route looks at it."""
SHARED_SECONDS = 1.0
"""For so long a page of metrics answers all requests for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the other processes of this machine provide."""

    collect_metrics: Callable[[], Iterable[Metric]]
    """Joins the metrics of all workers; may block."""
    other_processes: Callable[[], Mapping[str, int]]
    """Further processes of the service, for the metrics of memory: process ids by name."""
    has_memory: Callable[[], bool]
    """Whether there is memory for more connections."""
    metrics_page: SharedPage
    """Where all workers keep the page of metrics."""
    local_faults: Callable[[], Sequence[str]] = tuple
    """What is wrong on this machine beside, for `GET /status`."""


@dataclass(frozen=True, slots=True)
class _Checks:
    """What looks at each request before it is carried out."""

    clients: Clients
    origins: Origins
    hosts: Hosts


def make_application(worker: Worker, machine: Machine) -> web.Application:
    """Make the HTTP side of a worker."""
    settings, sessions = worker.parts.settings, worker.parts.sessions
    app = web.Application(client_max_size=MAX_BODY)
    clients = Clients(settings.trusted_proxies)
    checks = _Checks(clients, Origins(settings, clients), Hosts(settings, clients))
    _add_entrances(app, worker, machine, checks)
    app.router.add_get("/metrics", _make_metrics_page(worker, machine).metrics)
    bodies = Bodies(sessions.hub.output, sessions.hub.unread.close_stalled)
    context = _make_context(worker, machine, checks, bodies)
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


def _add_entrances(app: web.Application, worker: Worker, machine: Machine, checks: _Checks) -> None:
    """Add what begins sessions: by aiohttp's requests, and at the door."""
    parts, sessions = worker.parts, worker.parts.sessions
    admission = Admission(
        parts.settings,
        sessions.places,
        sessions.verifier,
        checks.clients,
        checks.origins,
        is_serving=lambda: worker.accepts,
        has_memory=machine.has_memory,
        count_refused=lambda reason: parts.metrics.refused[reason].inc(),
        addresses=sessions.addresses,
    )
    guard = app[GUARD] = Guard(
        sessions.refusals.note,
        slices=sessions.hub.pace.slices,
        wake=seconds_of(asyncio.get_running_loop()).wake,
    )
    gate = Gate(
        sessions, admission, checks.hosts, lambda: guard.most_upgraded, parts.metrics.count_request
    )
    upgrade = Upgrade(gate, Familiar(checks.clients))
    events = EventStream(gate, checks.origins)
    upgrade.add_routes(app)
    events.add_routes(app)
    app[ENTRANCE] = either(upgrade.enter, events.enter)


def either(upgrade: Entrance, events: Entrance) -> Entrance:
    """The entrance of all connections; most of them ask for an upgrade."""
    start = b"GET " + EVENTS_PATH.encode()

    def enter(fd: int, peer: str, data: bytes) -> Passed | None:
        if not data.startswith(b"GET "):
            return PASSED
        return (events if data.startswith(start) else upgrade)(fd, peer, data)

    return enter


def _make_metrics_page(worker: Worker, machine: Machine) -> MetricsPage:
    settings = worker.parts.settings
    limits = {
        "max_total_connections": settings.max_total_connections,
        "max_queue_size": settings.max_queue_size,
    }
    return MetricsPage(
        worker.parts.slots,
        machine.collect_metrics,
        machine.metrics_page,
        machine.other_processes,
        limits,
        settings.workers,
        shared_for=SHARED_SECONDS,
    )


def _make_context(worker: Worker, machine: Machine, checks: _Checks, bodies: Bodies) -> HttpContext:
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
        clients=checks.clients,
        origins=checks.origins,
        hosts=checks.hosts,
        backplane_available=lambda: parts.backplane.available,
        warnings=parts.backplane.warnings,
        count_request=parts.metrics.count_request,
        note_refused=sessions.refusals.note,
        started_at=min((row.started for row in slots.rows()), default=time.time()),
        version=__version__,
        silent_for=parts.figures.silences.of,
        backplane_fault=lambda: fault.words if (fault := parts.sources.fault()) else None,
        backplane_writable=parts.sources.writable,
        backplane_replica=parts.figures.replica,
        accepting=lambda: worker.accepts,
        received=ReceivedBodies(sessions.hub.input),
        room=bodies.room,
        budgets=Budgets(settings.http_rate_limit, settings.http_rate_time),
        local_faults=machine.local_faults,
        slice=sessions.hub.pace.slices(),
        series=parts.series.read,
        roster=sessions.sio.manager.roster,
        machine_status=MachineStatus(settings.data_dir).read if settings.collector else dict,
    )
