"""Sessions that go on in another worker: two real workers on one Valkey, clients on socket pairs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from websockets.frames import Opcode

from app.backplane.history import History
from app.backplane.scripts import CONTROL
from app.config import Settings
from app.protocol.frames import BINARY, build_frame
from app.protocol.requests import ConnectOptions
from app.sessions.handoff import state as session_state
from app.sessions.handoff import transfer
from app.sessions.handoff.state import CannotPass
from app.sessions.plain import PlainSession
from app.sessions.session import HELD, Session
from app.transport.connection import MOVING, OPEN
from tests.support.handoff import SECRET, Client, MakeBench, make
from tests.support.mutations import spoil_value
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until

__all__ = ["make"]


def reply(name: str) -> Callable[[str], bool]:
    return lambda text: text.startswith(name)


# Plain sessions.


async def test_a_plain_session(make: MakeBench) -> None:
    bench = await make()
    client = bench.connect(
        options=ConnectOptions(types=("status", "health"), batch=True), user="anna"
    )
    client.ask("ping")
    await client.event("pong")
    last = await bench.tick(3)
    await until(lambda: bench.giver.sessions.fanout.positions["status"].seq == last)
    was = bench.giver.only
    assert bench.counts() == [1, 0]
    await bench.hand_over()
    assert bench.counts() == [0, 1]
    assert not bench.giver.sessions.registry.by_id
    now = bench.successor.only
    assert (now.id, now.user, now.claimed, now.welcomed) == (was.id, "anna", True, True)
    assert now.group.types == {"status", "health"}
    assert now.group.batch
    last = await bench.tick(2)
    client.ask("ping", "after")
    await client.event("pong", 2)

    def seqs() -> list[int]:
        batches = [one["data"]["messages"] for one in client.named("batch_update")]
        return sorted(client.seqs() + [one["seq"] for batch in batches for one in batch])

    await until(lambda: seqs() == list(range(1, last + 1)))
    assert not client.named("gap")
    assert not client.closed


async def test_a_successor_that_is_behind_or_ahead(make: MakeBench) -> None:
    """Its reader stands elsewhere than the giver's: nothing is lost and nothing comes twice."""
    bench = await make()
    clients = [bench.connect(options=ConnectOptions(types=("status",))) for _ in range(2)]
    for client in clients:
        client.ask("ping")
        await client.event("pong")
    batch = await bench.pack()
    last = await bench.tick(10)
    await until(lambda: bench.successor.sessions.fanout.positions["status"].seq == last)
    await bench.deliver(batch)
    for client in clients:
        await until(lambda client=client: client.seqs() == list(range(1, 11)))


async def test_the_claim_of_a_user_moves(make: MakeBench) -> None:
    bench = await make(max_connections_per_user=1)
    client = bench.connect(user="anna")
    await client.event("connected")
    await bench.hand_over()
    assert not bench.giver.slots.claim_user("anna")
    assert bench.giver.slots.unique_users() == 1
    client.sock.close()
    await until(lambda: bench.giver.slots.claim_user("anna"))


@pytest.mark.parametrize("cut", [1, 4, 7, 100, 139])
async def test_a_half_read_frame(make: MakeBench, cut: int) -> None:
    bench = await make()
    client = bench.connect()
    await client.event("connected")
    frame = client.frame(json.dumps({"action": "ping", "payload": "p" * 90, "id": "half"}))
    assert len(frame) > 130
    client.sock.sendall(frame[:cut])
    await until(lambda: bench.giver.only.reader is not None)
    await bench.hand_over()
    client.sock.sendall(frame[cut:])
    assert (await client.event("pong"))["data"]["payload"] == "p" * 90


