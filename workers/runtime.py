"""What gunicorn calls in each worker after the fork: joins `app.main` to the other processes.

Nothing here or below it is held by the master: a reload brings all of it anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from app import config, main, memory
from app.backplane.server import check_options
from app.config import Settings
from app.errors import BackplaneUnavailable, SettingsError
from app.parts import Parts
from app.prometheus_private import files_are_there, restore_files
from app.seconds import REST, next_second, seconds_of
from app.sessions.handoff.transfer import Transfer
from app.setting_values import worker_count
from app.transport.door import DoorRunner
from app.worker import Worker
from workers import gunicorn_worker, log_level, logs, master
from workers.gunicorn_worker import CannotServe, RealtimeWorker
from workers.handoff.deaf import DeafWatch
from workers.handoff.departure import Departure
from workers.handoff.giver import Giver
from workers.handoff.http import HttpHandoff
from workers.handoff.successor import Successor
from workers.leader import replica, valkey
from workers.leader.collector import Collector
from workers.leader.election import Leader
from workers.leader.host import Headroom, HostSampler
from workers.leader.valkey import Valkey
from workers.shared import paths
from workers.shared.file import explain
from workers.shared.guard import Part, SharedFilesGuard
from workers.shared.locks import MastersLock
from workers.shared.metrics_files import MetricsFiles, PageFile
from workers.shared.slots import SlotTable
from workers.shared.worker_slots import WorkerSlots

_VALKEY_SHARE = 2, 5
"""The part of the memory that the private Valkey may take; a rewrite of its file needs more."""
_SWEEP_SECONDS = 4
"""Between two looks for workers that have died: a master sees that at once."""
_SIGN_SECONDS = 4
"""Between two signs of life to the master, or `REST`."""
LEAST_OUTGOING = 8 * 2**20
"""Bytes of the output account where the service may use little memory."""

logger = logging.getLogger(__name__)


async def create() -> web.AppRunner:
    """Make the application of this worker, in the runner that aiohttp's worker would give it.

    Raises:
        CannotServe: a setting is wrong.
    """
    process = gunicorn_worker.current()
    settings = _settings()
    logs.enter_worker(process.row, config.secrets(settings))
    _log_workers(process.row)
    _fold_metrics(settings)
    life = Life(process, settings)
    _share_wake_ups(process)
    process.on_leave(life.leave)
    process.on_end(life.after_end)
    return await life.start()


@dataclass(frozen=True, slots=True)
class _Serving:
    """What a worker has once it serves."""

    worker: Worker
    successor: Successor
    departure: Departure
    loops: list[asyncio.Task[None]]


class Life:
    """The life of one worker process; each method is a step, in this order.

    Args:
        process: gunicorn's worker.
        settings: of the service.
    """

    def __init__(self, process: RealtimeWorker, settings: Settings) -> None:
        self._process = process
        self._settings = settings
        self._slots = WorkerSlots(process.slots, process.row, settings)
        self._metrics_files = MetricsFiles(paths.metrics_dir(settings.data_dir))
        self._leader = Leader(paths.leader_lock(settings.data_dir))
        self._host = HostSampler(settings.data_dir)
        shared = {
            "the slot table": Part(process.slots.is_there, process.slots.restore),
            "the metrics": Part(files_are_there, restore_files),
        }
        if not settings.backplane_url:
            socket = paths.valkey_place(settings.data_dir).socket
            # The leader's `Valkey` puts it back.
            shared["the socket of Valkey"] = Part(socket.exists, lambda: False)
        self._guard = SharedFilesGuard(shared, process.slots.count_restored)
        self._serving: _Serving | None = None

    # It starts.

    async def start(self) -> web.AppRunner:
        """Join the other processes and make everything; returns what serves HTTP.

        Raises:
            CannotServe: the backplane does not answer, or a setting cannot be used.
        """
        if self._settings.backplane_url:
            _check_backplane(self._settings.backplane_url)
        else:
            self._leader.add(_valkey(self._settings, self._host.memory_total()).run)
        self._leader.add(lambda: _replica(self._settings, self._host.memory_total()))
        # First of all, since what is made may wait for the Valkey that the leader starts.
        await self._leader.start()
        try:
            worker = Worker(await self._make_parts(), lambda: self._process.hurried)
            if self._settings.collector:
                self._leader.add(self._make_collector(worker.parts).run)
            application = main.make_application(worker, self._machine())
            worker.start()
            memory.prepare()
        except (BackplaneUnavailable, SettingsError) as error:
            await self._leader.stop()
            raise CannotServe(str(error)) from error
        except BaseException:
            await self._leader.stop()
            raise
        runner = self._make_runner(application)
        transfer = Transfer(worker.parts.sessions, worker.parts.history, self._slots)
        http = HttpHandoff(runner)
        successor = self._make_successor(transfer, http)
        successor.start()
        self._guard.add("the socket for handoffs", Part(successor.is_there, successor.restore))
        self._serving = _Serving(
            worker,
            successor,
            self._make_departure(worker, runner, transfer, http, successor),
            self._start_loops(worker.parts),
        )
        return runner

    # It serves; then it leaves.

    async def leave(self) -> bool:
        """Wait for a successor and give it everything; False: stay, there is none."""
        assert self._serving is not None
        return await self._serving.departure.run()

    # It stops.

    async def stop(self, _: web.Application) -> None:
        """Take nothing over any more, lead no more, and close what is left."""
        assert self._serving is not None
        await self._serving.successor.stop()
        await self._leader.stop()
        await self._serving.worker.stop()

    async def end_loops(self, _: web.Application) -> None:
        """End what looks after the others."""
        assert self._serving is not None
        for task in self._serving.loops:
            task.cancel()
        await asyncio.gather(*self._serving.loops, return_exceptions=True)

    def after_end(self) -> None:
        """Do a dead master's last duty, when this was the last worker; its row is free."""
        process, settings = self._process, self._settings
        if os.getppid() == process.ppid:
            return
        process.slots.sweep()
        lock = MastersLock(paths.masters_lock(settings.data_dir))
        if not process.slots.rows() and lock.is_alone():
            valkey.stop(settings.data_dir)

    # What it makes on the way.

    async def _make_parts(self) -> Parts:
        settings = self._settings
        url = settings.backplane_url or f"unix://{paths.valkey_place(settings.data_dir).socket}"
        replica_at = replica.url(settings)
        place = replica_at and main.ReplicaPlace(replica_at, paths.replica_note(settings.data_dir))
        reached = await main.reach_backplane(
            settings, url, self._slots.worker_name(), place or None
        )
        max_outgoing = _max_outgoing(settings, self._host.memory_total())
        return main.make_parts(settings, self._slots, reached, max_outgoing)

    def _machine(self) -> main.Machine:
        return main.Machine(
            collect_metrics=self._metrics_files.collect,
            other_processes=lambda: _other_processes(self._settings),
            has_memory=Headroom(self._host),
            metrics_page=PageFile(paths.metrics_dir(self._settings.data_dir)),
            local_faults=self._guard.faults,
        )

    def _make_collector(self, parts: Parts) -> Collector:
        return Collector(
            self._settings,
            self._slots,
            publish=parts.publishing.publish,
            presence=parts.presence,
            collect=self._metrics_files.counts,
            sample_host=self._host.sample,
            record=parts.series.add,
        )

    def _make_runner(self, application: web.Application) -> DoorRunner:
        application.on_shutdown.append(self.stop)
        application.on_cleanup.append(self.end_loops)
        return DoorRunner(
            application,
            logger=self._process.log,
            keepalive_timeout=self._process.cfg.keepalive,
            access_log=None,
            shutdown_timeout=self._settings.graceful_timeout * 0.95,
        )

    def _make_successor(self, transfer: Transfer, http: HttpHandoff) -> Successor:
        process = self._process
        return Successor(
            self._settings.data_dir, process.slots, process.row, transfer, http, process.listeners
        )

    def _make_departure(
        self,
        worker: Worker,
        runner: DoorRunner,
        transfer: Transfer,
        http: HttpHandoff,
        successor: Successor,
    ) -> Departure:
        data_dir, process = self._settings.data_dir, self._process
        giver = Giver(data_dir, process.slots, process.row, transfer, http)
        return Departure(
            worker,
            runner,
            giver,
            successor,
            self._leader.stop,
            process.slots,
            process.row,
            process.ppid,
            data_dir,
        )

    def _start_loops(self, parts: Parts) -> list[asyncio.Task[None]]:
        """Begin to look after the others and after what all share."""
        process, settings = self._process, self._settings
        deaf_watch = DeafWatch(
            process.slots, process.row, lambda: parts.canary.is_deaf, process.ppid
        )
        loops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "sweep": lambda: _sweep(process.slots),
            "guard": self._guard.run,
            "deaf watch": deaf_watch.run,
            "log level": lambda: log_level.follow(settings.data_dir, settings.log_level),
        }
        return [parts.supervisor.start(name, loop, vital=False) for name, loop in loops.items()]


