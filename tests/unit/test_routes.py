"""The HTTP table, over a real server with the ports in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import uuid
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import aiohttp
import jwt
import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from multidict import CIMultiDict

from app.config import Settings, load
from app.errors import ClientError, ErrorCode
from app.http.bodies import ReceivedBodies
from app.http.clients import Clients
from app.http.errors import HttpError
from app.http.json_body import read_json
from app.http.routes import add_routes
from app.machine import MachineStatus
from app.protocol.schema.limits import MAX_MESSAGES
from app.transport.input import InputAccount
from app.types import Priority
from tests.support.http_side import HttpSide, http_side, worker_row
from tests.support.waiting import until

TOKEN = "publish-token-of-the-tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
MESSAGE = {"type": "status", "event": "fine", "data": {"n": 1}}


@pytest.fixture
async def side() -> AsyncIterator[HttpSide]:
    async with http_side(PUBLISH_TOKEN=TOKEN) as side:
        yield side


@pytest.fixture
async def side_of_two() -> AsyncIterator[HttpSide]:
    """Of a service that is to have two workers."""
    async with http_side(PUBLISH_TOKEN=TOKEN, WORKERS="2") as side:
        yield side


async def read(answer: aiohttp.ClientResponse, status: int = 200) -> Any:
    assert answer.status == status, await answer.text()
    if status != 204:
        assert answer.content_type == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
    return await answer.json()


async def fail(answer: aiohttp.ClientResponse, status: int, code: str) -> str:
    body = await read(answer, status)
    assert set(body) == {"error", "code"}
    assert body["code"] == code, body
    message: str = body["error"]
    return message


async def publish(side: HttpSide, message: object, **headers: str) -> aiohttp.ClientResponse:
    return await side.client.post("/ws/broadcast", data=json.dumps(message), headers=AUTH | headers)


# Status


async def test_status_of_all_workers(side_of_two: HttpSide) -> None:
    side = side_of_two
    side.slots.show(
        [
            worker_row(0, pid=7, connections=2),
            worker_row(1, pid=8, connections=3, state="leaving"),
        ]
    )
    side.warnings.append("appendfsync is everysec")
    assert await read(await side.client.get("/status")) == {
        "status": "ok",
        "causes": [],
        "version": "1.2.3",
        "uptime": 100.0,
        "connections": 5,
        "maxConnections": 10_000,
        "expectedWorkers": 2,
        "workers": [
            {"pid": 7, "state": "ready", "connections": 2, "generation": 1,
             "startedAt": 1_700_000_000_000},
            {"pid": 8, "state": "leaving", "connections": 3, "generation": 1,
             "startedAt": 1_700_000_000_000},
        ],
        "backplane": {
            "status": "ok", "cause": None, "writable": True,
            "warnings": ["appendfsync is everysec"],
        },
        "presence": {"state": "offline", "task": None, "updatedAt": None},
    }  # fmt: skip


async def test_status_without_the_backplane_is_degraded(side: HttpSide) -> None:
    side.backplane, side.fields.away = False, True
    body = await read(await side.client.get("/status"))
    assert body["status"] == "degraded"
    assert body["backplane"]["status"] == "unavailable"
    assert body["presence"]["stale"] is True


CAUSES = {
    "all serve": (["ready", "ready"], {}, []),
    "one is missing": (["ready"], {}, ["workers: 1 of 2"]),
    "one leaves and still serves": (["ready", "leaving"], {}, []),
    "a reload": (["leaving", "leaving", "starting", "starting"], {}, []),
    "the end of a reload": (["ready", "starting"], {}, []),
    "one died": (["ready", "starting"], {"since_death": 3.0}, ["workers: 1 of 2"]),
    "one died long ago": (["ready", "starting"], {"since_death": 300.0}, []),
    "one starts for long": (["ready", "starting"], {"seconds": 60.0}, ["workers: 1 of 2"]),
    "more than need be": (["ready", "ready", "ready"], {}, []),
    "a shared file is gone": (["ready", "ready"], {"local_faults": ["shared files: x"]}, ["shared files: x"]),
}  # fmt: skip


@pytest.mark.parametrize(("states", "facts", "causes"), CAUSES.values(), ids=list(CAUSES))
async def test_status_is_ok_only_with_all_workers(
    side_of_two: HttpSide,
    monkeypatch: pytest.MonkeyPatch,
    states: list[str],
    facts: dict[str, Any],
    causes: list[str],
) -> None:
    side = side_of_two
    since_death = facts.pop("since_death", math.inf)
    monkeypatch.setattr(side.slots, "since_death", lambda: since_death)
    side.seconds = worker_row().started + facts.pop("seconds", 1.0)
    for name, value in facts.items():
        setattr(side, name, value)
    side.slots.show([worker_row(n, state=state) for n, state in enumerate(states)])
    body = await read(await side.client.get("/status"), 200 if "ready" in states else 503)
    assert body["causes"] == causes
    if "ready" in states:
        assert body["status"] == ("degraded" if causes else "ok")


async def test_status_names_a_worker_that_has_stopped(side_of_two: HttpSide) -> None:
    side = side_of_two
    fresh, old = (
        dataclasses.replace(worker_row(n, pid=n + 1), updated=side.seconds) for n in (0, 1)
    )
    old = dataclasses.replace(old, updated=side.seconds - 31)
    side.slots.show([fresh, old])
    body = await read(await side.client.get("/status"))
    assert body["status"] == "degraded"
    assert body["causes"] == ["workers: 1 of 2", "workers: 2 has been silent for 31 s"]


async def test_a_clock_that_is_set_makes_no_worker_silent(side_of_two: HttpSide) -> None:
    side = side_of_two
    rows = [dataclasses.replace(worker_row(n, pid=n + 1), updated=side.seconds) for n in (0, 1)]
    side.slots.show(rows)
    side.silences = {1: 2.0, 2: 2.0}
    side.seconds += 3600
    assert (await read(await side.client.get("/status")))["causes"] == []
    # Nor does it hide one that is.
    side.seconds -= 7200
    side.silences = {1: 2.0, 2: 31.0}
    body = await read(await side.client.get("/status"))
    assert body["causes"] == ["workers: 1 of 2", "workers: 2 has been silent for 31 s"]


async def test_status_names_what_the_backplane_says(side: HttpSide) -> None:
    side.fault = "it is a read-only replica (READONLY You can't write)"
    side.writable = False
    body = await read(await side.client.get("/status"))
    assert body["status"] == "degraded"
    assert body["causes"] == [f"backplane: {side.fault}"]
    assert body["backplane"] == {
        "status": "degraded", "cause": side.fault, "writable": False, "warnings": [],
    }  # fmt: skip


async def test_status_tells_what_another_worker_sees(side: HttpSide) -> None:
    side.slots.show(
        [
            worker_row(0),
            worker_row(1, fault="its memory is full", unwritable=True),
        ]
    )
    body = await read(await side.client.get("/status"))
    assert body["status"] == "degraded"
    assert body["backplane"]["cause"] == "its memory is full"
    assert body["backplane"]["writable"] is False


@pytest.mark.parametrize("states", [[], ["starting"], ["leaving", "leaving"]])
async def test_status_without_a_ready_worker_is_503(side: HttpSide, states: list[str]) -> None:
    side.slots.show([worker_row(n, state=state) for n, state in enumerate(states)])
    body = await read(await side.client.get("/status"), 503)
    assert body["status"] == "unavailable"
    assert (await side.client.head("/status")).status == 503


@pytest.mark.parametrize("states", [["leaving"], ["leaving", "starting"]])
async def test_status_while_old_workers_wait_for_new_ones(
    side: HttpSide, states: list[str]
) -> None:
    """They serve as before; a proxy that asks must not turn away."""
    side.accepting = True
    side.slots.show([worker_row(n, state=state) for n, state in enumerate(states)])
    assert (await read(await side.client.get("/status")))["status"] == "ok"


async def test_presence_is_set_shown_and_broadcast(side: HttpSide) -> None:
    said = {"state": "working", "task": "测试", "updatedAt": 1_700_000_100_000}
    answer = await side.client.post(
        "/status", json={"state": "working", "task": "测试"}, headers=AUTH
    )
    body = await read(answer)
    message = body.pop("message")
    assert body == said
    assert message["type"] == "status"
    assert message["seq"] == 1
    assert (await read(await side.client.get("/status")))["presence"] == said
    (sent,) = side.streams.messages["status"]
    envelope = json.loads(sent.envelope)
    assert (envelope["event"], envelope["data"]) == ("status_update", {"presence": said})


async def test_what_the_lab_does_leaves_the_figures_of_the_machine(tmp_path: Path) -> None:
    status = MachineStatus(tmp_path, lambda: 1_700_000_100.0)
    status.write({"host": "a", "cpu": 5, "presence": {"state": "idle"}, "since": 1})
    async with http_side(PUBLISH_TOKEN=TOKEN) as side:
        context = dataclasses.replace(side.context, machine_status=status.read)
        app = web.Application()
        add_routes(app, context)
        async with TestClient(TestServer(app)) as client:
            body = {"state": "working", "task": None}
            assert (await client.post("/status", json=body, headers=AUTH)).status == 200
        (sent,) = side.streams.messages["status"]
        assert json.loads(sent.envelope)["data"] == {
            "host": "a",
            "cpu": 5,
            "presence": body | {"updatedAt": 1_700_000_100_000},
            "since": 1_700_000_100_000,
        }


@pytest.mark.parametrize("body", [[], "working", {}, {"state": "flying"}, {"state": "idle", "task": 1}, {"state": "idle", "tsak": "a"}])  # fmt: skip
async def test_a_wrong_presence_changes_nothing(side: HttpSide, body: object) -> None:
    await fail(await side.client.post("/status", json=body, headers=AUTH), 400, "INVALID_PAYLOAD")
    assert side.fields.fields == {}
    assert side.streams.drafts == []


async def test_presence_needs_the_backplane(side: HttpSide) -> None:
    side.fields.away = True
    answer = await side.client.post("/status", json={"state": "idle"}, headers=AUTH)
    await fail(answer, 503, "BACKPLANE_UNAVAILABLE")
    assert answer.headers["Retry-After"]


# Figures


async def test_connections_of_all_workers(side: HttpSide) -> None:
    side.slots.show([
        worker_row(
            0, connections=3, plain=2, socketio=1, subscribed=5, anonymous=1, slow=1,
            subscriptions={"status": 3, "health": 2},
        ),
        worker_row(
            1, connections=1, plain=0, socketio=1, subscribed=2, anonymous=0,
            subscriptions={"status": 1, "extra": 1},
        ),
        worker_row(2, state="starting"),
    ])  # fmt: skip
    for user in ("a", "a", "b", "gone"):
        assert side.slots.claim_user(user)
    side.slots.release_user("gone")
    body = await read(await side.client.get("/ws/stats"))
    assert body["totalConnections"] == 4
    assert body["uniqueUsers"] == 3
    assert body["averageSubscriptions"] == 1.75
    assert body["subscriptions"] == {"status": 4, "stats": 0, "health": 2, "config": 0, "system": 0}
    assert body["protocols"] == {"plain": 2, "socketio": 2, "sse": 0}
    assert body["slowConsumers"] == 1
    assert [worker["connections"] for worker in body["workers"]] == [3, 1, 0]


async def test_no_connections_are_no_division_by_zero(side: HttpSide) -> None:
    assert (await read(await side.client.get("/ws/stats")))["averageSubscriptions"] == 0


async def test_the_queue_of_all_workers(side: HttpSide) -> None:
    side.slots.show(
        [
            worker_row(0, queued={"high": 1, "normal": 1}, dropped={"low": 4}, lag=0.002),
            worker_row(
                1, queued={"high": 0, "low": 1}, dropped={"low": 1, "normal": 2}, lag=0.0105
            ),
            worker_row(2, queued="?", dropped=None, lag="?"),
        ]
    )
    for size in (600, 99, 1):
        assert side.slots.reserve_queue(size)
    assert await read(await side.client.get("/ws/queue")) == {
        "length": 3,
        "maxSize": 10_000,
        "bytes": 700,
        "maxBytes": 64 * 2**20,
        "priorities": {"high": 1, "normal": 1, "low": 1},
        "dropped": {"high": 0, "normal": 2, "low": 5, "total": 7},
        "flushInterval": 50,
        "batchSize": 100,
        "lag": 10.5,
    }


# History


async def test_stats_are_the_newest_message(side: HttpSide) -> None:
    await fail(await side.client.get("/stats"), 404, "NOT_FOUND")
    for n in (1, 2):
        await publish(side, {"type": "stats", "event": "stats_update", "data": {"n": n}})
    body = await read(await side.client.get("/stats"))
    assert (body["event"], body["seq"], body["data"]) == ("stats_update", 2, {"n": 2})


async def test_history(side: HttpSide) -> None:
    await publish(side, [MESSAGE | {"data": n} for n in range(1, 71)])

    async def seqs(query: str) -> tuple[list[int], bool]:
        body = await read(await side.client.get(f"/history?{query}"))
        assert set(body) == {"messages", "more"}
        assert all(m["data"] == m["seq"] and m["epoch"] == "e1" for m in body["messages"])
        return [message["seq"] for message in body["messages"]], body["more"]

    assert await seqs("type=status") == (list(range(21, 71)), True)
    assert await seqs("type=status&limit=2&before=3") == ([1, 2], False)
    assert await seqs("type=status&limit=100") == (list(range(1, 71)), False)
    assert await seqs("type=status&limit=&before=") == (list(range(21, 71)), True)
    assert await seqs("type=health") == ([], False)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "INVALID_TYPE"),
        ("type=all", "INVALID_TYPE"),
        ("type=weather", "INVALID_TYPE"),
        ("type=error", "SUBSCRIPTION_INVALID"),
        ("type=status&limit=0", "INVALID_PAYLOAD"),
        ("type=status&limit=101", "INVALID_PAYLOAD"),
        ("type=status&limit=1.5", "INVALID_PAYLOAD"),
        ("type=status&limit=%D9%A3", "INVALID_PAYLOAD"),  # a digit, but not of ASCII
        ("type=status&before=-1", "INVALID_PAYLOAD"),
        ("type=status&before=" + "9" * 5000, "INVALID_PAYLOAD"),
    ],
)
async def test_wrong_history(side: HttpSide, query: str, code: str) -> None:
    await fail(await side.client.get(f"/history?{query}"), 400, code)


async def test_history_needs_the_backplane(side: HttpSide) -> None:
    side.streams.away = True
    for path in ("/history?type=status", "/stats"):
        answer = await side.client.get(path)
        await fail(answer, 503, "BACKPLANE_UNAVAILABLE")
        assert answer.headers["Retry-After"]


async def test_with_tokens_messages_are_not_public() -> None:
    secret = "s" * 32
    token = jwt.encode({"sub": "ada"}, secret, algorithm="HS256")
    async with http_side(PUBLISH_TOKEN=TOKEN, AUTH_SECRET=secret) as side:
        path = "/history?type=status"
        assert "token" in await fail(await side.client.get(path), 401, "UNAUTHORIZED")
        await fail(await side.client.get("/stats"), 401, "UNAUTHORIZED")
        answer = await side.client.get(path, headers={"Authorization": "Bearer x"})
        await fail(answer, 401, "UNAUTHORIZED")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        for url, headers in [
            (path, {"Authorization": f"Bearer {token}"}),
            (f"{path}&token={token}", {}),
            (path, AUTH),
        ]:
            assert (await side.client.get(url, headers=headers)).status == 200
        assert (await side.client.get("/status")).status == 200


# Publishing


async def test_one_message(side: HttpSide) -> None:
    body = await read(await publish(side, MESSAGE))
    assert set(body) == {"id", "type", "seq", "epoch"}
    assert (body["type"], body["seq"], body["epoch"]) == ("status", 1, "e1")
    assert str(uuid.UUID(body["id"])) == body["id"]
    (sent,) = side.streams.messages["status"]
    assert json.loads(sent.envelope) == {
        "id": body["id"],
        "type": "status",
        "timestamp": 1_700_000_100_000,
        "direction": "server-to-client",
        "event": "fine",
        "data": {"n": 1},
        "seq": 1,
        "epoch": "e1",
    }
    (draft,) = side.streams.drafts
    assert (draft.priority, draft.once, draft.accepted) == (Priority.NORMAL, False, side.seconds)


async def test_options_of_a_message(side: HttpSide) -> None:
    message = MESSAGE | {"id": "order 66 ✓", "priority": "high"}
    assert (await read(await publish(side, message)))["id"] == "order 66 ✓"
    assert (await read(await publish(side, message)))["seq"] == 1
    assert {(draft.priority, draft.once) for draft in side.streams.drafts} == {
        (Priority.HIGH, True)
    }


@pytest.mark.parametrize("data", [None, False, 0, "", [], {}, "\ud800", "汉字", 1e300, {"a": [{}]}])
async def test_data_is_any_json(side: HttpSide, data: object) -> None:
    await read(await publish(side, MESSAGE | {"data": data}))
    assert json.loads(side.streams.messages["status"][0].envelope)["data"] == data


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({}, "INVALID_TYPE"),
        (5, "INVALID_PAYLOAD"),
        (None, "INVALID_PAYLOAD"),
        ({"type": "status", "event": "x"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"type": "all"}, "INVALID_TYPE"),
        (MESSAGE | {"type": "error"}, "INVALID_TYPE"),
        (MESSAGE | {"type": ["status"]}, "INVALID_TYPE"),
        (MESSAGE | {"event": ""}, "INVALID_PAYLOAD"),
        (MESSAGE | {"event": 5}, "INVALID_PAYLOAD"),
        (MESSAGE | {"event": "x" * 65}, "INVALID_PAYLOAD"),
        (MESSAGE | {"event": "a b"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"event": "é"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"event": "x\n"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"event": "connected"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"event": "batch_update"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"event": "connect"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"priority": "urgent"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"priority": 0}, "INVALID_PAYLOAD"),
        (MESSAGE | {"priority": None}, "INVALID_PAYLOAD"),
        (MESSAGE | {"id": ""}, "INVALID_PAYLOAD"),
        (MESSAGE | {"id": 7}, "INVALID_PAYLOAD"),
        (MESSAGE | {"id": "x" * 129}, "INVALID_PAYLOAD"),
        (MESSAGE | {"id": "a\u0000"}, "INVALID_PAYLOAD"),
        (MESSAGE | {"id": "\ud800"}, "INVALID_PAYLOAD"),
    ],
)
async def test_wrong_messages(side: HttpSide, message: object, code: str) -> None:
    await fail(await publish(side, message), 400, code)
    assert side.streams.drafts == []
    (answer,) = await read(await publish(side, [message]), 207)
    assert answer["code"] == code
    assert side.streams.drafts == []


async def test_an_array_answers_in_order(side: HttpSide) -> None:
    side.streams.evicting = {"evicted"}
    messages = [
        MESSAGE | {"id": "a"},
        MESSAGE | {"type": "weather", "id": "b"},
        MESSAGE | {"type": "health"},
        MESSAGE | {"id": "evicted"},
        "nonsense",
        MESSAGE | {"id": "c"},
    ]
    answers = await read(await publish(side, messages), 207)
    assert answers[0] == {"id": "a", "type": "status", "seq": 1, "epoch": "e1"}
    assert set(answers[1]) == {"id", "error", "code"}
    assert (answers[1]["id"], answers[1]["code"]) == ("b", "INVALID_TYPE")
    assert (answers[2]["type"], answers[2]["seq"]) == ("health", 1)
    assert (answers[3]["id"], answers[3]["code"]) == ("evicted", "QUEUE_OVERFLOW")
    assert (answers[4]["id"], answers[4]["code"]) == (None, "INVALID_PAYLOAD")
    assert answers[5]["seq"] == 2


async def test_the_bounds_of_an_array(side: HttpSide) -> None:
    assert await read(await publish(side, [])) == []
    answers = await read(await publish(side, [MESSAGE] * MAX_MESSAGES))
    assert [answer["seq"] for answer in answers] == list(range(1, MAX_MESSAGES + 1))
    assert len({answer["id"] for answer in answers}) == MAX_MESSAGES
    error = await fail(await publish(side, [MESSAGE] * (MAX_MESSAGES + 1)), 400, "INVALID_PAYLOAD")
    assert str(MAX_MESSAGES) in error


async def test_a_full_queue_and_an_absent_backplane(side: HttpSide) -> None:
    side.streams.away = True
    answer = await publish(side, MESSAGE)
    assert "same id" in await fail(answer, 503, "BACKPLANE_UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0
    answers = await read(await publish(side, [MESSAGE, MESSAGE]), 207)
    assert {answer["code"] for answer in answers} == {"BACKPLANE_UNAVAILABLE"}
    side.streams.full = True
    answer = await publish(side, MESSAGE)
    await fail(answer, 503, "QUEUE_OVERFLOW")
    assert int(answer.headers["Retry-After"]) > 0


async def test_the_size_of_a_message_is_exact() -> None:
    async with http_side(PUBLISH_TOKEN=TOKEN, MAX_MESSAGE_SIZE="2KB") as side:

        def message(size: int) -> bytes:
            frame = b'{"type":"status","event":"e","data":"%b"}'
            return frame % (b"x" * (size - len(frame) + 2))

        async def post(data: bytes) -> aiohttp.ClientResponse:
            assert TOKEN
            return await side.client.post("/ws/broadcast", data=data, headers=AUTH)

        await read(await post(message(2048)))
        await fail(await post(message(2049)), 413, "MESSAGE_TOO_LARGE")
        # Spaces are not part of it, and each message of an array counts by itself.
        await read(await post(message(2048) + b" " * 1000))
        answers = await read(
            await post(b"[%b,%b,%b]" % (message(2048), message(2049), message(2048))), 207
        )
        assert [answer.get("code") for answer in answers] == [None, "MESSAGE_TOO_LARGE", None]
        answer = await post(b" " * 8193)
        assert "8192" in await fail(answer, 413, "MESSAGE_TOO_LARGE")


async def test_a_body_that_swells_is_cut_off() -> None:
    async with http_side(PUBLISH_TOKEN=TOKEN, MAX_MESSAGE_SIZE="2KB") as side:
        bomb = zlib.compress(b"[" + b" " * 1_000_000 + b"]")
        assert len(bomb) < 2048
        headers = AUTH | {"Content-Encoding": "deflate"}
        answer = await side.client.post("/ws/broadcast", data=bomb, headers=headers)
        await fail(answer, 413, "MESSAGE_TOO_LARGE")


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 999999999\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2001\r\n" + b" " * 0x2001 + b"\r\n",
    ],
)
async def test_a_large_body_is_refused_before_its_end(rest: bytes) -> None:
    async with http_side(PUBLISH_TOKEN=TOKEN, MAX_MESSAGE_SIZE="2KB") as side:
        assert (await exchange(side, rest)).startswith(b"HTTP/1.1 413 ")


async def exchange(side: HttpSide, rest: bytes) -> bytes:
    """Send the rest of a request to publish, and no more; read the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", side.client.port)
    writer.write(
        b"POST /ws/broadcast HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n%b"
        % (TOKEN.encode(), rest)
    )
    answer = await asyncio.wait_for(reader.readuntil(b"}"), 5)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_body_that_does_not_come(side: HttpSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.json_body.BODY_TIMEOUT", 0.05)
    answer = await exchange(side, b"Content-Length: 10\r\n\r\n[")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_ends_early_is_no_failure_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    side = HttpSide(load({"PUBLISH_TOKEN": TOKEN}))
    # As under gunicorn: the handler goes on when its client has left.
    runner = web.AppRunner(side.app, handler_cancellation=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    writer.write(
        b"POST /ws/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n"
        b"Authorization: Bearer %b\r\n\r\n[" % TOKEN.encode()
    )
    writer.close()
    await until(lambda: side.requests)
    await writer.wait_closed()
    await runner.cleanup()
    assert side.requests == [("/ws/broadcast", "POST", 400)]
    assert "failed" not in caplog.text


async def test_a_body_that_is_not_compressed_as_it_says(side: HttpSide) -> None:
    headers = AUTH | {"Content-Encoding": "gzip"}
    answer = await side.client.post("/ws/broadcast", data=b"0123456789", headers=headers)
    await fail(answer, 400, "PARSE_ERROR")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"NaN", b"[" * 5000])
