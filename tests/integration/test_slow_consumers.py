"""Clients that do not read: bounded memory, nothing lost silently, no other client delayed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from tests.support.envelopes import Envelope, reaches, walk
from tests.support.plain import PlainClient
from tests.support.raw import TEXT, RawClient
from tests.support.service import Service
from tests.support.sioclient import packet, raw_socketio
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

BULK = "x" * 8000


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    running = Service(WORKERS=1, HISTORY_SIZE=5000).start()
    yield running
    running.stop()


@asynccontextmanager
async def stalled(service: Service, count: int, types: str) -> AsyncIterator[list[RawClient]]:
    """Connections with small receive buffers that are not read."""
    clients = [
        await RawClient.open(service, f"/ws/realtime?types={types}", receive_buffer=4096)
        for _ in range(count)
    ]
    for client in clients:
        await client.ask("ping", "first frame")
        await client.envelope("pong")
    yield clients
    for client in clients:
        await client.abort()


async def fill(service: Service, type: str, messages: int) -> dict[str, Any]:
    """Publish so many bulky messages in calls of fifty; the last answer."""
    last: dict[str, Any] = {}
    for at in range(0, messages, 50):
        answers = await service.publish_all(
            {"type": type, "event": "bulk", "data": [n, BULK]} for n in range(at, at + 50)
        )
        last = answers[-1]
    return last


async def read_to(client: RawClient, type: str, seq: int) -> list[Envelope]:
    """Read until a message brings the client to `seq`."""
    received: list[Envelope] = []
    while not (received and received[-1]["type"] == type and received[-1].get("seq", 0) >= seq):
        _, frame = await client.until_frame(TEXT)
        received.append(json.loads(frame.payload))
    return received


async def slow_consumers(service: Service) -> float:
    """The gauge of /metrics."""
    page = (await service.get("/metrics")).body
    return sum(
        float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("realtime_slow_consumers")
    )


async def test_catches_up_from_history_without_a_gap(service: Service) -> None:
    fast = await PlainClient.open(service, types="status")
    await fast.barrier()
    async with stalled(service, 10, "status") as slow:
        last = await fill(service, "status", 1000)
        # The one that reads is done while the others have not begun.
        await fast.wait_seq("status", last["seq"], 60)
        assert walk(fast.received, "status").seqs == list(range(last["seq"] - 999, last["seq"] + 1))

        async def counted() -> bool:
            return await slow_consumers(service) == 10

        await until(counted, "ten slow consumers in /metrics")
        for story in await asyncio.gather(
            *(read_to(client, "status", last["seq"]) for client in slow)
        ):
            assert walk(story, "status").seqs == list(range(last["seq"] - 999, last["seq"] + 1))
            assert not walk(story, "status").gaps
        live = await service.publish("status", "live_again")
        for client in slow:
            assert walk(await read_to(client, "status", live["seq"]), "status").seqs == [
                live["seq"]
            ]

        async def none_left() -> bool:
            return await slow_consumers(service) == 0

        await until(none_left, "no slow consumer left")
    await fast.close()


async def test_latest_only_types_skip_to_the_newest(service: Service) -> None:
    async with stalled(service, 3, "stats") as slow:
        last = await fill(service, "stats", 1000)
        for client in slow:
            received = await read_to(client, "stats", last["seq"])
            story = walk(received, "stats")
            assert story.gaps
            assert {gap["data"]["reason"] for gap in story.gaps} == {"latest"}
            assert received[-1]["event"] == "bulk"
            assert (received[-1]["seq"], story.last) == (last["seq"], last["seq"])
            assert len(story.seqs) < 1000


async def test_what_history_lost_is_announced() -> None:
    async with Service(
        WORKERS=1, HISTORY_BYTES="1MB", HISTORY_SIZE=100, RECOVERY_WINDOW="1s"
    ) as service:
        fast = await PlainClient.open(service, types="status")
        await fast.barrier()
        async with stalled(service, 3, "status") as slow:
            last = await fill(service, "status", 1500)
            # A megabyte of history is little: a client that reads slowly for a moment may lose some.
            await fast.wait_seq("status", last["seq"], 60)
            assert walk(fast.received, "status").last == last["seq"]
            oldest = (await service.full_history("status"))[0]["seq"]
            for client in slow:
                received = await read_to(client, "status", last["seq"])
                story = walk(received, "status")
                assert story.gaps
                assert {gap["data"]["reason"] for gap in story.gaps} == {"history"}
                assert received[-1]["seq"] == story.last == last["seq"]
                # Not more is given up than history has given up.
                assert max(gap["data"]["last"] for gap in story.gaps) <= oldest + 1
        await fast.close()


async def test_a_slow_socketio_client_catches_up(service: Service) -> None:
    client = await raw_socketio(service, receive_buffer=4096)
    await client.send(TEXT, b"40")
    await client.send(TEXT, b'420["echo",1]')
    while not (await client.frame()).payload.startswith(b"430"):
        pass
    last = await fill(service, "status", 1000)
    received: list[Envelope] = []
    while not (received and reaches(received[-1], "status", last["seq"])):
        kind, event = packet((await client.frame()).payload)
        if kind == "42" and event[0] not in {"offset", "connected"}:
            received.append(event[1])
    assert walk(received, "status").seqs == list(range(last["seq"] - 999, last["seq"] + 1))
    await client.abort()


async def test_a_stalled_client_costs_bounded_memory(service: Service) -> None:
    """16 MB of history times 50 clients would be 800 MB; they cost a small part of that."""
    worker = psutil.Process(service.worker_pids()[0])
    # Once through, so that what the process keeps anyway is not counted.
    await fill(service, "status", 1500)
    async with stalled(service, 50, "status"):
        before = worker.memory_info().rss
        witness = await PlainClient.open(service, types="status")
        await witness.barrier()
        last = await fill(service, "status", 1500)
        await witness.wait_seq("status", last["seq"], 60)
        grown = worker.memory_info().rss - before
        assert grown < 64 * 2**20, f"{grown / 2**20:.0f} MB for 50 stalled clients"
        await witness.close()
    await service.wait_connections(0)


async def test_requests_of_a_client_that_does_not_read() -> None:
    """Answers are no less bounded than messages: asking without reading fills no memory."""
    async with Service(WORKERS=1) as service:
        worker = psutil.Process(service.worker_pids()[0])
        await service.publish_all(
            {"type": "system", "event": "bulk", "data": BULK} for _ in range(100)
        )
        witness = await PlainClient.open(service)
        async with stalled(service, 1, "") as [client]:
            before = worker.memory_info().rss

            async def ask_on() -> None:
                for _ in range(500):
                    await client.ask("get_history", {"type": "system", "limit": 100})

            asking = asyncio.create_task(ask_on())
            await asyncio.wait([asking], timeout=5)
            for _ in range(20):
                await witness.barrier()
            grown = worker.memory_info().rss - before
            assert grown < 64 * 2**20, f"{grown / 2**20:.0f} MB of unread answers"
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await witness.close()
