"""Server-sent events over real sockets: what a client gets, how it comes back, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import jwt
import psutil
import pytest

from tests.support.events import EventClient
from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.streams import Ticker
from tests.support.tracing import traced
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

SECRET = "a secret of thirty-two characters"
BROWSER = {"Accept-Language": "en"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with traced():  # no other tier has its lines
        running = Service(ALLOWED_ORIGINS="https://lab.example", HEARTBEAT_INTERVAL="1s").start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def one() -> Iterator[Service]:
    """One worker with a long history."""
    running = Service(WORKERS=1, HISTORY_SIZE=5000).start()
    yield running
    running.stop()


async def test_a_stream_brings_the_same_envelopes(service: Service) -> None:
    async with (
        await EventClient.open(service, "/events?types=status,health") as client,
        await PlainClient.open(service, types="status,health") as plain,
    ):
        assert client.status == 200
        assert client.headers == {
            "content-type": "text/event-stream",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            "x-content-type-options": "nosniff",
            "connection": "close",
            "vary": "Origin",
        }
        connected = await client.event("connected")
        assert connected["data"]["subscriptions"] == ["health", "status"]
        assert client.last_id
        assert client.parser.retry is not None
        assert 500 <= client.parser.retry <= 5000
        await plain.barrier()
        for number in range(5):
            last = await service.publish("status", "tick", {"n": number})
        await client.until_seq("status", last["seq"])
        await plain.wait_seq("status", last["seq"])
        of_plain = [one for one in plain.received if "seq" in one]
        assert client.messages() == of_plain
        assert all(event.name == "message" for event in client.events)


async def test_curl(service: Service) -> None:
    """As on the first page, with what curl sends by itself."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sN", f"{service.base}/events?types=stats"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        lines = [await process.stdout.readline() for _ in range(4)]
        assert lines[0].startswith(b"retry: ")
        assert lines[1].startswith(b"id: ")
        assert json.loads(lines[2].removeprefix(b"data: "))["event"] == "connected"
        assert lines[3] == b"\n"
        sent = await service.publish("stats", "tick", {"snow": "\u2028man"})
        async with asyncio.timeout(10):
            while b"snow" not in (line := await process.stdout.readline()):
                pass
        assert json.loads(line.removeprefix(b"data: "))["id"] == sent["id"]
    finally:
        process.kill()
        await process.communicate()


async def test_the_defaults_are_those_of_plain_json(service: Service) -> None:
    async with await EventClient.open(service, "/events/") as client:
        connected = await client.event("connected")
        assert sorted(connected["data"]["subscriptions"]) == ["health", "stats", "status"]
    async with await EventClient.open(service, "/events?types=") as client:
        assert (await client.event("connected"))["data"]["subscriptions"] == []
    async with await EventClient.open(service, "/events?types=all&batch=1&user=ann") as client:
        data = (await client.event("connected"))["data"]
        assert len(data["subscriptions"]) == 5
        assert data["user"] == "ann"


async def test_the_last_id_goes_on_without_a_gap(service: Service) -> None:
    target = "/events?types=status,stats&history=1"
    first = await service.publish("status", "tick")
    async with await EventClient.open(service, "/events?types=status,stats") as client:
        await client.event("connected")
        second = await service.publish("status", "tick")
        await client.until_seq("status", second["seq"])
        known = client.last_id
    missed = [await service.publish(type, "tick") for type in ("status", "stats", "status")]
    for how in ("header", "query"):
        if how == "header":
            opened = await EventClient.open(service, target, last_id=known)
        else:
            opened = await EventClient.open(service, f"{target}&lastEventId={known}")
        async with opened as client:
            await client.until_seq("stats", missed[1]["seq"])
            await client.until_seq("status", missed[2]["seq"])
            live = await service.publish("status", "tick")
            await client.until_seq("status", live["seq"])
            assert client.seqs("status")[:2] == [missed[0]["seq"], missed[2]["seq"]]
            assert client.seqs("status") == sorted(set(client.seqs("status")))
            assert client.seqs("stats") == [missed[1]["seq"]]
            assert not client.named("history_data")
    assert first["seq"] < second["seq"]


