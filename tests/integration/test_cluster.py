"""A service of two workers over a Cluster of real nodes."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.support.cluster import Cluster
from tests.support.envelopes import walk
from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.waiting import until

TYPES = ("status", "stats", "health", "config", "system")


@contextlib.asynccontextmanager
async def streaming(service: Service, types: Sequence[str]) -> AsyncIterator[Counter[str]]:
    """Publish to each type; what is not answered with 200 is repeated with its id. Counts them."""
    stopping, stored = asyncio.Event(), Counter[str]()

    async def stream(type: str) -> None:
        while not stopping.is_set():
            id, status = str(uuid.uuid4()), 0
            body = {"type": type, "event": "tick", "data": {}, "id": id}
            while status != 200:
                status = (await service.post("/ws/broadcast", body)).status
            stored[type] += 1
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        for type in types:
            group.create_task(stream(type))
        yield stored
        stopping.set()


async def backplane(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = (await service.get("/status")).body["backplane"]
    return found


async def test_clients_get_everything_while_slots_and_primaries_change() -> None:
    with Cluster() as cluster:
        async with Service(
            BACKPLANE_URL=cluster.url, BACKPLANE_WAIT=1, LATEST_ONLY_TYPES="none"
        ) as service:
            clients = [await PlainClient.open(service, types=",".join(TYPES)) for _ in range(4)]
            for client in clients:
                await client.barrier()
            async with streaming(service, TYPES) as stored:

                async def more(types: Sequence[str] = TYPES) -> None:
                    known = stored.copy()
                    await until(
                        lambda: all(stored[type] > known[type] + 3 for type in types), "more", 40
                    )

                await more()
                to = cluster.others("status")[0]
                await asyncio.to_thread(cluster.migrate, "status", to)
                await asyncio.to_thread(cluster.wait_for_primary, "status", to)
                await more()
                await service.hup()
                await more()
                killed, replica = cluster.primary_of("stats"), cluster.replica_of("stats")
                killed.kill()
                await asyncio.to_thread(cluster.wait_for_primary, "stats", replica)
                killed.start_again()
                await more()
            for client in clients:
                for type in TYPES:
                    await client.wait_seq(type, stored[type])
                    found = walk(client.received, type)
                    assert found.seqs == list(range(1, len(found.seqs) + 1)), type
                    assert found.gaps == []
                await client.close()
            await until(lambda: _is_well(service), "all is well again")


async def test_one_shard_that_is_down_stops_its_own_types_alone() -> None:
    with Cluster(replicas=False) as cluster:
        down = cluster.primary_of("config")
        mine = [type for type in TYPES if cluster.primary_of(type) is down]
        others = [type for type in TYPES if type not in mine]
        assert mine
        assert others
        async with Service(BACKPLANE_URL=cluster.url, LATEST_ONLY_TYPES="none") as service:
            assert "no machine runs a replica of a Cluster" in service.log
            client = await PlainClient.open(service, types=",".join(TYPES))
            await client.barrier()
            for type in TYPES:
                await service.publish(type)
            down.kill()
            async with streaming(service, others) as stored:
                for type in mine:
                    answer = await service.post(
                        "/ws/broadcast", {"type": type, "event": "tick", "data": {}}
                    )
                    assert answer.status == 503, answer
                    assert answer.body["code"] == "BACKPLANE_UNAVAILABLE"
                await until(lambda: _names(service, mine), "/status names the types")
                found = await backplane(service)
                assert (found["status"], found["writable"]) == ("degraded", False)
                assert not any(type in found["cause"] for type in others)
                await until(lambda: _counts(service, mine), "the metrics name the types")
                await service.hup()  # workers start without the shard
                known = stored.copy()
                await until(lambda: all(stored[type] > known[type] for type in others), "go on")
                down.start_again()
                await until(lambda: _is_well(service), "all is well again")
                for type in mine:
                    await service.publish(type)
            for type in others:
                await client.wait_seq(type, stored[type] + 1)
                assert walk(client.received, type).gaps == []
            for type in mine:
                await client.wait_seq(type, 2)
                # Workers that started without the shard say that they may have missed messages.
                reasons = {gap["data"]["reason"] for gap in walk(client.received, type).gaps}
                assert reasons <= {"epoch"}
            await client.close()


async def _names(service: Service, types: Sequence[str]) -> bool:
    cause = (await backplane(service))["cause"]
    return cause is not None and all(type in cause for type in types)


async def _counts(service: Service, failing: Sequence[str]) -> bool:
    metrics = (await service.get("/metrics")).body
    return all(
        f'realtime_backplane_type_failing{{type="{type}"}} {float(type in failing)}' in metrics
        for type in TYPES
    )


async def _is_well(service: Service) -> bool:
    return bool((await backplane(service))["status"] == "ok")
