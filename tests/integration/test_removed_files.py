"""Something removes the shared files of the service while it runs, as systemd's RemoveIPC does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import REPO
from tests.support.plain import PlainClient, spread
from tests.support.service import Service
from tests.support.waiting import until
from workers.shared import paths

pytestmark = pytest.mark.timeout(120)

CLIENTS = 20


async def connect(service: Service, count: int = CLIENTS) -> list[PlainClient]:
    clients = [
        await PlainClient.open(service, types="status", user=f"user-{n % 7}") for n in range(count)
    ]
    await asyncio.gather(*(client.barrier() for client in clients))
    return clients


def remove(service: Service) -> None:
    """All that this user has in shared memory."""
    paths.slots_file(service.data_dir).unlink()
    shutil.rmtree(paths.metrics_dir(service.data_dir))


async def check(service: Service, clients: list[PlainClient]) -> None:
    """Every client is connected, counted once, and gets what is published."""
    assert [client.socket.close_code for client in clients] == [None] * len(clients)
    await service.wait_connections(len(clients))

    async def users_are_counted() -> bool:
        return bool((await service.get("/ws/stats")).body["uniqueUsers"] == 7)

    await until(users_are_counted, "seven users")
    sent = await service.publish("status", "tick")
    for client in clients:
        await client.wait_seq("status", sent["seq"])

    async def is_well() -> bool:
        return bool((await service.get("/status")).body["causes"] == [])

    await until(is_well, "the status is well")
    await asyncio.gather(*(client.close() for client in clients))
    await service.wait_connections(0)


def reload(service: Service) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "workers.reload", "--json", "--signal", "HUP"],
        cwd=REPO,
        env=dict(os.environ) | service.settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.traced
async def test_a_reload_at_once_hands_all_connections_over_and_says_so() -> None:
    async with Service() as service:
        clients = await connect(service)
        remove(service)
        report = await asyncio.to_thread(reload, service)
        assert (report["handed_over"], report["drained"], report["lost"]) == (CLIENTS, 0, 0)
        await check(service, clients)


async def test_a_bare_hup_at_once_hands_all_connections_over() -> None:
    async with Service() as service:
        clients = await connect(service)
        remove(service)
        await service.hup()
        await check(service, clients)


async def test_the_caps_hold_when_a_worker_is_killed_at_once() -> None:
    async with Service(MAX_TOTAL_CONNECTIONS=CLIENTS) as service:
        # On both workers, however the kernel deals the others.
        clients = await spread(service, 2, types="status", user="first")
        clients += await connect(service, CLIENTS - 2)
        victim = service.worker_of(clients[0].port)
        remove(service)
        service.kill_worker(victim)
        await service.replaced(victim)
        left = [client for client in clients if service_holds(service, client)]
        assert 0 < len(left) < CLIENTS
        await service.wait_connections(len(left))
        more = []
        while len(left) + len(more) < CLIENTS:
            more.append(await PlainClient.open(service, types="status"))
        answer = await service.request(
            "GET",
            "/ws/realtime",
            headers={
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
            },
        )
        assert answer.status == 503
        assert answer.body["code"] == "MAX_CONNECTIONS_EXCEEDED"


def service_holds(service: Service, client: PlainClient) -> bool:
    try:
        service.worker_of(client.port)
    except AssertionError:
        return False
    return True


@pytest.mark.traced
async def test_it_is_seen_and_repaired_automatically() -> None:
    """The figures go on as if nothing had happened."""
    async with Service() as service:
        await service.publish()

        async def published() -> float:
            page = (await service.get("/metrics")).body
            return sum(
                float(line.split()[-1])
                for line in page.splitlines()
                if line.startswith("realtime_messages_published_total")
            )

        await until(published, "the publish is counted")
        before = await published()

        async def is_seen() -> bool:
            with contextlib.suppress(FileNotFoundError):  # it may be back before we have looked
                remove(service)
            seen = (await service.get("/status")).body
            gone = "shared files: the slot table is gone" in seen["causes"]
            return gone and seen["status"] == "degraded"

        await until(is_seen, "the status says what is gone")

        async def is_well() -> bool:
            answers = [await service.get("/status") for _ in range(4)]
            return all(answer.body["causes"] == [] for answer in answers)

        await until(is_well, "all is there again", 10)
        assert paths.slots_file(service.data_dir).exists()
        assert await published() == before

        async def restored() -> bool:
            page = (await service.get("/metrics")).body
            (line,) = [
                line
                for line in page.splitlines()
                if line.startswith("realtime_shared_files_restored_total ")
            ]
            return float(line.split()[-1]) >= 2

        await until(restored, "both are counted")  # each worker keeps its page for a second
        assert "Something removed the slot table" in service.log


async def test_sockets_and_lock_files_are_put_back() -> None:
    async with Service(COLLECTOR=1) as service:
        clients = await connect(service)
        shutil.rmtree(paths.runtime_dir(service.data_dir))
        for name in ("leader.lock", "masters.lock", "gunicorn.pid"):
            (service.data_dir / name).unlink()
        run: Path = paths.runtime_dir(service.data_dir)

        def is_back() -> bool:
            return (
                len(list(run.glob("heir-*.sock"))) == service.workers
                and (run / "valkey.sock").exists()
                and all(
                    (service.data_dir / name).exists()
                    for name in ("leader.lock", "masters.lock", "gunicorn.pid")
                )
            )

        await until(is_back, "the files are back", 20)
        await until(lambda: is_published(service), "publishing works", 10)
        report = await asyncio.to_thread(reload, service)
        assert (report["handed_over"], report["drained"], report["lost"]) == (CLIENTS, 0, 0)
        await check(service, clients)
        await until(lambda: service.log.count("This worker leads now") >= 2, "another one leads")
        assert service.log.count("This worker leads now") == 2


@pytest.mark.parametrize("at_once", [True, False])
async def test_no_process_stays_when_the_data_directory_was_removed(at_once: bool) -> None:
    """Neither of the service that ends then, nor beside the one that goes on."""
    async with Service() as service:
        clients = await connect(service)
        await service.publish("status", "tick")
        (first,) = private_valkeys(service)
        shutil.rmtree(service.data_dir)
        if not at_once:
            # The workers are still connected to the old one.
            await until(
                lambda: len(private_valkeys(service)) == 1 and private_valkeys(service) != [first],
                "another Valkey runs, and it alone",
                60,
            )
            await until(lambda: is_published(service), "publishing works again", 60)
            assert [client.socket.close_code for client in clients] == [None] * CLIENTS
        await asyncio.gather(*(client.close() for client in clients))
        # Its end looks for processes of this service.


def private_valkeys(service: Service) -> list[int]:
    return [one.pid for one in service.processes() if "valkey" in one.name()]


async def is_published(service: Service) -> bool:
    body = {"type": "status", "event": "tick", "data": 1}
    return (await service.post("/ws/broadcast", body)).status == 200
