"""Several machines as docs/operations/DEPLOYMENT.md sets them up: two hosts, one Valkey, Caddy in front.

What two services on one Valkey do without Caddy is in tests/integration/test_backplane_url.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import websockets

from tests.support.caddy import Caddy, address, behind_caddy
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.service import TOKEN, Service, ready_workers
from tests.support.streams import Fleet, Ticker
from tests.support.valkeys import valkeys
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(180)

CAP = 20
"""MAX_TOTAL_CONNECTIONS of each host."""


@dataclass(frozen=True)
class Machines:
    """Two hosts, and Caddy that balances over them."""

    caddy: Caddy
    one: Service
    two: Service

    @property
    def hosts(self) -> tuple[Service, Service]:
        return self.one, self.two

    @asynccontextmanager
    async def fleet(self, count: int, **options: Any) -> AsyncIterator[Fleet]:
        """Streams through Caddy at the end of their stream, half of each kind on each host.

        Args:
            count: how many, a multiple of four.
            options: of the fleet.
        """
        for host in self.hosts:
            await host.wait_connections(0)
        await until(self._is_idle, "Caddy has no request")
        async with Fleet(self.one, kind=self.caddy.stream, **options) as fleet:
            # One by one, so that each has its place before Caddy chooses for the next: of two
            # that follow each other each host takes one.
            for number in range(count):
                await fleet.add(socketio=number // 2 % 2 == 1)
            for host in self.hosts:
                await host.wait_connections(count // 2)
            first = await self.one.publish("status", "first")
            await fleet.all_at(first["seq"])
            yield fleet

    async def _is_idle(self) -> bool:
        return not any((await self.caddy.busy()).values())

    async def get(self, path: str) -> tuple[int, Any]:
        """GET through Caddy: the status and the JSON."""
        async with self.caddy.session() as http, http.get(self.caddy.api + path) as answer:
            return answer.status, json.loads(await answer.text())

    async def publish(self, number: int) -> dict[str, Any]:
        """Publish one message through Caddy."""
        body = {"type": "status", "event": "tick", "data": number}
        head = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            self.caddy.session(headers=head) as http,
            http.post(f"{self.caddy.api}/ws/broadcast", json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            result: dict[str, Any] = await answer.json()
            return result

    async def served_by(self, count: int = 10) -> Counter[int]:
        """Ports of the hosts that answer so many requests to Caddy, each of which must be 200."""
        found = Counter[int]()
        for _ in range(count):
            status, body = await self.get("/status")
            assert status == 200, body
            pids = {row["pid"] for row in body["workers"]}
            found += Counter(host.port for host in self.hosts if pids & set(host.worker_pids()))
        return found


class _Ending:
    """Stops a service, and kills it when the test has failed."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self._service.stop()
        else:
            self._service.destroy()


@contextmanager
def machines(**settings: Any) -> Iterator[Machines]:
    """The set-up of docs/operations/DEPLOYMENT.md, on ports of the loopback."""
    https_port = free_port()
    with valkeys() as start, ExitStack() as stack:
        url = start("--appendonly", "yes", "--appendfsync", "no", "--save", "")
        hosts = [
            behind_caddy(https_port, WORKERS=2, BACKPLANE_URL=url, **settings) for _ in range(2)
        ]
        for host in hosts:
            stack.push(_Ending(host.start()))
        caddy = stack.enter_context(Caddy(*map(address, hosts), https_port=https_port))
        yield Machines(caddy, *hosts)


@pytest.fixture(scope="module")
def both() -> Iterator[Machines]:
    with machines(MAX_TOTAL_CONNECTIONS=CAP) as found:
        yield found


async def may_stay(client: PlainClient) -> bool:
    """Whether a client of a named user is welcome; False: it is closed with 1008."""
    try:
        await client.barrier()
    except (AssertionError, websockets.ConnectionClosed):
        assert await client.wait_closed() == 1008
        return False
    return True


async def test_one_order_for_the_clients_of_both(both: Machines) -> None:
    async with both.fleet(16) as fleet:
        seen = [set(stream.ids) for stream in fleet.streams]

        async def through(number: int) -> dict[str, Any]:
            if number % 3 == 2:
                return await both.publish(number)
            return await both.hosts[number % 3].publish("status", "tick", number)

        answers = await asyncio.gather(*(through(number) for number in range(90)))
        await fleet.all_at(max(answer["seq"] for answer in answers))
        fleet.check_untouched()
        stored = {answer["id"]: answer["seq"] for answer in answers}
        assert sorted(stored.values()) == list(
            range(min(stored.values()), max(stored.values()) + 1)
        )
        for stream, before in zip(fleet.streams, seen, strict=True):
            assert {id: seq for id, seq in stream.ids.items() if id not in before} == stored