async def test_what_is_not_json(side: HttpSide, body: bytes) -> None:
    answer = await side.client.post("/ws/broadcast", data=body, headers=AUTH)
    await fail(answer, 400, "PARSE_ERROR")


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("application/x-www-form-urlencoded", 200),
        ("application/cloudevents+json", 200),
        ("multipart/form-data; boundary=x", 415),
        ("text/html", 415),
    ],
)
async def test_forms_of_a_body(side: HttpSide, form: str, status: int) -> None:
    answer = await side.client.post(
        "/ws/broadcast", data=json.dumps(MESSAGE), headers=AUTH | {"Content-Type": form}
    )
    assert answer.status == status


# Tokens


@pytest.mark.parametrize("path", ["/status", "/ws/broadcast"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer é\u00ff"},
        {"X-Publish-Token": "wrong"},
        {"X-Publish-Token": "", "Authorization": "Bearer wrong"},
    ],
)
async def test_writes_need_the_token(side: HttpSide, path: str, headers: dict[str, str]) -> None:
    body = MESSAGE | {"state": "idle"}
    answer = await side.client.post(path, json=body, headers=headers)
    await fail(answer, 401, "UNAUTHORIZED")
    assert "Bearer" in answer.headers["WWW-Authenticate"]
    assert side.streams.drafts == []