async def test_the_header_counts_before_the_query(service: Service) -> None:
    async with await EventClient.open(service, "/events?types=status") as client:
        await client.event("connected")
        old = client.last_id
        sent = await service.publish("status", "tick")
        await client.until_seq("status", sent["seq"])
        new = client.last_id
    target = f"/events?types=status&lastEventId={old}"
    async with await EventClient.open(service, target, last_id=new) as client:
        live = await service.publish("status", "tick")
        await client.until_seq("status", live["seq"])
        assert client.seqs("status") == [live["seq"]]


@pytest.mark.parametrize("known", ["", "17", "yj1;status,x", "yj1;" + "a" * 9000, "\xff"])
async def test_an_id_of_another_service_counts_as_none(service: Service, known: str) -> None:
    sent = await service.publish("status", "tick")
    async with await EventClient.open(
        service, "/events?types=status&history=1", headers={"Last-Event-ID": known}
    ) as client:
        history = await client.event("history_data")
        assert history["data"]["messages"][-1]["seq"] == sent["seq"]
        assert f",{sent['seq']}" in client.last_id
        assert not client.messages()


async def test_types_that_an_id_does_not_name_begin_where_live_is(service: Service) -> None:
    async with await EventClient.open(service, "/events?types=status") as client:
        await client.event("connected")
        known = client.last_id
    await service.publish("stats", "tick")
    missed = await service.publish("status", "tick")
    async with await EventClient.open(
        service, "/events?types=status,stats", last_id=known
    ) as client:
        await client.until_seq("status", missed["seq"])
        live = await service.publish("stats", "tick")
        await client.until_seq("stats", live["seq"])
        assert client.seqs("stats") == [live["seq"]]
        assert client.seqs("status") == [missed["seq"]]


async def test_what_history_no_longer_holds_is_a_gap() -> None:
    async with Service(WORKERS=1, HISTORY_SIZE=10, RECOVERY_WINDOW="0") as service:
        async with await EventClient.open(service, "/events?types=status") as client:
            await client.event("connected")
            known = client.last_id
        for _ in range(4):
            await service.publish_all(
                {"type": "status", "event": "tick", "data": n} for n in range(50)
            )
        async with await EventClient.open(service, "/events?types=status", last_id=known) as client:
            await client.until_seq("status", 200)
            gap, *messages = client.messages("status")
            assert (gap["event"], gap["data"]["reason"], gap["data"]["first"]) == (
                "gap",
                "history",
                1,
            )
            assert [one["seq"] for one in messages] == list(range(gap["data"]["last"] + 1, 201))
        async with await EventClient.open(
            service, "/events?types=status", last_id="yj1;status,elsewhere,5"
        ) as client:
            gap = await client.event("gap")
            assert gap["data"]["reason"] == "epoch"


async def test_a_long_history_comes_in_pages_and_may_be_cut(service: Service) -> None:
    """The client knows that it has all of it by the `id` of the last page."""
    for at in range(0, 40, 10):
        await service.publish_all(
            {"type": "config", "event": "bulk", "data": [n, "x" * 60_000]}
            for n in range(at, at + 10)
        )
    async with await EventClient.open(service, "/events?types=config&history=40") as client:
        await client.until(lambda: client.last_id, "the last page")
        pages = client.named("history_data")
        assert len(pages) > 1
        assert [page["data"].get("follows") for page in pages] == [True] * (len(pages) - 1) + [None]
        assert len(client.parser.ids) == 1
        live = await service.publish("config", "tick")
        await client.until_seq("config", live["seq"])
        assert client.seqs("config") == [live["seq"]]


async def test_comments_keep_proxies_awake(service: Service) -> None:
    async with await EventClient.open(service, "/events?types=system") as client:
        await client.until(lambda: client.parser.comments >= 2, "two comments")
        assert client.parser.is_between_events


