"""Plain JSON: actions, envelopes, subscriptions, history and recovery (docs/PROTOCOL.md)."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.envelopes import Envelope, flatten, walk
from tests.support.fixtures import Opener
from tests.support.plain import PlainClient, spread
from tests.support.raw import CLOSE, TEXT, RawClient, encode, text
from tests.support.service import Service
from tests.support.waiting import until

ANSWER = {"id", "type", "timestamp", "direction", "event", "data", "replyTo"}
STREAM = {"id", "type", "timestamp", "direction", "event", "data", "seq", "epoch"}
TYPES = {"status", "stats", "health", "config", "system"}


def is_uuid(value: object) -> bool:
    try:
        return str(uuid.UUID(str(value))) == value
    except ValueError:
        return False


def check_envelope(got: Envelope, fields: set[str]) -> None:
    """Fields of an envelope exactly, and their kinds."""
    assert set(got) == fields, got
    assert is_uuid(got["id"]), got
    assert got["direction"] == "server-to-client"
    assert isinstance(got["timestamp"], int)
    assert 1e12 < got["timestamp"] < 1e13, "milliseconds"
    assert isinstance(got["data"], dict | list | str | int | float | bool | None)


def streamed(client: PlainClient, type: str) -> list[int]:
    """Every `seq` of a type that came to a client."""
    return [got["seq"] for got in client.received if got["type"] == type and "seq" in got]


# connected


async def test_connected_is_first_and_complete(plain: Opener) -> None:
    client = await plain(user="ann")
    got = await client.expect("connected")
    assert client.received[0] is got
    check_envelope(got, ANSWER - {"replyTo"})
    assert got["type"] == "system"
    assert set(got["data"]) == {
        "connectionId",
        "resume",
        "user",
        "serverTime",
        "supportedTypes",
        "subscriptions",
        "heartbeatInterval",
        "heartbeatTimeout",
        "recoveryWindow",
        "maxReconnectAttempts",
        "maxMessageSize",
    }
    data = got["data"]
    assert data["user"] == "ann"
    assert set(data["supportedTypes"]) == TYPES
    assert set(data["subscriptions"]) == {"status", "stats", "health"}
    assert (data["heartbeatInterval"], data["heartbeatTimeout"]) == (30_000, 60_000)
    assert data["recoveryWindow"] == 60_000
    assert data["maxMessageSize"] == 1_048_576
    assert isinstance(data["resume"], str)
    assert data["resume"]


@pytest.mark.parametrize("path", ["/ws/realtime", "/ws/realtime/"])
async def test_path_with_and_without_slash(service: Service, path: str) -> None:
    async with await RawClient.open(service, path) as client:
        assert client.status == 101
        assert "sec-websocket-extensions" not in client.headers
        await client.envelope("connected")


async def test_types_in_the_query_replace_the_defaults(plain: Opener) -> None:
    some = await plain(types="config,system")
    none = await plain(types="")
    assert set((await some.expect("connected"))["data"]["subscriptions"]) == {"config", "system"}
    assert (await none.expect("connected"))["data"]["subscriptions"] in ([], {})


async def test_anonymous_users_differ() -> None:
    """A client without a name is a user of its own, and makes no claim."""
    async with Service(WORKERS=1) as service:
        clients = [await PlainClient.open(service) for _ in range(5)]
        await asyncio.gather(*(client.barrier() for client in clients))

        async def counted() -> bool:
            return bool((await service.get("/ws/stats")).body["uniqueUsers"] == 5)

        await until(counted, "five anonymous users")
        await asyncio.gather(*(client.close() for client in clients))


# Messages of a stream


async def test_message_of_a_stream_is_a_complete_envelope(service: Service, plain: Opener) -> None:
    client = await plain()
    await client.barrier()
    data = {"text": "déjà 你好 \u2028", "list": [1, 2.5, None, True]}
    ident = str(uuid.uuid4())
    answer = await service.publish("health", "check_done", data, id=ident)
    assert set(answer) == {"id", "type", "seq", "epoch"}
    got = await client.expect("check_done")
    check_envelope(got, STREAM)
    assert (got["type"], got["data"]) == ("health", data)
    assert (got["id"], got["seq"], got["epoch"]) == (ident, answer["seq"], answer["epoch"])


async def test_only_subscribed_types_come(service: Service, plain: Opener) -> None:
    client = await plain(types="status")
    await client.barrier()
    await service.publish("config", "not_for_you")
    sent = await service.publish("status", "for_you")
    await client.wait_seq("status", sent["seq"])
    await client.barrier()
    assert not client.events("not_for_you")


async def test_messages_reach_every_worker(service: Service) -> None:
    clients = await spread(service, types="status")
    first = await service.publish()
    for _ in range(9):
        last = await service.publish()
    for client in clients:
        await client.wait_seq("status", last["seq"])
        assert streamed(client, "status")[-10:] == list(range(first["seq"], last["seq"] + 1))
        await client.close()


# Default subscriptions wait


async def test_nothing_of_the_defaults_before_the_first_frame_is_handled(
    service: Service, plain: Opener
) -> None:
    """Position at the handshake; written after the first frame: nothing lost, nothing early."""
    client = await plain()
    await client.expect("connected")
    sent = await service.publish("status", "early")
    answer = await client.request("subscribe", {"types": ["config"]})
    await client.wait_seq("status", sent["seq"])
    assert client.received.index(answer) < client.received.index(client.events("early")[0])


async def test_defaults_flow_without_any_frame(service: Service, plain: Opener) -> None:
    client = await plain()
    await client.expect("connected")
    sent = await service.publish("status", "for_the_silent")
    await client.wait_seq("status", sent["seq"])
    assert streamed(client, "status")[0] <= sent["seq"]


async def test_recover_in_the_first_frame_comes_before_anything_new(
    service: Service, plain: Opener
) -> None:
    start = await service.publish("status", "seen")
    missed = [await service.publish("status", "missed") for _ in range(3)]
    client = await plain()
    await client.expect("connected")
    new = await service.publish("status", "new")
    recover = {"status": {"epoch": start["epoch"], "seq": start["seq"]}}
    answer = await client.request("subscribe", {"types": ["status"], "recover": recover})
    await client.wait_seq("status", new["seq"])
    assert answer["data"]["types"]["status"]["from"] == start["seq"] + 1
    assert streamed(client, "status") == [one["seq"] for one in [*missed, new]]


# subscribe, unsubscribe


async def test_subscribed_names_the_position_of_each_type(service: Service, plain: Opener) -> None:
    before = await service.publish("config")
    client = await plain(types="")
    got = await client.request("subscribe", {"types": ["config", "system"]})
    check_envelope(got, ANSWER)
    assert (got["event"], got["type"]) == ("subscribed", "config")
    assert set(got["data"]) == {"types", "batch"}
    assert got["data"]["batch"] is False
    assert set(got["data"]["types"]) == {"config", "system"}
    position = got["data"]["types"]["config"]
    assert {"epoch", "seq", "recovered"} <= set(position) <= {"epoch", "seq", "recovered", "from"}
    assert (position["epoch"], position["recovered"]) == (before["epoch"], False)
    after = await service.publish("config")
    await client.wait_seq("config", after["seq"])
    first = streamed(client, "config")[0]
    # `seq` is where live begins: the last one before it, or the first of it.
    assert first - position["seq"] in (0, 1)


async def test_all_stands_for_every_type(service: Service, plain: Opener) -> None:
    client = await plain(types="")
    got = await client.request("subscribe", {"types": ["all"]})
    assert set(got["data"]["types"]) == TYPES
    for type in sorted(TYPES):
        sent = await service.publish(type, "to_all")
        await client.wait_seq(type, sent["seq"])
    gone = await client.request("unsubscribe", {"types": ["all"]})
    assert (gone["event"], gone["type"], gone["data"]["types"]) == ("unsubscribed", "config", [])
    await service.publish("status", "to_no_client")
    await client.barrier()
    assert not client.events("to_no_client")


async def test_unsubscribe_leaves_the_others(service: Service, plain: Opener) -> None:
    client = await plain()
    got = await client.request("unsubscribe", {"types": ["stats"]})
    check_envelope(got, ANSWER)
    assert set(got["data"]) == {"types"}
    assert set(got["data"]["types"]) == {"status", "health"}
    await service.publish("stats", "left_out")
    sent = await service.publish("status")
    await client.wait_seq("status", sent["seq"])
    await client.barrier()
    assert not client.events("left_out")


async def test_subscribe_with_history(service: Service, plain: Opener) -> None:
    for number in range(5):
        last = await service.publish("system", "past", {"n": number})
    client = await plain(types="")
    answer = await client.request("subscribe", {"types": ["system"], "history": 3})
    history = await client.expect("history_data")
    assert client.received.index(answer) < client.received.index(history)
    assert history["type"] == "system"
    assert [one["data"]["n"] for one in history["data"]["messages"]] == [2, 3, 4]
    live = await service.publish("system", "now")
    await client.wait_seq("system", live["seq"])
    assert streamed(client, "system") == [last["seq"] + 1]


# get_history


async def test_get_history_pages_back(service: Service, plain: Opener) -> None:
    client = await plain(types="")
    sent = await service.publish_all(
        {"type": "health", "event": "paged", "data": {"n": n}} for n in range(120)
    )
    newest = await client.request("get_history", {"type": "health"})
    check_envelope(newest, ANSWER)
    assert (newest["event"], newest["type"]) == ("history_data", "health")
    assert set(newest["data"]) == {"messages", "more"}
    messages = newest["data"]["messages"]
    assert [one["seq"] for one in messages] == [one["seq"] for one in sent[-50:]]
    assert newest["data"]["more"] is True
    for one in messages:
        check_envelope(one, STREAM)
    page = await client.request(
        "get_history", {"type": "health", "limit": 100, "before": sent[10]["seq"]}
    )
    numbers = [one["data"]["n"] for one in page["data"]["messages"] if one["event"] == "paged"]
    assert numbers == list(range(10))
    first = await client.request("get_history", {"type": "health", "limit": 1, "before": 2})
    assert [one["seq"] for one in first["data"]["messages"]] == [1]
    assert first["data"]["more"] is False
    none = await client.request("get_history", {"type": "health", "before": 1})
    assert none["data"] == {"messages": [], "more": False}


async def test_history_of_an_untouched_type_is_empty(plain: Opener, service: Service) -> None:
    async with Service(WORKERS=1, MESSAGE_TYPES="orders") as other:
        client = await PlainClient.open(other)
        got = await client.request("get_history", {"type": "orders"})
        assert got["data"] == {"messages": [], "more": False}
        assert "orders" in client.events("connected")[0]["data"]["supportedTypes"]
        sent = await other.publish("orders", "order_placed", {"n": 1})
        assert sent["seq"] == 1
        await client.close()


# ping, ack, presence


@pytest.mark.parametrize("payload", [{"a": [1]}, [], "x", 0, False])
async def test_ping_returns_any_payload(plain: Opener, payload: object) -> None:
    client = await plain()
    got = await client.request("ping", payload)
    check_envelope(got, ANSWER)
    assert (got["event"], got["type"]) == ("pong", "config")
    assert set(got["data"]) == {"payload", "serverTime"}
    assert got["data"]["payload"] == payload
    assert isinstance(got["data"]["serverTime"], int)


async def test_only_action_is_required(plain: Opener) -> None:
    client = await plain()
    await client.socket.send('{"action":"ping"}')
    got = await client.expect("pong")
    assert got["data"]["payload"] is None


async def test_ack_has_no_reply(service: Service, plain: Opener) -> None:
    client = await plain()
    await client.barrier()
    sent = await service.publish("status", "to_ack")
    await client.wait_seq("status", sent["seq"])
    ident = await client.send("ack", {"id": sent["id"]})
    await client.barrier()
    assert not [got for got in client.received if got.get("replyTo") == ident]
    assert not client.events("error")


async def test_presence_counts_all_workers(service: Service) -> None:
    clients = await spread(service, types="health", user="pat")
    clients += [await PlainClient.open(service, types="health", user="sam")]
    clients += [await PlainClient.open(service, types="status", user="sam")]
    asker = clients[0]

    async def counted() -> bool:
        got = await asker.request("presence", {"type": "health"})
        assert (got["event"], got["type"]) == ("presence_data", "config")
        assert set(got["data"]) == {"connections", "users"}
        return bool(got["data"] == {"connections": 3, "users": 2})

    await until(counted, "presence of three connections of two users")
    for client in clients:
        await client.close()


# Recovery and gaps


async def test_recover_in_any_worker(service: Service) -> None:
    clients = await spread(service, types="")
    start = await service.publish("system", "seen")
    missed = await service.publish_all(
        {"type": "system", "event": "missed", "data": n} for n in range(250)
    )
    recover = {"system": {"epoch": start["epoch"], "seq": start["seq"]}}
    for client in clients:
        answer = await client.request("subscribe", {"types": ["system"], "recover": recover})
        position = answer["data"]["types"]["system"]
        assert position["recovered"] is True
        assert position["from"] == start["seq"] + 1
        live = await service.publish("system", "live")
        await client.wait_seq("system", live["seq"])
        assert streamed(client, "system") == list(range(missed[0]["seq"], live["seq"] + 1))
        first = next(got for got in client.received if "seq" in got)
        assert client.received.index(answer) < client.received.index(first)
        await client.close()


async def test_recover_at_the_newest_replays_nothing(service: Service, plain: Opener) -> None:
    start = await service.publish("config")
    client = await plain(types="")
    recover = {"config": {"epoch": start["epoch"], "seq": start["seq"]}}
    answer = await client.request("subscribe", {"types": ["config"], "recover": recover})
    assert answer["data"]["types"]["config"]["recovered"] is True
    live = await service.publish("config")
    await client.wait_seq("config", live["seq"])
    assert streamed(client, "config") == [live["seq"]]


async def test_recover_from_another_epoch_is_reported(service: Service, plain: Opener) -> None:
    sent = await service.publish("config")
    client = await plain(types="")
    recover = {"config": {"epoch": "00000000", "seq": sent["seq"]}}
    answer = await client.request("subscribe", {"types": ["config"], "recover": recover})
    assert answer["event"] == "subscribed", answer
    position = answer["data"]["types"]["config"]
    assert position["recovered"] is False
    assert position["epoch"] == sent["epoch"]
    gap = await client.expect("gap")
    assert gap["data"]["reason"] == "epoch"
    live = await service.publish("config")
    await client.wait_seq("config", live["seq"])
    walk(client.received, "config")


async def test_trimmed_history_is_announced_as_a_gap(tmp_path: Path) -> None:
    """After a restart, so that no worker's memory helps out."""
    settings: dict[str, Any] = {
        "WORKERS": 1,
        "HISTORY_SIZE": 10,
        "RECOVERY_WINDOW": "1s",
        "data_dir": tmp_path,
    }
    async with Service(**settings) as service:
        start = await service.publish("system", "seen")

        async def trimmed() -> bool:
            await service.publish("system", "filler")
            oldest: int = (await service.full_history("system"))[0]["seq"]
            return oldest > start["seq"] + 1

        await until(trimmed, "the oldest messages trimmed")
    async with Service(**settings) as service:
        client = await PlainClient.open(service, types="")
        recover = {"system": {"epoch": start["epoch"], "seq": start["seq"]}}
        answer = await client.request("subscribe", {"types": ["system"], "recover": recover})
        assert answer["data"]["types"]["system"]["recovered"] is False
        live = await service.publish("system", "live")
        await client.wait_seq("system", live["seq"])
        gap = client.events("gap")[0]
        check_envelope(gap, ANSWER - {"replyTo"})
        assert gap["type"] == "system"
        assert set(gap["data"]) == {"first", "last", "epoch", "reason"}
        assert gap["data"]["first"] == start["seq"] + 1
        assert (gap["data"]["reason"], gap["data"]["epoch"]) == ("history", start["epoch"])
        story = walk(client.received, "system")
        assert story.last == live["seq"]
        assert story.seqs[-1] == live["seq"]
        await client.close()