async def test_forms_of_the_token(side: HttpSide) -> None:
    for headers in (AUTH, {"Authorization": f"bearer  {TOKEN}"}, {"X-Publish-Token": TOKEN}):
        answer = await side.client.post("/ws/broadcast", json=MESSAGE, headers=headers)
        assert answer.status == 200


async def test_without_a_token_no_caller_writes() -> None:
    async with http_side() as side:
        for headers in ({}, AUTH, {"Authorization": "Bearer "}, {"X-Publish-Token": ""}):
            answer = await side.client.post("/ws/broadcast", json=MESSAGE, headers=headers)
            assert "PUBLISH_TOKEN" in await fail(answer, 403, "FORBIDDEN")
        assert side.streams.drafts == []


# Errors


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("POST", "/ws/broadcast/x", 404, "NOT_FOUND"),
        ("DELETE", "/status", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/ws/broadcast", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/history", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_other_paths_and_methods(
    side: HttpSide, method: str, path: str, status: int, code: str
) -> None:
    answer = await side.client.request(method, path)
    await fail(answer, status, code)
    assert ("Allow" in answer.headers) == (status == 405)


async def test_a_failure_shows_nothing_of_the_inside(
    side: HttpSide, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "app.http.errors"):
        answer = await side.client.get("/fail")
    message = await fail(answer, 500, "INTERNAL_ERROR")
    assert "secret" not in message
    id = answer.headers["X-Request-ID"]
    assert id in message
    assert [vars(record).get("request") for record in caplog.records] == [id]
    assert "a secret of the inside" in caplog.text


async def test_requests_are_counted_by_route(side: HttpSide) -> None:
    await side.client.get("/history?type=x")
    await side.client.head("/ws/queue")
    await side.client.get("/any/path")
    await side.client.options("/status")
    await side.client.get("/fail")
    assert side.requests == [
        ("/history", "GET", 400),
        ("/ws/queue", "HEAD", 200),
        ("none", "GET", 404),
        ("none", "OPTIONS", 204),
        ("/fail", "GET", 500),
    ]


async def test_only_a_trusted_proxy_names_requests(side: HttpSide) -> None:
    given = {"X-Request-ID": "abc-1"}
    first = (await side.client.get("/status", headers=given)).headers["X-Request-ID"]
    second = (await side.client.get("/status", headers=given)).headers["X-Request-ID"]
    assert str(uuid.UUID(first)) == first != second
    async with http_side(TRUSTED_PROXIES="127.0.0.1") as behind:
        answer = await behind.client.get("/status", headers=given)
        assert answer.headers["X-Request-ID"] == "abc-1"
        answer = await behind.client.get("/status", headers={"X-Request-ID": "a b"})
        assert answer.headers["X-Request-ID"] != "a b"


# The same id again


async def test_the_same_id_with_other_data_is_refused(side: HttpSide) -> None:
    async def publish(data: Any, event: str = "e") -> tuple[int, Any]:
        body = {"type": "status", "event": event, "data": data, "id": "one"}
        answer = await side.client.post("/ws/broadcast", json=body, headers=AUTH)
        return answer.status, await answer.json()

    status, first = await publish({"a": 1, "b": 2})
    assert (status, await publish({"b": 2, "a": 1})) == (200, (200, first))
    for other in (publish({"a": 2}), publish({"a": 1, "b": 2}, "other")):
        status, got = await other
        assert (status, got["code"]) == (409, "CONFLICT")
    assert len(side.streams.messages["status"]) == 1


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ({"on": [1, {"a": 0}]}, {"on": [True, {"a": 0}]}, False),
        ({"on": [1, {"a": 0}]}, {"on": [1, {"a": False}]}, False),
        ({"on": [True, None]}, {"on": [True, None]}, True),
        (False, None, False),
        ("1", 1, False),
        ({}, [], False),
    ],
)
async def test_what_is_the_same_data(
    side: HttpSide, first: object, second: object, is_same: bool
) -> None:
    for data, status in ((first, 200), (second, 200 if is_same else 409)):
        body = {"type": "status", "event": "e", "data": data, "id": "one"}
        answer = await side.client.post("/ws/broadcast", json=body, headers=AUTH)
        assert answer.status == status


