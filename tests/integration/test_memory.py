"""What is held for a client is in a sum with a bound: answers, backlogs, requests, handoffs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import psutil
import pytest
import redis

from tests.support.plain import PlainClient
from tests.support.raw import BINARY, CLOSE, TEXT, RawClient, encode, text
from tests.support.service import TOKEN, Service
from tests.support.sioclient import packet, raw_socketio
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(180), pytest.mark.long]

MB = 2**20
TYPES = ("config", "health", "stats", "status", "system")


async def metric(service: Service, name: str) -> float:
    """The sum of a metric over its labels."""
    page = (await service.request("GET", "/metrics", token=TOKEN)).body
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


async def fill(service: Service, type: str, messages: int, size: int) -> None:
    """Publish messages that are so many bytes long."""
    for number in range(messages):
        await service.publish(type, "bulk", [number, "x" * size])


def resident(service: Service) -> int:
    """Bytes that the workers have in memory."""
    return sum(psutil.Process(pid).memory_info().rss for pid in service.worker_pids())


async def history(client: RawClient) -> dict[str, Any]:
    """The next page that a client gets."""
    answer: dict[str, Any] = await client.envelope("history_data")
    return answer


async def test_two_long_answers_to_one_segment_both_arrive() -> None:
    async with Service(WORKERS=1) as service:
        await fill(service, "status", 60, 256 * 1024)
        client = await RawClient.open(service, "/ws/realtime?types=", receive_buffer=4096)
        asked = [text("get_history", {"type": "status", "limit": 50}, id=id) for id in (1, 2)]
        await client.write(b"".join(encode(TEXT, one) for one in asked))
        for id in (1, 2):
            answer = await history(client)
            assert answer["replyTo"] == id
            assert answer["data"]["more"] is True
            numbers = [message["data"][0] for message in answer["data"]["messages"]]
            assert numbers == list(range(60 - len(numbers), 60))
            assert 1 <= len(numbers) <= 4
        await client.abort()


async def test_history_is_read_to_its_end_in_pages() -> None:
    async with Service(WORKERS=1) as service:
        await fill(service, "status", 10, 300_000)
        client = await PlainClient.open(service, types="")
        numbers: list[int] = []
        query: dict[str, Any] = {"type": "status", "limit": 100}
        while True:
            page = (await client.request("get_history", query))["data"]
            assert sum(len(json.dumps(message)) for message in page["messages"]) < 1.1 * MB
            numbers = [message["data"][0] for message in page["messages"]] + numbers
            if not page["more"]:
                break
            query["before"] = page["messages"][0]["seq"]
        assert numbers == list(range(10))
        # Over HTTP it is cut in the same way.
        answer = await service.get("/history", type="status", limit=100)
        assert len(answer.body["messages"]) == 3
        assert answer.body["more"] is True
        await client.close()


async def test_history_of_a_subscription_follows_page_by_page() -> None:
    async with Service(WORKERS=1) as service:
        for type in ("status", "system"):
            await fill(service, type, 8, 400_000)
        client = await RawClient.open(service, "/ws/realtime?types=", receive_buffer=4096)
        await client.ask("subscribe", {"types": ["status", "system"], "history": 5}, id="s")
        await client.ask("ping", None, id="p")
        for type in ("status", "system"):
            numbers: list[int] = []
            while True:
                page = await history(client)
                assert (page["type"], page["replyTo"]) == (type, "s")
                assert len(page["data"]["messages"]) <= 2
                numbers = [message["data"][0] for message in page["data"]["messages"]] + numbers
                if "follows" not in page["data"]:
                    break
            assert numbers == [3, 4, 5, 6, 7]
        assert (await client.envelope("pong"))["replyTo"] == "p"
        live = await service.publish("status", "now")
        assert (await client.envelope("now"))["seq"] == live["seq"] == 9
        await client.abort()


async def test_clients_that_ask_for_all_history_and_do_not_read() -> None:
    """80 MB for each of thirty clients, of which a page or two are in memory."""
    async with Service(WORKERS=1, MAX_OUTGOING_BYTES="16MB", HISTORY_BYTES="16MB") as service:
        for type in TYPES:
            await fill(service, type, 14, 1_000_000)
        witness = await PlainClient.open(service, types="")
        await witness.barrier()
        before = resident(service)
        clients = [
            await RawClient.open(service, "/ws/realtime?types=", receive_buffer=4096)
            for _ in range(30)
        ]
        for client in clients:
            await client.ask("subscribe", {"types": ["all"], "history": 100})

        async def counted() -> float:
            return await metric(service, "realtime_outgoing_bytes")

        held = await until(counted, "pages that are not read are counted")
        peak = 0
        for _ in range(30):
            await witness.barrier()
            peak = max(peak, resident(service))
            held = max(held, await counted())
            await asyncio.sleep(0.1)
        assert 5 * MB < held <= 16 * MB
        assert peak - before < 80 * MB, f"{(peak - before) / MB:.0f} MB"
        # A reader gets its turn: those that take nothing make room.
        reader = await PlainClient.open(service, types="")
        await reader.request("subscribe", {"types": ["all"], "history": 100})
        await until(
            lambda: (
                sum(len(page["data"]["messages"]) for page in reader.events("history_data")) == 70
            ),
            "all pages of the one that reads",
            60,
        )
        assert "Closing a connection that does not read" in service.log
        closed = 'realtime_connections_closed_total{code="4413"}'
        await until(lambda: metric(service, closed), "the page of a second says so")
        for one in clients:
            await one.abort()
        await witness.close()
        await reader.close()


async def test_a_slow_reader_is_kept_past_the_heartbeat() -> None:
    """It takes seconds for what it reads while it answers no ping, and is alive all the time."""
    async with Service(WORKERS=1, HEARTBEAT_INTERVAL="500ms", HEARTBEAT_TIMEOUT="2s") as service:
        await fill(service, "status", 12, 400_000)
        client = await RawClient.open(service, "/ws/realtime?types=", receive_buffer=4096)
        await client.ask("subscribe", {"types": ["status"], "history": 100})
        received = bytearray()
        numbers: list[int] = []
        while len(numbers) < 12:
            part = await client.reader.read(40_000)
            assert part, "the connection has ended"
            received += part
            await asyncio.sleep(0.05)
            numbers = [n for n in range(12) if b'"data":[%d,' % n in received]
        assert b"HEARTBEAT_TIMEOUT" not in received
        await client.abort()


async def test_a_client_that_reads_nothing_ends_with_the_heartbeat() -> None:
    async with Service(WORKERS=1, HEARTBEAT_INTERVAL="300ms", HEARTBEAT_TIMEOUT="1s") as service:
        await fill(service, "status", 8, 1_000_000)
        client = await RawClient.open(service, "/ws/realtime?types=", receive_buffer=4096)
        await client.ask("subscribe", {"types": ["status"], "history": 100})
        await service.wait_connections(0)
        with contextlib.suppress(OSError):
            await client.abort()


async def ask_and_leave(service: Service, type: str) -> asyncio.StreamWriter:
    """A connection on which history is asked for over HTTP and nothing is read."""
    ours = socket.socket()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours.setblocking(False)
    await asyncio.get_running_loop().sock_connect(ours, ("127.0.0.1", service.port))
    _, writer = await asyncio.open_connection(sock=ours)
    host = f"Host: 127.0.0.1:{service.port}\r\nAuthorization: Bearer {TOKEN}"
    writer.write(f"GET /history?type={type}&limit=100 HTTP/1.1\r\n{host}\r\n\r\n".encode())
    return writer


async def test_http_answers_without_a_reader_leave_nothing() -> None:
    async with Service(WORKERS=1, MAX_OUTGOING_BYTES="16MB") as service:
        await fill(service, "status", 14, 1_000_000)
        before = resident(service)
        for _ in range(8):
            writers = [await ask_and_leave(service, "status") for _ in range(20)]

            async def is_held() -> bool:
                return await metric(service, "realtime_outgoing_bytes") > 5 * MB

            await until(is_held, "the bodies are counted")
            assert await metric(service, "realtime_outgoing_bytes") <= 16 * MB
            for writer in writers:
                writer.transport.abort()

        async def is_given_back() -> bool:
            held = await metric(service, "realtime_outgoing_bytes")
            return held < MB and resident(service) - before < 64 * MB

        await until(is_given_back, "the memory is given back")


async def input_is(service: Service, least: int, most: int) -> bool:
    """Whether so much input is held, as the metrics of a second say."""
    return least <= await metric(service, "realtime_incoming_bytes") <= most


async def socketio(service: Service) -> RawClient:
    """A Socket.IO client that is connected to the main namespace."""
    client = await raw_socketio(service)
    await client.send(TEXT, b"40")
    while not (await client.frame()).payload.startswith(b"42"):
        pass
    return client


async def answer(client: RawClient) -> tuple[str, Any]:
    """The next acknowledgement or error."""
    while True:
        kind, value = packet((await client.frame()).payload)
        if kind == "43" or (kind == "42" and value[0] == "error"):
            return kind, value


async def test_what_placeholders_make_of_an_attachment_counts() -> None:
    async with Service(WORKERS=1) as service:
        client = await socketio(service)
        before = resident(service)
        many = ",".join(['{"_placeholder":true,"num":0}'] * 2000)
        for deep in (many, f"[[{many}]]", f'{{"a":[{many}]}}'):
            await client.send(TEXT, f'451-1["echo",{deep}]'.encode())
            await client.send(BINARY, bytes(900_000))
            kind, value = await answer(client)
            assert (kind, value[-1]["data"]["code"]) == ("42", "MESSAGE_TOO_LARGE")
        for number in ("1", "-1", "true", '"0"', "null", "0.0"):
            await client.send(TEXT, f'451-["echo",{{"_placeholder":true,"num":{number}}}]'.encode())
            kind, value = await answer(client)
            assert (kind, value[-1]["data"]["code"]) == ("42", "PARSE_ERROR")
            await client.send(BINARY, b"x")
            assert (await answer(client))[1][-1]["data"]["code"] == "PARSE_ERROR"
        assert resident(service) - before < 64 * MB
        await until(lambda: input_is(service, 0, 0), "nothing is held")
        # One that is used twice is taken, within the size of a message.
        await client.send(
            TEXT, b'451-7["echo",[0,0]]'.replace(b"0", b'{"_placeholder":true,"num":0}')
        )
        await client.send(BINARY, b"abc")
        assert (await client.frame()).payload.startswith(b"462-7[")
        await client.abort()


async def test_input_behind_a_recovery_is_counted_and_bounded() -> None:
    async with Service(WORKERS=1, RATE_LIMIT_BYTES="64MB") as service:
        last = await service.publish("status", "first")
        clients = [await RawClient.open(service, "/ws/realtime?types=") for _ in range(20)]
        ahead = {"status": {"epoch": last["epoch"], "seq": last["seq"] + 100}}

        async def ask(client: RawClient) -> None:
            await client.ask("subscribe", {"types": ["status"], "recover": ahead})
            for number in range(500):
                await client.ask("ping", "x" * 3900, id=number)

        asking = [asyncio.create_task(ask(client)) for client in clients]

        bounds = 20 * 200_000, 20 * 500_000
        await until(lambda: input_is(service, *bounds), "what waits is counted and bounded")
        for client in clients:
            for number in range(500):
                assert (await client.envelope("pong"))["replyTo"] == number
        await asyncio.gather(*asking)
        await until(lambda: input_is(service, 0, 0), "nothing is held")
        for client in clients:
            await client.abort()


async def test_what_handlers_work_on_is_counted() -> None:
    async with Service(
        WORKERS=1,
        MAX_INCOMING_BYTES="3MB",
        MAX_EVENT_SIZE="1MB",
        RATE_LIMIT_BYTES="64MB",
        RATE_LIMIT_TIME="0",
    ) as service:
        modest, greedy = await socketio(service), await socketio(service)
        event = b'42["nap",4,"%s"]' % (b"x" * 400_000)
        await modest.send(TEXT, event)
        for _ in range(8):
            with contextlib.suppress(OSError):
                await greedy.send(TEXT, event)
        _, frame = await greedy.until_frame(CLOSE)
        assert frame.close_code == 1009
        assert "Too much input is held" in service.log
        await until(lambda: input_is(service, 2 * MB, 4 * MB), "the handlers still run")
        await until(lambda: input_is(service, 0, 0), "given back when they are done")
        await modest.send(TEXT, b'427["nap",0]')
        while not (await modest.frame()).payload.startswith(b"437"):
            pass
        await modest.abort()
        await greedy.abort()


async def test_handlers_of_one_connection_are_bounded_and_none_is_lost() -> None:
    async with Service(WORKERS=1, RATE_LIMIT_TIME="0") as service:
        client = await socketio(service)
        for number in range(350):
            await client.send(TEXT, b'42%d["nap",0.3]' % number)
        started = await metric(service, "realtime_tasks")
        assert started < 200
        answered = set()
        while len(answered) < 350:
            payload = (await client.frame()).payload
            if payload.startswith(b"43"):
                answered.add(payload)
        await client.abort()


@pytest.mark.parametrize("at_once", [1, 4])
async def test_messages_that_the_backplane_refuses_are_not_kept(at_once: int) -> None:
    """One by one, and in an array whose items fail: not even until the collector comes."""
    async with Service(WORKERS=1, COLLECTOR=0) as service:
        message = {"type": "status", "event": "bulk", "data": "x" * (900_000 // at_once)}
        with redis.Redis(unix_socket_path=service.valkey_socket()) as server:
            server.config_set("maxmemory", 1)
        body: object = message if at_once == 1 else [message] * (at_once - 1) + [{"type": "no"}]

        async def refused() -> None:
            answer = await service.post("/ws/broadcast", body)
            assert answer.status == (503 if at_once == 1 else 207), answer
            codes = {one["code"] for one in ([answer.body] if at_once == 1 else answer.body)}
            assert "BACKPLANE_FULL" in codes

        for _ in range(5):
            await refused()
        before = resident(service)
        for _ in range(36):
            await refused()
        assert resident(service) - before < 12 * MB
