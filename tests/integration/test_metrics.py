"""`/metrics`: all workers on one page, over restarts too."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.client import Client, one_of_each_worker
from tests.support.plain import PlainClient, spread
from tests.support.raw import RawClient
from tests.support.service import Service
from tests.support.sioclient import sio_clients
from tests.support.waiting import until
from workers.shared.paths import metrics_dir

NEEDED = {
    "realtime_connections": "gauge",
    "realtime_users": "gauge",
    "realtime_subscriptions": "gauge",
    "realtime_messages_published": "counter",
    "realtime_messages_delivered": "counter",
    "realtime_sent_bytes": "counter",
    "realtime_queue_messages": "gauge",
    "realtime_queue_dropped": "counter",
    "realtime_flush_duration_seconds": "histogram",
    "realtime_delivery_latency_seconds": "histogram",
    "realtime_backplane_lag_seconds": "gauge",
    "realtime_backplane_reconnects": "counter",
    "realtime_connections_refused": "counter",
    "realtime_slow_consumers": "gauge",
    "realtime_sessions": "gauge",
    "realtime_groups": "gauge",
    "realtime_rooms": "gauge",
    "realtime_tasks": "gauge",
    "realtime_awaited_acks": "gauge",
    "realtime_open_descriptors": "gauge",
    "realtime_process_memory_bytes": "gauge",
    "realtime_build_info": "gauge",
}
"""What item 11 of the issue lists, under the names of app/metrics.py."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(service: Service) -> tuple[dict[str, str], Samples]:
    """Types of the families, and all samples."""
    answer = await service.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return parse(answer.body)


def parse(page: str) -> tuple[dict[str, str], Samples]:
    """Types of the families, and all samples."""
    kinds: dict[str, str] = {}
    samples: Samples = {}
    for family in text_string_to_metric_families(page):
        assert family.name not in kinds, f"{family.name} twice"
        assert family.documentation, f"{family.name} has no help text"
        kinds[family.name] = family.type
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"{key} twice"
            samples[key] = sample.value
    return kinds, samples


def total(samples: Samples, name: str, labels: Mapping[str, str] | None = None) -> float:
    """The sum over a metric's samples with these labels."""
    wanted = set((labels or {}).items())
    return sum(value for (n, have), value in samples.items() if n == name and wanted <= set(have))


def counters(kinds: dict[str, str], samples: Samples) -> Samples:
    """Everything that must never fall."""
    rising = {name for name, kind in kinds.items() if kind in {"counter", "histogram"}}
    return {
        key: value
        for key, value in samples.items()
        if re.sub(r"_(total|bucket|count|sum)$", "", key[0]) in rising
    }


async def test_the_page_is_complete_and_well_formed(service: Service) -> None:
    async with sio_clients(service):
        await service.publish()
        async with await RawClient.open(service, headers={"Origin": "http://evil.test"}) as evil:
            assert evil.status == 403

        async def complete() -> Any:
            found = await scrape(service)
            return found if set(NEEDED) <= set(found[0]) else None

        # Gauges are set by each worker's tick, so they come a moment after the start; each worker
        # keeps its page for a second.
        kinds, samples = await until(complete, f"all of {sorted(NEEDED)}")
    for name, kind in NEEDED.items():
        assert kinds.get(name) == kind, f"{name} is {kinds.get(name)}, not {kind}"
    for name, kind in kinds.items():
        assert re.fullmatch(r"(realtime|process|python)_[a-z0-9_]+", name), name
        assert not (kind != "counter" and name.endswith("_total")), name
    assert total(samples, "realtime_build_info") == 1


async def test_workers_add_up() -> None:
    async with Service() as service:
        clients = await spread(service, types="status", user="ann")
        clients += [await PlainClient.open(service, types="status,config") for _ in range(3)]
        await asyncio.gather(*(client.barrier() for client in clients))
        for _ in range(10):
            last = await service.publish()
        for client in clients:
            await client.wait_seq("status", last["seq"])

        async def counted() -> bool:
            _, samples = await scrape(service)
            status = {"type": "status"}
            return (
                total(samples, "realtime_connections") == 5
                and total(samples, "realtime_subscriptions", status) == 5
                and total(samples, "realtime_subscriptions", {"type": "config"}) == 3
                and total(samples, "realtime_messages_published_total", status) == 10
                and total(samples, "realtime_messages_delivered_total", status) == 50
                and total(samples, "realtime_delivery_latency_seconds_count") == 50
            )

        await until(counted, "the figures of both workers together")
        await asyncio.gather(*(client.close() for client in clients))


