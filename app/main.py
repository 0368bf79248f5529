"""Puts one worker together; the only module that knows all others."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence

from aiohttp import hdrs, web
from prometheus_client.metrics_core import Metric

from app import __version__, memory
from app.backplane.client import FAILURES, Backplane
from app.backplane.faults import explain
from app.backplane.reader import StreamReader
from app.config import Settings
from app.errors import BackplaneUnavailable, SettingsError
from app.http.admission import Admission
from app.http.audit import Audit
from app.http.bodies import Bodies
from app.http.budgets import Budgets
from app.http.clients import Clients
from app.http.context import HttpContext
from app.http.cors import Hosts, Origins
from app.http.metrics_page import MetricsPage
from app.http.request_head import PATH
from app.http.routes import add_routes
from app.http.upgrade import Upgrade
from app.http.writers import Writers
from app.machine import MachineStatus
from app.ports import Slots
from app.sessions.socketio.server import RealtimeServer
from app.transport.door import ENTRANCE
from app.transport.http_guard import GUARD, Guard
from app.worker import Worker

logger = logging.getLogger("realtime.worker")

BACKPLANE_SECONDS = 20.0
"""How long a worker waits at its start for the backplane."""

WORKER = web.AppKey("WORKER", Worker)


def load_handlers(name: str, sio: RealtimeServer) -> None:
    """Let an application register its handlers.

    Raises:
        SettingsError: there is no such module, it has no `register`, or either fails.
    """
    try:
        register = getattr(importlib.import_module(name), "register", None)
        if not callable(register):
            raise SettingsError(f"HANDLERS={name}: the module has no function register(sio)")
        result = register(sio)
    except SettingsError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())
        raise SettingsError(
            f"HANDLERS={name}: {type(error).__name__}: {words} ({frame.filename}, line"
            f" {frame.lineno})"
        ) from error
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise SettingsError(
            f"HANDLERS={name}: register(sio) must be a plain function, not 'async def': it runs"
            " before the worker accepts connections"
        )


async def build(
    settings: Settings,
    slots: Slots,
    backplane_url: str,
    worker_id: str,
    *,
    collect_metrics: Callable[[], Iterable[Metric]],
    other_processes: Callable[[], Mapping[str, int]],
    has_memory: Callable[[], bool],
    max_outgoing: int,
    local_faults: Callable[[], Sequence[str]] = tuple,
) -> web.Application:
    """Make the aiohttp application of one worker, with a `Worker` under `WORKER`.

    Args:
        settings: of the service.
        slots: counts that the workers of this machine share.
        backplane_url: where the streams are.
        worker_id: names this worker among all.
        collect_metrics: joins the metrics of all workers; may block.
        other_processes: further processes of the service, for the metrics of memory: process ids by name.
        has_memory: whether there is memory for more connections.
        local_faults: what is wrong on this machine beside, for `GET /status`.
        max_outgoing: bytes that this worker holds for clients which do not read them.

    Raises:
        BackplaneUnavailable: it did not answer within `BACKPLANE_SECONDS`.
        SettingsError: HANDLERS names nothing that can be loaded.
    """
    backplane = Backplane(backplane_url, settings, worker_id)
    reader, key = await _reach(backplane)
    for warning in backplane.warnings():
        logger.warning("%s", warning)
    worker = Worker(settings, slots, backplane, reader, key, max_outgoing)
    if settings.handlers:
        load_handlers(settings.handlers, worker.sio)
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app[WORKER] = worker
    _add_http(app, worker, collect_metrics, other_processes, has_memory, local_faults)

    async def stop(_: web.Application) -> None:
        await worker.stop()

    app.on_shutdown.append(stop)
    worker.start()
    memory.prepare()
    return app


async def _reach(backplane: Backplane) -> tuple[StreamReader, bytes]:
    """Wait for the backplane; what a worker needs of it before it can serve.

    Raises:
        BackplaneUnavailable: it did not answer within `BACKPLANE_SECONDS`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BACKPLANE_SECONDS
    while True:
        await backplane.connect(deadline)
        reader = StreamReader(backplane)
        try:
            await reader.start()
            return reader, await backplane.shared_key()
        except (*FAILURES, BackplaneUnavailable) as error:
            if loop.time() >= deadline:
                raise BackplaneUnavailable(_reason(error)) from error
            await asyncio.sleep(0.1)


def _reason(error: Exception) -> str:
    if isinstance(error, BackplaneUnavailable):
        return error.message
    return f"The backplane cannot be used: {explain(error).words}."


def _add_http(
    app: web.Application,
    worker: Worker,
    collect_metrics: Callable[[], Iterable[Metric]],
    other_processes: Callable[[], Mapping[str, int]],
    has_memory: Callable[[], bool],
    local_faults: Callable[[], Sequence[str]],
) -> None:
    settings, slots = worker.settings, worker.slots
    clients = Clients(settings.trusted_proxies)
    origins = Origins(settings, clients)
    admission = Admission(
        settings,
        slots,
        worker.verifier,
        clients,
        origins,
        is_serving=lambda: worker.accepting and not worker.canary.is_deaf,
        has_memory=has_memory,
        count_refused=lambda reason: worker.metrics.refused[reason].inc(),
        addresses=worker.context.addresses,
    )
    guard = app[GUARD] = Guard(worker.context.refusals.note)
    hosts = Hosts(settings, clients)
    upgrade = Upgrade(
        worker.context,
        admission,
        lambda: guard.most_upgraded,
        hosts,
        lambda: worker.metrics.count_request(PATH, "GET", 101),
    )
    upgrade.add_routes(app)
    app[ENTRANCE] = upgrade.enter
    limits = {
        "max_total_connections": settings.max_total_connections,
        "max_queue_size": settings.max_queue_size,
    }
    page = MetricsPage(
        slots, collect_metrics, other_processes, limits, settings.workers, shared_for=1.0
    )
    app.router.add_get("/metrics", page.metrics)
    bodies = Bodies(worker.hub.output, worker.hub.close_stalled)
    context = HttpContext(
        settings=settings,
        slots=slots,
        publisher=worker,
        history=worker.history,
        presence=worker.presence,
        verifier=worker.verifier,
        writers=Writers(settings, worker.verifier),
        audit=Audit(
            settings.audit_rate,
            lambda label, status: worker.metrics.writes[label, str(status)].inc(),
        ),
        clients=clients,
        origins=origins,
        backplane_available=lambda: worker.backplane.available,
        warnings=worker.backplane.warnings,
        count_request=worker.metrics.count_request,
        hosts=hosts,
        note_refused=worker.context.refusals.note,
        started_at=min((row.started for row in slots.rows()), default=time.time()),
        version=__version__,
        backplane_fault=lambda: fault.words if (fault := worker.figures.fault()) else None,
        backplane_writable=worker.figures.writable,
        accepting=lambda: worker.accepting and not worker.canary.is_deaf,
        expected_workers=lambda: settings.workers,
        since_death=slots.since_death,
        room=bodies.room,
        budgets=Budgets(settings.http_rate_limit, settings.http_rate_time),
        local_faults=local_faults,
        series=worker.series.read,
        machine_status=MachineStatus(settings.data_dir).read if settings.collector else dict,
    )
    add_routes(app, context)
    app.middlewares.insert(0, bodies.middleware())

    async def end_keep_alive(_: web.Request, response: web.StreamResponse) -> None:
        if worker.closing:
            response.force_close()
            # aiohttp has written this header by now; without it the client sends another request.
            response.headers[hdrs.CONNECTION] = "close"

    app.on_response_prepare.append(end_keep_alive)
