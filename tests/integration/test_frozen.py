"""All processes of the service are stopped for longer than the master's timeout, and go on."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.long]


async def test_no_connection_is_cut_by_a_pause_of_everything() -> None:
    settings = {
        "GUNICORN_CMD_ARGS": "--timeout=4",
        "HEARTBEAT_INTERVAL": "1s",
        "HEARTBEAT_TIMEOUT": "3s",
    }
    async with Service(**settings) as service:  # type: ignore[arg-type]
        workers = set(service.worker_pids())
        clients = [await PlainClient.open(service, types="status") for _ in range(20)]
        await asyncio.gather(*(client.barrier() for client in clients))
        pids = [process.pid for process in service.processes()]
        assert len(pids) == 4
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(12)
        assert service.process is not None
        os.kill(service.process.pid, signal.SIGCONT)
        await asyncio.sleep(1.5)  # the master looks before the workers can say a word
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        sent = await until(lambda: published(service), "publishing works again")
        for client in clients:
            await client.wait_seq("status", sent)  # type: ignore[arg-type]
        assert [client.socket.close_code for client in clients] == [None] * len(clients)
        assert set(service.worker_pids()) == workers
        assert "WORKER TIMEOUT" not in service.log
        # One that hangs alone is killed as ever.
        victim = service.worker_pids()[0]
        os.kill(victim, signal.SIGSTOP)
        await service.replaced(victim)
        assert f"WORKER TIMEOUT (pid:{victim})" in service.log
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)


async def published(service: Service) -> int | None:
    body = {"type": "status", "event": "tick", "data": 1}
    answer = await service.post("/ws/broadcast", body)
    return int(answer.body["seq"]) if answer.status == 200 else None
