"""Connections of several workers, listed and closed: the workers are joined in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import CloseCode
from app.protocol.envelope import encode_json
from app.protocol.requests import ConnectOptions
from app.sessions import control, roster
from app.sessions.control import Unreadable
from app.sessions.event_stream import EventStreamSession
from app.sessions.plain import PlainSession
from app.sessions.roster import Query, Roster
from app.sessions.session import Opening
from app.transport.connection import OPEN
from tests.support.joined import JoinedWorker


class RosterWorker(JoinedWorker):
    """The way of one worker to the others, and its roster."""

    def __init__(self, stream: list[RosterWorker], *, is_alone: bool = True) -> None:
        super().__init__(stream)
        self.stream = stream
        self.roster = Roster(self, self.registry, self.slots, is_alone=is_alone, host="lab")
        stream.append(self)

    async def send_to_all(self, message: dict[str, Any]) -> None:
        if self.is_mute:
            return
        for worker in self.stream:
            worker.roster.take(control.parse(encode_json(message)))


@pytest.fixture
async def workers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[RosterWorker]]:
    monkeypatch.setattr(roster, "ALL_ANSWER_SECONDS", 0.3)
    stream: list[RosterWorker] = []
    for _ in range(3):
        RosterWorker(stream)
    yield stream
    for worker in stream:
        worker.close()


async def test_pages_of_all_workers_in_order(workers: list[RosterWorker]) -> None:
    for number in range(25):
        workers[number % 3].client(f"c{number:02}", user="ann" if number % 5 == 0 else None)
    seen: list[str] = []
    after = ""
    while True:
        page = await workers[1].roster.find(Query(after=after, limit=4))
        assert (page.total, page.workers, page.complete) == (25, 3, True)
        assert len(page.rows) <= 4
        seen += [row["id"] for row in page.rows]
        if not page.more:
            break
        after = seen[-1]
    assert seen == [f"c{number:02}" for number in range(25)]
    page = await workers[0].roster.find(Query(user="ann"))
    assert [row["id"] for row in page.rows] == ["c00", "c05", "c10", "c15", "c20"]
    assert not page.more


async def test_users_are_counted_over_all_workers(workers: list[RosterWorker]) -> None:
    workers[0].client("a", user="bob")
    workers[0].client("b", user="ann")
    workers[0].client("c")
    workers[1].client("d", user="bob")
    workers[1].client("e", ConnectOptions({"stats"}), user="bob")
    workers[2].client("f", ConnectOptions({"status", "stats"}), user="zoe")
    find = workers[2].roster.find
    page = await find(Query(by_user=True))
    assert {row["user"]: row["connections"] for row in page.rows} == {"ann": 1, "bob": 3, "zoe": 1}
    assert (page.total, page.anonymous, page.more) == (6, 1, False)
    page = await find(Query(by_user=True, limit=1, after="ann"))
    assert (page.rows, page.more) == ([{"user": "bob", "connections": 3}], True)
    page = await find(Query(by_user=True, type="stats"))
    assert [row["user"] for row in page.rows] == ["bob", "zoe"]


async def test_connections_of_one_protocol(workers: list[RosterWorker]) -> None:
    workers[0].client("p")
    for worker in workers[1:]:
        fd, _ = worker.descriptor()
        stream = EventStreamSession(worker.context, fd, f"s{worker.slots.index}", None)
        worker.hub.attach(stream)
        stream.begin(Opening(b"", {}, is_browser=False), None, ConnectOptions(), None)
    page = await workers[0].roster.find(Query(protocol="sse"))
    assert ([row["protocol"] for row in page.rows], page.total) == (["sse", "sse"], 2)


async def test_what_is_not_open_or_not_welcomed_is_in_no_list(workers: list[RosterWorker]) -> None:
    gone = workers[1].client("gone", user="ann").session
    gone.close(1000)
    workers[1].registry.add(gone)
    early = PlainSession(workers[1].context, workers[1].descriptor()[0], "early", "ann")
    workers[1].hub.attach(early)
    assert workers[1].registry.by_id.keys() == {"gone", "early"}
    assert (await workers[0].roster.find(Query())).total == 0


async def test_a_connection_that_passes_between_workers_counts_once_in_a_page(
    workers: list[RosterWorker],
) -> None:
    workers[0].client("a", user="ann")
    workers[1].client("a", user="ann")
    assert [row["id"] for row in (await workers[2].roster.find(Query())).rows] == ["a"]


async def test_closing(workers: list[RosterWorker]) -> None:
    own = [worker.client(f"ann{number}", user="ann") for number, worker in enumerate(workers)]
    other = workers[2].client("bob", user="bob")
    close = workers[0].roster.close
    found = await close(id="ann2", code=CloseCode.OPERATOR)
    assert (found.count, found.complete) == (1, True)
    assert [one.session.state == OPEN for one in own] == [True, True, False]
    assert await own[2].close_code() == CloseCode.OPERATOR
    assert (await close(id="ann2", code=CloseCode.OPERATOR)).count == 0
    found = await close(user="ann", code=CloseCode.UNAUTHORIZED)
    assert (found.count, found.workers) == (2, 3)
    assert [await one.close_code() for one in own[:2]] == [CloseCode.UNAUTHORIZED] * 2
    assert other.session.state == OPEN


async def test_a_worker_that_is_silent_makes_a_list_incomplete(workers: list[RosterWorker]) -> None:
    for worker in workers:
        worker.client(worker.host_id)
    workers[2].is_mute = True
    page = await workers[0].roster.find(Query())
    assert ([row["id"] for row in page.rows], page.workers, page.complete) == (
        ["host0", "host1"],
        2,
        False,
    )


async def test_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "ELSEWHERE_SECONDS", 0.05)
    stream: list[RosterWorker] = []
    for _ in range(2):
        RosterWorker(stream, is_alone=False)
    stream[1].client("there")
    page = await stream[0].roster.find(Query())
    assert [row["id"] for row in page.rows] == ["there"]
    assert (page.workers, page.complete) == (2, False), "there may be more"
    for worker in stream:
        worker.close()


@pytest.mark.parametrize(
    "message",
    [
        {"method": "list", "host_id": "h", "ask": 1, "limit": 0},
        {"method": "list", "host_id": "h", "ask": 1, "limit": 5, "user": 5},
        {"method": "list", "host_id": "h", "ask": 1, "limit": 5, "after": ["x"]},
        {"method": "listed", "to": "h", "ask": 1, "rows": [5], "total": 1, "anonymous": 0},
        {
            "method": "listed",
            "to": "h",
            "ask": 1,
            "rows": [{"user": "a"}],
            "total": 1,
            "anonymous": 0,
        },
        {"method": "close", "host_id": "h", "ask": 1, "code": 1000},
        {"method": "close", "host_id": "h", "ask": 1, "code": 4403, "user": {}},
        {"method": "closed", "to": "h", "ask": 1},
    ],
)
def test_what_other_programs_may_send(message: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        control.parse(encode_json(message))