@pytest.mark.parametrize("packed", ["compress", "gzip, deflate", "x"])
async def test_a_body_that_cannot_be_unpacked_is_refused(side: HttpSide, packed: str) -> None:
    answer = await publish(
        side, {"type": "status", "event": "e", "data": 1}, **{"Content-Encoding": packed}
    )
    await fail(answer, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("packed", [("gzip", "gzip"), ("identity", "x"), ("identity", "gzip")])
async def test_a_body_that_is_packed_in_two_lines_is_refused(
    side: HttpSide, packed: tuple[str, str]
) -> None:
    headers = CIMultiDict({**AUTH, "Content-Type": "application/json"})
    for one in packed:
        headers.add("Content-Encoding", one)
    answer = await side.client.post("/ws/broadcast", data=json.dumps(MESSAGE), headers=headers)
    await fail(answer, 415, "UNSUPPORTED_MEDIA_TYPE")


async def test_the_same_id_in_an_array(side: HttpSide) -> None:
    items = [
        {"type": "status", "event": "e", "data": data, "id": id}
        for data, id in ((1, "a"), (2, "a"), (1, "a"), (3, "b"))
    ]
    answer = await side.client.post("/ws/broadcast", json=items, headers=AUTH)
    assert answer.status == 207
    first, second, third, fourth = await answer.json()
    assert third == first
    assert second["code"] == "CONFLICT"
    assert (second["id"], second["seq"]) == ("a", first["seq"])
    assert fourth["seq"] == first["seq"] + 1


async def test_an_unknown_field_is_named(side: HttpSide) -> None:
    body = {"type": "status", "event": "e", "data": 1, "prioritiy": "high"}
    answer = await side.client.post("/ws/broadcast", json=body, headers=AUTH)
    got = await answer.json()
    assert (answer.status, got["code"]) == (400, "INVALID_PAYLOAD")
    assert "'prioritiy'" in got["error"]


async def test_no_answer_names_versions(side: HttpSide) -> None:
    for path in ("/status", "/history?type=status", "/nothing", "/fail"):
        answer = await side.client.get(path)
        assert "Server" not in answer.headers
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


# Addresses behind proxies


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        ("", ["6.6.6.6"], "127.0.0.1"),
        ("10.0.0.0/8", ["6.6.6.6"], "127.0.0.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["6.6.6.6"], "6.6.6.6"),
        ("127.0.0.1", ["6.6.6.6, 7.7.7.7"], "7.7.7.7"),
        ("127.0.0.1,7.7.7.7", ["6.6.6.6, 7.7.7.7"], "6.6.6.6"),
        ("127.0.0.1,7.7.7.7", ["6.6.6.6", "7.7.7.7"], "6.6.6.6"),
        ("127.0.0.1,7.7.7.7", ["7.7.7.7"], "7.7.7.7"),
        ("127.0.0.1", ["6.6.6.6, nonsense"], "127.0.0.1"),
        ("127.0.0.1,7.7.7.7", ["6.6.6.6, , 7.7.7.7"], "7.7.7.7"),
        ("127.0.0.1", ["6.6.6.6:1234"], "6.6.6.6"),
        ("127.0.0.1", ["[2001:DB8::1]:80"], "2001:db8::1"),
        ("127.0.0.1,::ffff:0:0/96", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1,7.0.0.0/8", ["6.6.6.6, ::ffff:7.7.7.7"], "6.6.6.6"),
    ],
)
def test_the_address_of_a_client(trusted: str, forwarded: list[str], address: str) -> None:
    settings: Settings = load({"TRUSTED_PROXIES": trusted})
    headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])
    request = make_mocked_request("GET", "/", headers=headers).clone(remote="127.0.0.1")
    assert Clients(settings.trusted_proxies).address(request) == address


