"""5 000 connects against a cap of 1 000, and 100 of 1 000 clients that stop reading."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from tests.support.envelopes import flatten, walk
from tests.support.plain import PlainClient
from tests.support.raw import TEXT, RawClient
from tests.support.service import Service

pytestmark = pytest.mark.timeout(180)


async def test_five_thousand_connects_against_a_cap_of_a_thousand() -> None:
    cap = 1000
    async with Service(MAX_TOTAL_CONNECTIONS=cap) as service:
        accepted: list[RawClient] = []
        statuses: Counter[int] = Counter()

        async def connect() -> None:
            client = await RawClient.open(service)
            statuses[client.status] += 1
            if client.status == 101:
                accepted.append(client)
            else:
                await client.abort()

        await asyncio.gather(*(connect() for _ in range(5000)))
        assert statuses == {101: cap, 503: 4000}
        assert await service.total_connections() == cap
        # The admitted clients are served.
        last = await service.publish("status", "to_all")
        for client in accepted:
            got = await client.envelope("to_all")
            assert got["seq"] == last["seq"]
        await asyncio.gather(*(client.abort() for client in accepted))
        await service.wait_connections(0)
        witness = await PlainClient.open(service)
        await witness.barrier()
        await witness.close()


async def test_a_hundred_of_a_thousand_stop_reading() -> None:
    """The nine hundred get everything meanwhile; the hundred catch up without a gap."""
    bulk = "x" * 2000
    messages = 300
    async with Service(HISTORY_SIZE=5000) as service:
        path = "/ws/realtime?types=status"
        slow = [await RawClient.open(service, path, receive_buffer=4096) for _ in range(100)]
        fast = [await RawClient.open(service, path) for _ in range(900)]
        for client in [*slow, *fast]:
            await client.ask("ping", 1)
            await client.envelope("pong")

        async def read(client: RawClient) -> list[int]:
            received = []
            while not received or received[-1].get("seq", 0) < messages:
                _, frame = await client.until_frame(TEXT)
                received += flatten([json.loads(frame.payload)])
            story = walk(received, "status")
            assert not story.gaps
            return story.seqs

        readers = [asyncio.create_task(read(client)) for client in fast]
        for at in range(0, messages, 50):
            await service.publish_all(
                {"type": "status", "event": "bulk", "data": [n, bulk]} for n in range(at, at + 50)
            )
        expected = list(range(1, messages + 1))
        for seqs in await asyncio.gather(*readers):
            assert seqs == expected
        for seqs in await asyncio.gather(*(read(client) for client in slow)):
            assert seqs == expected
        await asyncio.gather(*(client.abort() for client in [*slow, *fast]))
        await service.wait_connections(0)
