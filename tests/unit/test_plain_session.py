"""A client of the plain protocol on a socket pair: requests in order, errors, the end."""

from __future__ import annotations

import asyncio
import errno
import json
from typing import Any

import pytest
from websockets.frames import Opcode

from app.errors import BackplaneUnavailable
from app.protocol.requests import ConnectOptions
from app.sessions.rates import FLOOD_FACTOR
from app.sessions.session import INBOX_MESSAGES
from app.transport.connection import CLOSED, OPEN
from app.transport.hub import LONG_HOLD
from app.types import Message
from tests.support.delivery import message, messages, turn
from tests.support.sessions import Worker
from tests.support.waiting import until


async def test_a_client_is_greeted_and_held_until_its_first_frame(worker: Worker) -> None:
    client = worker.client()
    connected = await client.event()
    assert connected["event"] == "connected"
    assert connected["data"]["connectionId"] == "c1"
    assert connected["data"]["subscriptions"] == ["status"]
    worker.history.items = messages(1, 2)
    await worker.fanout.deliver(worker.history.items)
    await turn()
    assert client.read() == []
    client.ask("ping", [1], "p")
    pong = await client.event()
    assert (pong["event"], pong["replyTo"], pong["data"]["payload"]) == ("pong", "p", [1])
    assert [(await client.event())["seq"] for _ in range(2)] == [1, 2]


async def test_each_mistake_has_its_code_and_the_connection_lives_on(worker: Worker) -> None:
    client = worker.client()
    await client.event()
    for text, code in (
        ("{", "PARSE_ERROR"),
        ("[]", "INVALID_PAYLOAD"),
        ("{}", "INVALID_ACTION"),
        ('{"action":"subscribe","payload":{"types":["nope"]}}', "INVALID_TYPE"),
        ('{"action":"subscribe","payload":{"types":["error"]}}', "SUBSCRIPTION_INVALID"),
        ('{"action":"get_history","payload":{"type":"status","limit":0}}', "INVALID_PAYLOAD"),
    ):
        client.say(text)
        error = await client.event()
        assert (error["event"], error["type"], error["data"]["code"]) == ("error", "error", code)
    assert client.session.state == OPEN


async def test_requests_behind_a_slow_one_wait_their_turn(worker: Worker) -> None:
    client = worker.client()
    await client.event()
    client.ask("get_history", {"type": "status"}, 1)
    client.ask("ping", None, 2)
    client.ask("get_history", {"type": "stats"}, 3)
    client.ask("ping", None, 4)
    await turn()
    assert client.read() == []
    worker.history.open.set()
    assert [(await client.event())["replyTo"] for _ in range(4)] == [1, 2, 3, 4]


async def test_nothing_more_is_read_behind_a_slow_request() -> None:
    worker = Worker(rate_limit=0)
    client = worker.client()
    await client.event()
    client.ask("get_history", {"type": "status"}, "slow")
    for number in range(3 * INBOX_MESSAGES):
        client.ask("ping", None, number)
        await asyncio.sleep(0)
    extra = client.session.extra
    assert extra is not None
    await until(lambda: len(extra.inbox) == INBOX_MESSAGES)
    await turn()
    assert len(extra.inbox) == INBOX_MESSAGES
    assert client.session.state == OPEN
    worker.history.open.set()
    answers = [(await client.event())["replyTo"] for _ in range(3 * INBOX_MESSAGES + 1)]
    assert answers == ["slow", *range(3 * INBOX_MESSAGES)]
    assert not extra.inbox
    worker.close()


async def test_a_client_that_goes_away_during_a_request_gets_nothing_more(worker: Worker) -> None:
    client = worker.client()
    await client.event()
    client.ask("get_history", {"type": "status"})
    await turn()
    client.session.drop("gone")
    # Another client has its descriptor by now, and there is something to catch up on.
    other = worker.client("c2")
    await other.event()
    worker.history.items = messages(1, 3)
    await worker.fanout.deliver(worker.history.items)
    worker.history.open.set()
    await turn(50)
    assert other.read() == []
    assert client.session.state == CLOSED
    assert worker.context.registry.by_id.keys() == {"c2"}
    assert worker.slots.connections == 1