async def test_history_is_the_same_from_both(both: Machines) -> None:
    for number in range(30):
        await both.hosts[number % 2].publish("config", "changed", number)
        await both.hosts[number % 2].publish("stats", "stats_update", number)
    first, second = [await host.full_history("config") for host in both.hosts]
    assert first == second
    assert [message["data"] for message in first] == list(range(30))
    for _ in range(6):
        status, body = await both.get("/history?type=config&limit=100")
        assert (status, body["messages"]) == (200, first)
        client = await both.caddy.plain(query="?types=")
        async with client:
            reply = await client.request("get_history", {"type": "config", "limit": 100})
            assert reply["data"]["messages"] == first

    async def newest() -> bool:
        answers = [(await host.get("/stats")).body["data"] for host in both.hosts]
        return answers == [29, 29]

    await until(newest, "both know the newest statistics")


async def test_a_users_cap_holds_over_both(both: Machines) -> None:
    """Three connections of a user in all, out of a storm to both hosts."""
    clients = await asyncio.gather(*(both.caddy.plain(query="?user=ann") for _ in range(12)))
    stays = await asyncio.gather(*(may_stay(client) for client in clients))
    assert Counter(stays) == {True: 3, False: 9}
    for host in both.hosts:
        more = await PlainClient.open(host, user="ann")
        assert not await may_stay(more)
    # One that leaves makes room for one, on either.
    mine = [client for client, stay in zip(clients, stays, strict=True) if stay]
    for host in both.hosts:
        await mine.pop(0).close()

        async def comes_in(host: Service = host) -> bool:
            client = await PlainClient.open(host, user="ann")
            if stay := await may_stay(client):
                mine.append(client)
            return stay

        await until(comes_in, "a place of the user is free")
    await asyncio.gather(*(client.close() for client in mine))


async def test_each_machine_has_its_own_total_cap(both: Machines) -> None:
    """README: connections that this machine holds. Caddy does not ask a second host."""
    async with both.fleet(2 * CAP):
        for host in both.hosts:
            body = (await host.get("/ws/stats")).body
            assert (body["totalConnections"], body["maxConnections"]) == (CAP, CAP)
            assert (await host.get("/status")).body["status"] == "ok"
        for _ in range(4):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await both.caddy.socket()
            assert refused.value.response.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) >= 1
            assert b"MAX_CONNECTIONS_EXCEEDED" in (refused.value.response.body or b"")
        # HTTP is served all the same.
        await both.served_by()


async def test_figures_are_each_machines_own(both: Machines) -> None:
    """/ws/stats and /status speak of one machine; presence is the same on all."""
    async with both.fleet(4) as fleet:
        users = [await PlainClient.open(host, user="ann") for host in both.hosts]
        for client in users:
            await client.barrier()
        stats = [(await host.get("/ws/stats")).body for host in both.hosts]
        assert [body["totalConnections"] for body in stats] == [3, 3]
        # A user with connections to both is counted by both; the anonymous ones by their host.
        assert sum(body["uniqueUsers"] for body in stats) == len(fleet.streams) + 2
        for host, body in zip(both.hosts, stats, strict=True):
            assert {row["pid"] for row in body["workers"]} == set(host.worker_pids())
            status = (await host.get("/status")).body
            assert (status["connections"], status["backplane"]["warnings"]) == (3, [])
        # Through Caddy it is the one or the other.
        _, body = await both.get("/ws/stats")
        assert body["workers"] in [body["workers"] for body in stats]
        await asyncio.gather(*(client.close() for client in users))

    state = {"state": "working", "task": "on both machines"}
    assert (await both.one.post("/status", state)).status == 200

    async def known() -> bool:
        return bool((await both.two.get("/status")).body["presence"]["task"] == state["task"])

    await until(known, "the presence on the other machine")


async def test_a_host_that_hangs_is_taken_out(both: Machines) -> None:
    """Nothing refuses a connection here: only Caddy's health check can know."""
    async with both.fleet(8) as fleet:
        stopped = both.two.processes()
        for process in stopped:
            process.suspend()
        try:
            name = address(both.two)
            await until(lambda: checks_of(both.caddy, name), "the health check fails")

            async def is_taken_out() -> bool:
                # What is given to it before the last of `health_fails` waits as long as it hangs.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(3):
                        return await both.served_by() == {both.one.port: 10}
                return False

            await until(is_taken_out, "only the other host is asked")
            more = await asyncio.gather(*(both.caddy.plain() for _ in range(4)))
            await asyncio.gather(*(client.barrier() for client in more))
            last = [await both.publish(number) for number in range(20)][-1]["seq"]
            await both.one.wait_connections(8)
        finally:
            for process in stopped:
                process.resume()
        # Those of the host that hung are still connected, and get what they missed.
        await fleet.all_at(last)
        fleet.check_untouched()
        # It has fewer connections than the other one, so it is the next that is asked.
        await until(lambda: is_asked(both, both.two), "the host serves again")
        await asyncio.gather(*(client.close() for client in more))


