"""A Valkey by URL that several machines share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio
import websockets

from app.backplane.needs import access_rules, needs
from app.config import Settings
from tests.support.envelopes import walk
from tests.support.plain import PlainClient
from tests.support.raw import TEXT, RawClient
from tests.support.service import Service
from tests.support.sioclient import sio_clients
from tests.support.valkeys import Starter
from tests.support.waiting import until


async def test_two_machines_form_one_service(start_valkey: Starter) -> None:
    url = start_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with (
        Service(WORKERS=1, BACKPLANE_URL=url) as one,
        Service(WORKERS=1, BACKPLANE_URL=url) as two,
    ):
        assert not one._valkey_candidates(), "no private Valkey beside the shared one"
        clients = [await PlainClient.open(each, types="status") for each in (one, two)]
        for client in clients:
            await client.barrier()
        for number in range(20):
            last = await (one, two)[number % 2].publish("status", "shared", {"n": number})
        assert last["seq"] == 20
        for client in clients:
            await client.wait_seq("status", 20)
            assert walk(client.received, "status").seqs == list(range(1, 21))
        # The same id, taken once by all workers together.
        again = await one.publish("status", "once", id="shared-1")
        assert await two.publish("status", "once", id="shared-1") == again
        # Acks and rooms cross machines.
        async with sio_clients(one) as [asker], sio_clients(two) as [asked]:
            asked.answers["question"] = lambda data: data + 1
            body = {"event": "question", "data": 1, "sid": asked.sid()}
            assert await asker.call("ask", body) == 2
        # One user, three connections in all.
        users = [await PlainClient.open(each, user="ann") for each in (one, two, one)]
        for client in users:
            await client.barrier()
        fourth = await PlainClient.open(two, user="ann")
        assert await fourth.wait_closed() == 1008
        for client in [*clients, *users]:
            await client.close()


async def test_a_machine_killed_gives_its_users_back(start_valkey: Starter) -> None:
    """The lease of ten seconds, not for ever."""
    url = start_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with Service(WORKERS=1, BACKPLANE_URL=url) as one:
        two = Service(WORKERS=1, BACKPLANE_URL=url)
        async with two:
            users = [await PlainClient.open(two, user="ann") for _ in range(3)]
            for client in users:
                await client.barrier()
            refused = await PlainClient.open(one, user="ann")
            assert await refused.wait_closed() == 1008
            for process in two.processes():
                process.kill()

            async def comes_in() -> bool:
                client = await PlainClient.open(one, user="ann")
                try:
                    await client.barrier()
                except (AssertionError, websockets.ConnectionClosed):
                    return False
                await client.close()
                return True

            await until(comes_in, "the leases of a dead machine end", 30)
            for client in users:
                await client.wait_closed()
            # Killed on purpose: nothing of it shall be asserted at its end.
            raise_nothing(two)


async def is_gone(client: RawClient) -> bool:
    """Whether the other side has ended the connection; nothing comes on one that lives."""
    try:
        async with asyncio.timeout(0.3):
            while await client.reader.read(65536):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


async def test_no_user_is_sent_away_after_the_death_of_a_worker(start_valkey: Starter) -> None:
    """Its places are free long before its lease ends, and 1008 would keep clients away."""
    url = start_valkey("--appendonly", "yes", "--appendfsync", "always")
    path = "/ws/realtime?EIO=4&transport=websocket"
    async with Service(
        WORKERS=2, BACKPLANE_URL=url, MAX_CONNECTIONS_PER_USER=1, allow_traceback=True
    ) as service:

        async def connect(user: str) -> RawClient:
            client = await RawClient.open(service, path)
            await client.send(TEXT, b'40{"user":"%b"}' % user.encode())
            await client.packet('40{"sid"')
            return client

        users = {f"user{n}": await connect(f"user{n}") for n in range(30)}
        victim = service.kill_worker()
        gone = [user for user, one in users.items() if await is_gone(one)]
        assert gone
        back = await asyncio.gather(*(connect(user) for user in gone))
        await service.replaced(victim)
        for client in [*back, *users.values()]:
            await client.abort()


def raise_nothing(service: Service) -> None:
    """Forget a service that was killed."""
    service.stop = service.destroy  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--appendonly", "no", "--save", ""), "append-only file"),
        (
            ("--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"),
            "maxmemory-policy allkeys-lru",
        ),
    ],
)
async def test_a_server_that_can_lose_messages_is_reported(
    start_valkey: Starter, arguments: tuple[str, ...], option: str
) -> None:
    """A warning at the start and in /status, naming the option."""
    async with Service(WORKERS=1, BACKPLANE_URL=start_valkey(*arguments)) as service:
        warnings = (await service.get("/status")).body["backplane"]["warnings"]
        [warning] = [one for one in warnings if option in one]
        assert warning in service.log


async def test_a_user_with_the_documented_rights_suffices(start_valkey: Starter) -> None:
    """Two machines with a replica each do what they do; the server has refused nothing."""
    url = start_valkey("--appendonly", "yes", "--repl-diskless-sync-delay", "0")
    rules = access_rules(
        needs(
            Settings(
                backplane_url=url,
                presence_names=frozenset({"all"}),
                join_leave=frozenset({"status"}),
                workers=2,
            ),
            replica=True,
        )
    )
    server = redis.asyncio.Redis.from_url(url, decode_responses=True, single_connection_client=True)
    await server.execute_command("ACL", "SETUSER", "yujian", "on", ">word", "resetchannels", *rules)
    await server.execute_command("ACL", "SETUSER", "default", "resetpass", ">other")
    settings: dict[str, Any] = {
        "BACKPLANE_URL": url.replace("redis://", "redis://yujian:word@"),
        "PRESENCE_NAMES": "all",
        "JOIN_LEAVE": "status",
        "COLLECTOR": 1,
    }
    async with Service(**settings) as one, Service(**settings) as two:
        client = await PlainClient.open(one, user="ann", types="status,system")
        async with asyncio.timeout(30):
            while True:
                said = (await two.get("/status")).body
                if said["backplane"]["replica"]["readers"] == 2:
                    break
                await asyncio.sleep(0.2)
        assert said["backplane"]["warnings"] == []
        first = await two.publish(id="known")
        assert (await two.publish(id="known"))["seq"] == first["seq"]
        await client.wait_seq("status", first["seq"])
        assert first["seq"] in [message["seq"] for message in await one.history("status")]
        answer = await two.post("/status", {"state": "working", "task": "a test"})
        assert answer.status == 200, answer
        others = [await PlainClient.open(two, user="ann") for _ in range(2)]
        for other in others:
            await other.barrier()
        fourth = await PlainClient.open(two, user="ann")
        assert await fourth.wait_closed() == 1008
        assert (await one.get("/stats/series?range=15m")).status == 200
        await client.expect("join")
        listed = await client.request("presence", {"type": "status", "limit": 10})
        assert [row["user"] for row in listed["data"]["names"]] == ["ann"]
        for other in (client, *others):
            await other.close()
    refused: Any = await server.execute_command("ACL", "LOG")
    assert {entry["object"] for entry in refused} <= {
        "config|get"
    }  # which is looked at if it may be
    await server.aclose()
