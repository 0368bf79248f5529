"""`yujian-realtime` over server-sent events, without the service: the parser, and a service that is played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from yujian_realtime import Realtime, State, connect
from yujian_realtime.events import Event, EventParser

STREAM = {"Content-Type": "text/event-stream"}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_in_any_pieces(size: int, end: bytes) -> None:
    lines = [
        b"\xef\xbb\xbfretry: 2931",
        b": a comment",
        b"id: yj1;a,e,1",
        b"data: one",
        b"",
        b"",
        b"data:two",
        b"data",
        b"data:  three \xc3\xa9",
        b"event: other",
        b"",
        b"id: yj1;a,e,\x002",
        b"id: yj1;a,e,3",
        b"",
        b"data: four",
        b"",
        b"data: without an end",
    ]
    text = end.join(lines)
    parser = EventParser()
    events = [
        event for at in range(0, len(text), size) for event in parser.feed(text[at : at + size])
    ]
    assert events == [
        Event("one", "yj1;a,e,1"),
        Event("two\n\n three é", "yj1;a,e,1"),
        Event("four", "yj1;a,e,3"),
    ]


@pytest.mark.parametrize(
    "text",
    [b"data: " + b"x" * 60, b"data: 0123456789\n" * 6, b"data\n" * 60, b":" + b"x" * 60],
    ids=["line", "lines", "empty lines", "comment"],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_an_event_that_does_not_end_is_refused(text: bytes, size: int) -> None:
    parser = EventParser(50)
    with pytest.raises(ValueError, match="larger than 50 bytes"):
        for at in range(0, len(text), size):
            parser.feed(text[at : at + size])


def test_events_up_to_the_limit_pass_one_after_the_other() -> None:
    parser = EventParser(50)
    text = b": " + b"c" * 40 + b"\nid: " + b"i" * 40 + b"\ndata: " + b"x" * 40 + b"\n\n"
    assert [len(event.data) for event in parser.feed(text * 20)] == [40] * 20


def test_what_is_not_in_utf_8_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        EventParser().feed(b"data: \xff\n\n")


def event(name: str, data: object, id: str = "") -> bytes:
    text = json.dumps({"event": name, "type": "system", "data": data})
    return (f"id: {id}\n" if id else "").encode() + f"data: {text}\n\n".encode()


GREETING = event("connected", {"serverTime": 0, "supportedTypes": ["a"]})
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def played(
    events: Answer, status: int = 404, history: Answer | None = None
) -> AsyncIterator[str]:
    """A service that answers the stream and history as given, and WebSockets with a status."""

    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/events", events)
    app.router.add_get("/ws/realtime", refuse)
    app.router.add_get("/history", history or refuse)
    server = TestServer(app)
    await server.start_server()
    try:
        yield str(server.make_url("/"))
    finally:
        await server.close()


async def say(request: web.Request, *chunks: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers=STREAM)
    await response.prepare(request)
    for chunk in chunks:
        await response.write(chunk)
    return response


async def state_after(lab: Realtime, *names: str) -> State:
    """The state once it has one of these names."""
    changed = asyncio.Event()
    lab.on("state", lambda _state: changed.set())
    async with asyncio.timeout(30):
        while lab.state.name not in names:
            changed.clear()
            await changed.wait()
    return lab.state


@pytest.mark.parametrize(
    ("data", "cause", "pause"),
    [
        ({"code": 1012, "reason": "", "retryAfter": 4321}, "restart", 4.321),
        ({"code": 1013, "reason": "", "retryAfter": 9_000_000}, "full", 60.0),
        ({"code": 4408, "reason": "heartbeat timeout"}, "silent", 7.0),
        ({"code": 4403, "reason": "closed"}, "operator", None),
        ({"code": 4401, "reason": "token expired"}, "token", None),
        ({}, "network", 7.0),
    ],
)
async def test_the_last_event_says_why_and_when(
    data: dict[str, Any], cause: str, pause: float | None
) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        return await say(request, GREETING, event("connection_closing", data) if data else b"")

    async with (
        played(events) as url,
        connect(url, transport="sse", pause=(7.0, 7.0), random=lambda: 0.5) as lab,
    ):
        state = await state_after(lab, "waiting", "closed")
        assert (state.cause, state.pause) == (cause, pause)
        assert state.code == data.get("code", 1006)
        assert state.name == ("closed" if pause is None else "waiting")


@pytest.mark.parametrize(
    ("status", "cause", "pause"),
    [
        (400, "protocol", None),
        (401, "token", None),
        (403, "origin", None),
        (302, "network", 3.0),
        (429, "full", 3.0),
        (503, "full", 3.0),
        (200, "network", 7.0),
    ],
)
async def test_a_stream_that_is_refused(status: int, cause: str, pause: float | None) -> None:
    async def events(_request: web.Request) -> web.StreamResponse:
        body = {"error": "Said by the service.", "code": "SAID"}
        return web.json_response(body, status=status, headers={"Retry-After": "3"})

    async with (
        played(events) as url,
        connect(url, transport="sse", pause=(7.0, 7.0), random=lambda: 0.5) as lab,
    ):
        state = await state_after(lab, "waiting", "closed")
        assert (state.cause, state.pause) == (cause, pause)
        if status != 200:
            assert state.message == "Said by the service."


@pytest.mark.parametrize(
    ("websocket", "head", "cause"),
    [
        (403, 403, "origin"),
        (400, 400, "protocol"),
        (404, 404, "network"),
        (401, 200, "token"),
    ],
)
async def test_what_the_service_itself_refuses_is_final(
    websocket: int, head: int, cause: str
) -> None:
    async def events(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=head)

    async with played(events, websocket) as url, connect(url, pause=(0.0, 0.0)) as lab:
        state = await state_after(lab, "closed")
        assert (state.cause, lab.counts.reconnects) == (cause, 0)


async def test_the_past_comes_before_what_the_stream_goes_on_with() -> None:
    left = asyncio.Event()
    asked: list[dict[str, str]] = []

    def message(seq: int) -> dict[str, Any]:
        return {"type": "a", "event": "tick", "data": seq, "seq": seq, "epoch": "e"}

    async def events(request: web.Request) -> web.StreamResponse:
        if not request.query["types"]:
            response = await say(request, GREETING)
        else:
            greeting = GREETING.replace(b"data:", b"id: yj1;a,e,3\ndata:", 1)
            live = f"id: yj1;a,e,4\ndata: {json.dumps(message(4))}\n\n".encode()
            response = await say(request, greeting + live)
        await left.wait()
        return response

    async def history(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        return web.json_response({"messages": [message(2), message(3)], "more": True})

    async with played(events, history=history) as url, connect(url, transport="sse") as lab:
        subscription = lab.subscribe("a", history=2)
        async with asyncio.timeout(30):
            got = [await anext(subscription) for _ in range(3)]
        left.set()
        assert [(one.seq, one.origin) for one in got] == [
            (2, "history"),
            (3, "history"),
            (4, "live"),
        ]
        assert asked == [{"type": "a", "limit": "2", "before": "4"}]


async def test_websockets_alone_are_never_left_and_are_tried_again_when_asked() -> None:
    streams: list[str] = []
    left = asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        streams.append(request.method)
        if request.method == "HEAD":
            return web.Response(headers=STREAM)
        response = await say(request, GREETING)
        await left.wait()
        return response

    async with played(events, 426) as url:
        async with connect(url, pause=(0.0, 0.0), transport="websocket") as lab:
            assert (await state_after(lab, "closed")).cause == "protocol"
            assert streams == []
        async with connect(url, pause=(0.0, 0.0)) as lab:
            await lab.opened()
            assert (streams, lab.counts.reconnects) == (["HEAD", "HEAD", "GET"], 2)
            lab.reconnect()
            await state_after(lab, "waiting")
            await lab.opened()
            assert streams[3:] == ["HEAD", "HEAD", "GET"]
        left.set()


def test_an_unknown_transport() -> None:
    with pytest.raises(ValueError, match="auto, websocket or sse"):
        Realtime(transport="carrier pigeon")  # type: ignore[arg-type]
