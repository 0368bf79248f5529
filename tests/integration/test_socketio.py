"""python-socketio as the session layer: what its documentation says, over several workers."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest
import socketio
import socketio.exceptions

from tests.support.envelopes import walk
from tests.support.plain import PlainClient
from tests.support.raw import CLOSE, TEXT, RawClient, encode
from tests.support.service import Service
from tests.support.sioclient import SioClient, on_two_workers, packet, raw_socketio, sio_clients
from tests.support.waiting import until

BOTH = pytest.mark.parametrize("namespace", ["/", "/app"])


# Handshake


@pytest.mark.parametrize("path", ["/ws/realtime", "/ws/realtime/"])
async def test_open_packet(service: Service, path: str) -> None:
    async with await raw_socketio(service, path=path) as client:
        kind, data = packet((await client.frame()).payload)
        assert kind == "0"
        assert data["upgrades"] == []
        assert (data["pingInterval"], data["pingTimeout"]) == (30_000, 30_000)
        assert data["maxPayload"] == 1_048_576
        assert isinstance(data["sid"], str)


async def test_nothing_is_written_before_connect(service: Service) -> None:
    """Whatever a connect handler emits; then `connected`, then the handler's own."""
    async with await raw_socketio(service) as client:
        assert (await client.frame()).payload[:1] == b"0"
        await client.send(TEXT, b'40{"greet":true}')
        kind, answer = packet((await client.frame()).payload)
        assert kind == "40"
        assert isinstance(answer["sid"], str)
        events: list[list[Any]] = []
        while not any(event[0] == "greeting" for event in events):
            kind, event = packet((await client.frame()).payload)
            assert kind == "42", (kind, event)
            events.append(event)
        assert events[0][0] == "connected"
        assert [event for event in events if event[0] == "greeting"] == [
            ["greeting", {"hello": answer["sid"]}]
        ]


async def test_a_connection_without_connect_gets_nothing(service: Service) -> None:
    async with await raw_socketio(service) as client:
        await client.frame()
        sent = await service.publish()
        witness = await PlainClient.open(service, types="status")
        again = await service.publish()
        await witness.wait_seq("status", again["seq"])
        assert again["seq"] > sent["seq"]
        await witness.close()
        await client.send(TEXT, b"40")
        assert packet((await client.frame()).payload)[0] == "40"


@pytest.mark.parametrize("query", ["EIO=4&transport=polling", "EIO=4", "EIO=3&transport=websocket"])
async def test_polling_and_old_versions_get_400(service: Service, query: str) -> None:
    answer = await service.request("GET", f"/ws/realtime/?{query}")
    assert answer.status == 400, answer
    assert set(answer.body) >= {"error", "code"}
    post = await service.request("POST", f"/ws/realtime/?{query}", data=b"40")
    assert 400 <= post.status < 500


async def test_bytes_sent_with_the_upgrade(service: Service) -> None:
    early = encode(TEXT, b"40") + encode(TEXT, b'420["echo",7]')
    async with await raw_socketio(service, early=early) as client:
        kinds = []
        while "430" not in kinds:
            kinds.append(packet((await client.frame()).payload)[0])
        assert kinds[:2] == ["0", "40"]


async def test_connected_event(service: Service) -> None:
    async with sio_clients(service, auth={"user": "ann"}) as [client]:
        (envelope,) = await client.wait_event("connected")
        assert client.events[0][0] == "connected"
        assert (envelope["event"], envelope["type"]) == ("connected", "system")
        assert envelope["data"]["user"] == "ann"
        assert set(envelope["data"]["subscriptions"]) == {"status", "stats", "health"}


# Refused


@BOTH
async def test_refused_connect(service: Service, namespace: str) -> None:
    before = await service.total_connections()
    client = SioClient((namespace,))
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.connect(service, {"refuse": True})
    assert client.refused[0]["message"] == "not you"
    assert client.refused[0]["data"] == {"why": "asked for it"}
    await client.close()
    await service.wait_connections(before)


async def test_refused_in_one_namespace_and_taken_in_another(service: Service) -> None:
    async with await raw_socketio(service) as client:
        await client.frame()
        await client.send(TEXT, b'40/app,{"refuse":true}')
        kind, data = packet((await client.frame()).payload)
        assert kind == "44/app,"
        assert data["message"] == "not you"
        await client.send(TEXT, b"40")
        kind, _ = packet((await client.frame()).payload)
        assert kind == "40"


