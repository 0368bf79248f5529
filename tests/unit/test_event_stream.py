"""A client of server-sent events on a socket pair: how it begins, what it gets, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from app.errors import BackplaneUnavailable, ClientError, ErrorCode, NoRoomNow
from app.protocol import http_answers
from app.protocol.codecs import COMMENT
from app.protocol.offsets import Offset, decode_offset
from app.protocol.requests import ConnectOptions
from app.sessions.event_stream import COMMENT_SECONDS, FINAL_RETRY, EventStreamSession
from app.sessions.session import Opening
from app.transport import kernel
from app.transport.connection import CLOSED, CLOSING, KEPT_REST, OPEN
from app.types import Gap, Message, Position
from tests.support.delivery import messages, turn
from tests.support.events import Event, EventParser
from tests.support.sessions import Worker
from tests.support.waiting import until

HEAD = http_answers.head(200, http_answers.STREAM_HEADERS)


class Reader:
    """The other end of a session."""

    def __init__(self, session: EventStreamSession, sock: socket.socket) -> None:
        self.session = session
        self.sock = sock
        self.raw = b""
        self.parser = EventParser()
        self.events: list[Event] = []
        self.ended = False

    def read(self) -> list[Event]:
        try:
            while data := self.sock.recv(1 << 20):
                self._take(data)
            self.ended = True
        except BlockingIOError:
            pass
        return self.events

    def _take(self, data: bytes) -> None:
        before = len(self.raw)
        self.raw += data
        end = self.raw.find(b"\r\n\r\n") + 4
        if end >= 4 and self.status == 200:
            self.events += self.parser.feed(self.raw[max(before, end) :])

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    async def event(self, name: str) -> dict[str, Any]:
        await until(lambda: any(one.envelope["event"] == name for one in self.read()), name)
        return next(one.envelope for one in self.events if one.envelope["event"] == name)

    def names(self) -> list[str]:
        return [one.envelope["event"] for one in self.read()]


def client(
    worker: Worker,
    *,
    options: ConnectOptions | None = None,
    offset: Offset | None = None,
    user: str | None = None,
    is_browser: bool = False,
    small: bool = False,
) -> Reader:
    fd, theirs = worker.descriptor(small=small)
    session = EventStreamSession(worker.context, fd, "c1", user)
    worker.hub.attach(session)
    opening = Opening(HEAD, {"Vary": "Origin"}, is_browser)
    session.begin(opening, None, options or ConnectOptions(), offset)
    return Reader(session, theirs)


async def test_it_is_greeted_in_one_write_and_is_live_at_once(worker: Worker) -> None:
    reader = client(worker)
    await turn()
    reader.read()
    assert reader.raw.startswith(HEAD)
    assert reader.names() == ["connected"]
    assert decode_offset(reader.parser.last_id) == Offset(
        {"status": worker.fanout.positions["status"]}, False
    )
    assert reader.session.track is None, "no task, no second write"
    await worker.fanout.deliver(messages(1, 2))
    assert reader.names() == ["connected", "x", "x"]


async def test_a_client_that_comes_back_keeps_its_id_until_a_gap_is_there(worker: Worker) -> None:
    """Cut between `connected` and the gap, it must get the gap the next time."""
    worker.history.items = messages(5, 6)
    await worker.fanout.deliver(messages(1, 6))
    old = Offset({"status": Position("e0", 3)}, False)
    reader = client(worker, offset=old)
    await reader.event("gap")
    await until(lambda: reader.names()[-1] == "x")
    assert [bool(one.last_id) for one in reader.events] == [False, True, True]
    assert reader.names() == ["connected", "gap", "x"]
    gap = reader.events[1]
    assert gap.envelope["data"]["reason"] == "epoch"
    offset = decode_offset(gap.last_id)
    assert offset is not None
    assert offset.positions == {"status": Position("e1", 5)}


async def test_a_client_that_comes_back_without_a_gap_gets_its_place_at_once(
    worker: Worker,
) -> None:
    worker.history.items = messages(1, 6)
    await worker.fanout.deliver(messages(1, 6))
    reader = client(
        worker,
        options=ConnectOptions(frozenset({"status", "stats"})),
        offset=Offset({"status": Position("e1", 3)}, False),
    )
    await until(lambda: reader.names().count("x") == 3)
    offset = decode_offset(reader.events[0].last_id)
    assert offset is not None
    assert offset.positions == {
        "status": Position("e1", 3),
        "stats": worker.fanout.positions["stats"],
    }
    assert [one.envelope["seq"] for one in reader.events[1:]] == [4, 5, 6]


@pytest.mark.parametrize(
    ("error", "is_browser", "status"),
    [
        (ClientError(ErrorCode.MAX_CONNECTIONS_EXCEEDED, "no"), False, 429),
        (ClientError(ErrorCode.MAX_CONNECTIONS_EXCEEDED, "no"), True, 429),
        (NoRoomNow("later", 1500), False, 429),
        (NoRoomNow("later", 1500), True, 200),
        (BackplaneUnavailable(), False, 503),
        (BackplaneUnavailable(), True, 200),
    ],
)
async def test_a_place_that_is_not_to_be_had(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    error: ClientError,
    is_browser: bool,
    status: int,
) -> None:
    """A browser comes back by itself only after a stream that has ended."""

    async def claim() -> None:
        await asyncio.sleep(0)
        raise error

    monkeypatch.setattr(type(worker.context.claiming), "claim", lambda *_: claim())
    reader = client(worker, user="ann", is_browser=is_browser)
    await until(lambda: reader.read() is not None and reader.ended)
    assert reader.status == status
    if status == 200:
        assert reader.names() == ["error", "connection_closing"]
        closing = reader.events[-1].envelope["data"]
        assert closing["retryAfter"] == reader.parser.retry
    else:
        head = reader.raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        assert "Vary: Origin" in head
        assert "Connection: close" in head
        assert any(line.startswith("Retry-After: ") for line in head)
        assert error.code.encode() in reader.raw
    assert not worker.fanout.groups() or all(not group.members for group in worker.fanout.groups())


async def test_a_worker_that_leaves_while_a_place_is_claimed_says_when_to_come_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = asyncio.Event()

    async def claim() -> None:
        await waiting.wait()

    monkeypatch.setattr(type(worker.context.claiming), "claim", lambda *_: claim())
    reader = client(worker, user="ann")
    await turn()
    assert reader.read() == []
    reader.session.close(1012, '{"retryAfter": 700}')
    assert reader.names() == ["connection_closing"]
    assert (reader.status, reader.parser.retry) == (200, 700)
    waiting.set()
    await turn()
    assert reader.names() == ["connection_closing"]


async def test_what_it_sends_is_dropped_and_counted(worker: Worker) -> None:
    reader = client(worker)
    await reader.event("connected")
    before = worker.hub.extra_frames
    reader.sock.sendall(b"GET /status HTTP/1.1\r\n\r\n\x81\x00")
    await until(lambda: worker.hub.extra_frames > before)
    assert reader.session.state == OPEN
    assert reader.session.reader is None
    assert reader.names() == ["connected"]


# Whether it is still there.


async def test_comments_come_more_often_than_pings(worker: Worker) -> None:
    reader = client(worker)
    await reader.event("connected")
    wheel = worker.hub.wheel
    ticks = round(min(COMMENT_SECONDS, 30.0) / wheel.tick_length)
    for _ in range(2 * ticks):
        wheel.advance()
    await turn()
    reader.read()
    assert reader.parser.comments == 2
    assert reader.session.state == OPEN


async def test_a_peer_that_confirms_nothing_is_closed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cable is cut: what is written stays in the kernel."""
    reader = client(worker)
    await reader.event("connected")
    monkeypatch.setattr(kernel, "count_unsent", lambda _: 7)
    monkeypatch.setattr(kernel, "progress", lambda _: 100)
    wheel = worker.hub.wheel
    for _ in range(round(2 * wheel.timeout / wheel.tick_length)):
        wheel.advance()
    assert reader.session.state == CLOSING
    assert worker.hub.closed[4408] == 1


