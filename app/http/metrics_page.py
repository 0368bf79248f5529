"""`GET /metrics`: the figures of all workers as one Prometheus page.

What the slot table counts (connections, users, queue) is read from there for each page, and so is
the memory of the processes from /proc: exact, and nothing to keep up to date in between.

All workers answer with the same page: were each to keep one of its own, a scrape that another
worker answers might show an older one, and counters would fall. Only one process makes a page at a
time, and reads what it shows after the page before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.errors import ErrorCode
from app.http.errors import HttpError
from app.ports import QueueTotals, Slots
from app.shared_calls import SharedCalls
from app.types import WorkerRow

BUSY_PAGES, BUSY_SECONDS = 8, 15.0
"""So many pages of a machine within so many seconds are more than a few Prometheus servers ask for."""
BUSY_FACTOR = 5
"""How many times as long a page is reused then."""
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class SharedPage(Protocol):
    """Where the workers of this machine keep the newest page. Calls block."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep the others from making a page meanwhile.

        Raises:
            TimeoutError: another process takes too long for it.
        """

    def read(self) -> bytes:
        """What was written last; empty when there is nothing.

        Raises:
            OSError: it cannot be read.
        """

    def write(self, content: bytes) -> None:
        """Replace it.

        Raises:
            OSError: it cannot be written.
        """


class _Page(NamedTuple):
    """A page, and when it and those before it were made."""

    made: tuple[float, ...]
    """Monotonic seconds, the newest last; `BUSY_PAGES` at most."""
    body: bytes

    def encode(self) -> bytes:
        return json.dumps(self.made).encode() + b"\n" + self.body


_NONE = _Page((), b"")


def _decode(content: bytes) -> _Page:
    """The page of a file; none where it says nothing of the kind."""
    head, _, body = content.partition(b"\n")
    try:
        return _Page(tuple(map(float, json.loads(head))), body)
    except (ValueError, TypeError):
        return _NONE


class MetricsPage:
    """The page and its handler.

    Args:
        slots: the figures of the slot table.
        collect: gives the joined metrics of all processes; may block, is called in a thread.
            It raises `TimeoutError` when it has to wait too long for others.
        shared: where all workers keep the page.
        processes: further processes of the service with memory to show: process ids by name.
        limits: settings that figures are compared with, by the names of their gauges.
        expected_workers: workers that should be ready.
        shared_for: seconds for which a page is reused for all requests. Making one delays deliveries
            for some 20 ms, so while pages are asked for without a pause it is `BUSY_FACTOR` times
            as long.
        clock: monotonic seconds, the same for all processes.
    """

    def __init__(
        self,
        slots: Slots,
        collect: Callable[[], Iterable[Metric]],
        shared: SharedPage,
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
        self._answers = SharedCalls()
        self._shared_for = shared_for
        self._shared = shared
        self._own = _NONE
        """The newest page that this worker has seen: for when the shared one is lost."""
        self._clock = clock

    async def metrics(self, _request: web.Request) -> web.Response:
        """Answer a scrape; those that come while a page is being made share it.

        Raises:
            HttpError: 503, the metrics of the other processes could not be read in time.
        """
        try:
            page = await self._answers.share("page", self._answer)
        except TimeoutError as error:
            message = f"The metrics are unavailable: {error}."
            raise HttpError(
                503, ErrorCode.SERVICE_UNAVAILABLE, message, headers={"Retry-After": "1"}
            ) from None
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _answer(self) -> bytes:
        # The rows are read on the loop: the lock of the slot table keeps processes apart, not threads.
        # They hold gauges only, so it does not matter that another worker may make a page in between.
        rows = self._slots.rows()
        table = _Table(
            connections=self._slots.total_connections(),
            users=self._slots.unique_users(),
            queue=self._slots.queue_totals(),
            expected_workers=self._expected_workers,
            rows=rows,
        )
        pids = {f"worker-{row.index}": row.pid for row in rows} | dict(self._processes())
        return await asyncio.to_thread(self._newest, table, pids)

    def _newest(self, table: _Table, pids: Mapping[str, int]) -> bytes:
        """The page that all workers answer with, made anew when it is due."""
        with self._shared.locked():
            page = self._last()
            if self._is_due(page):
                body = self._render(table, pids)
                page = _Page((*page.made, self._clock())[-BUSY_PAGES:], body)
                with contextlib.suppress(OSError):  # no room: each worker has its own then
                    self._shared.write(page.encode())
            self._own = page
            return page.body

    def _last(self) -> _Page:
        try:
            shared = _decode(self._shared.read())
        except OSError:
            shared = _NONE
        return max(shared, self._own, key=lambda page: page.made[-1:])

    def _is_due(self, page: _Page) -> bool:
        """Whether the last page is too old, or there is none."""
        if not page.made or not self._shared_for:
            return True
        now = self._clock()
        busy = len(page.made) == BUSY_PAGES and now - page.made[0] < BUSY_SECONDS
        age = now - page.made[-1]
        return not 0 <= age < self._shared_for * (BUSY_FACTOR if busy else 1)

    def _render(self, table: _Table, pids: Mapping[str, int]) -> bytes:
        registry = CollectorRegistry()
        limits = [
            _gauge(name, f"The setting {name.upper()}.", value)
            for name, value in self._limits.items()
        ]
        counted = [*self._collect(), *self._counted()]
        registry.register(
            _Families([*counted, *table.families(), *limits, _memory(pids), _build()])
        )
        return generate_latest(registry)

    def _counted(self) -> Iterator[Metric]:
        """What the slot table counts; single words, which need no lock."""
        died = CounterMetricFamily(
            "realtime_workers_died", "Workers that exited unexpectedly, by state.", labels=["state"]
        )
        for state, count in zip(("starting", "ready"), self._slots.workers_died(), strict=True):
            died.add_metric([state], count)
        yield died
        help = "Shared files of the service that were removed and then restored."
        restored = self._slots.files_restored()
        yield CounterMetricFamily("realtime_shared_files_restored", help, value=restored)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


@dataclass(frozen=True, slots=True)
class _Table:
    """What the slot table said at one moment, beside what it counts."""

    connections: int
    users: int
    queue: QueueTotals
    expected_workers: int
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
