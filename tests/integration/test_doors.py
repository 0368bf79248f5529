"""Admission: deadlines for every step before a session, and what is refused at the door."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable

import jwt
import psutil
import pytest
from websockets.asyncio.client import connect

from tests.support.fixtures import Opener
from tests.support.ports import free_port
from tests.support.raw import BINARY, CLOSE, TEXT, RawClient, encode
from tests.support.service import Service
from tests.support.sioclient import raw_socketio
from tests.support.waiting import DEADLINE, until

SECRET = "integration-secret-of-at-least-32-bytes"
TEN_SECONDS = 10 + DEADLINE
"""Seconds in which a connection with a deadline of ten is closed, however busy the machine is."""


def token(user: str = "ann") -> str:
    return jwt.encode({"sub": user, "exp": time.time() + 3600}, SECRET, "HS256")


async def _dribble(service: Service, sent: bytes, more: bytes) -> bytes:
    """Send a beginning, then `more` once a second; read to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(sent)

    async def go_on() -> None:
        while more:
            await asyncio.sleep(1)
            writer.write(more)

    slow = asyncio.create_task(go_on())
    try:
        async with asyncio.timeout(TEN_SECONDS):
            return await reader.read()
    finally:
        slow.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await slow
        writer.transport.abort()


async def _read_what_came() -> None:
    """Let every connection of this process take what is in its socket already."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.mark.timeout(120)
async def test_no_step_of_a_request_may_take_longer_than_ten_seconds() -> None:
    """One that begins later and does nothing more is closed after all others, and not before."""
    post = (
        b"POST /ws/broadcast HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer integration-token"
        b"\r\nContent-Length: 100\r\n\r\n"
    )
    get = b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with Service(WORKERS=1) as service:
        slow = [
            asyncio.create_task(_dribble(service, sent, more))
            for sent, more in (
                (b"", b""),
                (b"G", b""),
                (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ", b"a"),
                (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-A: a\r\n"),
                (b"", b"\r\n"),
                (post, b" "),
                (get + b"GET ", b"/"),
            )
        ]
        # The last head begins with what comes after a second; deadlines are looked at four times in one.
        await asyncio.sleep(2.5)
        await service.get("/status")
        assert not any(task.done() for task in slow)
        last = await _dribble(service, b"G", b"")
        await _read_what_came()
        assert all(task.done() for task in slow)
        answers = [await task for task in slow]
        assert answers[0] == b""
        for answer in [*answers[1:5], last]:
            assert answer.startswith(b"HTTP/1.1 408 "), answer
            assert b'"REQUEST_TIMEOUT"' in answer
        assert answers[5].startswith(b"HTTP/1.1 408 ")
        assert answers[6].startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in answers[6]


Steps = Callable[[RawClient], Awaitable[None]]


async def _say(client: RawClient, *packets: bytes) -> None:
    for one in packets:
        await client.send(TEXT, one)


async def _attach(client: RawClient) -> None:
    two = b'[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
    await client.send(TEXT, b'452-["x",' + two + b"]")
    await client.send(BINARY, b"\x00" * 500_000)


@pytest.mark.timeout(120)
async def test_a_socketio_client_must_connect_within_ten_seconds() -> None:
    """Nor does leaving, a wrong name, a wrong token or anything else put that off."""
    good = b"40" + json.dumps({"token": token()}).encode()
    bad = b'40{"token":"x"}'
    steps: list[Steps] = [
        _say,
        lambda client: _say(client, b"40nope,"),
        lambda client: _say(client, b"40/nope,"),
        lambda client: _say(client, bad),
        lambda client: _say(client, bad, bad, bad),
        lambda client: _say(client, b"41"),
        lambda client: _say(client, b'42["x"]'),
        lambda client: _say(client, good, b"41"),
        lambda client: _say(client, good, b"41", b"40nope,"),
        _attach,
    ]

    async with Service(AUTH_SECRET=SECRET, MAX_TOTAL_CONNECTIONS=50, WORKERS=1) as service:

        async def closed(client: RawClient) -> int:
            async def answer_pings() -> None:
                while True:
                    await asyncio.sleep(1)
                    await client.send(TEXT, b"3")

            answers = asyncio.create_task(answer_pings())
            try:
                async with asyncio.timeout(TEN_SECONDS):
                    _, close = await client.until_frame(CLOSE)
            finally:
                answers.cancel()
            return close.close_code

        async with await RawClient.open(service) as plain:
            await plain.ask("ping")
            _, close = await plain.until_frame(CLOSE)
            assert close.close_code == 4401

        async with contextlib.AsyncExitStack() as stack:

            async def enter(step: Steps) -> asyncio.Task[int]:
                client = await stack.enter_async_context(await raw_socketio(service))
                await step(client)
                return asyncio.create_task(closed(client))

            # What the ten seconds are is seen by order: between these two, whatever a step does.
            first = await enter(_say)
            between = [await enter(step) for step in steps]
            await asyncio.sleep(0.5)  # the service has taken what they said
            last = await enter(_say)
            every = [first, *between, last]
            await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
            await _read_what_came()
            assert first.done(), [task.done() for task in every]
            await last
            await _read_what_came()
            assert [task.done() for task in every] == [True] * len(every)
            assert [await task for task in every] == [4408] * len(every)
        await service.wait_connections(0)


async def test_attachments_before_connect_are_refused(service: Service) -> None:
    async with await raw_socketio(service) as client:
        await _attach(client)
        await client.send(TEXT, b"40")
        # Nothing was kept of it: the CONNECT is not behind a packet that is incomplete.
        before, frame = await client.until_frame(TEXT)
        while not frame.payload.startswith(b"40"):
            before, frame = await client.until_frame(TEXT)
        assert not before


@pytest.mark.timeout(120)
async def test_silent_sockets_do_not_take_the_last_descriptors() -> None:
    """Nor do WebSocket connections: /status, publishing and a reload still work."""
    async with Service(open_files=120, WORKERS=1) as service:
        with contextlib.ExitStack() as silent:
            for _ in range(200):
                with contextlib.suppress(OSError):
                    where = ("127.0.0.1", service.port)
                    silent.enter_context(socket.create_connection(where))
            assert (await service.get("/status")).status == 200
            await service.publish("status")
        worker = psutil.Process(service.worker_pids()[0])
        await until(lambda: worker.num_fds() < 90, "the silent ones are closed")
        clients = []
        statuses = []
        for _ in range(120):
            try:
                client = await RawClient.open(service)
            except (ConnectionError, asyncio.IncompleteReadError):
                statuses.append(0)  # what is closed has not left the kernel yet
                continue
            statuses.append(client.status)
            clients.append(client)
        assert set(statuses) <= {0, 101, 503}
        assert {101, 503} <= set(statuses)
        assert (await service.get("/status")).status == 200
        await service.publish("status")
        assert "Refused: File descriptors are short" in service.log
        await service.hup()
        assert (await service.get("/status")).status == 200
        for client in clients:
            await client.abort()
        await service.wait_connections(0)


# Refusals that a page can see


async def _refusal(
    service: Service, path: str, **headers: str
) -> tuple[int, list[bytes], int, str]:
    """Status, text frames, close code and reason of a refused connection; 0 without a close."""
    async with await RawClient.open(service, path, headers=headers) as client:
        if client.status != 101:
            return client.status, [], 0, ""
        before, close = await client.until_frame(CLOSE)
        texts = [frame.payload for frame in before if frame.opcode == TEXT]
        await client.write(encode(CLOSE, close.payload[:2]))
        await client.to_end()
        return 101, texts, close.close_code, close.payload[2:].decode()


async def test_pages_see_why_they_are_refused() -> None:
    own = f"http://127.0.0.1:{free_port()}"
    async with Service(AUTH_SECRET=SECRET, MAX_TOTAL_CONNECTIONS=1, ALLOWED_ORIGINS=own) as service:
        path = "/ws/realtime"
        status, texts, code, _ = await _refusal(service, f"{path}?token=x", Origin=own)
        assert (status, code) == (101, 4401)
        error = json.loads(texts[0])
        assert error["event"] == "error"
        assert error["data"]["code"] == "UNAUTHORIZED"
        status, texts, code, _ = await _refusal(service, f"{path}?EIO=4&token=x", Origin=own)
        assert (status, code) == (101, 4401)
        assert texts[0].startswith(b"0{")
        assert texts[1].startswith(b"44{")
        assert json.loads(texts[1][2:])["data"]["code"] == "UNAUTHORIZED"
        status, texts, code, _ = await _refusal(service, f"{path}?types=nope", Origin=own)
        assert (status, code, json.loads(texts[0])["data"]["code"]) == (101, 1008, "INVALID_TYPE")
        # They are not counted, and what is no browser gets HTTP as ever.
        assert await service.total_connections() == 0
        assert (await _refusal(service, f"{path}?token=x"))[0] == 401
        assert (await _refusal(service, f"{path}?token=x", Origin="https://evil.example"))[0] == 403
        async with await RawClient.open(service):
            await service.wait_connections(1)
            status, texts, code, reason = await _refusal(service, path, Origin=own)
            assert (status, code) == (101, 1013)
            assert json.loads(texts[0])["data"]["code"] == "MAX_CONNECTIONS_EXCEEDED"
            assert 0 < json.loads(reason)["retryAfter"] <= 5000
            status, texts, code, reason = await _refusal(service, f"{path}?EIO=4", Origin=own)
            # No CONNECT_ERROR: it would keep socket.io-client from coming back by itself.
            assert (status, len(texts), code) == (101, 1, 1013)
            assert (await _refusal(service, path))[0] == 503
            assert await service.total_connections() == 1
        lines = [line for line in service.log.splitlines() if "realtime.refused" in line]
        for reason_, count in (("token", 2), ("origin", 1), ("cap", 2), ("types", 1)):
            found = [line for line in lines if f"reason={reason_}" in line]
            assert 1 <= len(found) <= 2 * count, found
        assert any("ALLOWED_ORIGINS" in line and "evil.example" in line for line in lines)
        assert "token=x" not in service.log


async def test_a_flood_of_refused_pages_is_cheap() -> None:
    """Past some at a time, which do not answer the close frame, the answer is HTTP again."""
    async with Service(AUTH_SECRET=SECRET, WORKERS=1) as service:
        own = {"Origin": service.base}
        clients = [
            await RawClient.open(service, "/ws/realtime?token=x", headers=own) for _ in range(70)
        ]
        statuses = [client.status for client in clients]
        assert statuses[:64] == [101] * 64
        assert statuses[64:] == [401] * 6
        for client in clients:
            await client.abort()
        assert len([line for line in service.log.splitlines() if "reason=token" in line]) == 1


# Host and Origin


@pytest.mark.parametrize("path", ["/history?type=status", "/ws/stats", "/metrics", "/status"])
async def test_a_rebound_name_is_not_served(service: Service, path: str) -> None:
    name = {"Host": f"evil.example:{service.port}"}
    answer = await service.request("GET", path, headers=name)
    assert (answer.status, answer.body["code"]) == (403, "FORBIDDEN")


async def test_a_rebound_name_opens_no_socket(service: Service) -> None:
    host = f"evil.example:{service.port}"
    same = {"Host": host, "Origin": f"http://{host}"}
    assert (await _refusal(service, "/ws/realtime?user=ann", **same))[0] == 403
    async with await RawClient.open(service, headers={"Origin": service.base}) as client:
        assert client.status == 101


# Handshakes of odd but right clients


async def _handshake(service: Service, lines: str, early: bytes = b"") -> bytes:
    """Upgrade with these lines and early bytes; what comes up to the first message."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    head = (
        f"GET /ws/realtime?types= HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    )
    writer.write(f"{head}{lines}\r\n".encode() + early)
    async with asyncio.timeout(DEADLINE):
        answer = b""
        wanted = b'"pong"' if early else b'"connected"'
        while wanted not in answer and (chunk := await reader.read(65536)):
            answer += chunk
    writer.transport.abort()
    return answer