def test_a_unix_socket_is_local() -> None:
    headers = CIMultiDict({"X-Forwarded-For": "6.6.6.6"})
    request = make_mocked_request("GET", "/", headers=headers).clone(remote="")
    assert Clients(()).address(request) == "unix"
    trusted = load({"TRUSTED_PROXIES": "10.0.0.1"}).trusted_proxies
    assert Clients(trusted).address(request) == "6.6.6.6"


def test_a_client_that_is_gone_is_no_trusted_proxy() -> None:
    """The kernel no longer knows its address, so what it says of others does not count."""
    headers = CIMultiDict({"X-Forwarded-For": "6.6.6.6"})
    request = make_mocked_request("GET", "/", headers=headers)
    assert request.remote is None
    for trusted in ("", "10.0.0.1"):
        clients = Clients(load({"TRUSTED_PROXIES": trusted}).trusted_proxies)
        assert clients.address(request) == "unknown"
        assert not clients.is_behind_proxy(request)


def test_client_errors_all_have_a_status() -> None:
    assert all(HttpError.of(ClientError(code, "")).status >= 400 for code in ErrorCode)


async def test_a_client_that_is_gone_before_its_turn_is_no_failure() -> None:
    """What aiohttp says where a body is asked for and the connection was lost before."""

    async def lost() -> AsyncIterator[bytes]:
        raise RuntimeError("Connection closed.")
        yield b""

    body: Any = SimpleNamespace(iter_any=lost)
    request = make_mocked_request("POST", "/status", payload=body)
    with pytest.raises(HttpError) as caught:
        await read_json(request, 100, ReceivedBodies(InputAccount(1000)))
    assert (caught.value.status, caught.value.code) == (400, ErrorCode.PARSE_ERROR)


