"""A request costs its sender, and not the other clients."""

from __future__ import annotations

import asyncio

from tests.integration.harness import Service
from tests.integration.wsclient import TEXT, PlainClient, RawClient, encode, text

# Presence


async def test_a_flood_of_presence_requests_delays_nothing(service: Service) -> None:
    """6 000 requests, which a scan of all users for each would answer in half a minute."""
    before = {row["pid"] for row in (await service.get("/status")).body["workers"]}
    witness = await PlainClient.open(service, types="status")
    askers = [await RawClient.open(service) for _ in range(60)]
    requests = encode(TEXT, text("presence", {"type": "status"})) * 100
    await asyncio.gather(*(asker.write(requests) for asker in askers))
    sent = await service.publish("status", "meanwhile")
    await witness.wait_seq("status", sent["seq"])

    async def answered(asker: RawClient) -> None:
        for _ in range(100):
            assert (await asker.envelope("presence_data"))["data"]["connections"] >= 0

    async with asyncio.timeout(20):
        await asyncio.gather(*(answered(asker) for asker in askers))
    assert {row["pid"] for row in (await service.get("/status")).body["workers"]} == before
    for asker in askers:
        await asker.abort()
    await witness.close()
