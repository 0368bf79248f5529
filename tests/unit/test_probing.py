"""Whether holders still answer, asked of other workers: two or three of them, joined in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import BackplaneUnavailable, CloseCode
from app.protocol.envelope import encode_json
from app.sessions import control, probing
from app.sessions.probing import Prober
from app.transport.connection import OPEN
from tests.support.joined import JoinedWorker
from tests.support.sessions import Client


class ProbingWorker(JoinedWorker):
    """The way of one worker to the others, and its prober."""

    def __init__(self, stream: list[ProbingWorker], url: str = "") -> None:
        super().__init__(stream)
        self.stream = stream
        self.sent: list[str] = []
        self.unread: list[dict[str, Any]] | None = None
        """What it has not read yet, while it is late."""
        self.prober = Prober(self, self.registry, self.slots, is_alone=not url)
        stream.append(self)

    async def send_to_all(self, message: dict[str, Any]) -> None:
        if self.is_mute and message["method"] == "alive":
            return
        self.sent.append(message["method"])
        for worker in self.stream:
            worker.carry_out(control.parse(encode_json(message)))

    def catch_up(self) -> None:
        """Read what it is late with."""
        unread, self.unread = self.unread or [], None
        for message in unread:
            self.carry_out(message)

    def carry_out(self, message: dict[str, Any]) -> None:
        if self.unread is not None:
            self.unread.append(message)
            return
        method = message["method"]
        mine = message.get("host_id") == self.host_id
        if method == "replace" and not mine:
            found = [self.registry.by_id.get(sid) for sid in message["sids"]]
            self.prober.on_replace(message, [one for one in found if one is not None])
        elif method == "probe" and not mine:
            self.prober.on_probe(message)
        elif method in {"held", "alive"}:
            self.prober.on_answer(message)


def joined(count: int, url: str = "") -> list[ProbingWorker]:
    stream: list[ProbingWorker] = []
    for _ in range(count):
        ProbingWorker(stream, url)
    return stream


@pytest.fixture
async def workers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[ProbingWorker]]:
    monkeypatch.setattr(probing, "VERDICT_SECONDS", 0.3)
    stream = joined(3)
    yield stream
    for worker in stream:
        worker.close()


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sessions.session.PROBE_SECONDS", 0.1)


def live(worker: ProbingWorker, id: str, user: str | None = None) -> Client:
    """A client that answers pings."""
    client = worker.client(id, user=user)
    client.answer_pings()
    return client


async def test_one_that_answers_stays_and_one_that_is_silent_goes(
    workers: list[ProbingWorker],
) -> None:
    lives = live(workers[1], "lives")
    hangs = workers[2].client("hangs")
    assert await workers[0].prober.replace(["lives", "hangs", "gone"]) == {"lives"}
    assert lives.session.state == OPEN
    assert await hangs.close_code() == CloseCode.REPLACED


async def test_few_workers_all_answer_so_that_nothing_is_waited_for(
    workers: list[ProbingWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "ALL_ANSWER_SECONDS", 1e6)
    assert await workers[0].prober.replace(["gone"]) == set()
    assert [worker.sent for worker in workers] == [["replace"], ["held"], ["held"]]


async def test_on_several_machines_only_the_worker_that_has_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probing, "GRACE_SECONDS", 0.05)
    stream = joined(2, url="redis://x")
    lives = live(stream[1], "lives")
    assert await stream[0].prober.replace(["lives"]) == {"lives"}
    assert await stream[0].prober.replace(["gone"]) == set()
    assert stream[1].sent == ["held", "alive"]
    assert lives.session.state == OPEN
    for worker in stream:
        worker.close()


async def test_a_worker_that_reads_the_question_late_replaces_all_the_same(
    workers: list[ProbingWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "ALL_ANSWER_SECONDS", 0.01)
    lives, other = live(workers[1], "lives"), live(workers[2], "other")
    workers[1].unread = []
    assert await workers[0].prober.replace(["lives", "other"]) == {"other"}
    workers[1].catch_up()
    assert await lives.close_code() == CloseCode.REPLACED
    assert other.session.state == OPEN
    assert workers[0].sent == ["replace", "replace"]


@pytest.mark.parametrize("wrong_by", [-3600.0, 3600.0])
async def test_the_clocks_of_machines_decide_nothing(
    workers: list[ProbingWorker], monkeypatch: pytest.MonkeyPatch, wrong_by: float
) -> None:
    lives, hangs = live(workers[1], "lives"), workers[1].client("hangs")
    right, asked = time.time, workers[0].send_to_all

    async def send_by_another_clock(message: dict[str, Any]) -> None:
        monkeypatch.setattr(time, "time", lambda: right() + wrong_by)
        await asked(message)
        monkeypatch.setattr(time, "time", right)

    monkeypatch.setattr(workers[0], "send_to_all", send_by_another_clock)
    assert await workers[0].prober.replace(["lives", "hangs"]) == {"lives"}
    assert lives.session.state == OPEN
    assert await hangs.close_code() == CloseCode.REPLACED


async def test_a_question_that_could_not_be_asked_replaces_nothing_later(
    workers: list[ProbingWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been stored all the same."""
    lives, asked = live(workers[1], "lives"), workers[0].send_to_all
    workers[1].unread = []

    async def fail(message: dict[str, Any]) -> None:
        await asked(message)
        raise BackplaneUnavailable

    monkeypatch.setattr(workers[0], "send_to_all", fail)
    with pytest.raises(BackplaneUnavailable):
        await workers[0].prober.replace(["lives"])
    monkeypatch.setattr(workers[0], "send_to_all", asked)
    workers[1].catch_up()
    await asyncio.gather(*workers[1].tasks)
    assert lives.session.state == OPEN


async def test_a_message_of_an_older_version_replaces_at_once(workers: list[ProbingWorker]) -> None:
    lives = live(workers[1], "lives")
    await workers[0].send_to_all({"method": "replace", "sids": ["lives"], "host_id": "other"})
    assert await lives.close_code() == CloseCode.REPLACED


async def test_one_that_is_held_is_alive_until_the_opposite_is_known(
    workers: list[ProbingWorker],
) -> None:
    live(workers[1], "lives")
    workers[1].is_mute = True
    assert await workers[0].prober.replace(["lives"]) == {"lives"}


async def test_the_one_that_is_silent_longest_gives_its_place(workers: list[ProbingWorker]) -> None:
    ann = [workers[place].client(f"a{place}{n}", user="ann") for n, place in enumerate((0, 1, 1))]
    for number, client in enumerate(ann):
        client.session.seen = -number
    ann.append(live(workers[1], "a3", "ann"))
    bob = [live(worker, f"b{n}", "bob") for n, worker in enumerate(workers)]
    nameless = workers[2].client("x")
    counts = await asyncio.gather(
        workers[0].prober.count_answering("ann"), workers[0].prober.count_answering("bob")
    )
    assert counts == [1, 3]
    assert [client.session.state == OPEN for client in ann] == [False, True, False, True]
    for client in (ann[0], ann[2]):
        assert await client.close_code() == CloseCode.HEARTBEAT_TIMEOUT
    assert all(client.session.state == OPEN for client in [*bob, nameless])
    assert workers[0].sent == ["probe"], "users of one moment share a question"