async def test_an_idle_peer_that_confirms_stays_for_ever(worker: Worker) -> None:
    reader = client(worker)
    await reader.event("connected")
    wheel = worker.hub.wheel
    for _ in range(round(5 * wheel.timeout / wheel.tick_length)):
        wheel.advance()
        await turn(2)
        reader.read()
    assert reader.session.state == OPEN
    assert reader.parser.is_between_events


async def test_a_peer_answers_a_probe_by_confirming_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = client(worker)
    await reader.event("connected")
    monkeypatch.setattr("app.sessions.session.PROBE_STEP", 0.001)
    monkeypatch.setattr("app.sessions.session.PROBE_SECONDS", 0.02)
    task = asyncio.get_running_loop().create_task(reader.session.answers_ping())
    await until(lambda: reader.read() and reader.parser.comments == 1)
    assert await task
    monkeypatch.setattr(kernel, "count_unsent", lambda _: 7)
    monkeypatch.setattr(kernel, "progress", lambda _: 100)
    assert not await reader.session.answers_ping()
    reader.session.drop("gone")
    assert not await reader.session.answers_ping()


# The end.


@pytest.mark.parametrize(
    ("code", "reason", "low", "high"),
    [
        (1012, '{"retryAfter": 1234}', 1234, 1234),
        (1001, "the service stops", 500, 5000),
        (4429, "flood", 500, 5000),
        (4401, "no valid token", 500, 5000),
        (4403, "by an operator", FINAL_RETRY, FINAL_RETRY),
        (1008, "too many connections", FINAL_RETRY, FINAL_RETRY),
    ],
)
async def test_the_last_event_says_when_to_come_back(
    worker: Worker, code: int, reason: str, low: int, high: int
) -> None:
    reader = client(worker)
    await reader.event("connected")
    reader.session.close(code, reason)
    await until(lambda: reader.read() and reader.ended)
    assert reader.names() == ["connected", "connection_closing"]
    assert reader.events[-1].envelope["data"]["code"] == code
    assert reader.parser.retry is not None
    assert low <= reader.parser.retry <= high
    assert worker.hub.closed[code] == 1


