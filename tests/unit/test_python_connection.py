"""`yujian-realtime`: one connection after the other, however a server or its caller behaves."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.waiting import until
from yujian_realtime import ConnectionClosed, Realtime, RealtimeError, State

GREETING = {
    "event": "connected",
    "type": "system",
    "data": {"serverTime": 0, "supportedTypes": ["status"]},
}


class Server:
    """Greets each WebSocket, answers pings and subscriptions, and says what a test has prepared."""

    def __init__(self) -> None:
        self.url = ""
        self.open: set[web.WebSocketResponse] = set()
        self.begun = 0
        self.says: list[str] = []
        """After the greeting of each connection, one of these."""
        self.status = 200
        """Of the answer to handshakes; 200: they are accepted."""
        self.refused = 0
        self.refusals: list[str] = []
        """Codes by which subscriptions are refused, one after the other."""
        self.asked: list[str] = []
        """Actions of all connections."""

    async def connection(self, request: web.Request) -> web.StreamResponse:
        if self.status != 200:
            self.refused += 1
            return web.Response(status=self.status)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.begun += 1
        self.open.add(socket)
        try:
            await socket.send_json(GREETING)
            if self.says:
                await socket.send_str(self.says.pop(0))
            async for frame in socket:
                asked = json.loads(frame.data)
                self.asked.append(asked["action"])
                data: dict[str, Any] = {"types": {}} if asked["action"] == "subscribe" else {}
                event = {"subscribe": "subscribed", "ping": "pong"}.get(asked["action"])
                if asked["action"] == "subscribe" and self.refusals:
                    event, data = "error", {"code": self.refusals.pop(0), "message": "Why."}
                if event is not None:
                    answer = {"event": event, "type": "config", "data": data}
                    await socket.send_json(answer | {"replyTo": asked["id"]})
        finally:
            self.open.discard(socket)
        return socket


@asynccontextmanager
async def served() -> AsyncIterator[Server]:
    served = Server()
    app = web.Application()
    app.router.add_get("/ws/realtime", served.connection)
    server = TestServer(app)
    await server.start_server()
    served.url = str(server.make_url("/"))
    try:
        yield served
    finally:
        await server.close()


def lab_of(server: Server, **options: Any) -> Realtime:
    return Realtime(server.url, pause=(0.01, 0.01), **options)


@pytest.mark.parametrize(
    "text",
    [
        "<html>",
        "null",
        "[]",
        "{}",
        '{"event": "connected", "data": {}}',
        '{"event": "subscribed", "type": "config", "data": {"types": [1]}}',
        '{"event": "gap", "type": "status", "data": {"first": Infinity, "last": 1}}',
        '{"event": "batch_update", "data": {"messages": 7}}',
    ],
    ids=lambda text: text[:40],
)
async def test_what_cannot_be_read_ends_the_connection_and_the_client_comes_back(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with served() as server:
        server.says = [text]
        async with lab_of(server) as lab:
            await until(lambda: server.begun == 2 and lab.state.name == "open", "a second one")
            assert await lab.ping() > 0


@pytest.mark.parametrize("turns", range(6))
async def test_a_reconnect_during_another_leaves_no_socket_open(turns: int) -> None:
    async with served() as server, lab_of(server) as lab:
        await lab.opened()
        lab.reconnect()
        for _ in range(turns):
            await asyncio.sleep(0)
        lab.reconnect()
        await until(lambda: server.begun > 1 and lab.state.name == "open", "another one")
        await until(lambda: len(server.open) == 1, "one socket")


async def test_a_request_under_way_ends_with_its_connection() -> None:
    async with served() as server, lab_of(server) as lab:
        await lab.opened()
        asked = asyncio.create_task(lab.request("ack"))
        await asyncio.sleep(0)
        lab.reconnect()
        lab.reconnect()
        with pytest.raises(ConnectionClosed):
            await asked


@pytest.mark.parametrize("cancelled_after", range(12))
async def test_closing_that_is_cancelled_leaves_nothing(cancelled_after: int) -> None:
    before = asyncio.all_tasks()
    async with served() as server:
        lab = lab_of(server)
        await lab.__aenter__()
        await lab.opened()
        closing = asyncio.create_task(lab.close())
        for _ in range(cancelled_after):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})
        await lab.close()
        assert lab.state.cause == "left"
        await until(lambda: not server.open, "no socket is open")
        del lab, closing
        gc.collect()
    await until(lambda: asyncio.all_tasks() == before, "no task is left")


async def test_close_is_for_good() -> None:
    async with served() as server:
        lab = lab_of(server)
        seen: list[State] = []
        lab.on("state", seen.append)
        async with lab:
            await lab.opened()
        await lab.close()
        lab.reconnect()
        assert [state.name for state in seen] == ["connecting", "open", "closed"]
        for call in (lab.opened, lab.ping, lambda: lab.history("status")):
            use: Callable[[], Any] = call
            with pytest.raises(ConnectionClosed):
                await use()
        with pytest.raises(StopAsyncIteration):
            await anext(lab.subscribe("status"))
        with pytest.raises(RuntimeError):
            await lab.__aenter__()


async def test_two_readers_of_a_subscription_share_its_messages() -> None:
    async with served() as server, lab_of(server) as lab:
        subscription = lab.subscribe("status", history=0)
        await lab.opened()
        got: list[list[int]] = [[], []]

        async def read(into: list[int]) -> None:
            async for message in subscription:
                into.append(message.data)  # noqa: PERF401 - as they come

        readers = [asyncio.create_task(read(into)) for into in got]
        (socket,) = server.open
        for seq in range(1, 21):
            message = {"event": "tick", "type": "status", "data": seq, "seq": seq, "epoch": "e"}
            await socket.send_json(message)
        await until(lambda: len(got[0]) + len(got[1]) == 20, "all messages")
        assert sorted(got[0] + got[1]) == list(range(1, 21))
        subscription.close()
        await asyncio.wait(readers)


async def test_a_session_of_the_caller_stays_open() -> None:
    async with served() as server, aiohttp.ClientSession() as session:
        async with lab_of(server, session=session) as lab:
            await lab.opened()
        assert not session.closed
        await until(lambda: not server.open, "no socket is open")


async def test_a_type_that_is_refused_keeps_no_other_from_flowing() -> None:
    async with served() as server, lab_of(server) as lab:
        asked: list[list[str]] = []
        ask = lab._ask

        async def note(action: str, payload: Any) -> Any:
            if action == "subscribe":
                asked.append(payload["types"])
                if "gone" in payload["types"]:
                    raise RealtimeError("INVALID_TYPE", "Unknown type 'gone'.")
            return await ask(action, payload)

        lab._ask = note  # type: ignore[method-assign, assignment]
        errors: list[str] = []
        lab.on("error", lambda error: errors.append(error.code))
        lab.subscribe("status", "gone")
        await until(lambda: errors and len(asked) == 2, "an answer to both")
        assert (asked, errors) == ([["gone"], ["status"]], ["INVALID_TYPE"])


@pytest.mark.parametrize(
    ("code", "times"), [("BACKPLANE_UNAVAILABLE", 3), ("RATE_LIMITED", 3), ("INVALID_TYPE", 1)]
)
async def test_a_subscription_that_is_refused_for_now_is_asked_for_again(
    code: str, times: int
) -> None:
    async with served() as server:
        server.refusals = [code, code]
        lab = lab_of(server, ping=0.05)
        errors: list[str] = []
        lab.on("error", lambda error: errors.append(error.code))
        async with lab:
            lab.subscribe("status")
            await until(lambda: server.asked.count("ping") >= 6, "pings")
        assert (errors, server.asked.count("subscribe")) == ([code] * min(times, 2), times)
        assert server.begun == 1


def envelope(seq: int) -> dict[str, Any]:
    return {
        "id": f"m{seq}", "type": "status", "event": "tick", "timestamp": 1, "data": seq,
        "seq": seq, "epoch": "e1",
    }  # fmt: skip


def past(*seqs: int) -> dict[str, Any]:
    messages = [envelope(seq) for seq in seqs]
    return {"event": "history_data", "type": "status", "data": {"messages": messages, "more": True}}


def subscribed(seq: int) -> dict[str, Any]:
    place = {"epoch": "e1", "seq": seq, "from": seq + 1, "recovered": True}
    return {"event": "subscribed", "type": "config", "data": {"types": {"status": place}}}


@pytest.mark.parametrize("flows", [False, True], ids=["before the first answer", "when it flows"])
async def test_a_subscription_that_ends_and_begins_again_has_each_message_once(flows: bool) -> None:
    async with served() as server, lab_of(server) as lab:
        await lab.opened()
        sent: list[tuple[str, str]] = []
        gaps: list[object] = []
        lab.on("gap", gaps.append)

        async def note(action: str, _payload: object, id: str | None = None) -> Any:
            sent.append((action, id or lab._new_id()))
            await asyncio.Event().wait()

        async def say(*messages: dict[str, Any]) -> None:
            for message in messages:
                await lab._receive(message)

        lab._ask = note  # type: ignore[method-assign, assignment]
        first = lab.subscribe("status")
        await until(lambda: len(sent) == 1, "the first subscription")
        if flows:
            await say(subscribed(4))
        first.close()
        again = lab.subscribe("status", history=5)
        # All this was on its way for the first one, some of it before the request was sent.
        await say(envelope(5), *([] if flows else [subscribed(4), past(4)]))
        await until(lambda: len(sent) == 3, "its end, and another one")
        assert [action for action, _ in sent] == ["subscribe", "unsubscribe", "subscribe"]
        lost = {"first": 1, "last": 3, "epoch": "e1", "reason": "history"}
        await say(envelope(6), {"event": "gap", "type": "status", "data": lost})
        ended = {"event": "unsubscribed", "type": "config", "data": {"types": ["status"]}}
        await say(ended | {"replyTo": sent[1][1]})
        await say(subscribed(6), past(5, 6), envelope(7))
        got = [await anext(again) for _ in range(3)]
        assert [(message.seq, message.origin) for message in got] == [
            (5, "history"),
            (6, "history"),
            (7, "live"),
        ]
        assert gaps == []


@pytest.mark.parametrize("what", ["the subscription", "the client"])
async def test_what_is_closed_in_the_middle_of_a_batch_gives_no_more(what: str) -> None:
    async with served() as server:
        batch = {"event": "batch_update", "data": {"messages": [envelope(1), envelope(2)]}}
        server.says = [json.dumps(batch)]
        got = []
        async with lab_of(server) as lab:
            subscription = lab.subscribe("status")
            async for message in subscription:
                got.append(message.seq)
                if what == "the client":
                    await lab.close()
                else:
                    subscription.close()
    assert got == [1]


async def test_a_handler_that_another_one_ends_is_not_called() -> None:
    async with served() as server:
        lab = lab_of(server)
        called: list[str] = []
        ends: list[Callable[[], None]] = []
        lab.on("rtt", lambda _: ends[0]())
        ends.append(lab.on("rtt", lambda _: called.append("ended")))
        async with lab:
            await lab.ping()
    assert called == []


async def test_a_token_that_cannot_be_renewed_is_asked_for_again() -> None:
    expiring = {"event": "token_expiring", "type": "system", "data": {"expiresAt": 1}}
    tokens: list[str | Exception] = [
        "first",
        OSError("no issuer"),
        ConnectionClosed("network", 1006, "a client of the issuer"),
        "second",
    ]

    async def get() -> str:
        token = tokens.pop(0)
        if isinstance(token, Exception):
            raise token
        return token

    async with served() as server:
        server.says = [json.dumps(expiring)]
        errors: list[RealtimeError] = []
        lab = lab_of(server, token=get)
        lab.on("error", errors.append)
        async with lab:
            await until(lambda: not tokens, "another token")
            await lab.ping()
        assert [error.code for error in errors] == ["TOKEN", "TOKEN"]
        assert "no issuer" in errors[0].message
        assert (server.begun, lab.counts.reconnects) == (1, 0)


async def test_a_function_that_has_no_token_shows_none() -> None:
    async with served() as server, lab_of(server, token=lambda: None) as lab:
        await until(lambda: server.asked, "the first request")
        await lab.ping()
        assert (server.asked, server.begun) == (["ping", "ping"], 1)


async def test_an_address_that_was_right_is_so_again() -> None:
    """As behind a proxy that answers 404 while the service restarts."""
    async with served() as server, lab_of(server, transport="websocket") as lab:
        await lab.opened()
        server.status = 404
        for socket in [*server.open]:
            await socket.close()
        await until(lambda: server.refused > 2, "attempts to come back")
        assert lab.state.name != "closed"
        server.status = 200
        await lab.opened()
        assert await lab.ping() > 0
