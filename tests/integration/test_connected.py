"""Operators list connections and users over all workers, and close them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import socketio

from tests.support.events import EventClient
from tests.support.plain import PlainClient, spread
from tests.support.service import TOKEN, Answer, Service
from tests.support.waiting import until, until_now

pytestmark = pytest.mark.timeout(120)
HEAD = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def kept() -> Iterator[Service]:
    running = Service(WORKERS=2, COLLECTOR=0, MAX_CONNECTIONS_PER_USER=10).start()
    yield running
    running.stop()


@pytest.fixture
def service(kept: Service) -> Service:
    """The service of all these tests, without a connection of the one before."""
    until_now(kept.is_idle, "no connection is left")
    return kept


async def get(service: Service, path: str) -> Answer:
    return await service.request("GET", path, headers=HEAD)


async def delete(service: Service, path: str) -> Answer:
    return await service.request("DELETE", path, headers=HEAD)


async def test_lists_and_ends_over_all_workers(service: Service) -> None:
    said = len(service.log)
    ann = await spread(service, 2, user="ann", types="status")
    anonymous = await PlainClient.open(service, types="stats")
    bob = socketio.AsyncClient(reconnection=False)
    closed: list[str] = []
    bob.on("disconnect", lambda *_: closed.append("bob"))
    await bob.connect(
        service.base, transports=["websocket"], socketio_path="/ws/realtime", auth={"user": "bob"}
    )
    try:
        await asyncio.gather(*(one.barrier() for one in (*ann, anonymous)))

        async def all_are_listed() -> bool:
            return bool((await get(service, "/connections")).body["total"] == 4)

        await until(all_are_listed, "all are welcomed")
        listed = (await get(service, "/connections")).body
        assert (listed["workers"], listed["complete"], listed["more"]) == (2, True, False)
        rows = listed["connections"]
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
        assert {row["worker"] for row in rows} == set(service.worker_pids())
        assert sorted(str(row["user"]) for row in rows) == ["None", "ann", "ann", "bob"]
        assert {row["protocol"] for row in rows} == {"plain", "socketio"}
        now = time.time_ns() // 1_000_000
        assert all(now - 60_000 < row["since"] <= now for row in rows)
        page = (await get(service, "/connections?limit=3")).body
        assert (page["connections"], page["more"]) == (rows[:3], True)
        page = (await get(service, f"/connections?limit=3&after={rows[2]['id']}")).body
        assert (page["connections"], page["more"]) == (rows[3:], False)
        of_bob = (await get(service, "/connections?protocol=socketio")).body
        assert ([row["user"] for row in of_bob["connections"]], of_bob["total"]) == (["bob"], 1)
        of_stats = (await get(service, "/connections?type=stats&user=ann")).body
        assert of_stats["total"] == 0
        users = (await get(service, "/connections/users?type=status")).body
        assert {"user": "ann", "connections": 2} in users["users"]
        users = (await get(service, "/connections/users")).body
        assert (users["anonymous"], users["total"]) == (1, 4)

        # The connection of one, whatever worker is asked.
        [id] = [row["id"] for row in rows if row["user"] is None]
        answer = await delete(service, f"/connections/{id}")
        assert (answer.status, answer.body["closed"]) == (200, 1)
        assert await anonymous.wait_closed() == 4403
        assert (await delete(service, f"/connections/{id}")).status == 404
        # All of a user, by a revoked token.
        answer = await delete(service, "/connections?user=ann&code=4401")
        assert (answer.status, answer.body) == (200, {"closed": 2, "workers": 2, "complete": True})
        assert [await one.wait_closed() for one in ann] == [4401, 4401]
        assert not closed
        assert (await delete(service, "/connections?user=bob")).body["closed"] == 1
        await until(lambda: closed == ["bob"], "the Socket.IO client is informed")
        assert (await delete(service, "/connections?user=bob")).body["closed"] == 0
        assert 'call="DELETE /connections" status=200' in service.log[said:]
    finally:
        await bob.disconnect()
        for one in (*ann, anonymous):
            await one.close()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/connections?limit=0", 400),
        ("/connections?limit=501", 400),
        ("/connections?type=nothing", 400),
        ("/connections?user=" + "x" * 1025, 400),
        # NFC makes two characters of each.
        ("/connections?user=" + "%E0%A5%98" * 513, 400),
        ("/connections?user=ann&code=1000", 400),
        ("/connections?protocol=nope", 400),
        ("/connections", 400),
        ("/connections?user=", 400),
    ],
)
async def test_wrong_questions(service: Service, method: str, path: str, status: int) -> None:
    answer = await service.request(method, path, headers=HEAD)
    if method == "GET" and path in {
        "/connections",
        "/connections?user=",
        "/connections?user=ann&code=1000",
    }:
        status = 200
    assert answer.status == status, answer.body


async def test_nothing_is_closed_by_a_filter_that_the_call_does_not_have(service: Service) -> None:
    ann = await PlainClient.open(service, user="ann", types="status")
    await ann.barrier()
    for path in ("/connections?user=ann&type=stats", "/connections/x?user=ann"):
        answer = await delete(service, path)
        assert (answer.status, answer.body["code"]) == (400, "INVALID_PAYLOAD")
    assert (await delete(service, "/connections?user=ann")).body["closed"] == 1
    await ann.close()


async def test_a_name_in_another_form_of_unicode_is_the_same_user(service: Service) -> None:
    """As a Mac writes it: a letter, and the mark on it as a character of its own."""
    zoe = await PlainClient.open(service, user="Zo\u00eb", types="status")
    await zoe.barrier()
    [row] = (await get(service, "/connections?user=Zoe%CC%88")).body["connections"]
    assert row["user"] == "Zo\u00eb"
    assert (await delete(service, "/connections?user=Zoe%CC%88")).body["closed"] == 1
    assert await zoe.wait_closed() == 4403
    await zoe.close()


async def test_only_with_the_publish_token(service: Service) -> None:
    for method, path in (
        ("GET", "/connections"),
        ("GET", "/connections/users"),
        ("DELETE", "/connections?user=ann"),
        ("DELETE", "/connections/x"),
    ):
        assert (await service.request(method, path)).status == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert (await service.request(method, path, headers=wrong)).status == 401


async def test_since_when_outlives_a_reload(service: Service) -> None:
    async with await PlainClient.open(service, user="ann", types="status") as client:
        await client.barrier()
        [before] = (await get(service, "/connections?user=ann")).body["connections"]
        await service.hup()
        await client.barrier()
        [after] = (await get(service, "/connections?user=ann")).body["connections"]
        assert before["worker"] != after["worker"]
        assert before == {**after, "worker": before["worker"]}


async def test_a_client_on_server_sent_events(service: Service) -> None:
    client = await EventClient.open(service, "/events?types=status&user=eve")
    try:

        async def is_listed() -> bool:
            return bool((await get(service, "/connections?user=eve")).body["total"] == 1)

        await until(is_listed, "it is listed")
        [row] = (await get(service, "/connections?user=eve")).body["connections"]
        assert (row["protocol"], row["types"]) == ("sse", ["status"])
        assert (await delete(service, f"/connections/{row['id']}")).body["closed"] == 1
        await until(lambda: client.ended, "its stream ends")
        last = client.events[-1].envelope
        assert (last["event"], last["data"]["code"]) == ("connection_closing", 4403)
    finally:
        await client.close()
