"""A worker that the backplane no longer reaches is found out, and gives its clients away."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)


class DeafService(Service):
    """A service with workers that a test can make deaf."""

    def __init__(self, *, grace: float, **settings: Any) -> None:
        super().__init__(HANDLERS="tests.integration.deaf_handlers", DEAF_GRACE=grace, **settings)
        self.settings["DEAF_FILE"] = str(self.home / "deaf")

    def deafen(self, *pids: int) -> None:
        (self.home / "deaf").write_text(" ".join(map(str, pids)))

    async def status(self) -> dict[str, Any]:
        answer = await self.get("/status")
        assert isinstance(answer.body, dict)
        return answer.body


async def seqs(client: PlainClient, count: int) -> list[int]:
    """The numbers of the first `count` messages of the test."""

    def received() -> list[int]:
        return [e["seq"] for e in client.received if e.get("event") == "test"]

    await until(lambda: len(received()) >= count, f"{count} messages")
    return received()


@pytest.mark.parametrize("workers", [2, 1])
async def test_its_clients_move_and_miss_nothing(workers: int) -> None:
    async with DeafService(grace=1.0, WORKERS=workers) as service:
        clients = [await PlainClient.open(service, types="status") for _ in range(12)]
        await service.publish("status", "test", {"n": 1})
        for client in clients:
            assert len(await seqs(client, 1)) == 1
        victim = service.worker_of(clients[0].port)
        service.deafen(victim)
        await until(lambda: "no longer gets" in service.log, "the deafness is noticed")
        for n in range(2, 6):
            await service.publish("status", "test", {"n": n})
        for client in clients:
            found = await seqs(client, 5)
            assert found == list(range(found[0], found[0] + 5))
        await service.replaced(victim)
        await until(lambda: len(service.worker_pids()) == workers, "as many workers as before")
        assert (await service.status())["status"] == "ok"
        for client in clients:
            await client.close()


async def test_it_is_shown_and_takes_no_connection() -> None:
    async with DeafService(grace=600) as service:
        victim = service.worker_pids()[0]
        service.deafen(victim)

        async def shown() -> bool:
            status = await service.status()
            deaf = [row["pid"] for row in status["workers"] if row.get("deaf")]
            return deaf == [victim] and status["status"] == "degraded"

        await until(shown, "/status shows it")

        async def counted() -> bool:
            return "realtime_deaf_workers 1.0" in (await service.get("/metrics")).body

        await until(counted, "the metric shows it")
        held = {await _worker_or_none(service) for _ in range(30)}
        assert None in held
        assert victim not in held


async def test_no_worker_is_deaf_without_a_backplane() -> None:
    async with DeafService(grace=0.5) as service:
        before = set(service.worker_pids())
        server = service.valkey_pid()
        os.kill(server, signal.SIGSTOP)
        await asyncio.sleep(4)
        os.kill(server, signal.SIGCONT)
        await asyncio.sleep(1)
        assert set(service.worker_pids()) == before
        assert "no longer gets" not in service.log


async def _worker_or_none(service: Service) -> int | None:
    """Which worker took a new connection; None: it was refused."""
    try:
        client = await PlainClient.open(service)
    except InvalidStatus:
        return None
    async with client:
        return service.worker_of(client.port)