async def test_refusals_are_counted_by_reason() -> None:
    async with Service(MAX_TOTAL_CONNECTIONS=2) as service:
        clients = [await RawClient.open(service) for _ in range(6)]
        evil = await RawClient.open(service, headers={"Origin": "http://evil.test"})

        async def counted() -> bool:
            _, samples = await scrape(service)
            return total(samples, "realtime_connections_refused_total") == 5

        await until(counted, "four over the cap and one of a wrong origin")
        _, samples = await scrape(service)
        reasons = {
            dict(labels)["reason"]: value
            for (name, labels), value in samples.items()
            if name == "realtime_connections_refused_total" and value
        }
        assert sorted(reasons.values()) == [1, 4]
        for client in [*clients, evil]:
            await client.abort()


class Scraper(Client):
    """Scrapes one worker, over a connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._reader, self._writer = reader, writer

    async def close(self) -> None:
        await super().close()
        self._writer.close()

    @property
    def port(self) -> int:
        """Its own port of the connection."""
        port: int = self._writer.get_extra_info("sockname")[1]
        return port

    async def counters(self) -> Samples:
        """Everything that must never fall."""
        self._writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], head
        (length,) = re.findall(rb"(?i)\r\ncontent-length: (\d+)", head)
        page = await self._reader.readexactly(int(length))
        return counters(*parse(page.decode()))


async def test_no_counter_falls_when_another_worker_is_asked() -> None:
    async with Service() as service:

        async def open() -> Scraper:
            scraper = Scraper(*await asyncio.open_connection("127.0.0.1", service.port))
            await scraper.counters()  # or no worker has accepted it yet
            return scraper

        async def worker_of(scraper: Scraper) -> int:
            return await asyncio.to_thread(service.worker_of, scraper.port)

        scrapers = await one_of_each_worker(open, worker_of, at_once=2)
        seen: Samples = {}
        published = "realtime_messages_published_total", (("type", "status"),)
        first, number = seen.get(published, 0), 0
        # Several pages long: each worker is asked in turn, with a message before each.
        while seen.get(published, 0) < first + 6:
            await service.publish()
            now = await scrapers[number % 2].counters()
            assert not {key: (value, now.get(key)) for key, value in seen.items()
                        if now.get(key, -1) < value}  # fmt: skip
            seen, number = now, number + 1
        for scraper in scrapers:
            await scraper.close()


@pytest.mark.timeout(150)
async def test_restarts_make_no_counter_fall_and_no_files_pile_up() -> None:
    async with Service() as service:
        directory = metrics_dir(service.data_dir)

        async def use() -> None:
            async with sio_clients(service, 2):
                await service.publish()

        await use()
        before = counters(*await scrape(service))
        files = len(list(directory.iterdir()))
        for _ in range(3):
            victim = service.kill_worker()
            await service.replaced(victim)
            after = counters(*await scrape(service))
            fallen = {key: (value, after.get(key)) for key, value in before.items()
                      if after.get(key, -1) < value}  # fmt: skip
            assert not fallen, fallen
            await use()
            before = counters(*await scrape(service))
        await service.hup()
        after = counters(*await scrape(service))
        fallen = {key: (value, after.get(key)) for key, value in before.items()
                  if after.get(key, -1) < value}  # fmt: skip
        assert not fallen, fallen
        await use()

        async def folded() -> bool:
            await scrape(service)
            # Two live workers and what has been folded together: no more than at first and a little.
            return len(list(directory.iterdir())) <= files + 4

        await until(folded, "the files of dead workers are folded with the next page")


async def test_a_dead_worker_leaves_no_gauge_behind() -> None:
    async with Service() as service:
        one, two = await spread(service, types="status")
        victim = service.worker_of(one.port)
        service.kill_worker(victim)
        await one.wait_closed()

        async def settled() -> bool:
            _, samples = await scrape(service)
            return (
                total(samples, "realtime_connections") == 1
                and total(samples, "realtime_subscriptions", {"type": "status"}) == 1
            )

        await until(settled, "the gauges of the living alone")
        await service.replaced(victim)
        await two.close()