# batch


@pytest.mark.parametrize("way", ["query", "subscribe"])
async def test_batch_update_only_for_clients_that_asked(
    service: Service, plain: Opener, way: str
) -> None:
    batched = await plain(types="health", batch=1) if way == "query" else await plain(types="")
    if way == "subscribe":
        answer = await batched.request("subscribe", {"types": ["health"], "batch": True})
        assert answer["data"]["batch"] is True
    single = await plain(types="health")
    await asyncio.gather(batched.barrier(), single.barrier())
    sent: list[Envelope] = []

    async def storm() -> bool:
        messages = [{"type": "health", "event": "many", "data": n} for n in range(50)]
        sent.extend(await service.publish_all(messages))
        await batched.wait_seq("health", sent[-1]["seq"])
        return bool(batched.events("batch_update"))

    await until(storm, "two messages in one flush")
    await single.wait_seq("health", sent[-1]["seq"])
    update = batched.events("batch_update")[0]
    assert set(update) <= ANSWER - {"replyTo"}
    assert set(update["data"]) == {"messages"}
    for one in update["data"]["messages"]:
        check_envelope(one, STREAM)
    expected = list(range(sent[0]["seq"], sent[-1]["seq"] + 1))
    assert walk(batched.received, "health").seqs == expected
    assert not single.events("batch_update")
    assert [got["seq"] for got in flatten(single.received) if "seq" in got] == expected


