"""`GET /metrics`: the figures of all workers as one Prometheus page.

What the slot table counts (connections, users, queue) is read from there at each scrape, and so is
the memory of the processes from /proc: exact, and nothing to keep up to date in between.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.errors import ErrorCode
from app.http.errors import HttpError
from app.ports import QueueTotals, Slots, WorkersDied
from app.types import WorkerRow

BUSY_PAGES, BUSY_SECONDS = 4, 15.0
"""So many pages within so many seconds are more than a few Prometheus servers ask for."""
BUSY_FACTOR = 5
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class MetricsPage:
    """The page and its handler.

    Args:
        slots: the figures of the slot table.
        collect: gives the joined metrics of all processes; may block, is called in a thread.
            It raises `TimeoutError` when it has to wait too long for others.
        processes: further processes of the service with memory to show: process ids by name.
        limits: settings that figures are compared with, by the names of their gauges.
        expected_workers: workers that should be ready.
        shared_for: seconds for which a page is reused for all requests. Making one delays deliveries
            for some 20 ms, so while pages are asked for without a pause it is `BUSY_FACTOR` times
            as long.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        slots: Slots,
        collect: Callable[[], Iterable[Metric]],
        processes: Callable[[], Mapping[str, int]] = dict,
        limits: Mapping[str, float] = MappingProxyType({}),
        expected_workers: int = 0,
        shared_for: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._collect = collect
        self._processes = processes
        self._limits = limits
        self._expected_workers = expected_workers
        self._building: asyncio.Task[bytes] | None = None
        self._shared_for = shared_for
        self._clock = clock
        self._made: deque[float] = deque(maxlen=BUSY_PAGES)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Answer a scrape; those that come while a page is being made share it.

        Raises:
            HttpError: 503, the metrics of the other processes could not be read in time.
        """
        if self._is_due():
            self._made.append(self._clock())
            self._building = asyncio.create_task(self._build())
        assert self._building is not None
        try:
            page = await asyncio.shield(self._building)
        except TimeoutError as error:
            message = f"The metrics are unavailable: {error}."
            raise HttpError(
                503, ErrorCode.SERVICE_UNAVAILABLE, message, headers={"Retry-After": "1"}
            ) from None
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    def _is_due(self) -> bool:
        """Whether the last page is too old, or there is none."""
        building = self._building
        if building is None:
            return True
        if not building.done():
            return False
        if building.cancelled() or building.exception() is not None or not self._shared_for:
            return True
        now = self._clock()
        busy = len(self._made) == BUSY_PAGES and now - self._made[0] < BUSY_SECONDS
        return now - self._made[-1] >= self._shared_for * (BUSY_FACTOR if busy else 1)

    async def _build(self) -> bytes:
        # The slot table is read on the loop: its lock keeps processes apart, not threads.
        rows = self._slots.rows()
        table = _Table(
            connections=self._slots.total_connections(),
            users=self._slots.unique_users(),
            queue=self._slots.queue_totals(),
            died=self._slots.workers_died(),
            expected_workers=self._expected_workers,
            restored=self._slots.files_restored(),
            rows=rows,
        )
        pids = {f"worker-{row.index}": row.pid for row in rows} | dict(self._processes())
        return await asyncio.to_thread(self._render, table, pids)

    def _render(self, table: _Table, pids: Mapping[str, int]) -> bytes:
        registry = CollectorRegistry()
        limits = [
            _gauge(name, f"The setting {name.upper()}.", value)
            for name, value in self._limits.items()
        ]
        registry.register(
            _Families([*self._collect(), *table.families(), *limits, _memory(pids), _build()])
        )
        return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


@dataclass(frozen=True, slots=True)
class _Table:
    """What the slot table said at one moment."""

    connections: int
    users: int
    queue: QueueTotals
    died: WorkersDied
    expected_workers: int
    restored: int
    rows: list[WorkerRow]

    def families(self) -> Iterator[Metric]:
        messages, size = self.queue
        yield _gauge("connections", "Open connections of this machine.", self.connections)
        yield _gauge("users", "Users with at least one connection.", self.users)
        yield _gauge("queue_messages", "Messages in the broadcast queue.", messages)
        yield _gauge("queue_bytes", "Bytes of the messages in the broadcast queue.", size)
        workers = GaugeMetricFamily(
            "realtime_worker_connections", "Open connections of each worker.", labels=["worker"]
        )
        states = GaugeMetricFamily("realtime_workers", "Workers, by state.", labels=["state"])
        for row in self.rows:
            workers.add_metric([str(row.index)], row.connections)
        for state in ("starting", "ready", "leaving"):
            states.add_metric([state], sum(row.state == state for row in self.rows))
        yield workers
        yield states
        help = "Workers that should run (WORKERS)."
        yield _gauge("expected_workers", help, self.expected_workers)
        if self.rows:
            started = min(row.started for row in self.rows)
            help = "Unix time at which the oldest worker started."
            yield _gauge("start_time_seconds", help, started)
        yield _gauge("cpus", "Cores available to the workers.", len(os.sched_getaffinity(0)))
        died = CounterMetricFamily(
            "realtime_workers_died", "Workers that exited unexpectedly, by state.", labels=["state"]
        )
        for state, count in zip(("starting", "ready"), self.died, strict=True):
            died.add_metric([state], count)
        yield died
        help = "Shared files of the service that were removed and then restored."
        yield CounterMetricFamily("realtime_shared_files_restored", help, value=self.restored)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"realtime_{name}", help, value=value)


def _build() -> Metric:
    family = GaugeMetricFamily(
        "realtime_build_info",
        "Always 1; the labels name the versions of the service and of Python.",
        labels=["version", "python"],
    )
    family.add_metric([__version__, platform.python_version()], 1)
    return family


def _memory(pids: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(
        "realtime_process_memory_bytes",
        "Memory of each process: resident, and proportional (shared pages divided by their users).",
        labels=["process", "kind"],
    )
    for name, pid in pids.items():
        for kind, size in _memory_of(pid):
            family.add_metric([name, kind], size)
    return family


def _memory_of(pid: int) -> Iterator[tuple[str, int]]:
    """Yield kinds and sizes; nothing for what the kernel does not tell, or no longer."""
    process = Path(f"/proc/{pid}")
    try:
        yield "resident", int((process / "statm").read_bytes().split()[1]) * _PAGE_SIZE
        for line in (process / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                yield "proportional", int(line.split()[1]) * 1024
    except (OSError, IndexError):
        return
