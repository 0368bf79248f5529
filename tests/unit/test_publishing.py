"""Publishing counts what is stored, and only that."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.errors import BackplaneUnavailable
from app.metrics import Metrics
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


def published(metrics: Metrics) -> float:
    return float(metrics.published["status"]._value.get())  # type: ignore[attr-defined]


async def make() -> tuple[Publishing, Any, Metrics, float]:
    queue: Any = Queue()
    metrics = Metrics(("status",))
    return Publishing(queue, metrics), queue, metrics, published(metrics)


async def test_a_message_is_counted_when_it_is_stored() -> None:
    publishing, queue, metrics, before = await make()
    waiting = asyncio.create_task(publishing.publish("status", "changed", {"a": 1}))
    await asyncio.sleep(0)
    [draft] = queue.drafts
    assert (draft.type, draft.event) == ("status", "changed")
    assert json.loads(draft.body + b"}")["data"] == {"a": 1}
    assert published(metrics) == before
    queue.answer.set_result(Position("e", 7))
    assert await waiting == Position("e", 7)
    assert published(metrics) == before + 1


async def test_a_message_that_is_not_stored_is_not_counted() -> None:
    publishing, queue, metrics, before = await make()
    queue.answer.set_exception(BackplaneUnavailable())
    with pytest.raises(BackplaneUnavailable):
        await publishing.publish("status", "changed", None)
    assert published(metrics) == before


async def test_control_messages_are_json() -> None:
    publishing, queue, _, _ = await make()
    await publishing.send_control({"method": "canary"})
    assert [json.loads(body) for body in queue.control] == [{"method": "canary"}]
    with pytest.raises(TypeError):
        await publishing.send_control({"method": object()})