async def test_an_unknown_namespace_is_refused(service: Service) -> None:
    client = SioClient(("/nowhere",))
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.connect(service)
    assert client.refused[0]["message"] == "Unknown namespace '/nowhere'."
    assert client.refused[0]["data"] == {"code": "INVALID_PAYLOAD"}
    await client.close()


@pytest.mark.parametrize("namespace", ["", "/app,"])
@pytest.mark.parametrize("auth", ['{"token":}', '{"a":1e400}', "[" * 200, "nothing"])
async def test_a_connect_that_cannot_be_read_is_refused(
    service: Service, namespace: str, auth: str
) -> None:
    async with await raw_socketio(service) as client:
        await client.send(TEXT, f"40{namespace}{auth}".encode())
        answer = await client.packet("44")
        assert answer.startswith(f"44{namespace}{{")
        assert json.loads(answer[2 + len(namespace) :])["data"]["code"] == "PARSE_ERROR"


async def test_an_event_that_cannot_be_read_answers_its_ack(service: Service) -> None:
    async with await raw_socketio(service) as client:
        await client.send(TEXT, b"40")
        await client.send(TEXT, b'427["echo",1e400]')
        (answer,) = json.loads((await client.packet("437"))[3:])
        assert answer["data"]["code"] == "PARSE_ERROR"


@BOTH
async def test_a_second_connect_is_refused_and_the_first_stays(
    service: Service, namespace: str
) -> None:
    async with await raw_socketio(service) as client:
        await client.frame()
        connect = b"40" if namespace == "/" else f"40{namespace},".encode()
        await client.send(TEXT, connect)
        await client.packet(connect.decode())
        await client.send(TEXT, connect)
        answer = await client.packet("44")
        assert json.loads(answer[answer.index("{") :]) == {
            "message": f"Already in the namespace '{namespace}'.",
            "data": {"code": "INVALID_PAYLOAD"},
        }
        await client.send(TEXT, connect.replace(b"40", b"42", 1) + b'1["echo","still here"]')
        assert (await client.packet("43")).endswith('1["still here"]')


# Events and acks


@BOTH
@pytest.mark.parametrize(
    "data",
    [
        "text",
        5,
        {"a": [1, None]},
        b"\x00\xff" * 1000,
        {"bin": b"123", "deep": [b"456", {"x": b""}]},
    ],
)
async def test_ack_returns_what_was_sent(service: Service, namespace: str, data: Any) -> None:
    async with sio_clients(service, namespaces=(namespace,)) as [client]:
        assert await client.call("echo", data, namespace) == data


async def test_the_action_ack_is_acknowledged(service: Service) -> None:
    """A client that repeats what is not acknowledged (`retries`) would hold back all that follows."""
    client = await SioClient().connect(service)
    assert await client.call("ack", {"id": "one"}) is None
    refused = await client.call("ack", {"id": ""})
    assert refused["data"]["code"] == "INVALID_PAYLOAD"
    await client.close()


async def test_ack_with_several_arguments_and_none(service: Service) -> None:
    async with sio_clients(service) as [client]:
        got = await client.sio.call("echo", ("a", 1, {"b": 2}))
        assert list(got) == ["a", 1, {"b": 2}]
        assert await client.call("rename", "no result") is None


@BOTH
async def test_server_calls_a_client(service: Service, namespace: str) -> None:
    async with sio_clients(service, 2, namespaces=(namespace,)) as [asker, asked]:
        asked.answers["question"] = lambda data: {"answer": data["n"] + 1}
        body = {"event": "question", "data": {"n": 41}, "sid": asked.sid(namespace)}
        assert await asker.call("ask", body, namespace) == {"answer": 42}


async def test_binary_from_server_and_back(service: Service) -> None:
    async with sio_clients(service, 2) as [asker, asked]:
        asked.answers["bytes"] = lambda data: {"back": data["raw"][::-1]}
        body = {"event": "bytes", "data": {"raw": b"abc"}, "sid": asked.sid()}
        assert await asker.call("ask", body) == {"back": b"cba"}


async def test_session_is_kept(service: Service) -> None:
    async with sio_clients(service, auth={"name": "first"}) as [client]:
        assert (await client.call("whoami"))["name"] == "first"
        await client.call("rename", "second")
        assert (await client.call("whoami"))["name"] == "second"


