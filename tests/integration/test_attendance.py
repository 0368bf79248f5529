"""Which users are subscribed: listed by name for clients, announced as they come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
import pytest_asyncio
import socketio

from tests.support.plain import PlainClient, spread
from tests.support.raw import TEXT, RawClient, encode, text
from tests.support.service import Service
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(150)

SECRET = "s" * 32


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    async with Service(
        WORKERS=2, JOIN_LEAVE="status", PRESENCE_NAMES="all", MAX_CONNECTIONS_PER_USER=10
    ) as running:
        yield running


async def names(client: PlainClient, type: str = "status", **more: Any) -> dict[str, int]:
    """The users that are listed, with their connections."""
    data = (await client.request("presence", {"type": type, "limit": 100, **more}))["data"]
    return {row["user"]: row["connections"] for row in data["names"]}


async def until_listed(client: PlainClient, expected: dict[str, int], type: str = "status") -> None:
    async def are_listed() -> bool:
        return await names(client, type) == expected

    await until(are_listed, f"{expected} are listed")


def changes(client: PlainClient) -> list[tuple[str, str, tuple[str, ...]]]:
    """Event, user and types of all that was announced, in order."""
    return [
        (envelope["event"], row["user"], tuple(row["types"]))
        for envelope in client.received
        if envelope["event"] in {"join", "leave"}
        for row in envelope["data"]["users"]
    ]


async def test_a_user_with_several_connections_comes_and_goes_once(service: Service) -> None:
    watch = await PlainClient.open(service, types="system")
    ann = await spread(service, 2, user="ann", types="status,stats")
    anonymous = await PlainClient.open(service, types="status")
    bob = socketio.AsyncClient(reconnection=False)
    await bob.connect(
        service.base,
        transports=["websocket"],
        socketio_path="/ws/realtime",
        auth={"user": "bob", "types": ["stats"]},
    )
    try:
        await until_listed(watch, {"ann": 2})
        await until_listed(watch, {"ann": 2, "bob": 1}, "stats")
        answer = await bob.call("presence", {"type": "stats", "limit": 1})
        assert answer["data"]["names"] == [{"user": "ann", "connections": 2}]
        assert (answer["data"]["total"], answer["data"]["more"]) == (2, True)
        assert await names(watch, "stats", after="ann") == {"bob": 1}
        await until(lambda: changes(watch) == [("join", "ann", ("status",))], "ann is announced")
        await ann[0].close()
        await until_listed(watch, {"ann": 1})
        # What it is subscribed to counts, not that it is connected.
        await ann[1].request("unsubscribe", {"types": ["status"]})
        await until(lambda: len(changes(watch)) == 2, "her end is announced")
        assert changes(watch)[1] == ("leave", "ann", ("status",))
        await bob.call("subscribe", {"types": ["status"]})
        await until(lambda: len(changes(watch)) == 3, "he is announced")
        assert changes(watch)[2] == ("join", "bob", ("status",))
        assert await names(watch) == {"bob": 1}
        # Messages of `system` like any other.
        kept = await service.history("system")
        assert [message["event"] for message in kept] == ["join", "leave", "join"]
        assert [message["seq"] for message in kept] == [1, 2, 3]
    finally:
        await bob.disconnect()
        for one in (*ann, anonymous, watch):
            await one.close()


async def test_a_client_that_comes_back_at_once_has_not_left(service: Service) -> None:
    watch = await PlainClient.open(service, types="system")
    ann = await PlainClient.open(service, types="status", user="ann")
    await until_listed(watch, {"ann": 1})
    await ann.close()
    await until_listed(watch, {})
    ann = await PlainClient.open(service, types="status", user="ann")
    await until_listed(watch, {"ann": 1})
    # Another one that goes later is announced, so her time is over as well.
    bob = await PlainClient.open(service, types="status", user="bob")
    await until_listed(watch, {"ann": 1, "bob": 1})
    await bob.close()
    await until(lambda: len(changes(watch)) == 3, "he has left")
    assert [change[:2] for change in changes(watch)] == [
        ("join", "ann"),
        ("join", "bob"),
        ("leave", "bob"),
    ]
    await ann.close()
    await watch.close()


async def test_a_reload_is_no_coming_and_no_going(service: Service) -> None:
    watch = await PlainClient.open(service, types="system")
    users = [
        await PlainClient.open(service, types="status", user=f"user{number:02}")
        for number in range(20)
    ]
    expected = {f"user{number:02}": 1 for number in range(20)}
    await until_listed(watch, expected)
    await until(lambda: len(changes(watch)) == 20, "all have been announced")
    seen: list[dict[str, int]] = []

    async def read() -> None:
        while True:
            seen.append(await names(watch))
            await asyncio.sleep(0.1)

    reading = asyncio.create_task(read())
    for _ in range(2):
        await service.hup()
    await until_listed(watch, expected)
    # A client that leaves after that is announced, and so would be one that left before.
    await users[0].close()
    await until(lambda: changes(watch)[20:], "one has left")
    reading.cancel()
    assert changes(watch)[20:] == [("leave", "user00", ("status",))]
    assert all(set(one) >= set(list(expected)[1:]) for one in seen)
    for one in (*users, watch):
        await one.close()


async def test_users_of_a_killed_worker_leave_unless_they_come_back(service: Service) -> None:
    users: dict[str, PlainClient] = {}
    by_worker: dict[int, list[str]] = {}
    # The kernel chooses the worker.
    while len(users) < 8 or len(by_worker) < 2:
        name = f"user{len(users)}"
        users[name] = client = await PlainClient.open(service, types="status", user=name)
        by_worker.setdefault(service.worker_of(client.port), []).append(name)
    victim, other = by_worker
    watch = await PlainClient.open(service, types="")
    while service.worker_of(watch.port) != other:
        watch = await PlainClient.open(service, types="")
    await watch.request("subscribe", {"types": ["system"]})
    await until_listed(watch, dict.fromkeys(users, 1))

    async def are_stored() -> bool:
        return sum(len(m["data"]["users"]) for m in await service.history("system")) == len(users)

    await until(are_stored, "all are announced")
    service.kill_worker(victim)
    lost = sorted(by_worker[victim])
    back, gone = lost[0], lost[1:]
    users[back] = await PlainClient.open(service, types="status", user=back)

    def left() -> list[str]:
        return sorted(user for event, user, _ in changes(watch) if event == "leave")

    await until(lambda: left() == gone, "those that stay away have left")
    await until_listed(watch, dict.fromkeys([back, *by_worker[other]], 1))
    assert not [change for change in changes(watch) if change[:2] == ("join", back)][1:]
    for one in (*users.values(), watch):
        await one.close()


async def test_nothing_is_listed_or_announced_by_default() -> None:
    async with Service(WORKERS=1) as service:
        client = await PlainClient.open(service, types="system,status", user="ann")
        answer = await client.request("presence", {"type": "status", "limit": 1})
        assert answer["data"]["code"] == "FORBIDDEN"
        assert "PRESENCE_NAMES" in answer["data"]["message"]
        counts = (await client.request("presence", {"type": "status"}))["data"]
        assert counts.keys() == {"connections", "users"}
        await client.close()
        assert await service.history("system") == []


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "ann", "exp": int(time.time()) + 600} | claims, SECRET)


CLAIMS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set()),
    ({"presence": False}, set()),
    ({"presence": True}, {"status", "health"}),
    ({"presence": ["status"]}, {"status"}),
    ({"presence": ["all"], "types": ["health"]}, {"health"}),
    ({"presence": ["stats"]}, set()),
]


async def test_with_tokens_the_claim_decides() -> None:
    async with Service(WORKERS=1, AUTH_SECRET=SECRET, PRESENCE_NAMES="status,health") as service:
        clients = [
            await PlainClient.open(service, types="", token=token(sub=f"user{number}", **claims))
            for number, (claims, _) in enumerate(CLAIMS)
        ]

        async def check() -> None:
            for client, (claims, allowed) in zip(clients, CLAIMS, strict=True):
                found = set()
                for type in ("status", "stats", "health"):
                    answer = await client.request("presence", {"type": type, "limit": 5})
                    if answer["event"] == "presence_data":
                        found.add(type)
                    else:
                        assert answer["data"]["code"] == "FORBIDDEN"
                assert found == allowed, claims

        await check()
        await service.hup()
        await check()
        for client in clients:
            await client.close()


async def test_many_that_ask_for_names_cost_the_others_nothing() -> None:
    """120 connections ask 100 times each at once, each time for another page."""
    async with Service(WORKERS=2, PRESENCE_NAMES="all") as service:
        expected = {f"user{number:02}": 1 for number in range(100)}
        named = [await PlainClient.open(service, types="status", user=user) for user in expected]
        honest = await spread(service, 2, types="status")
        await until_listed(honest[0], expected)
        before = set(service.worker_pids())
        askers = [await RawClient.open(service, "/ws/realtime?types=") for _ in range(120)]
        await asyncio.gather(*(asker.write(questions(n)) for n, asker in enumerate(askers)))
        # What is published meanwhile comes before the answers, of which there are not many a second.
        for number in range(5):
            stored = await service.publish("status", "meanwhile", number)
            for client in (*honest, *named):
                await client.wait_seq("status", stored["seq"])
        answers = await asyncio.gather(*(asker.envelope("presence_data") for asker in askers))
        for answer in answers:
            assert set(answer["data"]["names"][0]) == {"user", "connections"}
        assert set(service.worker_pids()) == before
        while not await held_back(service):  # shown once a second
            await asyncio.sleep(0.1)
        for one in askers:
            await one.abort()
        for client in (*named, *honest):
            await client.close()


async def held_back(service: Service) -> float:
    """Pauses in reading from connections that exceed their share."""
    name = "realtime_held_back_total "
    lines = (await service.get("/metrics")).body.splitlines()
    return float(next(line for line in lines if line.startswith(name)).removeprefix(name))


def questions(number: int) -> bytes:
    """100 requests of one connection, each for another page."""
    pages = (f"user{at // 2:02}-{number}" for at in range(100))
    return b"".join(
        encode(TEXT, text("presence", {"type": "status", "limit": 20, "after": after}))
        for after in pages
    )
