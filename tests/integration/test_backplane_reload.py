"""The shared server is hurt while the service is reloaded: no client notices, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.sentinels import ServerProcess
from tests.support.service import Service
from tests.support.streams import Fleet, Ticker
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(180), pytest.mark.no_cover]

CLIENTS = 20
Make = Callable[[str], ServerProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Starts servers that share nothing."""
    with contextlib.ExitStack() as stack:

        def one(name: str) -> ServerProcess:
            port = free_port()
            words = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes"]
            words += ["--appendfsync", "no", "--save", "", "--repl-diskless-sync-delay", "0"]
            server = ServerProcess(tmp_path / name, port, *words)
            stack.callback(server.close)
            return server

        yield one


@contextlib.asynccontextmanager
async def serving(server: ServerProcess) -> AsyncIterator[tuple[Service, Fleet, Ticker]]:
    url = f"redis://127.0.0.1:{server.port}/0"
    async with Service(BACKPLANE_URL=url, HTTP_RATE_LIMIT=100_000) as service:
        await service.publish()
        async with Fleet(service) as fleet, Ticker(service) as ticker:
            await fleet.open(CLIENTS)
            await goes_on(ticker)
            yield service, fleet, ticker
            await goes_on(ticker)
            await fleet.all_at(ticker.last)
            ticker.check(fleet.streams)
            closes = [close for close in fleet.closes if close[0] != 1000]
            assert not closes


async def goes_on(ticker: Ticker) -> None:
    wanted = len(ticker.accepted) + 20
    await until(lambda: len(ticker.accepted) >= wanted, "publishing goes on", 30)


@pytest.mark.parametrize(
    ("begin", "end", "seconds"),
    [
        pytest.param(ServerProcess.stop, ServerProcess.cont, 4, id="stands still"),
        pytest.param(ServerProcess.kill, ServerProcess.start_again, 2, id="killed"),
    ],
)
async def test_it_does_not_answer_for_seconds(
    make: Make,
    begin: Callable[[ServerProcess], None],
    end: Callable[[ServerProcess], None],
    seconds: float,
) -> None:
    server = make("one")
    async with serving(server) as (service, fleet, ticker):
        reload = asyncio.create_task(service.hup())
        await asyncio.sleep(0.4)
        begin(server)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(end, server)
        await reload
        await fleet.all_at(ticker.last)
        fleet.check_untouched()


async def test_it_becomes_a_replica_and_a_primary_again(make: Make) -> None:
    """With the data that it had: the server that it follows for a while has all of it."""
    server, other = make("one"), make("two")
    other.client.replicaof("127.0.0.1", server.port)
    async with serving(server) as (service, fleet, ticker):
        await until(
            lambda: other.client.info("replication")["master_link_status"] == "up",  # type: ignore[index]
            "the other has all of it",
        )
        await asyncio.sleep(0.2)
        server.client.execute_command("CLIENT", "PAUSE", 300, "WRITE")
        await asyncio.sleep(0.2)
        other.client.replicaof("NO", "ONE")
        server.client.replicaof("127.0.0.1", other.port)
        reload = asyncio.create_task(service.hup())

        async def is_said() -> bool:
            causes = (await service.get("/status")).body["causes"]
            return any("READONLY" in cause or "read-only" in cause for cause in causes)

        await until(is_said, "the status says why", 10)
        await until(
            lambda: server.client.info("replication")["master_link_status"] == "up",  # type: ignore[index]
            "it follows",
        )
        server.client.replicaof("NO", "ONE")
        await reload
        await goes_on(ticker)

        async def is_well() -> bool:
            return bool((await service.get("/status")).body["causes"] == [])

        await until(is_well, "the status is well", 15)
        await fleet.all_at(ticker.last)
        fleet.check_untouched()


@pytest.mark.parametrize("way", ["older data", "no data"])
async def test_it_comes_back_with_other_data(make: Make, way: str) -> None:
    """It follows a server that has less, and is a primary again: each client gets one gap."""
    server, other = make("one"), make("two")
    async with serving(server) as (_, fleet, ticker):
        if way == "older data":
            other.client.replicaof("127.0.0.1", server.port)
            await until(
                lambda: other.client.info("replication")["master_link_status"] == "up",  # type: ignore[index]
                "the other has it",
            )
            other.client.replicaof("NO", "ONE")
            await goes_on(ticker)
        server.client.replicaof("127.0.0.1", other.port)
        await until(
            lambda: server.client.info("replication")["master_link_status"] == "up",  # type: ignore[index]
            "it has taken the other's data",
            20,
        )
        await asyncio.sleep(1.5)
        server.client.replicaof("NO", "ONE")
        await goes_on(ticker)
        await until(lambda: all(stream.gaps for stream in fleet.streams), "all know of it", 20)
    fleet.check_faults()
    for stream in fleet.streams:
        assert [gap["reason"] for gap in stream.gaps] == ["epoch"]