async def test_changed_subscriptions(worker: Worker) -> None:
    client = worker.client()
    await client.event()
    client.ask("subscribe", {"types": ["stats"]}, 1)
    reply = await client.event()
    assert reply["event"] == "subscribed"
    assert reply["data"]["types"]["stats"]["seq"] == 0
    client.ask("unsubscribe", {"types": ["status"]}, 2)
    assert (await client.event())["data"] == {"types": ["stats"]}
    await worker.fanout.deliver([message(1), message(1, "stats")])
    assert (await client.event())["type"] == "stats"
    assert client.read() == []


async def test_one_that_is_held_back_stays_late_whatever_it_subscribes_to(worker: Worker) -> None:
    client = worker.client()
    await client.event()
    session = client.session
    session.on_throttled(5.0)
    for action, types in (("subscribe", ["stats"]), ("unsubscribe", ["status"])):
        client.ask(action, {"types": types})
        await client.event()
        assert session not in session.group.members
    recover = {"status": {"epoch": "e1", "seq": 0}}
    client.ask("subscribe", {"types": ["status"], "recover": recover})
    await client.event()
    assert session not in session.group.members
    assert session.track == worker.fanout.positions


async def test_short_waits_and_a_single_long_one_make_no_connection_late(worker: Worker) -> None:
    client = worker.client()
    await client.event()
    client.ask("ping", {})
    await client.event()
    session = client.session
    session.hub.hold(session, LONG_HOLD - 0.01)
    session.hub.hold(session, 2 * LONG_HOLD)
    assert session in session.group.members
    session.hub.hold(session, 3 * LONG_HOLD)
    assert session not in session.group.members


async def test_rates() -> None:
    worker = Worker(rate_limit=5)
    client = worker.client()
    await client.event()
    for _ in range(6):
        client.ask("ping")
    assert await client.events(6) == ["pong"] * 5 + ["error"]
    worker.context.rates.start_second()
    client.ask("ping")
    assert await client.events(1) == ["pong"]
    for _ in range(5 * FLOOD_FACTOR):
        client.ask("ping")
    assert await client.close_code() == 4429
    assert client.session.state != OPEN
    worker.close()


async def test_silence_is_reported_and_ends_it(worker: Worker) -> None:
    client = worker.client()
    await client.event()
    for _ in range(60):
        worker.hub.wheel.advance()
    assert await client.close_code() == 4408
    got = [json.loads(frame.data) for frame in client.frames if frame.opcode is Opcode.TEXT]
    assert [envelope["data"]["code"] for envelope in got] == ["HEARTBEAT_TIMEOUT"]
    assert worker.context.registry.by_id == {}


async def test_resume_tokens(worker: Worker) -> None:
    tokens = worker.context.tokens
    token = tokens.resume("c1")
    assert tokens.read_owner(token, None) == "c1"
    assert tokens.read_owner(token, "ann") is None
    for wrong in ("", ".", "c1", "c1.", "c2" + token[2:], token + "0", "\ud800.x", "é" + token):
        assert tokens.read_owner(wrong, None) is None