async def test_namespaces_of_one_connection_are_apart(service: Service) -> None:
    async with sio_clients(service, namespaces=("/", "/app")) as [client]:
        assert client.sid("/") != client.sid("/app")
        await client.call("enter", {"room": "club"}, "/app")
        await client.call("say", {"event": "hi", "data": 1, "room": "club"}, "/")
        await client.call("say", {"event": "hi", "data": 2, "room": "club"}, "/app")
        await client.wait_event("hi")
        assert client.named("hi") == [(2,)]
        body = {"n": 1}
        assert await client.call("echo", body, "/app") == body
        assert await client.call("echo", body, "/") == body


async def test_send_is_the_message_event(service: Service) -> None:
    async with sio_clients(service) as [client]:
        await client.sio.emit("say_text", "hello")
        assert await client.wait_event("message") == ("hello",)


async def test_a_failing_handler_affects_no_other_client() -> None:
    async with (
        Service(WORKERS=1, allow_traceback=True) as service,
        sio_clients(service, 2) as [client, other],
    ):
        await client.sio.emit("fail")
        assert await client.call("echo", 1) == 1
        assert await other.call("echo", 2) == 2


async def test_long_and_short_events_keep_their_order(service: Service) -> None:
    async with sio_clients(service) as [client]:
        for number in range(200):
            data = b"x" * 3000 if number % 3 == 0 else number
            await client.sio.emit(
                "say", {"event": "nth", "data": [number, data], "to": client.sid()}
            )
        await client.wait_event("nth", 200)
        assert [args[0][0] for args in client.named("nth")] == list(range(200))


# Rooms


@BOTH
async def test_room_emit_and_skip_sid(service: Service, namespace: str) -> None:
    async with sio_clients(service, 3, namespaces=(namespace,)) as [one, two, three]:
        for client in (one, two):
            assert await client.call("enter", {"room": "club"}, namespace) == "entered"
        assert "club" in (await one.call("whoami", namespace=namespace))["rooms"]
        say = {"event": "news", "data": "first", "room": "club"}
        await one.call("say", say, namespace)
        await one.call("say", say | {"data": "second", "skip_me": True}, namespace)
        await one.call("say", say | {"data": "third"}, namespace)
        for client in (one, two):
            await until(partial(has_news, client, "third"), "the last news")
        assert one.named("news") == [("first",), ("third",)]
        assert two.named("news") == [("first",), ("second",), ("third",)]
        await two.call("leave", {"room": "club"}, namespace)
        await one.call("say", say | {"data": "fourth"}, namespace)
        await one.wait_event("news", 3)
        await two.call("echo", "barrier", namespace)
        assert len(two.named("news")) == 3
        assert not three.named("news")
        await one.call("close", "club", namespace)

        async def left() -> bool:
            return "club" not in (await one.call("whoami", namespace=namespace))["rooms"]

        await until(left, "the room closed")


async def test_emit_to_all_clients(service: Service) -> None:
    async with sio_clients(service, 3) as clients:
        await clients[0].call("say", {"event": "all", "data": {"x": 1}})
        for client in clients:
            assert await client.wait_event("all") == ({"x": 1},)
        envelope = clients[0].named("all")[0][0]
        assert "seq" not in envelope


# Across workers


@BOTH
async def test_emit_ack_and_rooms_cross_workers(service: Service, namespace: str) -> None:
    one, two = await on_two_workers(service, namespaces=(namespace,))
    try:
        sid = two.sid(namespace)
        await one.call("say", {"event": "direct", "data": b"\x01raw", "to": sid}, namespace)
        assert await two.wait_event("direct") == (b"\x01raw",)
        assert not one.named("direct")
        two.answers["question"] = lambda data: data * 2
        body = {"event": "question", "data": 21, "sid": sid}
        assert await one.call("ask", body, namespace) == 42
        two.answers["bytes"] = lambda data: {"back": data["raw"][::-1]}
        body = {"event": "bytes", "data": {"raw": b"\x00abc"}, "sid": sid}
        assert await one.call("ask", body, namespace) == {"back": b"cba\x00"}
        await one.call("enter", {"room": "far", "sid": sid}, namespace)

        async def entered() -> bool:
            return "far" in (await two.call("whoami", namespace=namespace))["rooms"]

        await until(entered, "entered by a handler of another worker")
        await one.call("say", {"event": "to_far", "data": 1, "room": "far"}, namespace)
        assert await two.wait_event("to_far") == (1,)
        await one.call("leave", {"room": "far", "sid": sid}, namespace)
        await one.call("say", {"event": "to_far", "data": 2, "room": "far"}, namespace)
        await one.call("say", {"event": "last", "data": 3, "to": sid}, namespace)
        await two.wait_event("last")
        assert two.named("to_far") == [(1,)]
    finally:
        await asyncio.gather(one.close(), two.close())


