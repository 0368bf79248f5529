"""What gunicorn calls in each worker after the fork: joins `app.main` to the other processes.

Nothing here or below it is held by the master: a reload brings all of it anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from app import config, main
from app.config import Settings
from app.errors import BackplaneUnavailable, SettingsError
from app.metrics import files_are_there, restore_files
from app.sessions.handoff.transfer import Transfer
from app.setting_values import worker_count
from app.transport.door import DoorRunner
from workers import gunicorn_worker, log_level, logs, master
from workers.gunicorn_worker import CannotServe, RealtimeWorker
from workers.handoff.deaf import DeafWatch
from workers.handoff.departure import Departure
from workers.handoff.giver import Giver
from workers.handoff.http import HttpHandoff
from workers.handoff.successor import Successor
from workers.leader import valkey
from workers.leader.collector import Collector
from workers.leader.election import Leader
from workers.leader.host import Headroom, HostSampler
from workers.leader.valkey import Valkey
from workers.shared import paths
from workers.shared.guard import Guard, Part
from workers.shared.locks import MastersLock
from workers.shared.metrics_files import MetricsFiles
from workers.shared.slots import SlotTable
from workers.shared.worker_slots import WorkerSlots

_SWEEP_INTERVAL = 1.0
_VALKEY_SHARE = 2, 5
"""The part of the memory that the private Valkey may take; a rewrite of its file needs more."""
LEAST_OUTGOING = 8 * 2**20
"""Bytes of the output account where the service may use little memory."""

log = logging.getLogger(__name__)


async def create() -> web.AppRunner:
    """Make the application of this worker, in the runner that aiohttp's worker would give it.

    Raises:
        CannotServe: a setting is wrong.
    """
    worker = gunicorn_worker.current()
    settings = _settings()
    logs.enter_worker(worker.row, config.secrets(settings))
    _log_workers(worker.row)
    _fold_metrics(settings)
    leader = Leader(paths.leader_lock(settings.data_dir))
    backplane_url = settings.backplane_url
    if not backplane_url:
        backplane_url = f"unix://{paths.valkey_socket(settings.data_dir)}"
        maxmemory = _backplane_memory(settings)
        leader.add(Valkey(settings.data_dir, settings.backplane_fsync, maxmemory=maxmemory).run)

    shared: dict[str, Part] = {"the slot table": worker.slots, "the metrics": _MetricsPart()}
    if not settings.backplane_url:
        shared["the socket of Valkey"] = _ValkeySocket(settings.data_dir)
    guard = Guard(shared, worker.slots.count_restored)

    async def give_up_leadership(_: web.Application) -> None:
        await leader.stop()

    async def looking_after(_: web.Application) -> AsyncIterator[None]:
        deaf_watch = DeafWatch(worker.slots, worker.row, lambda: parts.canary.is_deaf, worker.ppid)
        keep = parts.supervisor.start
        tasks = [
            keep("sweep", lambda: _sweep(worker.slots), vital=False),
            keep("guard", guard.run, vital=False),
            keep("deaf watch", deaf_watch.run, vital=False),
            keep(
                "log level",
                lambda: log_level.follow(settings.data_dir, settings.log_level),
                vital=False,
            ),
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    worker.on_end(lambda: _stop_valkey_if_orphaned(worker, settings))
    # First of all, since what is built may wait for the Valkey that the leader starts.
    await leader.start()
    try:
        slots = WorkerSlots(worker.slots, worker.row, settings)
        metrics_files = MetricsFiles(paths.metrics_dir(settings.data_dir))
        application = await main.build(
            settings,
            slots,
            backplane_url,
            slots.worker_name(),
            collect_metrics=metrics_files.collect,
            other_processes=lambda: _other_processes(settings),
            has_memory=Headroom(HostSampler(settings.data_dir)),
            max_outgoing=_max_outgoing(settings),
            local_faults=guard.faults,
        )
        parts = application[main.WORKER]
        if settings.collector:
            collector = Collector(
                settings,
                slots,
                publish=parts.publish,
                presence=parts.presence,
                collect=metrics_files.collect,
                sample_host=HostSampler(settings.data_dir).sample,
                record=parts.series.add,
            )
            leader.add(collector.run)
    except (BackplaneUnavailable, SettingsError) as error:
        await leader.stop()
        raise CannotServe(str(error)) from error
    except BaseException:
        await leader.stop()
        raise
    application.on_shutdown.insert(0, give_up_leadership)
    application.cleanup_ctx.append(looking_after)
    runner = DoorRunner(
        application,
        logger=worker.log,
        keepalive_timeout=worker.cfg.keepalive,
        access_log=None,
        shutdown_timeout=settings.graceful_timeout * 0.95,
    )
    transfer = Transfer(parts.context, parts.manager, parts.history, slots)
    http = HttpHandoff(runner)
    giver = Giver(settings.data_dir, worker.slots, worker.row, transfer, http)
    successor = Successor(
        settings.data_dir, worker.slots, worker.row, transfer, http, worker.listeners
    )
    successor.start()
    shared["the socket for handoffs"] = successor

    async def stop_taking(_: web.Application) -> None:
        await successor.stop()

    application.on_shutdown.insert(0, stop_taking)
    departure = Departure(
        parts, runner, giver, successor, leader, worker.slots, worker.row, settings.data_dir
    )
    worker.on_leave(departure.run)
    parts.is_hurried = lambda: worker.hurried
    return runner


class _MetricsPart:
    """The files in which this process counts."""

    def is_there(self) -> bool:
        return files_are_there()

    def restore(self) -> bool:
        return restore_files()


class _ValkeySocket:
    """The socket of the private Valkey; the leader's `Valkey` puts it back."""

    def __init__(self, data_dir: Path) -> None:
        self._path = paths.valkey_socket(data_dir)

    def is_there(self) -> bool:
        return self._path.exists()

    def restore(self) -> bool:
        return False


