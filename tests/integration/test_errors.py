"""Bad input costs its sender an error and no other client anything (promise 8)."""

from __future__ import annotations

import asyncio
import json

import pytest

from app.protocol.schema.limits import MAX_REQUEST_SIZE
from tests.support.envelopes import Envelope
from tests.support.fixtures import Opener
from tests.support.plain import PlainClient
from tests.support.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, RawClient, encode, text
from tests.support.service import Service
from tests.support.waiting import until

LIMIT = 1_048_576
SKIPPED = 64 * 1024


def check_error(got: Envelope, code: str) -> None:
    assert got["event"] == "error", got
    assert got["type"] == "error"
    assert set(got["data"]) == {"code", "message"}
    assert got["data"]["code"] == code, got
    assert got["data"]["message"]
    assert "Traceback" not in got["data"]["message"]


# Text that is no request


@pytest.mark.parametrize(
    "sent",
    ["", "{", "not json", '{"action":"ping"', '{"action":"ping"}}', "NaN", '{"action": NaN}',
     '{"action":"ping","payload":Infinity}'],
)  # fmt: skip
async def test_text_that_is_not_json(plain: Opener, sent: str) -> None:
    client = await plain()
    await client.socket.send(sent)
    check_error(await client.expect("error"), "PARSE_ERROR")
    await client.barrier()


async def test_json_nested_beyond_reason(plain: Opener) -> None:
    client = await plain()
    await client.socket.send('{"action":"ping","payload":' + "[" * 400 + "]" * 400 + "}")
    got = await client.expect("error")
    assert got["data"]["code"] in {"PARSE_ERROR", "INVALID_PAYLOAD"}
    await client.socket.send('{"action":"ping","payload":' + "[" * 100_000 + "]" * 100_000 + "}")
    check_error(await client.expect("error"), "MESSAGE_TOO_LARGE")
    await client.barrier()


@pytest.mark.parametrize("sent", ["[]", "1", '"ping"', "null", "true", '[{"action":"ping"}]'])
async def test_json_that_is_no_object(plain: Opener, sent: str) -> None:
    client = await plain()
    await client.socket.send(sent)
    got = await client.expect("error")
    assert got["data"]["code"] in {"PARSE_ERROR", "INVALID_PAYLOAD"}, got
    await client.barrier()


@pytest.mark.parametrize(
    "sent",
    [{}, {"action": "fly"}, {"action": None}, {"action": 7}, {"action": ["ping"]},
     {"action": ""}, {"action": "connected"}, {"payload": {}}, {"action": "__class__"}],
)  # fmt: skip
async def test_unknown_or_missing_action(plain: Opener, sent: dict[str, object]) -> None:
    client = await plain()
    await client.socket.send(json.dumps(sent))
    check_error(await client.expect("error"), "INVALID_ACTION")
    await client.barrier()


async def test_an_error_answers_the_id_of_its_request(plain: Opener) -> None:
    client = await plain()
    got = await client.request("subscribe", {"types": ["nope"]})
    check_error(got, "INVALID_TYPE")
    assert "replyTo" in got


@pytest.mark.parametrize("ident", [7, None, {"a": 1}, ["x"], "x" * 100_000])
async def test_odd_ids_do_no_harm(plain: Opener, ident: object) -> None:
    client = await plain()
    await client.socket.send(json.dumps({"id": ident, "action": "ping"}))
    await client.expect(lambda got: got["event"] in {"pong", "error"})
    await client.barrier()


# Payloads