async def test_all_workers_see_one_order_of_emits(service: Service) -> None:
    one, two = await on_two_workers(service)
    try:
        for client in (one, two):
            await client.call("enter", {"room": "order"})

        async def talk(client: SioClient) -> None:
            for number in range(50):
                data = [client.sid(), number]
                await client.sio.emit("say", {"event": "word", "data": data, "room": "order"})

        await asyncio.gather(talk(one), talk(two))
        await asyncio.gather(one.wait_event("word", 100), two.wait_event("word", 100))
        assert one.named("word") == two.named("word")
    finally:
        await asyncio.gather(one.close(), two.close())


async def test_disconnect_crosses_workers(service: Service) -> None:
    one, two = await on_two_workers(service)
    try:
        await one.call("enter", {"room": "watchers"})
        sid = two.sid()
        assert await one.call("kick", sid) == "kicked"
        await until(lambda: two.reasons == ["server disconnect"], "the disconnect event")
        reason = await until(lambda: reasons_of(one, "sid", sid), "the handler's report")
        assert reason == ["server disconnect"]
    finally:
        await asyncio.gather(one.close(), two.close())


# Types of the service are rooms


async def test_enter_room_of_a_type_is_subscribe(service: Service) -> None:
    async with sio_clients(service) as [client]:
        await client.call("enter", {"room": "config"})
        sent = await service.publish("config", "setting_changed", {"a": 1})
        (envelope,) = await client.wait_event("setting_changed")
        assert (envelope["seq"], envelope["data"]) == (sent["seq"], {"a": 1})
        assert "config" in (await client.call("whoami"))["rooms"]
        await client.call("leave", {"room": "config"})
        await service.publish("config", "setting_changed", {"a": 2})
        sent = await service.publish("status", "marker")
        await client.wait_event("marker")
        assert len(client.named("setting_changed")) == 1


async def test_emit_to_a_type_is_a_message_of_its_stream(service: Service) -> None:
    plain = await PlainClient.open(service, types="health")
    async with sio_clients(service) as [client]:
        before = await service.publish("health", "before")
        await client.call("say", {"event": "from_handler", "data": {"v": 1}, "room": "health"})
        got = await plain.expect("from_handler")
        assert (got["type"], got["data"], got["seq"]) == ("health", {"v": 1}, before["seq"] + 1)
        (envelope,) = await client.wait_event("from_handler")
        assert envelope == got
        assert (await service.history("health"))[-1] == got
        options = {"event": "not_stored", "data": 1, "room": "health", "skip_me": True}
        await client.call("say", options)
        await client.call("say", {"event": "own", "data": 1, "to": client.sid()})
        await client.wait_event("own")
        assert (await service.history("health"))[-1]["event"] == "from_handler"
    await plain.close()


# The service's actions over Socket.IO


async def test_actions_with_ack(service: Service) -> None:
    async with sio_clients(service) as [client]:
        got = await client.call("subscribe", {"types": ["config"]})
        assert (got["event"], got["type"]) == ("subscribed", "config")
        assert set(got["data"]["types"]) == {"config"}
        assert (await client.call("ping", {"n": 1}))["data"]["payload"] == {"n": 1}
        sent = await service.publish("config")
        history = await client.call("get_history", {"type": "config", "limit": 1})
        assert history["data"]["messages"][-1]["seq"] == sent["seq"]
        left = await client.call("unsubscribe", {"types": ["config", "stats"]})
        assert set(left["data"]["types"]) == {"status", "health"}
        presence = await client.call("presence", {"type": "status"})
        assert presence["event"] == "presence_data"
        for event, payload, code in [
            ("subscribe", {"types": ["error"]}, "SUBSCRIPTION_INVALID"),
            ("subscribe", {"types": ["weather"]}, "INVALID_TYPE"),
            ("get_history", {"type": "status", "limit": 101}, "INVALID_PAYLOAD"),
            ("fly", {}, "INVALID_ACTION"),
        ]:
            error = await client.call(event, payload)
            assert (error["event"], error["data"]["code"]) == ("error", code)


