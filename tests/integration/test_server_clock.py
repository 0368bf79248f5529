"""The clock of the shared server, or of the workers, makes steps: clients, users and ids notice nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.clock_shift import ShiftedClock
from tests.support.plain import PlainClient, spread
from tests.support.ports import free_port
from tests.support.sentinels import ServerProcess
from tests.support.service import Service
from tests.support.streams import Fleet, Ticker
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(180), pytest.mark.no_cover]

HOUR = 3600
"""Seconds."""


async def is_listed(client: PlainClient, users: dict[str, int]) -> bool:
    data = (await client.request("presence", {"type": "status", "limit": 100}))["data"]
    return {row["user"]: row["connections"] for row in data["names"]} == users


@pytest.mark.parametrize("replica", ["auto", "0"])
async def test_steps_of_the_servers_clock(tmp_path: Path, replica: str) -> None:
    clock = ShiftedClock(tmp_path)
    port = free_port()
    words = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""]
    server = ServerProcess(
        tmp_path / "server", port, *words, "--repl-diskless-sync-delay", "0", prefix=clock.prefix
    )
    try:
        async with Service(
            BACKPLANE_URL=f"redis://127.0.0.1:{port}/0",
            BACKPLANE_REPLICA=replica,
            PRESENCE_NAMES="all",
            JOIN_LEAVE="status",
            HTTP_RATE_LIMIT=100_000,
        ) as service:
            watch = await PlainClient.open(service, types="system")
            ann = await spread(service, 2, user="ann", types="status")
            await until(lambda: is_listed(watch, {"ann": 2}), "ann is listed")
            await until(lambda: watch.events("join"), "ann is announced")
            await asyncio.sleep(1)
            first = await service.publish(id="known")
            async with Fleet(service) as fleet, Ticker(service) as ticker:
                await fleet.open(10)
                for seconds in (HOUR, -HOUR, 30, 0):
                    clock.step(seconds)
                    wanted = len(ticker.accepted) + 20
                    await until(lambda: len(ticker.accepted) >= wanted, "publishing goes on")  # noqa: B023
                    await asyncio.sleep(3.5)  # leases are renewed
                    assert await service.publish(id="known") == first, seconds
                    # A step forward ends all leases at once; workers say again what they have.
                    await until(lambda: is_listed(watch, {"ann": 2}), f"listed after {seconds}")
                    answer = (await service.get("/status")).body
                    assert answer["causes"] == [], seconds
                times = [one["timestamp"] for one in await service.history("status", limit=100)]
                assert times == sorted(times)
                assert times[-1] - times[0] < HOUR * 500
                await fleet.all_at(ticker.last)
                ticker.check(fleet.streams)
                fleet.check_untouched()
            third = await PlainClient.open(service, user="ann")
            await third.barrier()
            fourth = await PlainClient.open(service, user="ann")
            assert await fourth.wait_closed() == 1008
            announced = [
                one["event"] for one in watch.received if one["event"] in ("join", "leave")
            ]
            assert announced == ["join"]
            for client in (watch, third, *ann):
                await client.close()
    finally:
        server.close()


async def test_steps_of_the_workers_clock(tmp_path: Path) -> None:
    """And of their private Valkey's: it is one machine."""
    clock = ShiftedClock(tmp_path)
    clock.step(0)
    async with Service(
        **clock.environ, PRESENCE_NAMES="all", JOIN_LEAVE="status", HTTP_RATE_LIMIT=100_000
    ) as service:
        watch = await PlainClient.open(service, types="system")
        ann = await spread(service, 2, user="ann", types="status")
        await until(lambda: watch.events("join"), "ann is announced")
        first = await service.publish(id="known")
        async with Fleet(service) as fleet, Ticker(service) as ticker:
            await fleet.open(10)
            for seconds in (HOUR, -HOUR, 0):
                clock.step(seconds)
                for _ in range(15):
                    assert (await service.get("/status")).body["causes"] == [], seconds
                    await asyncio.sleep(0.1)
                wanted = len(ticker.accepted) + 20
                await until(lambda: len(ticker.accepted) >= wanted, "publishing goes on")  # noqa: B023
                assert await service.publish(id="known") == first, seconds
                await until(lambda: is_listed(watch, {"ann": 2}), f"listed after {seconds}")
            await service.hup()
            await fleet.all_at(ticker.last)
            ticker.check(fleet.streams)
            fleet.check_untouched()
        announced = [one["event"] for one in watch.received if one["event"] in ("join", "leave")]
        assert announced == ["join"]
        for client in (watch, *ann):
            await client.close()