async def test_the_largest_of_too_many_bodies_is_refused() -> None:
    loop = asyncio.get_running_loop()
    account = InputAccount(1000)
    bodies = ReceivedBodies(account)

    async def receive(size: int, held: int) -> tuple[StreamReader, asyncio.Task[Any]]:
        protocol = BaseProtocol(loop)
        protocol.transport = mock.Mock()
        payload = StreamReader(protocol, 2**16, loop=loop)
        request = make_mocked_request("POST", "/status", payload=payload)
        task = asyncio.create_task(read_json(request, 2000, bodies))
        payload.feed_data(b" " * size)
        await until(lambda: account.bodies == held)
        return payload, task

    small, kept = await receive(300, 300)
    _, refused = await receive(600, 900)
    third, kept_too = await receive(200, 500)
    with pytest.raises(HttpError) as caught:
        await refused
    assert (caught.value.status, caught.value.code) == (503, ErrorCode.SERVICE_UNAVAILABLE)
    assert caught.value.headers == {"Retry-After": "1"}
    for payload in (small, third):
        payload.feed_data(b"1")
        payload.feed_eof()
    assert await kept == (1, 301)
    assert await kept_too == (1, 201)
    assert account.bodies == 0
    # One alone has the room that its own limit gives it.
    payload, alone = await receive(1500, 1500)
    payload.feed_data(b"1")
    payload.feed_eof()
    assert await alone == (1, 1501)
    assert account.bodies == 0
