"""Delivery skips what fails, and only that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.backplane.reader import Batch
from app.canary import PROBE
from app.delivery import Delivery, Rests
from app.supervisor import Supervisor
from app.types import Gap, Message, Position


def message(seq: int, type: str = "status", body: bytes = b"{}") -> Message:
    return Message(type, "e", seq, "x", body, 0.0)


class Parts:
    """Everything that delivery talks to."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = list(batches)
        self.positions = {"control": Position("e", 9)}
        self.done: list[Any] = []
        self.bad: set[int] = set()
        self.noted: list[str] = []
        self.position = Position("", 0)
        self.missed: list[Any] = []
        self.started: list[Any] = []

    async def read(self) -> Batch:
        if self.batches:
            return self.batches.pop(0)
        return await asyncio.get_running_loop().create_future()

    def remember(self, items: list[Message]) -> None:
        if 0 in self.bad:
            raise RuntimeError("remember")

    async def deliver(self, items: list[Message | Gap]) -> None:
        if -1 in self.bad:
            raise RuntimeError("deliver")
        self.done += [item.seq for item in items if isinstance(item, Message)]

    async def handle_control(self, item: Message) -> None:
        if item.seq in self.bad:
            raise RuntimeError("control")
        self.done.append(f"control {item.seq}")

    def reach(self, position: Position) -> None:
        self.position = position

    def take_awaiting(self) -> list[Any]:
        missed, self.missed = self.missed, []
        return missed

    def start(self, subscriber: Any) -> None:
        self.started.append(subscriber)

    def note_received(self) -> None:
        self.done.append("received")

    async def run(self) -> None:
        supervisor = Supervisor(lambda name, failures: self.noted.extend([name] * failures))
        parts: Any = self
        delivery = Delivery(parts, parts, parts, parts, parts, parts, supervisor, 0.0)
        task = asyncio.create_task(delivery.run())
        async with asyncio.timeout(5):
            while self.batches or self.position.seq != 9:
                await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_all_is_delivered_in_order() -> None:
    control = [message(1, "control"), message(2, "control", PROBE), message(3, "control")]
    parts = Parts(Batch([message(1), message(2)], control), Batch([message(3)]))
    await parts.run()
    assert parts.done == [1, 2, "control 1", "received", "control 2", "control 3", 3]


@pytest.mark.parametrize(
    ("bad", "skipped"),
    [(2, "control 2"), (0, None), (-1, None)],
    ids=["a control message", "the memory", "the fan-out"],
)
async def test_what_fails_is_skipped(bad: int, skipped: str | None) -> None:
    control = [message(n, "control") for n in (1, 2, 3)]
    parts = Parts(Batch([message(1)], control), Batch([message(2)]))
    parts.bad = {bad}
    await parts.run()
    expected: list[Any] = [1, "control 1", "control 2", "control 3", 2]
    if bad == -1:
        expected = [item for item in expected if isinstance(item, str)]
    assert parts.done == [item for item in expected if item != skipped]
    assert set(parts.noted) == {"delivery"}


async def test_subscribers_that_a_fault_left_out_catch_up_at_once() -> None:
    parts = Parts(Batch([message(1)], []))
    parts.missed = ["a", "b"]
    await parts.run()
    assert parts.started == ["a", "b"]


def rests(*flushes: tuple[float, float], longest: float = 0.05) -> list[float]:
    """The rests after flushes, each so long after the one before, or after its rest, and so long."""
    rests, now, found = Rests(longest, 100.0), 100.0, []
    for waited, took in flushes:
        began, now = now + waited, now + waited + took
        rest = rests.after(began, now)
        found.append(round(rest, 6))
        now += rest
    return found


def test_a_flush_now_and_then_is_followed_by_no_wait_of_the_next() -> None:
    assert rests((1.0, 0.04), (0.083, 0.04), (0.083, 0.04)) == [0.02, 0.02, 0.02]
    assert rests((1.0, 0.001), (0.01, 0.001), (0.01, 0.001)) == [0.0, 0.0, 0.0]


def test_flushes_without_a_pause_take_two_thirds_of_the_time() -> None:
    flushes = [(0.0, 0.04)] * 50
    assert sum(rests(*flushes)) == pytest.approx(50 * 0.04 / 2)
    short = [(0.0, 0.0005)] * 500
    assert sum(rests(*short)) == pytest.approx(500 * 0.0005 / 2, rel=0.02)


def test_what_was_waited_for_messages_is_no_rest_owed() -> None:
    # 0.02 s are owed after the first; the second comes 0.03 s later, so 0.01 s more than that.
    rests = Rests(0.05, 0.0)
    assert rests.after(1.0, 1.04) == pytest.approx(0.02)
    assert rests.after(1.05, 1.09) == pytest.approx(0.03)  # read before its time: both are owed
    assert rests.after(2.0, 2.04) == pytest.approx(0.02)


def test_no_rest_is_longer_than_the_flush_interval() -> None:
    assert rests((0.0, 1.0), (0.0, 1.0)) == [0.05, 0.05]
    assert rests((0.0, 1.0), longest=0.0) == [0.0]