# What is unsent when it is given up.


def test_a_frame_ends_where_an_event_does() -> None:
    chunk = HEAD + b"retry: 1\ndata: {}\n\nid: x\ndata: {}\n\n" + COMMENT
    end = EventStreamSession.frame_end
    first, second = chunk.index(b"\n\n") + 2, chunk.rindex(b"\n\n") + 2
    for place in range(len(chunk) + 1):
        expected = (
            0
            if place == 0
            else first
            if place <= first
            else second
            if place <= second
            else len(chunk)
        )
        assert end(chunk, place) == expected, place


async def test_one_that_does_not_read_gets_complete_events_and_the_reason(worker: Worker) -> None:
    reader = client(worker, small=True)
    await turn()
    body = b'{"type":"status","event":"x","data":"%b"' % (b"x" * 3000)
    items: list[Message | Gap] = [
        Message("status", "e1", seq, "x", body, 0.0) for seq in range(1, 60)
    ]
    for item in items:
        await worker.fanout.deliver([item])
    session = reader.session
    assert session.pending is not None
    session.give_up("too slow")
    assert session.state == CLOSING
    await until(lambda: reader.read() is not None and reader.ended)
    assert reader.parser.is_between_events
    assert reader.names()[-1] == "connection_closing"
    assert reader.events[-1].envelope["data"]["code"] == 4413
    assert worker.hub.output.total == 0


async def test_the_rest_of_a_long_event_is_not_kept(worker: Worker) -> None:
    reader = client(worker, small=True)
    await turn()
    body = b'{"type":"status","event":"x","data":"%b"' % (b"x" * 3 * KEPT_REST)
    await worker.fanout.deliver([Message("status", "e1", 1, "x", body, 0.0)])
    reader.session.give_up("too slow")
    assert reader.session.state == CLOSED
    assert worker.hub.output.total == 0