# resume


async def _hanging(service: Service, **query: str) -> tuple[RawClient, str]:
    """A client that answers no ping, and its `resume`."""
    path = f"/ws/realtime?{urlencode(query)}"
    client = await RawClient.open(service, path)
    return client, (await client.envelope("connected"))["data"]["resume"]


async def test_resume_replaces_the_hanging_connection(service: Service) -> None:
    """The old one is closed with 4409, and the cap per user is applied after it."""
    hanging, resume = await _hanging(service, user="rita")
    others = [await PlainClient.open(service, user="rita") for _ in range(2)]
    back = await PlainClient.open(service, user="rita", resume=resume)
    await back.barrier()
    _, close = await hanging.until_frame(CLOSE)
    assert close.close_code == 4409
    await asyncio.gather(*(client.barrier() for client in others))
    for client in [*others, back]:
        await client.close()


async def test_resume_reaches_a_connection_of_another_worker(service: Service) -> None:
    """Connections come back until one has met the other worker; each replaces the last."""
    for _ in range(30):
        hanging, resume = await _hanging(service)
        holder = service.worker_of(hanging.port)
        back = await PlainClient.open(service, resume=resume)
        await back.barrier()
        successor = service.worker_of(back.port)
        _, close = await hanging.until_frame(CLOSE)
        assert close.close_code == 4409
        await back.close()
        if successor != holder:
            break
    else:
        pytest.fail("30 connections met only one worker")