def _settings() -> Settings:
    """What the master has checked, not what `.env` says by now."""
    assert master.current is not None
    try:
        return config.load({**master.current.dotenv, **os.environ})
    except SettingsError as error:  # this code has other settings than that which checked them
        raise CannotServe(str(error)) from error


def _max_outgoing(settings: Settings) -> int:
    """The output account of this worker in bytes: its part of an eighth of the memory, or as set."""
    chosen = settings.max_outgoing_bytes
    if not chosen:
        memory = HostSampler(settings.data_dir).memory_total()
        chosen = max(memory // 8 // settings.workers, LEAST_OUTGOING, 2 * settings.max_message_size)
    log.info("Each worker holds at most %d MB for clients that do not read", chosen // 2**20)
    return chosen


def _backplane_memory(settings: Settings) -> int:
    """Most bytes of the private Valkey: what full histories take, within its part of the memory."""
    full, total = config.full_backplane(settings), HostSampler(settings.data_dir).memory_total()
    share = total * _VALKEY_SHARE[0] // _VALKEY_SHARE[1]
    chosen = settings.backplane_memory or min(full, share)
    if chosen > share:
        log.warning(
            "BACKPLANE_MEMORY: the private Valkey may take %d MB of the %d MB that there are: the"
            " kernel may kill it before it refuses messages; lower HISTORY_BYTES",
            chosen // 2**20,
            total // 2**20,
        )
    return chosen


def _log_workers(row: int) -> None:
    """Log why there are as many workers as there are; the first one does."""
    assert master.current is not None
    wanted = os.environ.get("WORKERS") or master.current.dotenv.get("WORKERS") or "auto"
    if wanted == "auto" and row == 0:
        count, reason = worker_count()
        log.info("WORKERS=auto: %d workers, for %s", count, reason)


def _fold_metrics(settings: Settings) -> None:
    """Fold what dead workers have counted: files would pile up if nobody asked for metrics."""
    try:
        MetricsFiles(paths.metrics_dir(settings.data_dir)).fold()
    except (OSError, TimeoutError):
        log.exception("The metrics of dead workers are not folded yet")


async def _sweep(slots: SlotTable) -> None:
    """Free the rows of workers that died, in case there is no master to do it."""
    while True:
        await asyncio.sleep(_SWEEP_INTERVAL)
        for pid in slots.sweep_in_steps():
            if pid:
                log.warning("Freed the row of worker %d, which is gone", pid)
            else:
                await asyncio.sleep(0)


def _stop_valkey_if_orphaned(worker: RealtimeWorker, settings: Settings) -> None:
    """Do a dead master's last duty, when this was the last worker."""
    if settings.backplane_url or os.getppid() == worker.ppid:
        return
    worker.slots.sweep()
    if not worker.slots.rows() and MastersLock(paths.masters_lock(settings.data_dir)).is_alone():
        valkey.stop(settings.data_dir)


def _other_processes(settings: Settings) -> dict[str, int]:
    """Processes beside the workers whose memory is the service's."""
    found = {"master": os.getppid()}
    if not settings.backplane_url and (pid := valkey.find(settings.data_dir)) is not None:
        found["valkey"] = pid
    return found