@pytest.mark.parametrize(
    "lines",
    [
        "Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "connection: UPGRADE\r\nupgrade: WEBSOCKET\r\n",
    ],
)
async def test_odd_upgrades(service: Service, lines: str) -> None:
    assert (await _handshake(service, lines)).startswith(b"HTTP/1.1 101 ")
    early = encode(TEXT, b'{"action":"ping"}')
    assert b'"pong"' in await _handshake(service, lines, early)


async def test_subprotocols(service: Service) -> None:
    lines = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: json, other\r\n"
    assert b"\r\nSec-WebSocket-Protocol: json\r\n" in await _handshake(service, lines)
    async with Service(AUTH_SECRET=SECRET) as guarded:
        offered = [f"bearer.{token('sue')}"]
        async with connect(
            f"ws://127.0.0.1:{guarded.port}/ws/realtime",
            subprotocols=offered,  # type: ignore[arg-type]
            proxy=None,
        ) as client:
            assert json.loads(await client.recv())["data"]["user"] == "sue"


@pytest.mark.parametrize("name", ["می\u200cخواهم", "👩\u200d💻", "Anna\u00a0Maria"])
async def test_names_of_people(plain: Opener, name: str) -> None:
    client = await plain(user=name)
    assert (await client.expect("connected"))["data"]["user"] == name


async def test_noise_is_one_line_without_its_bytes(service: Service) -> None:
    async def say(noise: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(noise)
        try:
            async with asyncio.timeout(DEADLINE):
                return await reader.read()
        finally:
            writer.transport.abort()

    noises = [
        b"\x16\x03\x01\x00\xee\x01 hunter2 \r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nCookie: hunter2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie : hunter2\r\n\r\n",
        b"hunter2 / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic hunter2\r\n\r\n\x00",
    ]
    before = service.log.count("\n")
    for noise in noises * 5:
        answer = await say(noise)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 400 " in head.split(b"\r\n")[0]
        assert json.loads(body)["code"] == "BAD_REQUEST"
    assert service.log.count("\n") - before <= service.workers
    assert "hunter2" not in service.log