async def test_actions_without_ack_answer_as_events(service: Service) -> None:
    async with sio_clients(service) as [client]:
        await client.sio.emit("ping", {"n": 2})
        (pong,) = await client.wait_event("pong")
        assert pong["data"]["payload"] == {"n": 2}
        await client.sio.emit("subscribe", {"types": ["error"]})
        (error,) = await client.wait_event("error")
        assert (error["type"], error["data"]["code"]) == ("error", "SUBSCRIPTION_INVALID")


async def test_recover_with_subscribe(service: Service) -> None:
    start = await service.publish("system", "seen")
    for number in range(5):
        await service.publish("system", "missed", {"n": number})
    async with sio_clients(service) as [client]:
        recover = {"system": {"epoch": start["epoch"], "seq": start["seq"]}}
        got = await client.call("subscribe", {"types": ["system"], "recover": recover})
        assert got["data"]["types"]["system"]["recovered"] is True
        live = await service.publish("system", "live")
        await client.wait_event("live")
        story = walk(client.received, "system")
        assert story.seqs == list(range(start["seq"] + 1, live["seq"] + 1))


async def test_broken_packets_do_no_harm(service: Service) -> None:
    """A packet that is none costs its sender at most its own connection."""
    async with sio_clients(service) as [witness]:
        for sent in [b"4", b"4x", b"42", b"42{", b'42["', b"42[]", b"42{}", b"42[1]", b"43999[1]",
                     b"451-", b'451-["echo"]', b"45999999-[]", b"9", b"x", b"", b"41/none,"]:  # fmt: skip
            async with await raw_socketio(service) as client:
                await client.send(TEXT, b"40")
                await client.send(TEXT, sent)
                # The first may fall victim to what was left unfinished before it.
                await client.send(TEXT, b'420["echo",1]')
                await client.send(TEXT, b'421["echo",1]')
                while True:
                    try:
                        frame = await client.frame()
                    except (asyncio.IncompleteReadError, ConnectionError):
                        break
                    if frame.opcode == CLOSE or frame.payload.startswith(b"431"):
                        break
        assert await witness.call("echo", "alive") == "alive"


# Leaving


async def test_reasons_of_disconnects(service: Service) -> None:
    async with sio_clients(service) as [watcher]:
        await watcher.call("enter", {"room": "watchers"})

        async def gone(name: str) -> str:
            reasons = await until(lambda: reasons_of(watcher, "name", name), f"{name} gone")
            assert len(reasons) == 1
            return reasons[0]

        leaver = await SioClient().connect(service, {"name": "leaver"})
        await leaver.close()
        # This client closes its transport before its DISCONNECT packet has left.
        assert await gone("leaver") in {"client disconnect", "transport close"}
        assert leaver.reasons == ["client disconnect"]

        async with await raw_socketio(service) as raw:
            await raw.send(TEXT, b'40{"name":"polite"}')
            await until_connected(raw)
            await raw.write(encode(TEXT, b"41") + encode(CLOSE, b"\x03\xe8"))
            await raw.until_frame(CLOSE)
        assert await gone("polite") == "client disconnect"

        kicked = await SioClient().connect(service, {"name": "kicked"})
        await watcher.call("kick", kicked.sid())
        assert await gone("kicked") == "server disconnect"
        await until(lambda: kicked.reasons == ["server disconnect"], "reason at the client")
        await kicked.close()

        async with await raw_socketio(service) as raw:
            await raw.send(TEXT, b'40{"name":"cut"}')
            await until_connected(raw)
        assert await gone("cut") == "transport close"

        async with await raw_socketio(service) as raw:
            await raw.send(TEXT, b'40{"name":"closed"}')
            await until_connected(raw)
            await raw.send(CLOSE, b"\x03\xe8")
            _, frame = await raw.until_frame(CLOSE)
            assert frame.close_code == 1000
        assert await gone("closed") in {"transport close", "client disconnect"}


def reasons_of(watcher: SioClient, key: str, value: str) -> list[str]:
    """Reasons of the disconnects that a watcher was informed of."""
    return [one["reason"] for (one,) in watcher.named("gone") if one[key] == value]


def has_news(client: SioClient, text: str) -> bool:
    return (text,) in client.named("news")


