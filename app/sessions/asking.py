"""What questions to the other workers share: the way there and back, how many answer, and the wait."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from app.ports import Slots

T = TypeVar("T")


class Channel(Protocol):
    """The way to the other workers; see app/sessions/socketio/manager.py."""

    host_id: str
    """Names this worker among all."""

    async def send_and_read_back(self, message: dict[str, Any], /) -> None:
        """Store a message for all workers, and wait until this one has carried it out."""

    async def send_to_all(self, message: dict[str, Any], /) -> None:
        """Store a message for all workers."""

    def start_task(self, work: Coroutine[Any, Any, Any], /) -> object:
        """Run something beside what the stream brings."""


class Questions(Generic[T]):
    """What a worker has asked the others, by number, until it has all answers or waits no longer.

    Args:
        channel: its way to the other workers.
        slots: tell how many other workers there are on this machine.
        is_alone: there are no workers on other machines.
    """

    def __init__(self, channel: Channel, slots: Slots, *, is_alone: bool) -> None:
        self._channel = channel
        self._slots = slots
        self._is_alone = is_alone
        self._numbers = itertools.count()
        self._open: dict[int, T] = {}

    @contextlib.contextmanager
    def open(self, question: T) -> Iterator[int]:
        """Take answers to a question within this block; gives its number, the `ask` of messages."""
        number = next(self._numbers)
        self._open[number] = question
        try:
            yield number
        finally:
            del self._open[number]

    def answered_by(self, message: Mapping[str, Any]) -> T | None:
        """The question that another worker answers; None where it is not open, or another's."""
        if message["to"] != self._channel.host_id:
            return None
        return self._open.get(message["ask"])

    async def answer(self, method: str, message: Mapping[str, Any], what: dict[str, Any]) -> None:
        """Answer the question of another worker; raises as `Channel.send_to_all`."""
        reply = {"method": method, "to": message["host_id"], "ask": message["ask"], **what}
        await self._channel.send_to_all(reply)

    def others(self) -> int | None:
        """How many other workers answer; None where some are on other machines."""
        if not self._is_alone:
            return None
        slots = self._slots
        return sum(
            row.index != slots.index
            and row.state in {"ready", "leaving"}
            and not row.stats.get("deaf")
            for row in slots.rows()
        )


async def wait_for(news: asyncio.Event, seconds: float, condition: Callable[[], bool]) -> None:
    """Wait until a condition is true, `seconds` at most; it is looked at after each piece of news."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                news.clear()
                await news.wait()