# The request.


@pytest.mark.parametrize(
    ("target", "headers", "status", "code"),
    [
        ("/events?types=nope", {}, 400, "INVALID_TYPE"),
        ("/events?types=error", {}, 400, "SUBSCRIPTION_INVALID"),
        ("/events?batch=7", {}, 400, "INVALID_PAYLOAD"),
        ("/events?history=0", {}, 400, "INVALID_PAYLOAD"),
        ("/events?user=%00", {}, 400, "INVALID_PAYLOAD"),
        ("/events?types=%ff", {}, 400, "INVALID_PAYLOAD"),
        ("/events", {"Accept": "application/json"}, 406, "NOT_ACCEPTABLE"),
        ("/events", {"Accept": "text/event-stream;q=0, */*"}, 406, "NOT_ACCEPTABLE"),
        ("/events", {"Origin": "https://evil.example"}, 403, "FORBIDDEN"),
        ("/events", {"Host": "evil.example"}, 403, "FORBIDDEN"),
    ],
)
async def test_what_is_refused(
    service: Service, target: str, headers: dict[str, str], status: int, code: str
) -> None:
    async with await EventClient.open(service, target, headers=headers) as client:
        await client.until_end()
        assert (client.status, json.loads(client.body)["code"]) == (status, code)
        assert "access-control-allow-origin" not in client.headers


@pytest.mark.parametrize(
    "accept", ["*/*", "text/*", "text/event-stream, text/plain;q=0.1", "TEXT/Event-Stream"]
)
async def test_what_is_accepted(service: Service, accept: str) -> None:
    async with await EventClient.open(service, headers={"Accept": accept}) as client:
        await client.event("connected")


async def exchange(service: Service, request: bytes, until_end: bool = True) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await (reader.read() if until_end else reader.readuntil(b"\n\n"))
    finally:
        writer.close()