async def until_connected(client: RawClient) -> None:
    while not (await client.frame()).payload.startswith(b"40"):
        pass


async def test_leaving_one_namespace_keeps_the_other(service: Service) -> None:
    async with sio_clients(service) as [watcher]:
        await watcher.call("enter", {"room": "watchers"})
        client = await SioClient(("/", "/app")).connect(service, {"name": "half"})
        await client.sio._send_packet(  # the client has no call for one namespace
            socketio.packet.Packet(socketio.packet.DISCONNECT, namespace="/")
        )
        reason = await until(lambda: reasons_of(watcher, "name", "half"), "the handler's report")
        assert reason == ["client disconnect"]
        assert await client.call("echo", 5, "/app") == 5
        await client.close()


async def test_a_storm_of_aborts_leaves_nothing(service: Service) -> None:
    """At every moment of the handshake, with and without a handler still running."""
    before = await service.total_connections()
    for step in range(4):
        for _ in range(15):
            client = await raw_socketio(service)
            if step >= 1:
                await client.send(TEXT, b"40")
            if step >= 2:
                await client.send(TEXT, b'420["enter",{"room":"club"}]')
            if step >= 3:
                await until_connected(client)
                await client.send(TEXT, b'451-["echo",{"_placeholder":true,"num":0}]')
            await client.abort()
    await service.wait_connections(before)


async def test_a_pid_replaces_the_hanging_connection(service: Service) -> None:
    """On whatever worker it hangs; 4409 is final, so a DISCONNECT packet comes before it."""
    for _ in range(6):
        async with await raw_socketio(service) as old:
            await old.send(TEXT, b'40{"user":"pia"}')
            while True:
                kind, answer = packet((await old.frame()).payload)
                if kind == "40":
                    break
            assert set(answer) == {"sid", "pid"}
            auth = json.dumps({"user": "pia", "pid": answer["pid"]})
            async with await raw_socketio(service) as new:
                await new.send(TEXT, b"40" + auth.encode())
                await until_connected(new)
                before, close = await old.until_frame(CLOSE)
                assert close.close_code == 4409
                assert [frame.payload for frame in before if frame.opcode == TEXT][-1] == b"41"


async def test_user_cap_is_a_connect_error(service: Service) -> None:
    async with sio_clients(service, 3, auth={"user": "max"}):
        fourth = SioClient()
        with pytest.raises(socketio.exceptions.ConnectionError):
            await fourth.connect(service, {"user": "max"})
        assert set(fourth.refused[0]) == {"message", "data"}
        assert fourth.refused[0]["data"]["code"] == "MAX_CONNECTIONS_EXCEEDED"
        await fourth.close()
    async with sio_clients(service, 3, auth={"user": "max"}):
        pass


async def test_subscriptions_and_history_by_auth(service: Service) -> None:
    sent = [await service.publish("health", "tick", n) for n in range(3)]
    auth = {"types": ["health", "config"], "batch": True, "history": 2}
    async with sio_clients(service, auth=auth) as [client]:
        connected = (await client.wait_event("connected"))[0]
        assert connected["data"]["subscriptions"] == ["config", "health"]
        await client.wait_event("history_data", 2)
        past = {got["type"]: got["data"]["messages"] for (got,) in client.named("history_data")}
        assert [one["seq"] for one in past["health"]] == [one["seq"] for one in sent[1:]]
        assert set(past) == {"config", "health"}
        reported = await client.call("subscribe", {"types": ["health"]})
        assert reported["data"]["batch"] is True
        more = await service.publish("health", "tick", 3)
        (got,) = await client.wait_event("tick")
        assert got["seq"] == more["seq"]


@pytest.mark.parametrize(
    ("auth", "code"),
    [
        ({"types": ["nope"]}, "INVALID_TYPE"),
        ({"types": ["error"]}, "SUBSCRIPTION_INVALID"),
        ({"types": 5}, "INVALID_PAYLOAD"),
        ({"batch": "perhaps"}, "INVALID_PAYLOAD"),
        ({"history": 1000}, "INVALID_PAYLOAD"),
    ],
)
async def test_wrong_wishes_in_auth_are_refused(
    service: Service, auth: dict[str, Any], code: str
) -> None:
    client = SioClient()
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.connect(service, auth)
    assert [refusal["data"]["code"] for refusal in client.refused] == [code]
