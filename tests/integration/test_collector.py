"""The collector: real figures of this machine, from exactly one process."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import struct
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support.envelopes import walk
from tests.support.fixtures import Opener
from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.waiting import until
from workers.shared.paths import leader_lock

PERIODS = {"1m", "5m", "15m", "1h", "24h"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    running = Service(COLLECTOR="1").start()
    yield running
    running.stop()


def leader_pid(service: Service) -> int:
    """The pid that holds the leader's lock, as the kernel says; 0: none."""
    fd = os.open(leader_lock(service.data_dir), os.O_RDWR)
    try:
        # struct flock of Linux: type, whence, start, length, pid.
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        reported = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        return 0 if reported[0] == fcntl.F_UNLCK else int(reported[4])
    finally:
        os.close(fd)


async def test_status_update_tells_of_this_machine(plain: Opener) -> None:
    client = await plain(types="")
    await client.request("subscribe", {"types": ["status"], "history": 1})
    history = (await client.expect("history_data"))["data"]["messages"]
    got = history[0] if history else await client.expect("status_update", timeout=45)
    data: dict[str, Any] = got["data"]
    assert got["event"] == "status_update"
    for field in ("cpu", "memory", "disk"):
        assert 0 <= data[field] <= 100, data
    assert 0 < data["memoryUsed"] <= data["memoryTotal"] <= psutil.virtual_memory().total
    assert data["uptime"] > 0
    assert data["connections"] >= 0


async def test_connections_are_published_when_they_change(plain: Opener) -> None:
    client = await plain(types="status")
    others = [await plain(types="") for _ in range(5)]
    assert others
    await client.expect(
        lambda got: got["event"] == "status_update" and got["data"].get("connections") == 6,
        "a status_update with six connections",
        45,
    )


async def test_stats_update_for_each_period(service: Service, plain: Opener) -> None:
    client = await plain(types="status")
    await client.barrier()
    for _ in range(20):
        last = await service.publish()
    await client.wait_seq("status", last["seq"])

    async def shown() -> bool:
        answer = await service.get("/stats")
        if answer.status != 200:
            return False
        periods = answer.body["data"]["periods"]
        assert set(periods) == PERIODS
        minute = periods["1m"]
        return bool(
            minute["published"] >= 20
            and minute["deliveries"] >= 20
            and minute["requests"] >= 20
            and minute["latency"]["p50"] is not None
        )

    await until(shown, "what was just published in the statistics", 45)
    seen = {one["data"]["period"] for one in await service.history("stats", limit=100)}
    assert seen == PERIODS


@pytest.mark.timeout(150)
async def test_exactly_one_collector_also_after_a_kill() -> None:
    async with Service(COLLECTOR="1", WORKERS=3) as service:
        first = await until(lambda: leader_pid(service), "a leader")
        assert first in service.worker_pids()
        clients = [await PlainClient.open(service, types="stats") for _ in range(6)]
        await asyncio.gather(*(client.barrier() for client in clients))
        holders = service.holders()
        survivors = [one for one in clients if holders[one.port] != first]
        service.kill_worker(first)

        def other_leader() -> bool:
            return leader_pid(service) not in {0, first}

        await until(other_leader, "another leader")
        second = leader_pid(service)
        assert second in service.worker_pids()
        watcher = survivors[0] if survivors else await PlainClient.open(service, types="stats")

        def minutes() -> list[dict[str, Any]]:
            """Updates of the shortest period, every ten seconds from one collector."""
            return [
                got
                for got in watcher.received
                if got["event"] == "stats_update" and got["data"]["period"] == "1m"
            ]

        await until(lambda: len(minutes()) >= 4, "four updates from the new leader", 90)
        # The first may follow the dead leader's last one closely; then one every ten seconds.
        times = [one["timestamp"] for one in minutes()[1:]]
        close = [b - a for a, b in itertools.pairwise(times) if b - a < 4000]
        assert not close, f"two collectors publish: {times}"
        walk(watcher.received, "stats")
        assert leader_pid(service) == second
        await asyncio.gather(*(client.close() for client in {*clients, watcher}))
        await service.replaced(first)


async def test_without_the_collector_nothing_is_published() -> None:
    async with Service(COLLECTOR="0", WORKERS=1) as service:
        client = await PlainClient.open(service, types="all")
        await client.barrier()
        sent = await service.publish("status", "only_this")
        await client.wait_seq("status", sent["seq"])
        assert sent["seq"] == 1
        assert (await service.get("/stats")).status == 404
        await client.close()


async def test_every_status_update_has_one_shape(service: Service, plain: Opener) -> None:
    client = await plain(types="status", history=1)
    past = (await client.expect("history_data"))["data"]["messages"]
    expected = past[0] if past else await client.expect("status_update", timeout=45)
    answer = await service.post("/status", {"state": "working", "task": "one shape"})
    assert answer.status == 200, answer
    said = await client.expect(
        lambda got: (got["data"].get("presence") or {}).get("task") == "one shape",
        "what the lab does",
    )
    assert said["seq"] == answer.body["message"]["seq"], "at once, not with the next sample"
    assert said["event"] == "status_update"
    assert said["data"].keys() == expected["data"].keys()


async def test_the_series_has_samples_of_this_machine(service: Service) -> None:
    async def sampled() -> dict[str, Any]:
        answer = await service.get("/stats/series", range="15m")
        assert answer.status == 200, answer
        hosts: dict[str, Any] = answer.body["hosts"]
        return hosts

    hosts = await until(sampled, "a first sample")
    (columns,) = hosts.values()
    assert columns.keys() == {"t", "cpu", "memory", "disk", "connections"}
    assert 0 < columns["memory"][-1] <= 100
    assert (await service.get("/stats/series", range="2d")).status == 400


async def test_stats_tell_of_connections(plain: Opener) -> None:
    client = await plain(types="stats", history=1)
    past = (await client.expect("history_data"))["data"]["messages"]
    got = past[0] if past else await client.expect("stats_update", timeout=45)
    connections = got["data"]["connections"]
    assert connections.keys() >= {"totalConnections", "subscriptions", "protocols", "workers"}
    assert connections["workers"][0].keys() >= {"pid", "state", "connections"}
