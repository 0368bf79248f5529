"""The two ways in: a session at once, or a connection of aiohttp's first; clients see no difference."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.raw import TEXT, encode, text
from tests.support.service import Service
from tests.support.waiting import DEADLINE, until

HEAD = (
    b"GET /ws/realtime?types=status HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)
SLOW_HEAD = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n")
"""What only aiohttp parses."""
REQUEST = encode(TEXT, text("ping", id="behind"))
ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"


async def open_to(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", service.port)


async def answer(service: Service, *parts: bytes) -> tuple[bytes, dict[str, str]]:
    """Status line and headers of the answer to a request that comes in parts, which is an error."""
    reader, writer = await open_to(service)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05 if len(parts) > 1 else 0)
        async with asyncio.timeout(DEADLINE):
            head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            lines = dict(line.decode().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(lines.get("Content-Length", "0")))
        for name in ("Date", "X-Request-ID", "Retry-After"):
            lines.pop(name, None)
        return head[0], lines | {"body": body.decode()}
    finally:
        writer.transport.abort()


async def welcomed(service: Service, *parts: bytes) -> bytes:
    """What comes until the ping behind the request is answered."""
    reader, writer = await open_to(service)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(DEADLINE):
            received = await reader.readuntil(b'"replyTo":"behind"')
        assert received.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert ACCEPT in received
        assert received.index(b'"connected"') < received.index(b'"pong"')
        return received.partition(b"\r\n\r\n")[0]
    finally:
        writer.transport.abort()


async def test_a_request_that_is_cut_anywhere_and_a_frame_behind_it(service: Service) -> None:
    complete = HEAD + REQUEST
    expected = await welcomed(service, complete)
    assert await welcomed(service, SLOW_HEAD + REQUEST) == expected
    heads = await asyncio.gather(
        *(welcomed(service, complete[:end], complete[end:]) for end in range(1, len(complete)))
    )
    assert set(heads) == {expected}


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        (b"GET ", b"POST "),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"keep-alive, Upgrade", b"keep-alive"),
        (b"Version: 13", b"Version: 8"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
        (b"types=status", b"types=nothing"),
        (b"types=status", b"EIO=3&transport=websocket"),
        (b"types=status", b"user=" + b"x" * 300),
        (b"Host: 127.0.0.1", b"Host: evil.example:3001"),
        (b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nOrigin: https://evil.example"),
        (b"/ws/realtime?", b"/ws/elsewhere?"),
    ],
)
async def test_refusals_are_the_same(service: Service, part: bytes, instead: bytes) -> None:
    odd = HEAD.replace(part, instead)
    assert odd != HEAD
    at_once = await answer(service, odd)
    assert at_once[0].split()[1] in (b"400", b"403", b"404", b"405", b"426")
    assert await answer(service, odd[:-1], odd[-1:]) == at_once
    slow = SLOW_HEAD.replace(part, instead)
    assert await answer(service, slow) == at_once


async def counted(service: Service, name: str) -> dict[str, float]:
    """The samples of one metric, by what is between the braces."""
    page = await service.get("/metrics")
    pattern = re.compile(rf"^{name}{{(.*?)}} (\S+)$", re.MULTILINE)
    return {labels: float(value) for labels, value in pattern.findall(page.body)}


async def test_both_ways_are_counted_alike() -> None:
    async with Service(MAX_CONNECTS_PER_ADDRESS=10_000, WORKERS=1) as service:
        for head in (HEAD, SLOW_HEAD):
            await welcomed(service, head + REQUEST)
        odd = HEAD.replace(b"types=status", b"types=nothing")
        for parts in ((odd,), (odd[:9], odd[9:])):
            await answer(service, *parts)

        async def is_counted() -> bool:
            requests = await counted(service, "realtime_http_requests_total")
            refused = await counted(service, "realtime_connections_refused_total")
            ours = {k: v for k, v in requests.items() if "/ws/realtime" in k}
            return sorted(ours.values()) == [2, 2] and refused.get('reason="types"') == 2

        await until(is_counted, "two of each")


async def test_the_limit_of_an_address_counts_a_handshake_once() -> None:
    async with Service(
        MAX_CONNECTIONS_PER_ADDRESS=3, TRUSTED_PROXIES="127.0.0.1", WORKERS=1
    ) as service:
        held = []
        for number in range(3):
            head = SLOW_HEAD if number % 2 else HEAD
            reader, writer = await open_to(service)
            held.append(writer)
            writer.write(head.replace(b"Host:", b"X-Forwarded-For: 192.0.2.9\r\nHost:") + REQUEST)
            await reader.readuntil(b'"replyTo":"behind"')
        for head in (HEAD, SLOW_HEAD):
            more = head.replace(b"Host:", b"X-Forwarded-For: 192.0.2.9\r\nHost:")
            assert (await answer(service, more))[0].split()[1] == b"429"
        other = HEAD.replace(b"Host:", b"X-Forwarded-For: 192.0.2.10\r\nHost:")
        await welcomed(service, other + REQUEST)
        for writer in held:
            writer.transport.abort()


async def test_silent_connections_go_on_over_a_reload(service: Service) -> None:
    reader, writer = await open_to(service)
    _, half_writer = await open_to(service)
    half_writer.write(HEAD[:20])
    await half_writer.drain()
    await service.hup()
    writer.write(HEAD + REQUEST)
    async with asyncio.timeout(DEADLINE):
        assert b" 101 " in await reader.readuntil(b"\r\n")
    writer.transport.abort()
    half_writer.transport.abort()


@pytest.mark.needs("strace")
async def test_system_calls_of_a_connect(tmp_path: Path) -> None:
    """Counts, not times: what a client costs that connects, asks for something and leaves."""
    clients = 300
    async with Service(WORKERS=1) as service:
        (worker,) = service.worker_pids()
        await welcomed(service, HEAD + REQUEST)
        trace = tmp_path / "trace"
        strace = await asyncio.create_subprocess_exec(
            "strace", "-f", "-p", str(worker), "-o", str(trace), "-e",
            "trace=network,read,write,close,ioctl,epoll_ctl,fcntl",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert strace.stderr is not None
        await strace.stderr.readuntil(b"attached")
        for _ in range(clients):
            await welcomed(service, HEAD + REQUEST)
        await until(lambda: trace.read_text().count(" close(") >= clients, "all are gone")
        strace.terminate()
        await strace.wait()
    calls: Counter[Any] = Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert calls["accept4"] <= 2.2 * clients, "the connection, and that there is no other"
    assert calls["epoll_ctl"] <= 4.3 * clients
    assert calls["setsockopt"] < 0.1 * clients
    assert calls["write"] + calls["sendto"] <= 1.5 * clients
    assert calls["fcntl"] <= 4.5 * clients, "the lock of the slot table, twice"
