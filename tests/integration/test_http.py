"""The HTTP calls of the README: any worker answers for all of them."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from typing import Any

import aiohttp
import pytest

from tests.support.envelopes import walk
from tests.support.fixtures import Opener
from tests.support.plain import PlainClient, spread
from tests.support.raw import RawClient
from tests.support.service import TOKEN, Service
from tests.support.sioclient import sio_clients
from tests.support.waiting import until

WRITES = [
    ("/status", {"state": "working", "task": "tests"}),
    ("/ws/broadcast", {"type": "status", "event": "x", "data": 1}),
]


def check_error(answer: Any, status: int, code: str | None = None) -> None:
    assert answer.status == status, answer
    assert set(answer.body) >= {"error", "code"}, answer
    assert answer.headers["Content-Type"].startswith("application/json")
    if code:
        assert answer.body["code"] == code


# GET


async def test_status(service: Service) -> None:
    answer = await service.get("/status")
    assert answer.status == 200
    assert set(answer.body) >= {
        "status",
        "version",
        "uptime",
        "workers",
        "connections",
        "backplane",
        "presence",
    }
    assert answer.body["status"] == "ok"
    assert set(answer.body["presence"]) == {"state", "task", "updatedAt"}


async def test_presence_round(service: Service, plain: Opener) -> None:
    client = await plain(types="status")
    await client.barrier()
    body = {"state": "working", "task": "writing tests ✓"}
    answer = await service.post("/status", body)
    assert answer.status == 200, answer
    update = await client.expect("status_update")
    assert "working" in json.dumps(update["data"])

    async def shown() -> bool:
        presence = (await service.get("/status")).body["presence"]
        return bool(presence["state"] == "working" and presence["task"] == body["task"])

    for _ in range(5):
        await until(shown, "the presence at every worker")


@pytest.mark.parametrize(
    "body",
    [{}, [], "working", {"state": "flying"}, {"state": 5}, {"state": None},
     {"state": "idle", "task": 5}, {"state": "idle", "task": ["x"]}],
)  # fmt: skip
async def test_wrong_presence(service: Service, body: object) -> None:
    check_error(await service.post("/status", body), 400, "INVALID_PAYLOAD")


async def test_ws_stats_count_all_workers(service: Service) -> None:
    clients = await spread(service, types="status,health", user="two")
    clients.append(await PlainClient.open(service, types="", user="one"))
    async with sio_clients(service):
        await service.wait_connections(4)
        seen = set()
        for _ in range(20):
            answer = await service.get("/ws/stats")
            body = answer.body
            assert {"totalConnections", "uniqueUsers", "averageSubscriptions"} <= set(body)
            seen.add(body["totalConnections"])
        assert seen == {4}

        async def users() -> bool:
            body = (await service.get("/ws/stats")).body
            # Two named users, and an anonymous one of its own.
            return body["uniqueUsers"] == 3 and body["averageSubscriptions"] == 7 / 4

        await until(users, "users and subscriptions of all workers")
    for client in clients:
        await client.close()
    await service.wait_connections(0)


async def test_ws_queue(service: Service) -> None:
    answer = await service.get("/ws/queue")
    assert answer.status == 200
    assert answer.body["length"] == 0
    assert answer.body["maxSize"] == 10_000


async def test_history_is_that_of_the_socket(service: Service, plain: Opener) -> None:
    sent = [await service.publish("system", "kept", {"n": n}) for n in range(60)]
    client = await plain(types="")
    for params in ({}, {"limit": 5}, {"limit": 100, "before": sent[30]["seq"]}):
        over_socket = await client.request("get_history", {"type": "system", **params})
        over_http = await service.get("/history", type="system", **params)
        assert over_http.status == 200
        for field in ("messages", "more"):
            assert over_http.body[field] == over_socket["data"][field]
    assert len(await service.history("system")) == 50


@pytest.mark.parametrize(
    "query",
    ["", "type=weather", "type=error", "type=status&limit=0", "type=status&limit=101",
     "type=status&limit=x", "type=status&before=x", "type=status&before=-1"],
)  # fmt: skip
async def test_wrong_history(service: Service, query: str) -> None:
    check_error(await service.request("GET", f"/history?{query}"), 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/status", 405),
        ("GET", "/ws/broadcast", 405),
        ("PUT", "/ws/queue", 405),
    ],
)
async def test_other_paths_and_methods(
    service: Service, method: str, path: str, status: int
) -> None:
    check_error(await service.request(method, path), status)


async def test_the_endpoint_without_an_upgrade(service: Service) -> None:
    answer = await service.get("/ws/realtime")
    check_error(answer, 400)
    assert answer.body["code"] == "BAD_REQUEST"
    assert "'Upgrade: websocket'" in answer.body["error"]


# Tokens


@pytest.mark.parametrize(("path", "body"), WRITES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", TOKEN, "Basic " + TOKEN])
async def test_writes_need_the_token(
    service: Service, path: str, body: object, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = await service.request("POST", path, json=body, headers=headers)
    check_error(answer, 401, "UNAUTHORIZED")


@pytest.mark.parametrize("value", ["ä", "Bearer \u00ff"])
async def test_odd_bytes_in_the_token(service: Service, value: str) -> None:
    answer = await service.request(
        "POST", "/ws/broadcast", json=WRITES[1][1], headers={"Authorization": value}
    )
    check_error(answer, 401, "UNAUTHORIZED")


async def test_without_a_token_writes_are_forbidden() -> None:
    async with Service(WORKERS=1, PUBLISH_TOKEN="") as service:
        for path, body in WRITES:
            answer = await service.post(path, body)
            check_error(answer, 403)
            assert "PUBLISH_TOKEN" in answer.body["error"]
        assert (await service.get("/status")).status == 200


# Publishing


async def test_one_message(service: Service) -> None:
    first = await service.publish("config", "saved")
    second = await service.publish("config", "saved")
    assert set(first) == {"id", "type", "seq", "epoch"}
    assert first["type"] == "config"
    assert str(uuid.UUID(first["id"])) == first["id"]
    assert (second["seq"], second["epoch"]) == (first["seq"] + 1, first["epoch"])


async def test_an_array_answers_in_order(service: Service) -> None:
    types = ["status", "config", "status", "health", "config"]
    sent = await service.publish_all(
        {"type": type, "event": "mixed", "data": n} for n, type in enumerate(types)
    )
    assert [one["type"] for one in sent] == types
    for type in set(types):
        seqs = [one["seq"] for one in sent if one["type"] == type]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


async def test_an_array_in_part_wrong_is_207(service: Service) -> None:
    good = {"type": "config", "event": "fine", "data": 1}
    wrong = {"type": "weather", "event": "fine", "data": 1, "id": "mine"}
    answer = await service.post("/ws/broadcast", [good, wrong, good])
    assert answer.status == 207, answer
    first, second, third = answer.body
    assert third["seq"] == first["seq"] + 1
    assert set(second) == {"id", "error", "code"}
    assert (second["id"], second["code"]) == ("mine", "INVALID_TYPE")


@pytest.mark.parametrize(
    "body",
    [
        {},
        5,
        None,
        "x",
        {"event": "x", "data": 1},
        {"type": "status", "data": 1},
        {"type": "weather", "event": "x", "data": 1},
        {"type": "error", "event": "x", "data": 1},
        {"type": "all", "event": "x", "data": 1},
        {"type": 5, "event": "x", "data": 1},
        {"type": "status", "event": 5, "data": 1},
        {"type": "status", "event": "", "data": 1},
        {"type": "status", "event": "connected", "data": 1},
        {"type": "status", "event": "gap", "data": 1},
        {"type": "status", "event": "error", "data": 1},
        {"type": "status", "event": "offset", "data": 1},
        {"type": "status", "event": "x", "data": 1, "priority": "urgent"},
        {"type": "status", "event": "x", "data": 1, "priority": 1},
        {"type": "status", "event": "x", "data": 1, "id": 7},
        {"type": "status", "event": "x", "data": 1, "id": ""},
    ],
)
async def test_wrong_messages(service: Service, body: object) -> None:
    before = await service.history("status", limit=1)
    check_error(await service.post("/ws/broadcast", body), 400)
    assert await service.history("status", limit=1) == before


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"type": NaN}'])
async def test_bodies_that_are_not_json(service: Service, body: bytes) -> None:
    answer = await service.request("POST", "/ws/broadcast", data=body, token=TOKEN)
    check_error(answer, 400, "PARSE_ERROR")


async def test_too_large_a_message(service: Service) -> None:
    message = {"type": "status", "event": "x", "data": "x" * 1_100_000}
    body = io.BytesIO(json.dumps(message).encode())
    head = {"Content-Type": "application/json"}
    answer = await service.request("POST", "/ws/broadcast", data=body, token=TOKEN, headers=head)
    check_error(answer, 413, "MESSAGE_TOO_LARGE")


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
async def test_priorities_are_taken(service: Service, priority: str) -> None:
    assert (await service.publish("config", "ranked", priority=priority))["seq"] > 0


async def test_the_same_id_is_accepted_once(service: Service, plain: Opener) -> None:
    """By any worker, alone and in an array, and for each type on its own."""
    client = await plain(types="config")
    await client.barrier()
    first = await service.publish("config", "once", {"n": 1}, id="order-66")
    for _ in range(10):
        assert await service.publish("config", "once", {"n": 1}, id="order-66") == first
    message = {"type": "config", "event": "once", "data": 3, "id": "order-67"}
    pair = await service.publish_all([message, message])
    assert pair[0] == pair[1]
    assert pair[0]["seq"] == first["seq"] + 1
    last = await service.publish("config", "after")
    assert last["seq"] == first["seq"] + 2
    await client.wait_seq("config", last["seq"])
    assert [got["id"] for got in client.events("once")] == ["order-66", "order-67"]


async def test_the_same_id_at_once_is_accepted_once(service: Service) -> None:
    answers = await asyncio.gather(*(service.publish("health", "race", id="r1") for _ in range(20)))
    assert len({one["seq"] for one in answers}) == 1


async def test_what_was_answered_is_at_once_in_the_history(service: Service) -> None:
    for _ in range(20):
        sent = await service.publish("health", "kept")
        assert (await service.history("health", limit=1))[0]["seq"] >= sent["seq"]


# Origins


async def test_cors() -> None:
    lab = "https://lab.yujian.team"
    async with Service(WORKERS=1, ALLOWED_ORIGINS=lab) as service:
        answer = await service.request("GET", "/status", headers={"Origin": lab})
        assert answer.headers["Access-Control-Allow-Origin"] == lab
        assert "Origin" in answer.headers["Vary"]
        asked = {
            "Origin": lab,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = await service.request("OPTIONS", "/ws/broadcast", headers=asked)
        assert preflight.status == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == lab
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        allowed = preflight.headers["Access-Control-Allow-Headers"].lower()
        assert "authorization" in allowed
        assert "content-type" in allowed
        failed = await service.request("GET", "/history?type=x", headers={"Origin": lab})
        assert failed.status == 400
        assert failed.headers["Access-Control-Allow-Origin"] == lab
        for evil in ("https://evil.example", "https://lab.yujian.team.evil.example", "null"):
            other = await service.request("GET", "/status", headers={"Origin": evil})
            assert "Access-Control-Allow-Origin" not in other.headers
            refused = await service.request("OPTIONS", "/status", headers=asked | {"Origin": evil})
            assert "Access-Control-Allow-Origin" not in refused.headers
            async with await RawClient.open(service, headers={"Origin": evil}) as client:
                assert client.status == 403
        async with await RawClient.open(service, headers={"Origin": lab}) as client:
            assert client.status == 101
            await client.envelope("connected")


async def test_same_origin_and_none_by_default(service: Service) -> None:
    own = f"http://127.0.0.1:{service.port}"
    for headers, status in [({"Origin": own}, 101), ({}, 101), ({"Origin": "http://x.test"}, 403)]:
        async with await RawClient.open(service, headers=headers) as client:
            assert client.status == status, headers
        path = "/ws/realtime/?EIO=4&transport=websocket"
        async with await RawClient.open(service, path, headers=headers) as client:
            assert client.status == status, headers


# Together


async def test_a_keep_alive_connection_serves_many_calls(service: Service) -> None:
    head = {"Authorization": f"Bearer {TOKEN}"}
    client = await PlainClient.open(service, types="health")
    await client.barrier()
    async with aiohttp.ClientSession(service.base, headers=head) as session:
        for number in range(50):
            body = {"type": "health", "event": "kept_alive", "data": number}
            async with session.post("/ws/broadcast", json=body) as response:
                assert response.status == 200
                last = await response.json()
    await client.wait_seq("health", last["seq"])
    assert len(walk(client.received, "health").seqs) == 50
    await client.close()


_MESSAGE = b'{"type":"health","event":"half","data":1}'
_SIZED = b"Content-Length: %d\r\n\r\n%b" % (len(_MESSAGE), _MESSAGE)
_IN_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(_MESSAGE), _MESSAGE)


@pytest.mark.parametrize(
    ("line", "rest", "status"),
    [
        ("GET /status", b"\r\n", 200),
        ("GET /history?type=health", b"\r\n", 200),
        ("POST /ws/broadcast", _SIZED, 200),
        ("POST /ws/broadcast", _IN_CHUNKS, 200),
        ("POST /ws/broadcast", _IN_CHUNKS[:-7], 400),
    ],
)
async def test_a_client_that_closes_its_side_is_answered(
    service: Service, line: str, rest: bytes, status: int
) -> None:
    head = f"{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
    for ahead, waits in ((0, False), (1, False), (1, True)):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        for _ in range(ahead):
            writer.write(b"GET /ws/stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if waits:
                await reader.readuntil(b"}\n")
        writer.write(head + rest)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 30)
        assert answer.count(b"HTTP/1.1 200") == (ahead and not waits) + (status == 200), answer
        assert (b"HTTP/1.1 400" in answer) == (status == 400), answer
        writer.close()


async def test_the_same_id_with_other_data_is_a_conflict(service: Service) -> None:
    first = await service.publish("status", "tick", 1, id="conflict-1")
    assert await service.publish("status", "tick", 1, id="conflict-1") == first
    answer = await service.post(
        "/ws/broadcast", {"type": "status", "event": "tick", "data": 2, "id": "conflict-1"}
    )
    assert (answer.status, answer.body["code"]) == (409, "CONFLICT")
    assert str(first["seq"]) in answer.body["error"]