async def test_other_methods_and_versions(service: Service) -> None:
    host = b"Host: localhost\r\n"
    answer = await exchange(service, b"GET /events HTTP/1.0\r\n" + host + b"\r\n")
    assert answer.startswith(b"HTTP/1.0 505 ")
    assert b'"code":"HTTP_VERSION_NOT_SUPPORTED"' in answer
    head, _, body = (
        await exchange(service, b"HEAD /events HTTP/1.1\r\nConnection: close\r\n" + host + b"\r\n")
    ).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Type: text/event-stream" in head
    assert body == b""
    answer = await exchange(
        service,
        b"POST /events HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n" + host + b"\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET" in answer
    await service.wait_connections(0)


async def test_a_page_of_another_origin_may_read_it(service: Service) -> None:
    origin = "https://lab.example"
    async with await EventClient.open(service, headers={"Origin": origin}) as client:
        await client.event("connected")
        assert client.headers["access-control-allow-origin"] == origin
        assert client.headers["access-control-allow-credentials"] == "true"
        assert client.headers["vary"] == "Origin"


async def test_a_connection_that_has_served_other_requests(service: Service) -> None:
    """And what is sent behind the request is not served, nor does it end the stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    status = b"GET /ws/queue HTTP/1.1\r\nHost: localhost\r\n\r\n"
    writer.write(status)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readline()
    events = b"GET /events?types=status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    writer.write(events + status)
    assert b"text/event-stream" in await reader.readuntil(b"\r\n\r\n")
    assert b'"connected"' in await reader.readuntil(b"\n\n")
    writer.write(status + b"noise")
    sent = await service.publish("status", "tick")
    rest = await reader.readuntil(b"\n\n")
    while sent["id"].encode() not in rest:
        rest += await reader.readuntil(b"\n\n")
    assert b"HTTP/" not in rest
    writer.close()


@pytest.mark.parametrize("size", [1, 10, 60])
async def test_a_request_in_parts(service: Service, size: int) -> None:
    request = b"GET /events?types=status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    for at in range(0, len(request), size):
        writer.write(request[at : at + size])
        await asyncio.sleep(0.002)
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    assert b'"connected"' in await reader.readuntil(b"\n\n")
    writer.close()


async def test_a_client_that_closes_its_side_has_left(service: Service) -> None:
    await service.wait_connections(0)
    client = await EventClient.open(service)
    await client.event("connected")
    await service.wait_connections(1)
    client.writer.write_eof()
    await client.until_end()
    await service.wait_connections(0)
    await client.close()


async def test_a_client_that_sends_too_much_is_closed() -> None:
    async with (
        Service(WORKERS=1, RATE_LIMIT=100) as service,
        await EventClient.open(service) as client,
    ):
        await client.event("connected")
        with contextlib.suppress(OSError):
            async with asyncio.timeout(60):
                while not client.ended:
                    client.writer.write(b"x" * 10_000)
                    await client.writer.drain()
        await client.until_end()
        assert client.named("connection_closing")[-1]["data"]["code"] == 4429


# Limits and tokens.


async def test_the_cap_and_users(service: Service) -> None:
    async with Service(WORKERS=1, MAX_TOTAL_CONNECTIONS=4, MAX_CONNECTIONS_PER_USER=2) as small:
        held = [await EventClient.open(small, "/events?user=ann") for _ in range(2)]
        for one in held:
            await one.event("connected")
        async with await EventClient.open(small, "/events?user=ann") as third:
            await third.until_end()
            assert third.status == 429
            assert json.loads(third.body)["code"] == "MAX_CONNECTIONS_EXCEEDED"
        await small.wait_connections(2)
        held += [await EventClient.open(small) for _ in range(2)]
        async with await EventClient.open(small) as fifth:
            await fifth.until_end()
            assert fifth.status == 503
            assert json.loads(fifth.body)["code"] == "MAX_CONNECTIONS_EXCEEDED"
            assert 1 <= int(fifth.headers["retry-after"]) <= 5
        # A browser gives up at any status but 200.
        async with await EventClient.open(small, headers=BROWSER) as page:
            await page.until_end()
            assert page.status == 200
            assert page.named("error")[0]["data"]["code"] == "MAX_CONNECTIONS_EXCEEDED"
            closing = page.named("connection_closing")[0]["data"]
            assert closing["code"] == 1013
            assert page.parser.retry == closing["retryAfter"]
        stats = (await small.get("/ws/stats")).body
        assert stats["totalConnections"] == 4

        async def shown() -> bool:
            stats = (await small.get("/ws/stats")).body
            return bool(stats["protocols"] == {"plain": 0, "socketio": 0, "sse": 4})

        await until(shown, "four streams in /ws/stats")
        page_of_metrics = (await small.get("/metrics")).body
        assert 'realtime_connections_opened_total{protocol="sse"} 4.0' in page_of_metrics
        assert "reason=cap" in small.log
        for one in held:
            await one.close()
        await small.wait_connections(0)
        async with await EventClient.open(small, "/events?user=ann") as again:
            await again.event("connected")


async def test_tokens() -> None:
    def token(seconds: float, **claims: Any) -> str:
        return jwt.encode({"sub": "ann", "exp": time.time() + seconds, **claims}, SECRET)

    async with Service(WORKERS=1, AUTH_SECRET=SECRET) as service:
        for target, status in (
            ("/events", 401),
            ("/events?token=nonsense", 401),
            (f"/events?token={token(-60)}", 401),
            (f"/events?types=stats&token={token(60, types=['status'])}", 403),
        ):
            async with await EventClient.open(service, target, headers=BROWSER) as client:
                await client.until_end()
                assert client.status == status, target
                assert ("www-authenticate" in client.headers) == (status == 401)
        bearer = {"Authorization": f"Bearer {token(60, types=['status'])}"}
        async with await EventClient.open(service, headers=bearer) as client:
            data = (await client.event("connected"))["data"]
            assert (data["user"], data["subscriptions"]) == ("ann", ["status"])
        async with await EventClient.open(service, f"/events?token={token(2)}") as client:
            await client.event("token_expiring")
            assert (await client.event("error"))["data"]["code"] == "UNAUTHORIZED"
            await client.until_end()
            assert client.named("connection_closing")[0]["data"]["code"] == 4401
        assert "reason=token" in service.log


async def test_limits_of_an_address() -> None:
    async with Service(WORKERS=1, MAX_CONNECTIONS_PER_ADDRESS=2) as service:
        held = [await EventClient.open(service) for _ in range(2)]
        async with await EventClient.open(service) as third:
            await third.until_end()
            assert third.status == 429
            assert "retry-after" in third.headers
        for one in held:
            await one.close()
        await service.wait_connections(0)


# Clients that do not read, and workers that end.


async def test_a_client_that_does_not_read_catches_up_later(one: Service) -> None:
    client = await EventClient.open(one, "/events?types=status", receive_buffer=4096)
    await client.event("connected")
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    for at in range(0, 1000, 50):
        stored = await one.publish_all(
            {"type": "status", "event": "bulk", "data": [n, "x" * 8000]} for n in range(at, at + 50)
        )

    async def slow() -> bool:
        return "realtime_slow_consumers 1.0" in (await one.get("/metrics")).body

    await until(slow, "a slow consumer in /metrics")
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    last = stored[-1]["seq"]
    await client.until_seq("status", last)
    assert client.seqs("status") == list(range(last - 999, last + 1))
    await client.close()


async def test_a_client_that_never_reads_is_closed_with_a_log_line() -> None:
    async with Service(WORKERS=1, HEARTBEAT_INTERVAL="1s", HEARTBEAT_TIMEOUT="3s") as service:
        client = await EventClient.open(service, "/events?types=status", receive_buffer=4096)
        await client.event("connected")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            await service.publish("status", "bulk", "x" * 100_000)
        await service.wait_connections(0)
        page = (await service.get("/metrics")).body
        assert re.search(r'connections_closed_total\{code="(4408|4413)"\} 1\.0', page)
        await client.close()


async def test_an_idle_client_that_reads_stays() -> None:
    async with (
        Service(WORKERS=1, HEARTBEAT_INTERVAL="300ms", HEARTBEAT_TIMEOUT="1s") as service,
        await EventClient.open(service, "/events?types=status") as client,
    ):
        await client.until(lambda: client.parser.comments >= 8, "eight comments")
        assert not client.ended


def numbers(client: EventClient) -> list[int]:
    """`seq` of each message of the type `status`, those within batches too."""
    found: list[int] = []
    for event in client.events:
        envelope = event.envelope
        inner = envelope["data"]["messages"] if envelope["event"] == "batch_update" else [envelope]
        found += [one["seq"] for one in inner if "seq" in one and one["type"] == "status"]
    return found


async def test_a_reload_is_not_noticed(service: Service) -> None:
    targets = ["/events?types=status", "/events?types=status,stats&batch=1&user=u{n}"]
    clients = [await EventClient.open(service, targets[n % 2].format(n=n)) for n in range(40)]
    for one in clients:
        await one.event("connected")
    async with Ticker(service, 0.01):
        for _ in range(2):
            old = set(service.worker_pids())
            await service.hup()
            assert not old & set(service.worker_pids())
    last = (await service.publish("status", "last"))["seq"]
    for one in clients:
        await one.until(lambda one=one: last in numbers(one), "the last message")  # type: ignore[misc]
        got = numbers(one)
        assert got == list(range(got[0], last + 1))
        assert got[0] == numbers(clients[0])[0]
        assert len(one.named("connected")) == 1
        assert not one.named("gap")
    stats = (await service.get("/ws/stats")).body
    assert stats["totalConnections"] == 40
    for one in clients:
        await one.close()
    await service.wait_connections(0)


async def test_unsent_bytes_pass_to_the_next_worker(one: Service) -> None:
    """Events that are half written, and those behind them."""
    target = "/events?types=status"
    clients = [await EventClient.open(one, target, receive_buffer=4096) for _ in range(5)]
    for client in clients:
        await client.event("connected")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    for at in range(0, 60, 20):
        await one.publish_all(
            {"type": "status", "event": "bulk", "data": [n, "x" * 20_000]}
            for n in range(at, at + 20)
        )
    await one.hup()
    for client in clients:
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    last = (await one.publish("status", "last"))["seq"]
    for client in clients:
        await client.until_seq("status", last)
        assert client.seqs("status") == list(range(last - 60, last + 1))
        await client.close()


async def test_a_reload_while_history_is_sent(service: Service) -> None:
    """The pages that are left come from the next worker, with an `id` behind the last one."""
    for at in range(0, 40, 10):
        await service.publish_all(
            {"type": "system", "event": "bulk", "data": [n, "x" * 60_000]}
            for n in range(at, at + 10)
        )
    target = "/events?types=system&history=40"
    async with await EventClient.open(service, target, receive_buffer=4096) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await service.hup()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        live = await service.publish("system", "tick")
        await client.until_seq("system", live["seq"])
        pages = [page["data"]["messages"] for page in client.named("history_data")]
        past = sorted(one["seq"] for page in pages for one in page)
        assert past == list(range(live["seq"] - 40, live["seq"]))
        assert client.seqs("system") == [live["seq"]]
        assert len(client.parser.ids) == 2


async def test_a_killed_worker_loses_nothing(service: Service) -> None:
    async with Ticker(service):
        client = await EventClient.open(service, "/events?types=status")
        await client.until(lambda: len(client.messages("status")) > 20, "twenty messages")
        victim = service.worker_of(client.port)
        service.kill_worker(victim)
        await client.until_end()
        await client.close()
        before = client.seqs("status")
        await service.replaced(victim)
        async with await EventClient.open(
            service, "/events?types=status", last_id=client.last_id
        ) as again:
            await again.until(lambda: len(again.messages("status")) > 20, "twenty messages")
            got = before + again.seqs("status")
            assert got == list(range(got[0], got[-1] + 1))


async def test_the_end_of_the_service_says_when_to_come_back() -> None:
    service = Service(WORKERS=1).start()
    client = await EventClient.open(service)
    await client.event("connected")
    await asyncio.to_thread(service.stop)
    await client.until_end()
    closing = client.named("connection_closing")[0]["data"]
    assert closing["code"] == 1012
    assert closing["retryAfter"] == client.parser.retry
    assert client.events[-1].envelope["event"] == "connection_closing"
    await client.close()


async def test_there_is_no_task_for_a_client(one: Service) -> None:
    async def tasks() -> float:
        page = (await one.get("/metrics")).body
        found = re.search(r"^realtime_tasks ([0-9.e+]+)$", page, re.MULTILINE)
        assert found is not None
        return float(found[1])

    clients = [await EventClient.open(one) for _ in range(100)]
    for client in clients:
        await client.event("connected")

    async def few() -> bool:
        return await tasks() < 50

    await until(few, "few tasks")
    [worker] = [psutil.Process(pid) for pid in one.worker_pids()]
    assert worker.num_threads() < 20
    for client in clients:
        await client.close()


async def test_long_polling_is_refused_with_what_to_set(service: Service) -> None:
    """A page of an allowed origin can read it."""
    headers = {"Origin": "https://lab.example", "Accept": "*/*"}
    target = "/ws/realtime/?EIO=4&transport=polling&t=abc"
    async with await EventClient.open(service, target, headers=headers) as client:
        await client.until_end()
        assert client.status == 400
        assert "transports: ['websocket']" in json.loads(client.body)["error"]
        assert client.headers["access-control-allow-origin"] == "https://lab.example"
    assert "transports: ['websocket']" in service.log
    assert "reason=transport" in service.log
