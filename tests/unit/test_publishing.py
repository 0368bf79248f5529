"""What the service itself publishes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.errors import BackplaneUnavailable
from app.publishing import Publishing
from app.types import Draft, Position


class Queue:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.control: list[bytes] = []
        self.answer: asyncio.Future[Position] = asyncio.get_running_loop().create_future()

    def submit(self, draft: Draft) -> asyncio.Future[Position]:
        self.drafts.append(draft)
        return self.answer

    async def send_control(self, body: bytes) -> None:
        self.control.append(body)


async def make() -> tuple[Publishing, Any]:
    queue: Any = Queue()
    return Publishing(queue), queue


async def test_a_message_is_published_when_it_is_stored() -> None:
    publishing, queue = await make()
    waiting = asyncio.create_task(publishing.publish("status", "changed", {"a": 1}))
    await asyncio.sleep(0)
    [draft] = queue.drafts
    assert (draft.type, draft.event) == ("status", "changed")
    assert json.loads(draft.body + b"}")["data"] == {"a": 1}
    assert not waiting.done()
    queue.answer.set_result(Position("e", 7))
    assert await waiting == Position("e", 7)


async def test_a_message_that_is_not_stored_is_an_error() -> None:
    publishing, queue = await make()
    queue.answer.set_exception(BackplaneUnavailable())
    with pytest.raises(BackplaneUnavailable):
        await publishing.publish("status", "changed", None)


async def test_control_messages_are_json() -> None:
    publishing, queue = await make()
    await publishing.send_control({"method": "canary"})
    assert [json.loads(body) for body in queue.control] == [{"method": "canary"}]
    with pytest.raises(TypeError):
        await publishing.send_control({"method": object()})