@pytest.mark.parametrize(
    ("action", "payload", "code"),
    [
        ("subscribe", None, "INVALID_PAYLOAD"),
        ("subscribe", "status", "INVALID_PAYLOAD"),
        ("subscribe", {}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": "status"}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": [1]}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": [["status"]]}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["weather"]}, "INVALID_TYPE"),
        ("subscribe", {"types": ["config", "weather"]}, "INVALID_TYPE"),
        ("subscribe", {"types": ["error"]}, "SUBSCRIPTION_INVALID"),
        ("subscribe", {"types": ["config", "error"]}, "SUBSCRIPTION_INVALID"),
        ("subscribe", {"types": ["config"], "history": 0}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "history": 101}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "history": -1}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "history": "5"}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "history": 1.5}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "history": True}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "batch": "yes"}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "recover": []}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "recover": {"config": 5}}, "INVALID_PAYLOAD"),
        ("subscribe", {"types": ["config"], "recover": {"config": {}}}, "INVALID_PAYLOAD"),
        (
            "subscribe",
            {"types": ["config"], "recover": {"config": {"epoch": "x", "seq": -1}}},
            "INVALID_PAYLOAD",
        ),
        (
            "subscribe",
            {"types": ["config"], "recover": {"config": {"epoch": 3, "seq": 1}}},
            "INVALID_PAYLOAD",
        ),
        ("unsubscribe", None, "INVALID_PAYLOAD"),
        ("unsubscribe", {}, "INVALID_PAYLOAD"),
        ("unsubscribe", {"types": {}}, "INVALID_PAYLOAD"),
        ("unsubscribe", {"types": ["weather"]}, "INVALID_TYPE"),
        ("get_history", None, "INVALID_PAYLOAD"),
        ("get_history", {}, "INVALID_PAYLOAD"),
        ("get_history", {"type": 5}, "INVALID_PAYLOAD"),
        ("get_history", {"type": "weather"}, "INVALID_TYPE"),
        ("get_history", {"type": "status", "limit": 0}, "INVALID_PAYLOAD"),
        ("get_history", {"type": "status", "limit": 101}, "INVALID_PAYLOAD"),
        ("get_history", {"type": "status", "limit": "9"}, "INVALID_PAYLOAD"),
        ("get_history", {"type": "status", "limit": True}, "INVALID_PAYLOAD"),
        ("get_history", {"type": "status", "before": "x"}, "INVALID_PAYLOAD"),
        ("get_history", {"type": "status", "before": -1}, "INVALID_PAYLOAD"),
        ("get_history", {"type": "status", "before": 1.5}, "INVALID_PAYLOAD"),
        ("ack", None, "INVALID_PAYLOAD"),
        ("ack", {}, "INVALID_PAYLOAD"),
        ("ack", {"id": 5}, "INVALID_PAYLOAD"),
        ("presence", None, "INVALID_PAYLOAD"),
        ("presence", {}, "INVALID_PAYLOAD"),
        ("presence", {"type": "weather"}, "INVALID_TYPE"),
        ("auth", None, "INVALID_PAYLOAD"),
        ("auth", {}, "INVALID_PAYLOAD"),
        ("auth", {"token": 5}, "INVALID_PAYLOAD"),
    ],
)
async def test_wrong_payloads(plain: Opener, action: str, payload: object, code: str) -> None:
    client = await plain(types="")
    got = await client.request(action, payload)
    check_error(got, code)
    await client.barrier()


async def test_a_list_of_types_is_taken_completely_or_not_at_all(
    service: Service, plain: Opener
) -> None:
    client = await plain(types="")
    got = await client.request("subscribe", {"types": ["status", "weather"]})
    check_error(got, "INVALID_TYPE")
    await service.publish("status", "to_no_client")
    left = await client.request("unsubscribe", {"types": ["health"]})
    assert left["data"]["types"] == []
    assert not client.events("to_no_client")


async def test_a_subscribe_with_recover_may_be_repeated(service: Service, plain: Opener) -> None:
    """Its answer may have been lost; nothing is replayed a second time."""
    sent = await service.publish("status", "first")
    await service.publish("status", "second")
    client = await plain()
    wanted = {
        "types": ["status"],
        "recover": {"status": {"epoch": sent["epoch"], "seq": sent["seq"]}},
    }
    first = await client.request("subscribe", wanted)
    assert first["data"]["types"]["status"]["recovered"] is True
    await client.expect("second")
    again = await client.request("subscribe", wanted)
    assert again["event"] == "subscribed"
    assert again["data"]["types"]["status"]["recovered"] is False
    await client.barrier()
    assert len(client.events("second")) == 1


@pytest.mark.parametrize(
    ("types", "code"),
    [
        ("weather", b"INVALID_TYPE"),
        ("status,weather", b"INVALID_TYPE"),
        ("error", b"SUBSCRIPTION_INVALID"),
    ],
)
async def test_wrong_types_in_the_query(service: Service, types: str, code: bytes) -> None:
    """Refused before there is a connection, with the code of the action."""
    async with await RawClient.open(service, f"/ws/realtime?types={types}") as client:
        assert client.status == 400
        body = await client.reader.readexactly(int(client.headers["content-length"]))
        assert code in body


# Sizes


def sized(size: int) -> bytes:
    """A ping that is exactly so many bytes long."""
    empty = len(text("ping", ""))
    return text("ping", "x" * (size - empty))


async def test_the_largest_request_is_answered(service: Service) -> None:
    async with await RawClient.open(service) as client:
        await client.send(TEXT, sized(MAX_REQUEST_SIZE))
        got = await client.envelope("pong")
        assert len(got["data"]["payload"]) > MAX_REQUEST_SIZE - 100