async def test_fragments(make: MakeBench) -> None:
    bench = await make()
    client = bench.connect()
    await client.event("connected")
    text = json.dumps({"action": "ping", "payload": "ä" * 50, "id": "f"}).encode()
    second = client.frame(text[60:61], opcode=Opcode.CONT, fin=False)
    client.sock.sendall(client.frame(text[:60], fin=False) + second[:5])
    await until(lambda: bench.giver.only.reader is not None)
    await bench.hand_over()
    assert bench.successor.sessions.hub.input.total > 60
    client.sock.sendall(second[5:] + client.frame(text[61:], opcode=Opcode.CONT))
    assert (await client.event("pong"))["data"]["payload"] == "ä" * 50
    assert bench.successor.sessions.hub.input.total == 0


async def test_a_message_that_is_being_skipped(make: MakeBench) -> None:
    """Too large, and half of it is still to come: it is answered once and then forgotten."""
    bench = await make(max_message_size=1000)
    client = bench.connect()
    await client.event("connected")
    frame = client.frame("x" * 3000)
    client.sock.sendall(frame[:2000])
    await until(lambda: bench.giver.only.reader is not None)
    await bench.hand_over()
    client.sock.sendall(frame[2000:])
    client.ask("ping")
    await client.event("pong")
    assert [one["data"]["code"] for one in client.named("error")] == ["MESSAGE_TOO_LARGE"]


async def test_unsent_bytes(make: MakeBench) -> None:
    """Cut within a frame, the rest leaves at the successor, before anything new."""
    bench = await make()
    client = bench.connect(options=ConnectOptions(types=("status",)), small=True)
    client.ask("ping")
    await until(lambda: bench.giver.only.track is None)
    last = await bench.tick(20, size=5000)
    await until(lambda: bench.giver.sessions.fanout.positions["status"].seq == last)
    assert bench.giver.only.pending is not None
    await bench.hand_over()
    assert bench.successor.only.pending is not None
    last = await bench.tick(5, size=5000)
    await until(lambda: client.seqs() == list(range(1, last + 1)))
    assert bench.successor.only.pending is None


async def test_held_until_its_first_frame(make: MakeBench) -> None:
    bench = await make()
    client = bench.connect(options=ConnectOptions(types=("status",)))
    await client.event("connected")
    assert bench.giver.only.phase == HELD
    await bench.hand_over()
    assert bench.successor.only.phase == HELD
    last = await bench.tick(3)
    await until(lambda: bench.successor.sessions.fanout.positions["status"].seq == last)
    assert client.seqs() == []
    client.ask("ping")
    await until(lambda: client.seqs() == [1, 2, 3])
    events = [json.loads(text)["event"] for text in client.texts]
    assert events == ["connected", "pong", "tick", "tick", "tick"]


async def test_held_and_silent(make: MakeBench) -> None:
    """Nothing comes from the client: it is released after the usual time."""
    bench = await make()
    client = bench.connect(options=ConnectOptions(types=("status",)))
    await client.event("connected")
    await bench.hand_over()
    await bench.tick(1)
    await until(lambda: client.seqs() == [1])


async def test_held_refused_and_silent(make: MakeBench) -> None:
    bench = await make()
    client = bench.connect(options=ConnectOptions(types=("status",)))
    await client.event("connected")
    batch = await bench.pack()
    # Its time to be released comes and goes while it is on its way.
    bench.giver.sessions.welcome._held.clear()
    await bench.giver.transfer.take_back(batch, batch.sessions, stay=True)
    await bench.tick(1)
    await until(lambda: client.seqs() == [1])


async def test_awaiting_a_token(make: MakeBench) -> None:
    bench = await make(auth_secret=SECRET)
    client = bench.connect(options=ConnectOptions(types=("health",), batch=True))
    client.ask("ping")
    await client.event("error")
    await bench.hand_over()
    now = bench.successor.only
    assert not now.welcomed
    assert now.need_extra().expiry is not None
    token = jwt.encode({"sub": "anna", "exp": int(time.time()) + 600}, SECRET, "HS256")
    client.ask("auth", {"token": token})
    assert (await client.event("connected"))["data"]["subscriptions"] == ["health"]
    assert now.user == "anna"
    assert now.group.batch


