"""Heartbeats of both protocols, with short settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.plain import PlainClient
from tests.support.raw import CLOSE, PING, PONG, TEXT, RawClient, encode, text
from tests.support.service import Service
from tests.support.sioclient import packet, raw_socketio, sio_clients
from tests.support.waiting import until


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Pings after a second, timeout after two."""
    running = Service(HEARTBEAT_INTERVAL="1s", HEARTBEAT_TIMEOUT="2s").start()
    yield running
    running.stop()


async def ended_with_4408(client: RawClient) -> list[str]:
    """Read to the close without ever answering; payloads of the text frames before it."""
    before, frame = await client.until_frame(CLOSE)
    assert frame.close_code == 4408
    return [one.payload.decode() for one in before if one.opcode == TEXT]


async def test_a_silent_plain_client_is_closed(service: Service) -> None:
    async with await RawClient.open(service) as client:
        texts = await ended_with_4408(client)
        assert '"HEARTBEAT_TIMEOUT"' in texts[-1]
        # Not even the close frame is answered: the server does not wait for ever.
        await client.to_end()
        await service.wait_connections(0)
    await until(lambda: "Connections closed: no input for too long" in service.log)


async def test_plain_clients_get_websocket_pings(service: Service) -> None:
    async with await RawClient.open(service) as client:
        for _ in range(4):
            _, ping = await client.until_frame(PING)
            await client.send(PONG, ping.payload)
        await client.ask("ping", "alive")
        assert (await client.envelope("pong"))["data"]["payload"] == "alive"


async def test_any_byte_is_a_sign_of_life(service: Service) -> None:
    """A frame that arrives slowly keeps its connection; the clock starts at its last byte."""
    frame = encode(TEXT, text("ping", "slow"))
    async with await RawClient.open(service) as client:
        pings = 0
        for byte in frame[:8]:
            await client.write(bytes([byte]))
            await asyncio.sleep(0.5)
        await client.write(frame[8:])
        while True:
            got = await client.frame()
            pings += got.opcode == PING
            assert got.opcode != CLOSE
            if b'"pong"' in got.payload:
                break


async def test_half_a_frame_and_silence(service: Service) -> None:
    async with await RawClient.open(service) as client:
        await client.write(encode(TEXT, b"x" * 1000)[:500])
        await ended_with_4408(client)
    await service.wait_connections(0)


async def test_engineio_announces_interval_and_rest(service: Service) -> None:
    async with await raw_socketio(service) as client:
        _, data = packet((await client.frame()).payload)
        assert (data["pingInterval"], data["pingTimeout"]) == (1000, 1000)


async def test_a_silent_socketio_client_is_closed(service: Service) -> None:
    """No DISCONNECT packet: the client shall come back by itself."""
    async with sio_clients(service) as [watcher]:
        await watcher.call("enter", {"room": "watchers"})
        async with await raw_socketio(service) as client:
            await client.send(TEXT, b'40{"name":"mute"}')
            texts = await ended_with_4408(client)
            assert "2" in texts, "an Engine.IO ping"
            assert not [one for one in texts if one.startswith("41")]
        (gone,) = await watcher.wait_event("gone")
        assert (gone["name"], gone["reason"]) == ("mute", "ping timeout")
        await service.wait_connections(1)
    await service.wait_connections(0)


async def test_silent_before_connect(service: Service) -> None:
    async with await raw_socketio(service) as client:
        await ended_with_4408(client)
    await service.wait_connections(0)


async def test_socketio_client_that_answers_stays(service: Service) -> None:
    async with await raw_socketio(service) as client:
        await client.send(TEXT, b"40")
        pings = 0
        while pings < 4:
            frame = await client.frame()
            if frame.payload == b"2":
                pings += 1
                await client.send(TEXT, b"3")
        await client.send(TEXT, b'420["echo",1]')
        while not (await client.frame()).payload.startswith(b"430"):
            pass


async def test_the_libraries_stay(service: Service) -> None:
    """Longer than two timeouts, with their own answers to pings."""
    plain = await PlainClient.open(service)
    async with sio_clients(service) as [client], await RawClient.open(service) as clock:
        for _ in range(5):
            _, ping = await clock.until_frame(PING)
            await clock.send(PONG, ping.payload)
        await plain.barrier()
        assert await client.call("echo", 1) == 1
    await plain.close()


@pytest.fixture
async def mute(service: Service) -> AsyncIterator[list[RawClient]]:
    """Fifty connections of both protocols that never answer."""
    clients = [await RawClient.open(service) for _ in range(25)]
    clients += [await raw_socketio(service) for _ in range(25)]
    yield clients
    for client in clients:
        await client.abort()


async def test_many_silent_clients_leave_nothing(service: Service, mute: list[RawClient]) -> None:
    await asyncio.gather(*(ended_with_4408(client) for client in mute))
    await asyncio.gather(*(client.abort() for client in mute))
    await service.wait_connections(0)