@pytest.mark.parametrize("size", [MAX_REQUEST_SIZE + 1, LIMIT])
async def test_a_request_that_is_too_large_is_refused(service: Service, size: int) -> None:
    async with await RawClient.open(service) as client:
        await client.send(TEXT, b'{"id":"large",' + sized(size - 13)[1:])
        got = await client.envelope("error")
        check_error(got, "MESSAGE_TOO_LARGE")
        assert got["replyTo"] == "large"
        await client.ask("ping", "alive")
        assert (await client.envelope("pong"))["data"]["payload"] == "alive"


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + SKIPPED])
async def test_a_little_too_large_is_skipped(service: Service, size: int) -> None:
    async with await RawClient.open(service) as client:
        await client.send(TEXT, sized(size))
        check_error(await client.envelope("error"), "MESSAGE_TOO_LARGE")
        await client.ask("ping", "alive")
        assert (await client.envelope("pong"))["data"]["payload"] == "alive"


async def test_fragments_count_together(service: Service) -> None:
    async with await RawClient.open(service) as client:
        await client.send(TEXT, b"x" * LIMIT, fin=False)
        await client.send(CONTINUATION, b"x", fin=True)
        check_error(await client.envelope("error"), "MESSAGE_TOO_LARGE")
        await client.ask("ping", "alive")
        await client.envelope("pong")
        await client.send(TEXT, b"x" * LIMIT, fin=False)
        await client.send(CONTINUATION, b"x" * (SKIPPED + 1), fin=True)
        messages, code = await client.to_close()
        assert messages[-1]["data"]["code"] == "MESSAGE_TOO_LARGE"
        assert code == 1009


async def test_far_too_large_is_closed(service: Service) -> None:
    async with await RawClient.open(service) as client:
        await client.send(TEXT, b"", length=LIMIT + SKIPPED + 1)
        messages, code = await client.to_close()
        check_error(messages[-1], "MESSAGE_TOO_LARGE")
        assert code == 1009
        await client.to_end()


async def test_the_header_of_a_hundred_megabytes(service: Service) -> None:
    """Refused on its header: not one byte of the payload is waited for."""
    async with await RawClient.open(service) as client:
        await client.send(TEXT, b"", length=100 * 1024 * 1024)
        messages, code = await client.to_close()
        check_error(messages[-1], "MESSAGE_TOO_LARGE")
        assert code == 1009


# Broken protocol


BROKEN = [
    ("continuation without start", encode(CONTINUATION, b"x"), 1002),
    ("unmasked frame", encode(TEXT, b"{}", mask=False), 1002),
    ("compressed without negotiation", encode(TEXT, b"{}", rsv=4), 1002),
    ("reserved bit", encode(TEXT, b"{}", rsv=1), 1002),
    ("reserved opcode", encode(0x3, b"x"), 1002),
    ("reserved control opcode", encode(0xB, b""), 1002),
    ("oversized ping", encode(PING, b"x" * 126), 1002),
    ("fragmented ping", encode(PING, b"x", fin=False), 1002),
    (
        "new message inside of another",
        encode(TEXT, b"a", fin=False) + encode(TEXT, b"b"),
        1002,
    ),
    ("close with half a code", encode(CLOSE, b"\x03"), 1002),
    ("close with a forbidden code", encode(CLOSE, b"\x03\xed"), 1002),
    ("close with a reason that is no text", encode(CLOSE, b"\x03\xe8\xff"), 1007),
    ("text that is no UTF-8", encode(TEXT, b'{"action":"\xff"}'), 1007),
    ("surrogate in UTF-8", encode(TEXT, b"\xed\xa0\x80"), 1007),
    ("length over 63 bits", b"\x81\xff" + b"\xff" * 8 + b"mask", 1002),
]


@pytest.mark.parametrize(("name", "sent", "code"), BROKEN, ids=[name for name, *_ in BROKEN])
async def test_broken_frames_close(service: Service, name: str, sent: bytes, code: int) -> None:
    """RFC 6455 7.4.1; no other client notices."""
    witness = await PlainClient.open(service)
    async with await RawClient.open(service) as client:
        await client.write(sent)
        _, got = await client.to_close()
        allowed = {code, 1009} if name.startswith("length") else {code}
        assert got in allowed, f"{name}: closed with {got}"
        await client.to_end()
    await witness.barrier()
    await witness.close()


async def test_a_binary_message_is_an_error(service: Service) -> None:
    """The plain protocol is text; the connection stays open."""
    async with await RawClient.open(service) as client:
        await client.send(BINARY, text("ping", 1))
        await client.send(TEXT, text("ping", 2))
        events = []
        while "pong" not in events:
            got = json.loads((await client.frame()).payload)
            if got["event"] == "error":
                assert got["data"]["code"] == "PARSE_ERROR"
            events.append(got["event"])
        assert [event for event in events if event in ("error", "pong")] == ["error", "pong"]