async def test_the_end_of_a_token(make: MakeBench) -> None:
    bench = await make(auth_secret=SECRET)
    client = bench.connect()
    expires = int(time.time()) + 600
    token = jwt.encode({"sub": "anna", "exp": expires}, SECRET, "HS256")
    client.ask("auth", {"token": token})
    await client.event("connected")
    giver_extra = bench.giver.only.need_extra()
    await bench.hand_over()
    assert giver_extra.expiry is None or giver_extra.expiry.cancelled()
    extra = bench.successor.only.need_extra()
    assert extra.expires_at == expires
    assert extra.expiry is not None
    # The warning comes a minute before the end.
    left = extra.expiry.when() - asyncio.get_running_loop().time()
    assert 530 < left <= 540


async def test_heartbeat_goes_on_where_it_was(make: MakeBench) -> None:
    bench = await make(heartbeat_interval=30.0, heartbeat_timeout=60.0)
    client = bench.connect()
    await client.event("connected")
    wheel = bench.giver.sessions.hub.wheel
    session = bench.giver.only
    session.seen -= round(20 / wheel.tick_length)
    silent, due = wheel.times(session)
    await bench.hand_over()
    now = bench.successor.sessions.hub.wheel.times(bench.successor.only)
    assert now == pytest.approx((silent, due), abs=3 * wheel.tick_length)
    assert now[0] >= 19


# Socket.IO sessions.


async def test_a_socketio_session(make: MakeBench) -> None:
    bench = await make()
    client = await bench.socketio("/app", auth={"user": "anna"})
    for number, (head, event, value) in enumerate(
        [("42", "keep", {"a": [1, {"b": None}]}), ("42/app,", "keep", {"c": "ä"})]
    ):
        client.say(f"{head}{number}{json.dumps([event, value])}")
        await client.wait(reply(f"43{head[2:]}{number}["))
    for number, (head, room) in enumerate(
        [("42", "one"), ("42", "config"), ("42/app,", "one"), ("42/app,", "two")], 10
    ):
        client.say(f'{head}{number}["join","{room}"]')
        await client.wait(reply(f"43{head[2:]}{number}["))
    manager = bench.giver.sessions.sio.manager
    was = bench.giver.only
    spaces = ("/", "/app")
    sids = [manager.sid_from_eio_sid(was, space) for space in spaces]
    rooms = [sorted(manager.get_rooms(sid, space)) for sid, space in zip(sids, spaces, strict=True)]  # type: ignore[arg-type]
    await bench.hand_over()
    assert not manager._members
    assert not manager._clients
    successor = bench.successor.sessions.sio.manager
    now = bench.successor.only
    assert (now.id, now.user) == (was.id, "anna")
    assert [successor.sid_from_eio_sid(now, space) for space in spaces] == sids
    assert [
        sorted(successor.get_rooms(sid, space))  # type: ignore[arg-type]
        for sid, space in zip(sids, spaces, strict=True)
    ] == rooms
    client.say('4220["kept"]')
    assert await client.wait(reply("4320[")) == '4320[{"a":[1,{"b":null}]}]'
    client.say('42/app,21["kept"]')
    assert json.loads((await client.wait(reply("43/app,21[")))[9:]) == [{"c": "ä"}]
    # Rooms work, for emits of either worker, and each comes once.
    for number, place in enumerate((bench.giver, bench.successor)):
        await place.sessions.sio.emit("hello", number, room="one")
        await place.sessions.sio.emit("hello", number, room="two", namespace="/app")
        await client.wait(lambda text, n=number: text == f'42["hello",{n}]')
        await client.wait(lambda text, n=number: text == f'42/app,["hello",{n}]')
    assert sum('"hello"' in text for text in client.texts) == 4
    client.sock.close()
    await until(lambda: not bench.successor.sessions.registry.by_id)
    await until(lambda: not successor._members and not successor._clients)
    assert bench.counts() == [0, 0]