async def test_a_host_dies_and_comes_back() -> None:
    """Its clients go on at the other one under a stream of messages, without a hole."""
    with machines() as pair:
        await _lose_a_host(pair)


async def _lose_a_host(pair: Machines) -> None:
    one, two, caddy = pair.one, pair.two, pair.caddy
    head = {"Authorization": f"Bearer {TOKEN}"}
    session = caddy.session(base_url=caddy.api, headers=head)
    async with pair.fleet(40, back=True) as fleet, Ticker(two, session=session) as ticker:
        # Users at their cap: Ann is on both hosts, Bob and Cat had all they may have on one.
        for _ in range(3):
            await fleet.add(socketio=True, user="ann")
        bob = [await PlainClient.open(two, user="bob") for _ in range(3)]
        cat = [await PlainClient.open(two, user="cat") for _ in range(3)]
        for client in [*bob, *cat]:
            await client.barrier()
        assert not await may_stay(await PlainClient.open(one, user="bob"))
        await until(lambda: ticker.last > 20, "messages flow")
        left = await two.total_connections() - len(bob) - len(cat)
        assert left > 20, "Ann has a connection to each host"

        kill_host(two)
        await until(lambda: len(fleet.closes) == left, "the clients of the dead host know")
        returning = [asyncio.create_task(come_back(caddy, client, "cat")) for client in cat]
        before = ticker.last
        await until(lambda: ticker.last > before + 20, "publishing goes on")
        await fleet.all_at(ticker.last)
        moved = [stream for stream in fleet.streams if stream.closes]
        assert Counter(stream.socketio for stream in moved if not stream.user) == {
            True: 10,
            False: 10,
        }
        # Plain: `recovered`. Socket.IO: with the same id and the same pid.
        assert [stream.recovered for stream in moved] == [[True]] * left
        assert not [gap for stream in fleet.streams for gap in stream.gaps]
        ticker.check(fleet.streams)
        # A client that proves that it was there is not refused for its own old place.
        refusals = [why for stream in fleet.streams for why in stream.refusals]
        assert not [why for why in refusals if "MAX_CONNECTIONS_EXCEEDED" in why], refusals
        back = await asyncio.gather(*returning)
        assert [await may_stay(client) for client in back] == [True] * 3

        # Caddy knows by its own checks, beside what failed.
        await until(lambda: checks_of(caddy, address(two)), "the health check fails")
        assert await pair.served_by() == {one.port: 10}

        # Others have to wait until the lease of the dead host has ended.
        async def bob_is_back() -> bool:
            client = await caddy.plain(query="?user=bob")
            if await may_stay(client):
                back.append(client)
            return len(back) == 6

        await until(bob_is_back, "the users of the dead host are back", 30)
        assert not await may_stay(await caddy.plain(query="?user=bob"))

        # The same host starts again, on the same DATA_DIR.
        await asyncio.to_thread(two.start)
        await until(lambda: is_asked(pair, two), "the host serves again")
        fresh = [await caddy.plain(query="?types=status") for _ in range(4)]
        await until(lambda: is_used(two), "the host that is back takes clients")
        sent = await two.publish("status", "back")
        await asyncio.gather(*(client.wait_seq("status", sent["seq"]) for client in fresh))
        await fleet.all_at(sent["seq"])
        assert [stream.recovered for stream in moved] == [[True]] * left, "no client moved again"
        for client in [*back, *fresh]:
            await client.close()
        for client in [*bob, *cat]:
            await client.wait_closed()
    assert await one.full_history("status") == await two.full_history("status")


async def come_back(caddy: Caddy, client: PlainClient, user: str) -> PlainClient:
    """Connect anew in the place of a connection that has ended."""
    await client.wait_closed()
    token = client.events("connected")[0]["data"]["resume"]
    return await caddy.plain(query=f"?user={user}&resume={token}")


def kill_host(host: Service) -> None:
    """Kill -9 everything: the master first, so that it starts no worker anew, and the replica last."""
    assert host.process is not None
    pids = [host.process.pid, *host.worker_pids()]
    assert len(pids) == 1 + host.workers
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    host.process.wait()
    for process in host.processes():
        process.kill()
    host.assert_nothing_left()
    Service.running.remove(host)


def checks_of(caddy: Caddy, backend: str) -> list[Any]:
    """Lines of Caddy's log in which a health check of this backend has failed."""
    lines = [json.loads(line) for line in caddy.log.splitlines() if line.startswith("{")]
    return [
        line
        for line in lines
        if "health_checker.active" in line.get("logger", "")
        and line["msg"] != "host is up"
        and line.get("host", "") == backend
    ]


async def is_asked(pair: Machines, host: Service) -> bool:
    """Whether Caddy gives requests to a host again."""
    return (await pair.served_by(2))[host.port] > 0


async def is_used(host: Service) -> bool:
    assert ready_workers((await host.get("/status")).body) == set(host.worker_pids())
    return await host.total_connections() > 0
