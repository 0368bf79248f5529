"""Whether holders still answer, asked of other workers: two or three of them, joined in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.errors import CloseCode
from app.protocol.envelope import encode_json
from app.sessions import control, probing
from app.sessions.probing import Prober
from app.transport.connection import CLOSING, OPEN
from tests.support.joined import JoinedWorker


class FakeSession:
    def __init__(self, id: str, user: str | None, *, answers: bool, seen: int = 0) -> None:
        self.id, self.user, self.answers, self.seen = id, user, answers, seen
        self.claimed = user is not None
        self.state = OPEN
        self.ended: CloseCode | None = None

    def end(self, code: CloseCode, reason: str) -> None:
        self.state, self.ended = CLOSING, code

    def end_replaced(self) -> None:
        self.end(CloseCode.REPLACED, "")

    async def answers_ping(self) -> bool:
        await asyncio.sleep(0)
        return self.answers


class FakeWorker(JoinedWorker):
    """The way of one worker to the others, and its prober."""

    def __init__(self, stream: list[FakeWorker], url: str = "") -> None:
        super().__init__(len(stream), stream)
        self.stream = stream
        self.sent: list[str] = []
        self.prober = Prober(self, self.registry, self.slots, is_alone=not url)
        stream.append(self)

    async def send_to_all(self, message: dict[str, Any]) -> None:
        if self.is_mute and message["method"] == "alive":
            return
        self.sent.append(message["method"])
        for worker in self.stream:
            worker.carry_out(control.parse(encode_json(message)))

    def carry_out(self, message: dict[str, Any]) -> None:
        method = message["method"]
        mine = message.get("host_id") == self.host_id
        if method == "replace" and not mine:
            found = [self.registry.by_id.get(sid) for sid in message["sids"]]
            self.prober.on_replace(message, [one for one in found if one is not None])
        elif method == "probe" and not mine:
            self.prober.on_probe(message)
        elif method in {"held", "alive"}:
            self.prober.on_answer(message)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[FakeWorker]:
    monkeypatch.setattr(probing, "VERDICT_SECONDS", 0.3)
    stream: list[FakeWorker] = []
    for _ in range(3):
        FakeWorker(stream)
    return stream


async def test_one_that_answers_stays_and_one_that_is_silent_goes(
    workers: list[FakeWorker],
) -> None:
    lives = FakeSession("lives", None, answers=True)
    hangs = FakeSession("hangs", None, answers=False)
    workers[1].add(lives)
    workers[2].add(hangs)
    assert await workers[0].prober.replace(["lives", "hangs", "gone"]) == {"lives"}
    assert lives.ended is None
    assert hangs.ended is CloseCode.REPLACED


async def test_few_workers_all_answer_so_that_nothing_is_waited_for(
    workers: list[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "ALL_ANSWER_SECONDS", 1e6)
    assert await workers[0].prober.replace(["gone"]) == set()
    assert [worker.sent for worker in workers] == [["replace"], ["held"], ["held"]]


async def test_on_several_machines_only_the_worker_that_has_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probing, "GRACE_SECONDS", 0.05)
    stream: list[FakeWorker] = []
    for _ in range(2):
        FakeWorker(stream, url="redis://x")
    stream[1].add(lives := FakeSession("lives", None, answers=True))
    assert await stream[0].prober.replace(["lives"]) == {"lives"}
    assert await stream[0].prober.replace(["gone"]) == set()
    assert stream[1].sent == ["held", "alive"]
    assert lives.ended is None


async def test_a_worker_that_reads_the_question_late_replaces_at_once(
    workers: list[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LATE_SHARE", -1.0)
    workers[1].add(lives := FakeSession("lives", None, answers=True))
    assert await workers[0].prober.replace(["lives"]) == set()
    assert lives.ended is CloseCode.REPLACED


async def test_a_message_of_an_older_version_replaces_at_once(workers: list[FakeWorker]) -> None:
    workers[1].add(lives := FakeSession("lives", None, answers=True))
    await workers[0].send_to_all({"method": "replace", "sids": ["lives"], "host_id": "other"})
    assert lives.ended is CloseCode.REPLACED


async def test_one_that_is_held_is_alive_until_the_opposite_is_known(
    workers: list[FakeWorker],
) -> None:
    workers[1].add(FakeSession("lives", None, answers=True))
    workers[1].is_mute = True
    assert await workers[0].prober.replace(["lives"]) == {"lives"}


async def test_the_one_that_is_silent_longest_gives_its_place(workers: list[FakeWorker]) -> None:
    ann = [FakeSession(f"a{n}", "ann", answers=False, seen=10 - n) for n in range(3)]
    ann.append(FakeSession("a3", "ann", answers=True))
    bob = [FakeSession(f"b{n}", "bob", answers=True) for n in range(3)]
    workers[0].add(ann[0], bob[0])
    workers[1].add(*ann[1:], bob[1])
    workers[2].add(bob[2], FakeSession("x", None, answers=False))
    counts = await asyncio.gather(
        workers[0].prober.count_answering("ann"), workers[0].prober.count_answering("bob")
    )
    assert counts == [1, 3]
    assert [one.ended for one in ann] == [
        CloseCode.HEARTBEAT_TIMEOUT,
        None,
        CloseCode.HEARTBEAT_TIMEOUT,
        None,
    ]
    assert workers[0].sent == ["probe"], "users of one moment share a question"