async def test_a_duplicated_tab_leaves_the_first_one_alone(service: Service) -> None:
    """On its own worker and on another one."""
    first = await PlainClient.open(service, user="dora")
    connected = (await first.expect("connected"))["data"]
    holder, met = service.worker_of(first.port), set()
    for _ in range(30):
        second = await PlainClient.open(service, user="dora", resume=connected["resume"])
        data = (await second.expect("connected"))["data"]
        assert data["connectionId"] != connected["connectionId"]
        met.add(service.worker_of(second.port) == holder)
        await first.barrier()
        await second.close()
        if len(met) == 2:
            break
    assert len(met) == 2, "30 connections met only one worker"
    await first.close()


async def test_resume_of_another_user_replaces_no_connection(service: Service) -> None:
    hanging, resume = await _hanging(service, user="olga")
    async with await PlainClient.open(service, user="eve", resume=resume) as other:
        await other.barrier()
    await hanging.ask("ping", 1)
    assert (await hanging.envelope("pong"))["data"]["payload"] == 1
    await hanging.abort()


async def test_a_forged_resume_replaces_no_connection(service: Service, plain: Opener) -> None:
    victim = await plain(user="vic")
    resume = (await victim.expect("connected"))["data"]["resume"]
    forged = resume[:-2] + ("AA" if resume[-2:] != "AA" else "BB")
    other = await plain(user="vic", resume=forged)
    await other.barrier()
    await victim.barrier()


# Bytes that come early


async def test_bytes_sent_with_the_upgrade_are_read(service: Service) -> None:
    first, second = encode(TEXT, text("ping", 1)), encode(TEXT, text("ping", 2))
    async with await RawClient.open(service, early=first + second[:5]) as client:
        assert (await client.envelope("pong"))["data"]["payload"] == 1
        await client.write(second[5:])
        assert (await client.envelope("pong"))["data"]["payload"] == 2


async def test_the_present_state_at_once(service: Service, plain: Opener) -> None:
    sent = [await service.publish("health", "tick", n) for n in range(3)]
    client = await plain(types="health,config", history=2)
    first = await client.expect("connected")
    past = [await client.expect("history_data") for _ in range(2)]
    assert client.received[:3] == [first, *past]
    found = {got["type"]: [one["seq"] for one in got["data"]["messages"]] for got in past}
    assert found["health"] == [one["seq"] for one in sent[1:]]
    assert "config" in found
    # Without a word of the client.
    more = await service.publish("health", "tick", 3)
    assert (await client.expect("tick"))["seq"] == more["seq"]
