"""Who may come in: deadlines for every step before a session, and what is refused at the door."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable

import jwt
import psutil
import pytest

from tests.integration.harness import Service, until
from tests.integration.sioclient import raw_socketio
from tests.integration.wsclient import BINARY, CLOSE, TEXT, RawClient

SECRET = "integration-secret-of-at-least-32-bytes"
LIMIT = 14.0
"""Seconds after which a connection with a deadline of ten must be gone, on a busy machine."""


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
        async with asyncio.timeout(LIMIT):
            return await reader.read()
    finally:
        slow.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await slow
        writer.transport.abort()


@pytest.mark.timeout(120)
async def test_no_step_of_a_request_may_take_longer_than_ten_seconds() -> None:
    post = (
        b"POST /ws/broadcast HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer integration-token"
        b"\r\nContent-Length: 100\r\n\r\n"
    )
    get = b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with Service() as service:
        answers = await asyncio.gather(
            _dribble(service, b"", b""),
            _dribble(service, b"G", b""),
            _dribble(service, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ", b"a"),
            _dribble(service, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-A: a\r\n"),
            _dribble(service, b"", b"\r\n"),
            _dribble(service, post, b" "),
            _dribble(service, get + b"GET ", b"/"),
        )
        assert answers[0] == b""
        for answer in answers[1:5]:
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

    async with Service(AUTH_SECRET=SECRET, MAX_TOTAL_CONNECTIONS=50) as service:

        async def closed(step: Steps) -> tuple[int, float]:
            async with await raw_socketio(service) as client:
                await step(client)
                began = time.monotonic()

                async def answer_pings() -> None:
                    while True:
                        await asyncio.sleep(1)
                        await client.send(TEXT, b"3")

                answers = asyncio.create_task(answer_pings())
                try:
                    _, close = await client.until_frame(CLOSE)
                finally:
                    answers.cancel()
                return close.close_code, time.monotonic() - began

        async def plain() -> int:
            async with await RawClient.open(service) as client:
                await client.ask("ping")
                _, close = await client.until_frame(CLOSE)
                return close.close_code

        *results, code = await asyncio.gather(*map(closed, steps), plain())
        assert code == 4401
        for step, result in zip(steps, results, strict=True):
            assert isinstance(result, tuple)
            assert result[0] == 4408, step
            assert 8 < result[1] < LIMIT, step
        await service.wait_connections(0)


async def test_attachments_before_connect_are_refused() -> None:
    async with Service() as service, await raw_socketio(service) as client:
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
        silent = []
        for _ in range(200):
            with contextlib.suppress(OSError):
                silent.append(await asyncio.open_connection("127.0.0.1", service.port))
        assert (await service.get("/status")).status == 200
        await service.publish("status")
        for _, writer in silent:
            writer.transport.abort()
        worker = psutil.Process(service.worker_pids()[0])
        await until(lambda: worker.num_fds() < 90, "the silent ones are closed")
        clients = []
        statuses = []
        for _ in range(120):
            client = await RawClient.open(service)
            statuses.append(client.status)
            clients.append(client)
        assert statuses[0] == 101
        assert statuses[-1] == 503
        assert (await service.get("/status")).status == 200
        await service.publish("status")
        assert "Refused: File descriptors are short" in service.log
        await service.hup()
        assert (await service.get("/status")).status == 200
        for client in clients:
            await client.abort()
        await service.wait_connections(0)
