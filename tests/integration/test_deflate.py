"""permessage-deflate with a real service: other libraries, a reload, bombs."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.support.plain import endpoint
from tests.support.raw import TEXT, RawClient, encode
from tests.support.service import Service
from tests.support.waiting import DEADLINE

OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    running = Service(DEFLATE=1, MAX_MESSAGE_SIZE="64KB").start()
    yield running
    running.stop()


async def opened(service: Service, **parameters: Any) -> ClientConnection:
    factory = ClientPerMessageDeflateFactory(**parameters)
    return await connect(
        endpoint(service), extensions=[factory], compression=None, open_timeout=DEADLINE, proxy=None
    )


async def event(client: ClientConnection, name: str) -> dict[str, Any]:
    while True:
        async with asyncio.timeout(DEADLINE):
            got: dict[str, Any] = json.loads(await client.recv())
        if got["event"] == name:
            return got


def deflate(text: str) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (made.compress(text.encode()) + made.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def test_messages_and_requests_over_a_reload(service: Service) -> None:
    clients = [
        await opened(service, client_max_window_bits=True),
        await opened(service, server_max_window_bits=9, client_max_window_bits=9),
        await connect(endpoint(service), compression=None, proxy=None),
    ]
    assert [len(client.protocol.extensions) for client in clients] == [1, 1, 0]
    data = {"text": "déjà vu " * 500}
    for turn in range(2):
        await service.publish("status", "shown", data)
        for client in clients:
            assert (await event(client, "shown"))["data"] == data
            await client.send(
                json.dumps({"action": "ping", "id": "p", "payload": ["abc" * 900, turn]})
            )
            pong = await event(client, "pong")
            assert pong["data"]["payload"] == ["abc" * 900, turn]
        if not turn:
            await service.hup()
    await service.wait_connections(3)  # those of other tests may be about to go
    for client in clients:
        await client.close()


async def test_a_compressed_request_in_pieces_over_a_reload(service: Service) -> None:
    async with await RawClient.open(service, headers=OFFER) as client:
        await client.envelope("connected")
        request = json.dumps({"action": "ping", "id": "x", "payload": "é" * 2000})
        frame = encode(TEXT, deflate(request), rsv=4)
        await client.write(frame[:20])
        await service.hup()
        await client.write(frame[20:])
        _, pong = await client.until_frame(TEXT)
        assert json.loads(pong.payload)["data"]["payload"] == "é" * 2000


async def test_a_bomb_is_too_large(service: Service) -> None:
    async with await RawClient.open(service, headers=OFFER) as client:
        await client.envelope("connected")
        bomb = deflate(json.dumps({"action": "ping", "payload": "0" * 20_000_000}))
        assert len(bomb) < 64 * 1024
        await client.send(TEXT, bomb, rsv=4)
        got, code = await client.to_close()
        assert got[-1]["data"]["code"] == "MESSAGE_TOO_LARGE"
        assert code == 1009


async def test_what_is_broadcast_is_smaller_on_the_wire(service: Service) -> None:
    sizes = []
    for headers in (OFFER, {}):
        async with await RawClient.open(service, headers=headers) as client:
            await client.envelope("connected")
            await client.ask("ping", id="1")
            await client.until_frame(TEXT)
            await service.publish("status", "shown", {"text": "again and " * 300})
            _, frame = await client.until_frame(TEXT)
            sizes.append(len(frame.payload))
            assert frame.rsv == (4 if headers else 0)
    assert sizes[0] < sizes[1] / 10


async def test_it_is_off_unless_it_is_set() -> None:
    async with (
        Service(WORKERS=1) as service,
        await RawClient.open(service, headers=OFFER) as client,
    ):
        assert "sec-websocket-extensions" not in client.headers
        await client.envelope("connected")
        await client.send(TEXT, deflate("{}"), rsv=4)
        _, code = await client.to_close()
        assert code == 1002