async def test_a_newer_connection_takes_the_place_of_a_silent_one(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.session.PROBE_SECONDS", 0.1)
    old = worker.client()
    token = (await old.event())["data"]["resume"]
    new = worker.client("c2")
    work = worker.context.claiming.claim(new.session, token)
    assert work is not None
    await work
    assert await old.close_code() == 4409
    assert worker.context.registry.by_id.keys() == {"c2"}


async def test_a_client_that_answers_keeps_its_place(worker: Worker) -> None:
    """A duplicated tab brings the token of the first one."""
    old = worker.client()
    token = (await old.event())["data"]["resume"]
    new = worker.client("c2")
    work = worker.context.claiming.claim(new.session, token)
    assert work is not None
    waiting = asyncio.create_task(work)
    await turn()
    old.sock.send(bytes([0x8A, 0x80, 0, 0, 0, 0]))  # an empty pong
    await waiting
    assert worker.context.registry.by_id.keys() == {"c1", "c2"}
    assert old.session.state == new.session.state == OPEN


async def test_a_user_that_cannot_be_counted_is_sent_away_to_come_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(_: str) -> bool:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(worker.slots, "claim_user", is_full)
    client = worker.client(user="ann")
    error = await client.event()
    assert error["data"]["code"] == "SERVICE_UNAVAILABLE"
    assert await client.close_code() == 1012
    assert worker.context.metrics.refused["memory"]._value.get() == 1


async def test_a_token_of_ours_belongs_to_its_user(worker: Worker) -> None:
    tokens = worker.context.tokens
    token = tokens.resume("c1", "ann")
    assert tokens.read_owner(token, "ann") == "c1"
    assert tokens.read_owner(tokens.resume("c1"), None) == "c1"
    for user in ("bob", None, "ann|", ""):
        assert tokens.read_owner(token, user) is None
    assert tokens.read_owner(tokens.resume("c1"), "ann") is None
    assert tokens.read_owner("c1.x", None) is None


def seqs(envelope: dict[str, Any]) -> list[int]:
    return [one["seq"] for one in envelope["data"]["messages"]]


async def test_the_present_state_can_be_asked_for_at_once(worker: Worker) -> None:
    worker.history.items = messages(1, 3)
    await worker.fanout.deliver(worker.history.items)
    client = worker.client(options=ConnectOptions(history=2))
    assert (await client.event())["event"] == "connected"
    # Stored while the history is read, and live before it has been sent.
    worker.history.items = messages(1, 4)
    await worker.fanout.deliver([message(4)])
    await turn()
    assert client.read() == []
    client.ask("ping", None, "behind")
    worker.history.open.set()
    past = await client.event()
    assert (past["event"], past["type"], seqs(past)) == ("history_data", "status", [3, 4])
    assert "replyTo" not in past
    assert (await client.event())["replyTo"] == "behind"
    await worker.fanout.deliver([message(5)])
    assert (await client.event())["seq"] == 5


async def test_a_history_that_ends_before_live_is_joined_without_a_hole(worker: Worker) -> None:
    client = worker.client(options=ConnectOptions(history=10))
    await client.event()
    worker.history.items = messages(1, 2)
    worker.history.open.set()
    past = await client.event()
    assert seqs(past) == [1, 2]
    # This worker has not delivered them yet: they do not come twice.
    await worker.deliver(*messages(1, 2))
    worker.history.items = messages(1, 3)
    await worker.deliver(message(3))
    assert (await client.event())["seq"] == 3


async def test_a_history_that_cannot_be_read_is_an_error_and_live_goes_on(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Any:
        raise BackplaneUnavailable

    monkeypatch.setattr(worker.history, "newest", fail)
    client = worker.client(options=ConnectOptions(history=1))
    await client.event()
    error = await client.event()
    assert (error["event"], error["data"]["code"]) == ("error", "BACKPLANE_UNAVAILABLE")
    await worker.fanout.deliver([message(1)])
    assert (await client.event())["seq"] == 1


async def test_no_message_falls_between_the_history_of_a_subscribe_and_live(
    worker: Worker,
) -> None:
    client = worker.client(options=ConnectOptions(types=frozenset()))
    await client.event()
    worker.history.items = messages(1, 3)
    await worker.fanout.deliver(worker.history.items)

    async def newest(type: str, limit: int, before: int | None) -> tuple[list[Message], bool]:
        older = [m for m in worker.history.items if before is None or m.seq < before]
        found = older[-limit:]
        # What is stored and delivered after the read, before its answer has come.
        worker.history.items = messages(1, 5)
        await worker.fanout.deliver(messages(4, 5))
        return found, False

    worker.history.newest = newest  # type: ignore[method-assign]
    client.ask("subscribe", {"types": ["status"], "history": 2}, 1)
    reply = await client.event()
    assert reply["data"]["types"]["status"]["from"] == 4
    assert seqs(await client.event()) == [2, 3]
    assert [(await client.event())["seq"] for _ in range(2)] == [4, 5]


async def test_a_slow_beginning_is_no_first_frame(worker: Worker) -> None:
    """Default subscriptions wait for the client's `recover`, however long its claim took."""
    worker.history.items = messages(1, 3)
    await worker.fanout.deliver(worker.history.items)
    client = worker.client(options=ConnectOptions(resume=worker.context.tokens.resume("elsewhere")))
    assert (await client.event())["event"] == "connected"
    client.ask("subscribe", {"types": ["status"], "recover": {"status": {"epoch": "e1", "seq": 1}}})
    reply = await client.event()
    assert (reply["event"], reply["data"]["types"]["status"]["from"]) == ("subscribed", 2)
    assert [(await client.event())["seq"] for _ in range(2)] == [2, 3]
