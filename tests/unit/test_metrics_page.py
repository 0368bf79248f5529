"""GET /metrics through aiohttp, with figures of the slots read at the scrape."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from app.config import load
from app.http.errors import HttpError
from app.http.metrics_page import BUSY_PAGES, BUSY_SECONDS, MetricsPage
from app.metrics import Metrics
from workers.shared.slots import LEAVING, READY, SlotTable
from workers.shared.worker_slots import WorkerSlots

Collect = Callable[[], Iterable[Metric]]


class Machine:
    """The slot table of a machine with two workers, one of them leaving."""

    def __init__(self, directory: Path) -> None:
        settings = load({"DATA_DIR": str(directory)})
        table = SlotTable(directory / "slots")
        rows = [table.claim_row(1), table.claim_row(1)]
        table.set_state(rows[0], READY)
        table.set_state(rows[1], LEAVING)
        self.slots, self.leaving = (WorkerSlots(table, row, settings) for row in rows)
        for _ in range(5):
            assert self.slots.reserve_connection()
        for _ in range(7):
            assert self.leaving.reserve_connection()
        for user in ("a", "b", "b"):
            assert self.slots.claim_user(user)
        for _ in range(3):
            assert self.leaving.reserve_queue(150)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
async def serve(machine: Machine) -> AsyncIterator[Callable[[Collect], Any]]:
    clients = []

    async def start(collect: Collect) -> TestClient[Any, Any]:
        processes = {"master": os.getppid(), "gone": 2**22 + 1}
        page = MetricsPage(
            machine.slots, collect, File(), lambda: processes, {"max_queue_size": 50}
        )
        app = web.Application()
        app.router.add_get("/metrics", page.metrics)

        @web.middleware
        async def errors(request: web.Request, handler: Any) -> web.StreamResponse:
            try:
                return await handler(request)  # type: ignore[no-any-return]
            except HttpError as error:
                return web.Response(status=error.status, text=error.message)

        app.middlewares.append(errors)
        client = TestClient(TestServer(app))
        clients.append(client)
        await client.start_server()
        return client

    yield start
    for client in clients:
        await client.close()


def parse(page: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def test_the_page_joins_what_is_counted_and_what_the_slots_know(
    serve: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics = Metrics(["status"])
    metrics.delivered["status"].inc(9)
    client = await serve(metrics.registry.collect)
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    text = await response.text()
    page = parse(text)
    assert page["realtime_messages_delivered_total", "status"] == 9
    assert page["realtime_connections",] == 12
    assert page["realtime_users",] == 2
    assert page["realtime_queue_messages",] == 3
    assert page["realtime_queue_bytes",] == 450
    assert page["realtime_worker_connections", str(machine.leaving.index)] == 7
    assert page["realtime_workers", "ready"] == 1
    assert page["realtime_workers", "starting"] == 0
    assert page["realtime_workers_died_total", "ready"] == 0
    assert page["realtime_max_queue_size",] == 50
    rows = machine.slots.rows()
    assert page["realtime_start_time_seconds",] == min(row.started for row in rows)
    assert page["realtime_cpus",] == len(os.sched_getaffinity(0))
    assert page["realtime_process_memory_bytes", "resident", f"worker-{machine.slots.index}"] > 1e6
    assert not [key for key in page if "gone" in key]
    assert "realtime_build_info" in {key[0] for key in page}
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families)

    machine.slots.reserve_connection()
    assert parse(await (await client.get("/metrics")).text())["realtime_connections",] == 13


async def test_scrapes_that_overlap_share_one_page(serve: Any) -> None:
    started, go = threading.Event(), threading.Event()
    calls = 0

    def collect() -> list[Metric]:
        nonlocal calls
        calls += 1
        started.set()
        go.wait(10)
        return []

    client = await serve(collect)
    scrapes = [asyncio.create_task(client.get("/metrics")) for _ in range(5)]
    await asyncio.to_thread(started.wait, 10)
    # One that goes away does not take the page from the others.
    scrapes.pop(0).cancel()
    late = asyncio.create_task(client.get("/metrics"))
    await asyncio.wait([late], timeout=0.05)
    go.set()
    for response in await asyncio.gather(*scrapes, late):
        assert response.status == 200
    assert calls == 1
    assert (await client.get("/metrics")).status == 200
    assert calls == 2


async def test_metrics_that_stay_locked_are_reported(serve: Any) -> None:
    def collect() -> list[Metric]:
        raise TimeoutError("the metrics files stay locked")

    response = await (await serve(collect)).get("/metrics")
    assert response.status == 503
    assert "stay locked" in await response.text()


class File:
    """The page that workers share, as a test keeps it."""

    def __init__(self) -> None:
        self.content = b""
        self.held = False
        self.full = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        assert not self.held
        self.held = True
        yield
        self.held = False

    def read(self) -> bytes:
        return self.content

    def write(self, content: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no room")
        self.content = content


class Workers:
    """Two workers that answer scrapes of one machine, whose messages are counted."""

    def __init__(self, machine: Machine) -> None:
        self.seconds = 1000.0
        self.file = File()
        self.made = 0
        self.counted = 0.0
        self.pages = [
            MetricsPage(
                machine.slots,
                self._collect,
                self.file,
                shared_for=1.0,
                clock=lambda: self.seconds,
            )
            for _ in range(2)
        ]

    def _collect(self) -> list[Metric]:
        assert self.file.held  # or another one might make a page of what it reads later
        self.made += 1
        return [CounterMetricFamily("realtime_things", "Things.", value=self.counted)]

    async def scrape(self, worker: int) -> float:
        response: Any = await self.pages[worker].metrics(None)  # type: ignore[arg-type]
        return parse(response.body.decode())["realtime_things_total",]


async def test_no_counter_falls_from_one_worker_to_another(machine: Machine) -> None:
    workers = Workers(machine)
    workers.counted = 1
    assert await workers.scrape(0) == 1
    workers.seconds += 0.9
    workers.counted = 2
    assert await workers.scrape(1) == 1, "the page of the other worker, which is not old"
    workers.seconds += 0.2
    assert await workers.scrape(1) == 2
    assert await workers.scrape(0) == 2, "a page that this worker made before is older"
    assert workers.made == 2


async def test_a_machine_makes_fewer_pages_while_they_are_asked_for_without_a_pause(
    machine: Machine,
) -> None:
    workers = Workers(machine)
    for number in range(80):
        workers.seconds += 0.25
        workers.counted += 1
        assert await workers.scrape(number % 2) <= workers.counted
    assert BUSY_PAGES <= workers.made <= 2 * BUSY_PAGES  # in 20 seconds
    workers.seconds += BUSY_SECONDS
    assert await workers.scrape(0) == 80


@pytest.mark.parametrize("content", [b"", b"junk", b"{}\nx", b'["a"]\nx', b"[1e9]\nx", b"[-1]\nx"])
async def test_a_page_that_cannot_be_used_is_made_anew(machine: Machine, content: bytes) -> None:
    workers = Workers(machine)
    workers.file.content = content
    workers.counted = 3
    assert await workers.scrape(0) == 3
    assert await workers.scrape(1) == 3
    assert workers.made == 1


async def test_without_room_for_the_page_each_worker_has_its_own(machine: Machine) -> None:
    workers = Workers(machine)
    workers.file.full = True
    assert [await workers.scrape(n % 2) for n in range(6)] == [0] * 6
    assert workers.made == 2


def described(registry: CollectorRegistry) -> dict[str, str]:
    """A row of docs/operations/METRICS.md for each metric that workers count themselves."""
    found = {}
    for metric in registry._collector_to_names:
        one: Any = metric
        name = one._name + "_total" * (one._type == "counter")
        labels = ", ".join(f"`{label}`" for label in one._labelnames)
        found[name] = f"| `{name}` | {one._type} | {labels} | {one._documentation} |"
    return found


async def test_every_metric_is_described(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    rows = described(Metrics(["status"]).registry)
    client = await serve(list)
    page = await (await client.get("/metrics")).text()
    for family in text_string_to_metric_families(page):
        name = family.name + "_total" * (family.type == "counter")
        labels = ", ".join(f"`{label}`" for label in family.samples[0].labels)
        if not name.startswith("realtime_max_"):
            rows[name] = f"| `{name}` | {family.type} | {labels} | {family.documentation} |"
    text = (Path(__file__).parents[2] / "docs/operations/METRICS.md").read_text()
    shown = dict(re.findall(r"^(?=\| `(realtime_\w+)`)(.*)$", text, re.MULTILINE))
    assert shown == rows