def _share_wake_ups(process: RealtimeWorker) -> None:
    """Show the master signs of life in the seconds in which this process wakes up anyway."""
    show_life_at = getattr(process, "show_life_at", None)
    if show_life_at is None:
        return  # a master of an earlier version holds the class
    seconds = seconds_of(process.loop)
    show_life_at(lambda sign: seconds.call(sign, _SIGN_SECONDS, REST))


def _settings() -> Settings:
    """What the master has checked, not what `.env` says by now."""
    assert master.current is not None
    try:
        return config.load({**master.current.dotenv, **os.environ})
    except SettingsError as error:  # this code has other settings than that which checked them
        raise CannotServe(str(error)) from error


def _check_backplane(url: str) -> None:
    try:
        check_options(url)
    except SettingsError as error:
        raise CannotServe(str(error)) from error


def _max_outgoing(settings: Settings, memory: int) -> int:
    """The output account of this worker in bytes: its part of an eighth of the memory, or as set."""
    chosen = settings.max_outgoing_bytes
    if not chosen:
        chosen = max(memory // 8 // settings.workers, LEAST_OUTGOING, 2 * settings.max_message_size)
    logger.info("Each worker holds at most %d MB for clients that do not read", chosen // 2**20)
    return chosen


def _valkey(settings: Settings, memory: int) -> Valkey:
    """The private Valkey, for the leader to supervise."""
    maxmemory = _backplane_memory(settings, memory)
    return Valkey(settings.data_dir, settings.backplane_fsync, maxmemory=maxmemory)


async def _replica(settings: Settings, memory: int) -> None:
    """Run the replica of a shared server, for the leader; without one, end what is left of it."""
    if replica.url(settings) is not None:
        await replica.Replica(settings, replica.share_of(memory)).run()
        return
    if (reason := replica.why_none(settings)) is not None:
        logger.info("BACKPLANE_REPLICA: the workers read from the shared server: %s", reason)
    replica.forget(settings.data_dir)
    await asyncio.to_thread(valkey.stop_at, settings.data_dir, paths.replica_place)


def _backplane_memory(settings: Settings, memory: int) -> int:
    """Most bytes of the private Valkey: what full histories take, within its part of the memory."""
    full = config.full_backplane(settings)
    share = memory * _VALKEY_SHARE[0] // _VALKEY_SHARE[1]
    chosen = settings.backplane_memory or min(full, share)
    if chosen > share:
        logger.warning(
            "BACKPLANE_MEMORY: the private Valkey may take %d MB of the %d MB that there are: the"
            " kernel may kill it before it refuses messages; lower HISTORY_BYTES",
            chosen // 2**20,
            memory // 2**20,
        )
    return chosen


def _log_workers(row: int) -> None:
    """Log why there are as many workers as there are; the first one does."""
    assert master.current is not None
    wanted = os.environ.get("WORKERS") or master.current.dotenv.get("WORKERS") or "auto"
    if wanted == "auto" and row == 0:
        count, reason = worker_count()
        logger.info("WORKERS=auto: %d workers, for %s", count, reason)


def _fold_metrics(settings: Settings) -> None:
    """Fold what dead workers have counted: files would accumulate without requests for metrics."""
    try:
        MetricsFiles(paths.metrics_dir(settings.data_dir)).fold()
    except OSError as error:
        logger.error("The metrics of dead workers are not folded yet: %s", explain(error))


async def _sweep(slots: SlotTable) -> None:
    """Free the rows of workers that died, in case there is no master to do it."""
    while True:
        await next_second(_SWEEP_SECONDS, REST)
        for pid in slots.sweep_in_steps():
            if pid:
                logger.warning("Freed the row of worker %d, which is gone", pid)
            else:
                await asyncio.sleep(0)


def _other_processes(settings: Settings) -> dict[str, int]:
    """Processes beside the workers whose memory is the service's."""
    found = {"master": os.getppid()}
    if not settings.backplane_url and (pid := valkey.find(settings.data_dir)) is not None:
        found["valkey"] = pid
    if (
        settings.backplane_url
        and (pid := valkey.find(settings.data_dir, paths.replica_place)) is not None
    ):
        found["replica"] = pid
    return found