async def test_rooms_that_are_numbers(make: MakeBench) -> None:
    bench = await make()
    client = await bench.socketio("/app")
    for number, (head, room) in enumerate([("42", 7), ("42", -1), ("42/app,", 7)]):
        client.say(f'{head}{number}["join",{room}]')
        await client.wait(reply(f"43{head[2:]}{number}["))
    # An answer is awaited for one of them.
    answers: list[Any] = []
    await bench.giver.sessions.sio.emit("question", 1, room=7, callback=answers.append)
    question = await client.wait(lambda text: "question" in text)
    await bench.hand_over()
    sio = bench.successor.sessions.sio
    await sio.emit("hello", 1, room=7)
    await sio.emit("hello", 2, room=-1)
    await sio.emit("hello", 3, room=7, namespace="/app")
    for expected in ('42["hello",1]', '42["hello",2]', '42/app,["hello",3]'):
        await client.wait(lambda text, expected=expected: text == expected)
    client.say(f'43{question[2 : question.index("[")]}["answer"]')
    await until(lambda: answers == ["answer"])


async def test_an_acknowledgement_with_a_long_number(make: MakeBench) -> None:
    bench = await make()
    client = await bench.socketio("/app")
    number = "9" * 60
    holder = {"_placeholder": True, "num": 0}
    client.say(f"451-/app,{number}{json.dumps(['echo', holder])}")
    await until(lambda: bool(bench.giver.sessions.sio.incomplete))
    await bench.hand_over()
    client.sock.sendall(client.frame(b"bytes", opcode=Opcode.BINARY))
    assert (await client.wait(reply("46"))).startswith(f"461-/app,{number}[")


async def test_before_its_connect_packet(make: MakeBench) -> None:
    bench = await make()
    client = bench.connect(
        socketio=True, options=ConnectOptions(types=("health",), batch=True), user="anna"
    )
    await client.wait(reply("0{"))
    await bench.hand_over()
    client.say("40")
    connected = await client.event("connected")
    assert connected["data"]["subscriptions"] == ["health"]
    assert connected["data"]["user"] == "anna"
    assert bench.successor.only.group.batch


async def test_a_binary_packet_half_way(make: MakeBench) -> None:
    bench = await make()
    client = await bench.socketio("/app")
    holder = [{"_placeholder": True, "num": n} for n in range(2)]
    client.say(f"452-/app,9{json.dumps(['echo', *holder])}")
    client.sock.sendall(client.frame(b"first", opcode=Opcode.BINARY))
    packets = bench.giver.sessions.sio.incomplete
    await until(lambda: any(len(packet.attachments) == 1 for packet in packets.values()))
    await bench.hand_over()
    assert not packets
    client.sock.sendall(client.frame(b"second", opcode=Opcode.BINARY))
    assert (await client.wait(reply("46"))).startswith("462-/app,9[")
    await until(lambda: client.read() and client.binaries == [b"first", b"second"])


async def test_an_ack_that_the_server_awaits(make: MakeBench) -> None:
    """It comes in at the successor and goes home to the giver, whose handler waits."""
    bench = await make()
    client = await bench.socketio()
    sid = bench.giver.only.id
    sio = bench.giver.sessions.sio
    calling = asyncio.create_task(sio.call("question", 1, to=sid, timeout=10))
    question = await client.wait(lambda text: "question" in text)
    number = question[2 : question.index("[")]
    await bench.hand_over()
    assert bench.giver.sessions.sio.manager.awaits_answers()
    # A call of the successor itself has another number.
    other = asyncio.create_task(bench.successor.sessions.sio.call("other", 2, to=sid, timeout=10))
    second = await client.wait(lambda text: "other" in text)
    assert second[2 : second.index("[")] != number
    client.say(f'43{number}["answer"]')
    client.say(f'43{second[2 : second.index("[")]}["second"]')
    assert await calling == "answer"
    assert await other == "second"
    assert not bench.giver.sessions.sio.manager.awaits_answers()


