"""A service whose workers read from a replica of the shared server."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.support.envelopes import walk
from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.valkeys import Starter
from tests.support.waiting import until
from workers.leader import valkey as private_valkey
from workers.shared import paths


def replica_pid(service: Service) -> int | None:
    return private_valkey.find(service.data_dir, paths.replica_place)


async def readers(service: Service) -> int:
    status = await service.get("/status")
    replica = status.body["backplane"]["replica"]
    return 0 if replica is None else int(replica["readers"])


@pytest.fixture
def url(start_valkey: Starter) -> str:
    return start_valkey(
        "--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"
    )


async def test_clients_get_everything_while_the_replica_is_killed_and_stopped(url: str) -> None:
    async with Service(BACKPLANE_URL=url, BACKPLANE_REPLICA="auto") as service:
        await until(lambda: _reads(service, 2), "both workers read from it", 30)
        clients = [await PlainClient.open(service, types="status") for _ in range(4)]
        for client in clients:
            await client.barrier()
        sent = 0

        async def publish(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                await service.publish("status", "shared", {"n": sent})
                sent += 1

        await publish(20)
        for signum in (signal.SIGKILL, signal.SIGSTOP):
            pid = replica_pid(service)
            assert pid is not None
            os.kill(pid, signum)
            await publish(20)
            await until(lambda: _reads(service, 0), "both workers read from the primary", 30)
            await publish(20)
            if signum == signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
            await until(lambda: _reads(service, 2), "both workers read from it again", 30)
        await publish(20)
        for client in clients:
            await client.wait_seq("status", sent)
            assert walk(client.received, "status").seqs == list(range(1, sent + 1))
            await client.close()
        status = (await service.get("/status")).body
        assert status["status"] == "ok"
        assert status["backplane"]["replica"]["state"] == "in sync"
        metrics = (await service.get("/metrics")).body
        assert "realtime_backplane_replica_readers 2.0" in metrics
        assert "realtime_backplane_replica_expected 1.0" in metrics
        assert 'process="replica"' in metrics
        pid = replica_pid(service)
    await until(lambda: replica_pid(service) is None, "it ends with the service")
    assert pid is not None
    assert not paths.replica_note(service.data_dir).exists()


async def _reads(service: Service, count: int) -> bool:
    return await readers(service) == count


async def test_a_reload_keeps_it_and_the_setting_ends_it(url: str) -> None:
    async with Service(BACKPLANE_URL=url, BACKPLANE_REPLICA="auto") as service:
        await until(lambda: _reads(service, 2), "both workers read from it", 30)
        pid = replica_pid(service)
        await service.hup()
        await until(lambda: _reads(service, 2), "both new workers read from it", 30)
        assert replica_pid(service) == pid


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"WORKERS": 1}, "one worker alone gains nothing by a replica"),
        ({"BACKPLANE_REPLICA": "0"}, ""),
    ],
)
async def test_where_there_is_none(url: str, settings: dict[str, Any], words: str) -> None:
    settings = {"BACKPLANE_REPLICA": "auto"} | settings
    async with Service(BACKPLANE_URL=url, **settings) as service:
        status = (await service.get("/status")).body
        assert "replica" not in status["backplane"]
        assert replica_pid(service) is None
        assert words in service.log
