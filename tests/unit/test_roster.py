"""Connections of several workers, listed and closed: the workers are joined in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.errors import CloseCode
from app.protocol.envelope import encode_json
from app.sessions import control, roster
from app.sessions.control import Unreadable
from app.sessions.roster import Query, Roster
from app.transport.connection import CLOSING, OPEN
from tests.support.joined import JoinedWorker


class FakeSession:
    protocol = "plain"
    welcomed = True

    def __init__(self, id: str, user: str | None = None, *types: str) -> None:
        self.id, self.user, self.state = id, user, OPEN
        self.group = SimpleNamespace(types=frozenset(types or ("status",)))
        self.ended: CloseCode | None = None

    def end(self, code: CloseCode, reason: str) -> None:
        self.state, self.ended = CLOSING, code


class FakeWorker(JoinedWorker):
    """The way of one worker to the others, and its roster."""

    def __init__(self, stream: list[FakeWorker], *, is_alone: bool = True) -> None:
        super().__init__(len(stream), stream)
        self.stream = stream
        self.roster = Roster(self, self.registry, self.slots, is_alone=is_alone, host="lab")
        stream.append(self)

    async def send_to_all(self, message: dict[str, Any]) -> None:
        if self.is_mute:
            return
        for worker in self.stream:
            worker.roster.take(control.parse(encode_json(message)))


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[FakeWorker]:
    monkeypatch.setattr(roster, "ALL_ANSWER_SECONDS", 0.3)
    stream: list[FakeWorker] = []
    for _ in range(3):
        FakeWorker(stream)
    return stream


async def test_pages_of_all_workers_in_order(workers: list[FakeWorker]) -> None:
    for number in range(25):
        workers[number % 3].add(FakeSession(f"c{number:02}", "ann" if number % 5 == 0 else None))
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


async def test_users_are_counted_over_all_workers(workers: list[FakeWorker]) -> None:
    workers[0].add(FakeSession("a", "bob"), FakeSession("b", "ann"), FakeSession("c"))
    workers[1].add(FakeSession("d", "bob"), FakeSession("e", "bob", "stats"))
    workers[2].add(FakeSession("f", "zoe", "status", "stats"))
    find = workers[2].roster.find
    page = await find(Query(by_user=True))
    assert {row["user"]: row["connections"] for row in page.rows} == {"ann": 1, "bob": 3, "zoe": 1}
    assert (page.total, page.anonymous, page.more) == (6, 1, False)
    page = await find(Query(by_user=True, limit=1, after="ann"))
    assert (page.rows, page.more) == ([{"user": "bob", "connections": 3}], True)
    page = await find(Query(by_user=True, type="stats"))
    assert [row["user"] for row in page.rows] == ["bob", "zoe"]


async def test_connections_of_one_protocol(workers: list[FakeWorker]) -> None:
    for worker, protocol in zip(workers, ("plain", "sse", "sse"), strict=True):
        session = FakeSession(protocol + str(worker.slots.index))
        session.protocol = protocol
        worker.add(session)
    page = await workers[0].roster.find(Query(protocol="sse"))
    assert ([row["protocol"] for row in page.rows], page.total) == (["sse", "sse"], 2)


async def test_what_is_not_open_or_not_welcomed_is_in_no_list(workers: list[FakeWorker]) -> None:
    gone, early = FakeSession("gone", "ann"), FakeSession("early", "ann")
    gone.state, early.welcomed = CLOSING, False
    workers[1].add(gone, early)
    assert (await workers[0].roster.find(Query())).total == 0


async def test_a_connection_that_passes_between_workers_counts_once_in_a_page(
    workers: list[FakeWorker],
) -> None:
    workers[0].add(FakeSession("a", "ann"))
    workers[1].add(FakeSession("a", "ann"))
    assert [row["id"] for row in (await workers[2].roster.find(Query())).rows] == ["a"]


async def test_closing(workers: list[FakeWorker]) -> None:
    own = [FakeSession(f"ann{number}", "ann") for number in range(3)]
    other = FakeSession("bob", "bob")
    for worker, session in zip(workers, own, strict=True):
        worker.add(session)
    workers[2].add(other)
    close = workers[0].roster.close
    found = await close(id="ann2", code=CloseCode.OPERATOR)
    assert (found.count, found.complete) == (1, True)
    assert [one.ended for one in own] == [None, None, CloseCode.OPERATOR]
    assert (await close(id="ann2", code=CloseCode.OPERATOR)).count == 0
    found = await close(user="ann", code=CloseCode.UNAUTHORIZED)
    assert (found.count, found.workers) == (2, 3)
    assert [one.ended for one in own[:2]] == [CloseCode.UNAUTHORIZED] * 2
    assert other.ended is None


async def test_a_worker_that_is_silent_makes_a_list_incomplete(workers: list[FakeWorker]) -> None:
    for worker in workers:
        worker.add(FakeSession(worker.host_id))
    workers[2].is_mute = True
    page = await workers[0].roster.find(Query())
    assert ([row["id"] for row in page.rows], page.workers, page.complete) == (
        ["host0", "host1"],
        2,
        False,
    )


async def test_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "ELSEWHERE_SECONDS", 0.05)
    stream: list[FakeWorker] = []
    for _ in range(2):
        FakeWorker(stream, is_alone=False)
    stream[1].add(FakeSession("there"))
    page = await stream[0].roster.find(Query())
    assert [row["id"] for row in page.rows] == ["there"]
    assert (page.workers, page.complete) == (2, False), "there may be more"


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