async def test_what_is_emitted_while_it_is_on_its_way(make: MakeBench) -> None:
    bench = await make()
    client = await bench.socketio()
    client.say('421["join","room"]')
    await client.wait(reply("431["))
    batch = await bench.pack()
    assert bench.giver.only.state == MOVING
    for number in range(3):
        await bench.successor.sessions.sio.emit("meanwhile", number, room="room")
    await bench.deliver(batch)
    await bench.giver.sessions.sio.emit("meanwhile", 3, room="room")
    await client.wait(lambda text: text == '42["meanwhile",3]')
    assert [text for text in client.texts if "meanwhile" in text] == [
        f'42["meanwhile",{n}]' for n in range(4)
    ]


async def test_taken_back(make: MakeBench) -> None:
    """No successor took it: it is served as before, with what came meanwhile."""
    bench = await make()
    client = await bench.socketio()
    client.say('421["join","room"]')
    await client.wait(reply("431["))
    batch = await bench.pack()
    await bench.giver.sessions.sio.emit("meanwhile", 1, room="room")
    await bench.tick(2)
    await bench.giver.transfer.take_back(batch, batch.sessions, stay=False)
    await client.wait(lambda text: text == '42["meanwhile",1]')
    await until(lambda: client.seqs() == [1, 2])
    client.say('422["echo",5]')
    await client.wait(reply("432[5]"))
    await bench.hand_over()
    client.say('423["echo",6]')
    await client.wait(reply("433[6]"))


async def test_taken_back_without_the_backplane(make: MakeBench, valkey: ValkeyProcess) -> None:
    """What was emitted meanwhile may be lost, but no connection is."""
    bench = await make()
    client = await bench.socketio()
    batch = await bench.pack()
    giver, parts = bench.giver.sessions, bench.giver.worker.parts
    await giver.sio.emit("meanwhile", 1)
    assert giver.sio.manager.position != batch.control
    # Nothing in memory: it would have to be read again.
    positions = {CONTROL: giver.sio.manager.position}
    bench.giver.transfer._history = History(parts.backplane, positions)
    valkey.kill()
    async with asyncio.timeout(20):
        await bench.giver.transfer.take_back(batch, batch.sessions, stay=False)
    await valkey.restart()
    client.say('422["echo",5]')
    await client.wait(reply("432[5]"))


# What is not passed.


@pytest.mark.parametrize(
    "value",
    [{"a": (1, 2)}, {1: "a"}, {"a": {1}}, {"a": float("nan")}, {"a": b"b"}, {"a": object()}],
)
async def test_a_session_that_json_cannot_say(make: MakeBench, value: Any) -> None:
    bench = await make()
    stays, goes = await bench.socketio(), await bench.socketio()
    sid = json.loads((await stays.wait(reply('40{"sid"')))[2:])["sid"]
    await bench.giver.sessions.sio.save_session(sid, value)
    batch = await bench.pack()
    assert len(batch.sessions) == 1
    assert [session.id for session in bench.giver.transfer.stay] == [sid]
    await bench.deliver(batch)
    # It is served here as before.
    last = await bench.tick(2)
    await until(lambda: stays.seqs() == list(range(1, last + 1)))
    stays.say('425["echo",1]')
    await stays.wait(reply("435[1]"))
    goes.say('425["echo",1]')
    await goes.wait(reply("435[1]"))
    assert not bench.giver.transfer.at_rest(10)


async def test_another_version(make: MakeBench) -> None:
    bench = await make()
    client = bench.connect()
    await client.event("connected")
    batch = await bench.pack()
    [state] = batch.states
    for wrong in (state["version"] + 1, 0, None, "1", True):
        other = {**state, "version": wrong}
        assert bench.successor.takes([other, state], batch.payload.chunks) == [False, True]
        with pytest.raises(CannotPass, match="version"):
            session_state.check_state(bench.successor.sessions, other, batch.payload.chunks)
    del state["version"]
    assert bench.successor.takes([state], batch.payload.chunks) == [False]
    await bench.giver.transfer.take_back(batch, batch.sessions, stay=True)