async def test_a_close_is_answered(service: Service) -> None:
    async with await RawClient.open(service) as client:
        await client.send(CLOSE, b"\x03\xe8bye")
        _, code = await client.to_close()
        assert code == 1000
        await client.to_end()


async def test_pings_between_fragments(service: Service) -> None:
    message = text("ping", "in pieces ✓")
    async with await RawClient.open(service) as client:
        await client.envelope("connected")
        await client.send(TEXT, message[:5], fin=False)
        await client.send(PING, b"one")
        _, pong = await client.until_frame(PONG)
        assert pong.payload == b"one"
        for at in range(5, len(message)):
            await client.send(CONTINUATION, message[at : at + 1], fin=False)
        await client.send(PING, b"two")
        await client.send(CONTINUATION, b"")
        _, pong = await client.until_frame(PONG)
        assert pong.payload == b"two"
        assert (await client.envelope("pong"))["data"]["payload"] == "in pieces ✓"


async def test_half_a_frame_delays_no_other_client(service: Service, plain: Opener) -> None:
    other = await plain()
    frame = encode(TEXT, text("ping", "late"))
    async with await RawClient.open(service) as client:
        await client.envelope("connected")
        await client.write(frame[:9])
        await other.barrier()
        sent = await service.publish()
        await other.wait_seq("status", sent["seq"])
        for byte in frame[9:]:
            await client.write(bytes([byte]))
        assert (await client.envelope("pong"))["data"]["payload"] == "late"


async def test_half_a_message_and_gone_leaves_nothing(service: Service) -> None:
    before = await service.total_connections()
    half = encode(TEXT, b"x" * 500_000)[:-1]
    clients = [await RawClient.open(service) for _ in range(10)]
    for client in clients:
        await client.write(half)
    for client in clients:
        await client.abort()
    await service.wait_connections(before)


async def test_the_sum_of_unfinished_messages_is_bounded() -> None:
    """Past MAX_INCOMING_BYTES the largest holder is closed with 1009."""
    async with Service(WORKERS=1, MAX_INCOMING_BYTES="2MB") as service:
        small = await RawClient.open(service)
        await small.write(encode(TEXT, text("ping", "x" * 50_000))[:-1])
        large = [await RawClient.open(service) for _ in range(4)]
        for client in large:
            await client.write(encode(TEXT, b"x" * 900_000)[:-1])

        async def code_of(client: RawClient) -> int:
            _, code = await client.to_close()
            return code

        tasks = [asyncio.create_task(code_of(client)) for client in large]
        done, _ = await asyncio.wait(tasks, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert done, "no connection was closed"
        assert all(task.result() == 1009 for task in done)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        witness = await PlainClient.open(service)
        await witness.barrier()
        await witness.close()
        for client in [small, *large]:
            await client.abort()


# Rate


async def test_rate_limit() -> None:
    async with Service(WORKERS=1, RATE_LIMIT=10) as service:
        client, other = await PlainClient.open(service), await PlainClient.open(service)
        for number in range(40):
            await client.socket.send(text("ping", number).decode())
        check_error(await client.expect("error"), "RATE_LIMITED")
        assert client.events("pong")
        await other.barrier()

        async def answered() -> bool:
            await client.send("ping", "patient")
            await asyncio.sleep(0.3)
            return any(got["data"]["payload"] == "patient" for got in client.events("pong"))

        await until(answered, "taken again after a second")
        await client.close()
        await other.close()


async def test_flood_is_closed() -> None:
    async with Service(WORKERS=1, RATE_LIMIT=10) as service:
        other = await PlainClient.open(service)
        async with await RawClient.open(service) as client:
            frames = encode(TEXT, text("ping", 1)) * 100

            async def flood() -> None:
                try:
                    for _ in range(1000):
                        await client.write(frames)
                except ConnectionError:
                    pass

            flooding = asyncio.create_task(flood())
            _, code = await client.to_close()
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            assert code == 4429
        await other.barrier()
        await other.close()


async def test_a_client_that_asks_and_leaves_at_once_is_no_failure(service: Service) -> None:
    """Its answer is given up before the work on it has begun."""
    await service.publish()
    before = service.log.count("Request failed")
    async with await RawClient.open(service) as client:
        ask = encode(TEXT, text("get_history", {"type": "status"}))
        await client.write(ask + encode(CLOSE, b"\x03\xe8"))
        await client.to_end()
    async with await PlainClient.open(service) as witness:
        await witness.barrier()
    assert service.log.count("Request failed") == before
