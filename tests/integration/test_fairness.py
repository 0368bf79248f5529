"""A request costs its sender, and not the other clients."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from tests.support.plain import PlainClient
from tests.support.raw import CLOSE, CONTINUATION, PING, PONG, TEXT, RawClient, encode, text
from tests.support.service import Service

pytestmark = pytest.mark.long

PLAIN = "/ws/realtime"
SOCKETIO = "/ws/realtime/?EIO=4&transport=websocket"

# Presence


async def test_a_flood_of_presence_requests_delays_nothing(service: Service) -> None:
    """6 000 requests, which a scan of all users for each would answer in half a minute."""
    before = {row["pid"] for row in (await service.get("/status")).body["workers"]}
    witness = await PlainClient.open(service, types="status")
    askers = [await RawClient.open(service) for _ in range(60)]
    requests = encode(TEXT, text("presence", {"type": "status"})) * 100
    await asyncio.gather(*(asker.write(requests) for asker in askers))
    sent = await service.publish("status", "meanwhile")
    await witness.wait_seq("status", sent["seq"])

    async def answered(asker: RawClient) -> None:
        for _ in range(100):
            assert (await asker.envelope("presence_data"))["data"]["connections"] >= 0

    async with asyncio.timeout(20):
        await asyncio.gather(*(answered(asker) for asker in askers))
    assert {row["pid"] for row in (await service.get("/status")).body["workers"]} == before
    for asker in askers:
        await asker.abort()
    await witness.close()


# Requests that are large or refused are not parsed

LISTS = b"[" + b"[]," * 300_000 + b"[]]"


@pytest.mark.parametrize("limit", [0, 1])
async def test_a_large_request_is_refused_unread(limit: int) -> None:
    async with Service(WORKERS=1, RATE_LIMIT=limit) as service:
        witness = await PlainClient.open(service, types="status")
        async with await RawClient.open(service) as client:
            for number in range(3):
                await client.write(
                    encode(TEXT, b'{"id":%d,"action":"ping","payload":%b}' % (number, LISTS))
                )
            answers = [await client.envelope("error") for _ in range(3)]
            assert [answer.get("replyTo") for answer in answers] == [0, 1, 2]
            codes = [answer["data"]["code"] for answer in answers]
            assert codes[0] == "MESSAGE_TOO_LARGE"
            assert set(codes) <= {"MESSAGE_TOO_LARGE", "RATE_LIMITED"}
            sent = await service.publish("status", "meanwhile")
            await witness.wait_seq("status", sent["seq"])
        await witness.close()


async def test_what_the_rate_refuses_is_not_parsed() -> None:
    async with (
        Service(WORKERS=1, RATE_LIMIT=1) as service,
        await RawClient.open(service) as plain,
        await RawClient.open(service, SOCKETIO) as sio,
    ):
        await plain.write(encode(TEXT, text("ping")) + encode(TEXT, b'{"id":"mine", no JSON'))
        refused = await plain.envelope("error")
        assert (refused["data"]["code"], refused["replyTo"]) == ("RATE_LIMITED", "mine")
        await sio.write(encode(TEXT, b"40") + encode(TEXT, b'4217["ping", no JSON'))
        answer = b""
        while not answer.startswith(b"4317["):
            _, frame = await sio.until_frame(TEXT)
            answer = frame.payload
        assert json.loads(answer[4:])[0]["data"]["code"] == "RATE_LIMITED"


@pytest.mark.parametrize(
    ("sent", "handlers", "code"),
    [
        (b'420["ping",%b]' % LISTS, "tests.support.handlers", "MESSAGE_TOO_LARGE"),
        (b'420["%b",1]' % (b"x" * 20_000), "", "MESSAGE_TOO_LARGE"),
        (b'420["echo","%b"]' % (b"x" * 70_000), "tests.support.handlers", "MESSAGE_TOO_LARGE"),
        (b'420["echo",[%b0]]' % (b"0," * 2000), "", "MESSAGE_TOO_LARGE"),
        (b'420["nothing","%b"]' % (b"x" * 60_000), "tests.support.handlers", "INVALID_ACTION"),
    ],
    ids=["action", "no-handlers", "event", "many-values", "allowed"],
)
async def test_sizes_over_socketio(sent: bytes, handlers: str, code: str) -> None:
    async with (
        Service(WORKERS=1, HANDLERS=handlers) as service,
        await RawClient.open(service, SOCKETIO) as client,
    ):
        await client.write(encode(TEXT, b"40") + encode(TEXT, sent))
        answer = b""
        while not answer.startswith((b"430[", b'42["error"')):
            _, frame = await client.until_frame(TEXT)
            answer = frame.payload
        (envelope,) = json.loads(answer[3:])[-1:]
        assert envelope["data"]["code"] == code


# Frames that are no message


@pytest.mark.parametrize(
    ("path", "before", "flood"),
    [
        (PLAIN, b"", encode(PING)),
        (PLAIN, b"", encode(PONG)),
        (PLAIN, encode(TEXT, b"", fin=False), encode(CONTINUATION, b"", fin=False)),
        (PLAIN, encode(TEXT, b"", fin=False), encode(CONTINUATION, b"x", fin=False)),
        (SOCKETIO, encode(TEXT, b"40"), encode(TEXT, b"3")),
    ],
    ids=["ping", "pong", "empty-fragments", "small-fragments", "engineio-pong"],
)
async def test_a_flood_of_frames_is_closed(path: str, before: bytes, flood: bytes) -> None:
    async with Service(WORKERS=1) as service, await RawClient.open(service, path) as client:

        async def send() -> None:
            with contextlib.suppress(ConnectionError):
                await client.write(before)
                for _ in range(10_000):
                    await client.write(flood * 1000)

        sending = asyncio.create_task(send())
        while (frame := await client.frame()).opcode != CLOSE:
            pass
        assert frame.close_code == 4429
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.parametrize("kind", ["5", "6", "2", ""])
async def test_engineio_packets_count_as_messages(kind: str) -> None:
    async with (
        Service(WORKERS=1, RATE_LIMIT=10) as service,
        await RawClient.open(service, SOCKETIO) as client,
    ):
        await client.write(encode(TEXT, b"40") + encode(TEXT, kind.encode()) * 200)
        while (frame := await client.frame()).opcode != CLOSE:
            pass
        assert frame.close_code == (4429 if kind else 1002)


async def test_bytes_beyond_the_share_are_read_slowly() -> None:
    """Three messages of 1 MB, which no other client waits for, are all answered in the end."""
    async with Service(WORKERS=1, RATE_LIMIT_BYTES="1MB") as service:
        witness = await PlainClient.open(service, types="status")
        async with await RawClient.open(service) as client:
            for _ in range(3):
                await client.write(encode(TEXT, text("ping", "x" * 1_000_000)))
            for _ in range(3):
                assert (await client.envelope("error"))["data"]["code"] == "MESSAGE_TOO_LARGE"
            sent = await service.publish("status", "meanwhile")
            await witness.wait_seq("status", sent["seq"])
        await witness.close()


# HTTP


async def test_an_address_that_asks_for_too_much_is_refused_and_publishers_are_not() -> None:
    async with Service(WORKERS=1, HTTP_RATE_LIMIT=2) as service:
        answers = await asyncio.gather(*(service.get("/ws/stats") for _ in range(60)))
        assert {answer.status for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.body["code"] == "RATE_LIMITED"
        assert int(refused.headers["Retry-After"]) > 0
        sent = await service.publish("status", "still")
        assert sent["seq"] > 0
        client = await PlainClient.open(service)
        await client.barrier()
        await client.close()


async def test_wrong_publish_tokens_are_refused_after_some() -> None:
    async with Service(WORKERS=1) as service:

        async def guess(number: int) -> int:
            return (await service.post("/ws/broadcast", {}, token=f"wrong{number}")).status

        codes = await asyncio.gather(*(guess(number) for number in range(40)))
        assert set(codes) == {401, 429}
        assert codes.count(401) <= 25
        sent = await service.publish("status", "still")
        assert sent["seq"] > 0