async def test_a_client_without_a_token_does_not_pass_to_a_service_that_asks_for_one(
    make: MakeBench,
) -> None:
    bench = await make(successor={"auth_secret": SECRET})
    client = bench.connect(user="anna")
    await client.event("connected")
    batch = await bench.pack()
    assert bench.successor.takes(batch.states, batch.payload.chunks) == [False]
    with pytest.raises(CannotPass, match="no token"):
        session_state.check_state(bench.successor.sessions, batch.states[0], batch.payload.chunks)
    batch.states[0]["welcomed"] = False  # it will be asked for one
    assert bench.successor.takes(batch.states, batch.payload.chunks) == [True]
    await bench.giver.transfer.take_back(batch, batch.sessions, stay=True)


def as_version_1(state: dict[str, Any], chunks: list[bytes]) -> dict[str, Any]:
    """A state as the version before has written it."""

    def encode(number: int) -> str:
        return base64.b64encode(chunks[number]).decode()

    old = {k: v for k, v in state.items() if k not in ("inbox", "pages", "offset", "headless")}
    old["version"] = 1
    old["unsent"] = None
    if state["unsent"]:
        unsent = b"".join(chunks[number] for number in state["unsent"])[state["offset"] :]
        old["unsent"] = base64.b64encode(unsent).decode()
    if reader := state["reader"]:
        fragments = reader["fragments"]
        old["reader"] = reader | {
            "buffer": encode(reader["buffer"]),
            "fragments": None if fragments is None else encode(fragments),
        }
    return old


async def test_a_state_of_the_version_before(make: MakeBench) -> None:
    bench = await make()
    client = bench.connect(small=True)
    await client.event("connected")
    last = await bench.tick(30, size=10_000)
    frame = client.frame(json.dumps({"action": "ping", "id": "half"}))
    client.sock.sendall(frame[:20])
    await until(lambda: bench.giver.only.pending and bench.giver.only.reader)
    batch = await bench.pack()
    chunks = batch.payload.chunks
    batch.states = [as_version_1(state, chunks) for state in batch.states]
    batch.payload.chunks = []
    await bench.deliver(batch)
    client.sock.sendall(frame[20:])
    await client.event("pong")
    await until(lambda: client.seqs() == list(range(1, last + 1)))


async def test_bytes_that_sessions_share_travel_once(make: MakeBench) -> None:
    bench = await make()
    clients = [bench.connect(small=True) for _ in range(20)]
    for client in clients:
        client.ask("ping")
        await client.event("pong")
    await bench.tick(1, size=600_000)
    sessions = list(bench.giver.sessions.registry.by_id.values())
    await until(lambda: all(session.pending is not None for session in sessions))
    output = bench.giver.sessions.hub.output
    assert output.total < 700_000
    batch = await bench.pack()
    assert batch.payload.size < 700_000
    await bench.deliver(batch)
    assert output.total == 0
    assert bench.successor.sessions.hub.output.total < 700_000
    last = await bench.tick(2)
    for client in clients:
        await until(lambda: client.seqs() == list(range(1, last + 1)))  # noqa: B023
    assert bench.successor.sessions.hub.output.total == 0


