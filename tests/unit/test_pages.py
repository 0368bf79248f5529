"""Answers with history: many that ask for the same share a read, and each ends well or with an error."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.sessions.session import Session
from app.transport.connection import MOVING, OPEN
from app.turns import SLICE
from app.types import Message
from tests.support.delivery import messages, turn
from tests.support.sessions import Client, Worker
from tests.support.waiting import until


async def ask(worker: Worker, count: int) -> list[Client]:
    clients = [worker.client(f"c{number}") for number in range(count)]
    for number, client in enumerate(clients):
        await client.event()
        client.ask("get_history", {"type": "status", "limit": 2}, number)
    await until(lambda: all(has_asked(client.session) for client in clients))
    return clients


def has_asked(session: Session) -> bool:
    return session.extra is not None and bool(session.extra.pages)


def count_reads(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    read = worker.history.newest
    calls: list[object] = []

    async def newest(*what: Any) -> tuple[list[Message], bool]:
        calls.append(what)
        return await read(*what)

    monkeypatch.setattr(worker.history, "newest", newest)
    return calls


async def test_all_that_ask_for_the_same_share_a_read_and_a_task(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.history.items = messages(1, 3)
    calls = count_reads(worker, monkeypatch)
    tasks = len(asyncio.all_tasks())
    clients = await ask(worker, 5)
    assert len(asyncio.all_tasks()) == tasks + 1
    worker.history.open.set()
    for number, client in enumerate(clients):
        answer = await client.event()
        assert answer["replyTo"] == number
        assert [one["seq"] for one in answer["data"]["messages"]] == [2, 3]
    # The first one began the read, the others came while it ran.
    assert len(calls) == 2
    assert worker.hub.output.reserved == 0
    await until(lambda: len(asyncio.all_tasks()) == tasks)


async def test_a_question_after_the_begin_of_a_read_is_not_answered_from_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.history.items = messages(1, 1)
    calls = count_reads(worker, monkeypatch)
    (first,) = await ask(worker, 1)
    await turn()
    assert len(calls) == 1
    late = worker.client("late")
    await late.event()
    late.ask("get_history", {"type": "status", "limit": 2}, "late")
    await until(lambda: has_asked(late.session))
    worker.history.open.set()
    await first.event()
    await late.event()
    assert len(calls) == 2


async def test_those_that_ask_while_answers_wait_share_the_next_read(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.history.items = messages(1, 1)
    worker.history.open.set()
    calls = count_reads(worker, monkeypatch)
    has_time = False
    pages = worker.context.pages
    monkeypatch.setattr(pages._answering, "_slice", lambda: SLICE if has_time else 0.0)
    (first,) = await ask(worker, 1)
    await until(lambda: len(pages._found) == 1)
    later = [worker.client(f"later{number}") for number in range(4)]
    for client in later:
        await client.event()
        client.ask("get_history", {"type": "status", "limit": 2}, "later")
        await until(lambda: has_asked(client.session))  # noqa: B023
    await turn()
    assert len(calls) == 1
    has_time = True
    for client in (first, *later):
        await client.event()
    assert len(calls) == 2


async def test_a_failure_of_the_service_is_an_error_for_each(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> Any:
        await worker.history.open.wait()
        raise RuntimeError("broken")

    monkeypatch.setattr(worker.history, "newest", fail)
    clients = await ask(worker, 3)
    worker.history.open.set()
    for number, client in enumerate(clients):
        error = await client.event()
        assert (error["data"]["code"], error["replyTo"]) == ("INTERNAL_ERROR", number)
        client.ask("ping", None, "next")
        assert (await client.event())["event"] == "pong"
    assert "Request failed" in caplog.text
    assert worker.hub.output.reserved == 0


async def test_one_answer_that_cannot_be_sent_stops_no_other(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await ask(worker, 2)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(type(first.session), "reply", fail)
    worker.history.open.set()
    error = await first.event()
    assert (error["event"], error["data"]["code"]) == ("error", "INTERNAL_ERROR")
    assert (await second.event())["data"]["code"] == "INTERNAL_ERROR"
    assert not has_asked(first.session)


async def test_a_session_that_moves_takes_its_question_along(worker: Worker) -> None:
    worker.history.items = messages(1, 3)
    (client,) = await ask(worker, 1)
    client.session.state = MOVING
    worker.history.open.set()
    await until(lambda: worker.hub.output.reserved == 0)
    assert client.read() == []
    assert has_asked(client.session)
    # It is not taken, and asks again.
    client.session.state = OPEN
    client.session.go_on()
    client.session.go_on()
    answer = await client.event()
    assert [one["seq"] for one in answer["data"]["messages"]] == [2, 3]
    await turn()
    assert client.read() == []
