"""A hundred publishers at once: every client sees each `seq` once, in order."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest

from tests.support.envelopes import walk
from tests.support.plain import PlainClient, spread
from tests.support.service import TOKEN, Service
from tests.support.sioclient import SioClient

pytestmark = pytest.mark.long

TYPES = ("status", "stats", "health", "config")
PUBLISHERS = 100
EACH = 20


async def publish_storm(service: Service) -> dict[str, list[int]]:
    """All publishers at once; the `seq` of every accepted message by type."""
    accepted: dict[str, list[int]] = {type: [] for type in TYPES}
    head = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(limit=0)

    async def publisher(session: aiohttp.ClientSession, number: int) -> None:
        dice = random.Random(number)
        last = dict.fromkeys(TYPES, 0)
        for step in range(EACH):
            size = dice.choice([1, 1, 1, 5])
            messages = [
                {
                    "type": dice.choice(TYPES),
                    "event": "storm",
                    "data": [number, step, "x" * dice.choice([1, 100, 3000])],
                    "priority": dice.choice(["high", "normal", "low"]),
                }
                for _ in range(size)
            ]
            body = messages if size > 1 else messages[0]
            async with session.post("/ws/broadcast", json=body) as response:
                assert response.status == 200, await response.text()
                answer = await response.json()
            for one in answer if size > 1 else [answer]:
                accepted[one["type"]].append(one["seq"])
                if size == 1:
                    # One after another from one publisher: in that order.
                    assert one["seq"] > last[one["type"]]
                last[one["type"]] = max(last[one["type"]], one["seq"])

    async with aiohttp.ClientSession(service.base, headers=head, connector=connector) as session:
        await asyncio.gather(*(publisher(session, number) for number in range(PUBLISHERS)))
    return accepted


@pytest.mark.parametrize("latest", ["stats", "none"])
async def test_a_hundred_publishers(latest: str) -> None:
    async with Service(LATEST_ONLY_TYPES=latest) as service:
        every = ",".join(TYPES)
        plain = await spread(service, types=every)
        plain += [await PlainClient.open(service, types=every) for _ in range(4)]
        plain += [await PlainClient.open(service, types=every, batch=1) for _ in range(4)]
        sio = [await SioClient().connect(service) for _ in range(8)]
        for peer in sio:
            await peer.call("subscribe", {"types": ["config"]})
        await asyncio.gather(*(client.barrier() for client in plain))

        accepted = await publish_storm(service)
        ends = {}
        for type in TYPES:
            seqs = sorted(accepted[type])
            assert seqs == list(range(1, len(seqs) + 1)), f"{type}: every seq answered once"
            ends[type] = seqs[-1]
        for type in TYPES:
            final = await service.publish(type, "the_end")
            assert final["seq"] == ends[type] + 1

        for client in plain:
            for type in TYPES:
                await client.wait_seq(type, ends[type] + 1)
                story = walk(client.received, type)
                assert story.last == ends[type] + 1
                if not story.gaps:
                    assert story.seqs == list(range(1, ends[type] + 2))
                else:
                    assert type == latest, "readers that keep up miss nothing"
        for peer in sio:
            await peer.wait_event("the_end", 4)
            for type in TYPES:
                story = walk(peer.received, type)
                assert story.last == ends[type] + 1
                assert type == latest or story.seqs == list(range(1, ends[type] + 2))
        await asyncio.gather(*(one.close() for one in plain), *(one.close() for one in sio))