async def test_a_batch_is_bounded_in_bytes(
    make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BATCH_BYTES", 500_000)
    bench = await make()
    clients = [bench.connect(small=True) for _ in range(8)]
    for number, client in enumerate(clients):
        await client.event("connected")
        session = bench.giver.sessions.registry.by_id[client_id(client)]
        session.send(build_frame(BINARY, b"%d" % number * 200_000))
    await until(
        lambda: all(s.pending is not None for s in bench.giver.sessions.registry.by_id.values())
    )
    sizes = []
    while bench.giver.transfer.left():
        batch = await bench.pack()
        sizes.append(len(batch.states))
        assert batch.payload.size < 700_000
        await bench.deliver(batch)
    assert sizes == [3, 3, 2]
    for number, client in enumerate(clients):
        await until(lambda: client.read() is not None and client.binaries)  # noqa: B023
        assert client.binaries == [b"%d" % number * 200_000]


def client_id(client: Client) -> str:
    """The connection's id, as `connected` says."""
    id: str = client.named("connected")[0]["data"]["connectionId"]
    return id


async def test_answers_that_wait_and_what_waits_behind_them(make: MakeBench) -> None:
    bench = await make()
    last = await bench.tick(12, size=300_000)
    client = bench.connect(small=True, options=ConnectOptions(types=()))
    await client.event("connected")
    client.ask("subscribe", {"types": ["status"], "history": 10}, "s")
    client.ask("get_history", {"type": "status", "limit": 1}, "h")
    client.ask("ping", None, "p")
    session = bench.giver.only
    await until(lambda: session.pending is not None and len(session.extra.inbox) == 2)
    assert len(session.extra.pages) == 1
    await bench.hand_over()
    assert bench.giver.sessions.hub.input.total == 0
    await client.event("pong")
    pages = client.named("history_data")
    seqs = [[one["seq"] for one in page["data"]["messages"]] for page in pages]
    assert [page["replyTo"] for page in pages] == ["s"] * 4 + ["h"]
    assert sorted(seq for page in seqs[:-1] for seq in page) == list(range(last - 9, last + 1))
    assert seqs[-1] == [last]
    assert bench.successor.sessions.hub.input.total == 0
    assert await bench.tick() == last + 1
    await until(lambda: client.seqs() == [last + 1])


async def test_a_type_that_is_no_more(make: MakeBench) -> None:
    types = Settings().message_types
    bench = await make(message_types=(*types, "weather"), successor={"message_types": types})
    stays = bench.connect(options=ConnectOptions(types=("weather",)))
    goes = bench.connect(options=ConnectOptions(types=("status",)))
    for client in (stays, goes):
        client.ask("ping")
        await client.event("pong")
    batch = await bench.pack()
    assert bench.successor.takes(batch.states, batch.payload.chunks) == [False, True]
    await bench.giver.transfer.take_back(batch, batch.sessions, stay=True)
    assert [session.state for session in batch.sessions] == [OPEN, OPEN]


@pytest.mark.parametrize("gives", [True, False], ids=["taken", "given back"])
async def test_one_that_is_not_welcome_yet_joins_no_group(make: MakeBench, gives: bool) -> None:
    """It would stay there, beside the group of its subscriptions, when it is gone."""
    bench = await make()
    client = bench.connect(socketio=True)
    await until(client.read)
    assert client.texts[0].startswith("0{")
    batch = await bench.pack()
    if gives:
        await bench.deliver(batch)
    else:
        await bench.giver.transfer.take_back(batch, batch.sessions, stay=False)
    place = bench.successor if gives else bench.giver
    fanout = place.sessions.fanout
    assert not [group for group in fanout.groups() if group.members]
    client.say("40")
    await client.event("connected")
    client.say('421["ping"]')
    await client.wait(reply("431"))
    await bench.tick()
    await until(lambda: client.seqs() == [1])
    assert [len(group.members) for group in fanout.groups() if group.members] == [1]
    client.sock.close()
    await until(lambda: not place.sessions.registry.by_id)
    assert not [group for group in fanout.groups() if group.members]


async def test_a_malformed_state_is_refused_before_anything_is_made_of_it(make: MakeBench) -> None:
    bench = await make()
    client = bench.connect(user="ann", options=ConnectOptions(types=("status",)))
    await client.event("connected")
    client.sock.sendall(client.frame("x" * 300)[:150])
    sio = await bench.socketio("/app", auth={"user": "bob"})
    sio.say('451-["echo",{"_placeholder":true,"num":0}]')
    await until(lambda: len(bench.giver.sessions.sio.incomplete) == 1)
    await until(lambda: any(s.reader for s in bench.giver.sessions.registry.by_id.values()))
    batch = await bench.pack()
    successor = bench.successor
    states = json.loads(json.dumps(batch.states))
    assert successor.takes(states, batch.payload.chunks) == [True, True]
    for state in states:
        for name in state.keys() - {"tokenless"}:  # others have not known that
            lacking = {key: value for key, value in state.items() if key != name}
            assert (
                successor.takes([lacking, 5, None, [state]], batch.payload.chunks) == [False] * 4
            ), name
        for name, wrong in {
            "id": 5,
            "claimed": 1,
            "positions": {"status": ["e", -1]},
            "times": [1, float("nan")],
            "reader": {"buffer": "!"},
            "unsent": 5,
            "wishes": {"types": "all"},
            "user": None,
        }.items():
            assert successor.takes([{**state, name: wrong}], batch.payload.chunks) == [False], name
    rng = random.Random(1)
    for _ in range(2000):
        spoilt = spoil_value(rng, rng.choice(states))
        with contextlib.suppress(CannotPass):
            session_state.check_state(successor.sessions, spoilt, batch.payload.chunks)
    assert not successor.sessions.registry.by_id
    await bench.giver.transfer.take_back(batch, batch.sessions, stay=True)


async def test_a_state_that_cannot_be_loaded(
    make: MakeBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection ends, is counted no more, and the others of the batch are served."""
    bench = await make()
    clients = [bench.connect() for _ in range(3)]
    for client in clients:
        await client.event("connected")
    batch = await bench.pack()
    hub = bench.successor.sessions.hub
    attach = hub.attach

    def fail(session: Session, times: tuple[float, float] | None = None) -> None:
        if session.id == batch.states[1]["id"]:
            raise OSError("it cannot be watched")
        attach(session, times)

    monkeypatch.setattr(hub, "attach", fail)
    taken = await bench.deliver(batch)
    assert len(taken) == 2
    assert bench.counts() == [0, 2]
    assert len(bench.successor.sessions.registry.by_id) == 2
    assert "lost in the handoff" in caplog.text
    await until(lambda: clients[1].read() is not None and clients[1].closed)
    for client in (clients[0], clients[2]):
        client.ask("ping")
        await client.event("pong")


@pytest.mark.parametrize("step", ["adopt_user", "go_on"])
async def test_a_session_that_cannot_go_on_costs_no_other_one_its_place(
    make: MakeBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    bench = await make()
    clients = [bench.connect(user=f"user{number}") for number in range(3)]
    for client in clients:
        await client.event("connected")
    batch = await bench.pack()
    second = batch.states[1]["user"]
    if step == "adopt_user":
        counts = bench.successor.transfer._slots
        adopt = counts.adopt_user

        def fail_adopting(row: int, generation: int, user: str) -> None:
            if user == second:
                raise OSError("the table is full")
            adopt(row, generation, user)

        monkeypatch.setattr(counts, "adopt_user", fail_adopting)
    else:
        go_on = PlainSession.go_on

        def fail_going_on(session: PlainSession) -> None:
            if session.user == second:
                raise RuntimeError("a fault in the service")
            go_on(session)

        monkeypatch.setattr(PlainSession, "go_on", fail_going_on)
    await bench.deliver(batch)
    assert bench.counts() == [0, 2]
    assert "lost in the handoff" in caplog.text
    lost = next(
        client
        for client, state in zip(clients, batch.states, strict=True)
        if state["user"] == second
    )
    await until(lambda: lost.read() is not None and lost.closed)
    for client in clients:
        if client is not lost:
            client.ask("ping")
            await client.event("pong")


async def test_busy_sessions_are_waited_for(make: MakeBench) -> None:
    bench = await make()
    go_on = asyncio.Event()

    @bench.giver.sessions.sio.on("slow")
    async def slow(sid: str) -> str:
        await go_on.wait()
        return "done"

    client = await bench.socketio()
    client.say('421["slow"]')
    transfer = bench.giver.transfer
    await until(lambda: not transfer.at_rest(10))
    assert transfer.can_wait()
    # Nothing more is read from it until then.
    client.say('422["echo",1]')
    go_on.set()
    await until(lambda: bool(transfer.at_rest(10)))
    assert await client.wait(reply("431["))
    assert not [text for text in client.read() if text.startswith("432")]
    await bench.hand_over()
    await client.wait(reply("432[1]"))
