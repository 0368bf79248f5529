"""When a worker counts as deaf, by a clock that the test moves."""

from __future__ import annotations

import pytest

from app.canary import INTERVAL, LIMIT, Canary
from app.errors import BackplaneUnavailable, QueueOverflow


class Ear:
    """A canary with its surroundings in the hands of the test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sent = 0
        self.available = True
        self.echo = True
        self.error: Exception | None = None
        self.writable = True
        self.canary = Canary(
            self._send, lambda: self.available, lambda: self.now, lambda: self.writable
        )

    async def _send(self) -> None:
        if self.error is not None:
            raise self.error
        self.sent += 1
        if self.echo:
            self.canary.note_received()

    async def pass_time(self, seconds: float) -> None:
        """Beat once a second."""
        for _ in range(int(seconds)):
            await self.canary.beat()
            self.now += 1


@pytest.fixture
def ear() -> Ear:
    return Ear()


async def test_one_that_receives_sends_at_the_interval(ear: Ear) -> None:
    assert not ear.canary.receives
    await ear.pass_time(20)
    assert ear.sent == 20 / INTERVAL
    assert ear.canary.receives
    assert not ear.canary.is_deaf


async def test_one_that_receives_others_sends_nothing(ear: Ear) -> None:
    for _ in range(20):
        ear.canary.note_received()
        await ear.pass_time(1)
    assert ear.sent == 0
    assert ear.canary.receives


async def test_one_that_cannot_write_tries_each_time_whatever_it_receives(ear: Ear) -> None:
    ear.writable = False
    for _ in range(20):
        ear.canary.note_received()
        await ear.pass_time(1)
    assert ear.sent == 20


async def test_deaf_after_the_limit_until_it_receives_again(ear: Ear) -> None:
    await ear.pass_time(5)
    ear.echo = False
    await ear.pass_time(INTERVAL + LIMIT - 2)
    assert not ear.canary.is_deaf
    await ear.pass_time(4)
    assert ear.canary.is_deaf
    assert not ear.canary.receives
    ear.canary.note_received()
    assert not ear.canary.is_deaf
    assert ear.canary.receives


async def test_no_worker_is_deaf_without_a_backplane(ear: Ear) -> None:
    ear.echo = False
    await ear.pass_time(5)
    ear.available, ear.error = False, BackplaneUnavailable()
    await ear.pass_time(60)
    assert not ear.canary.is_deaf
    # What was stored before the outage may be lost with it: the limit begins anew.
    ear.available, ear.error = True, None
    await ear.pass_time(LIMIT - 2)
    assert not ear.canary.is_deaf
    await ear.pass_time(6)
    assert ear.canary.is_deaf


async def test_a_probe_that_was_not_stored_is_not_awaited(ear: Ear) -> None:
    ear.error = BackplaneUnavailable()
    await ear.pass_time(60)
    assert not ear.canary.is_deaf


async def test_a_full_queue_hides_no_deafness(ear: Ear) -> None:
    ear.echo = False
    await ear.pass_time(5)
    ear.error = QueueOverflow()
    await ear.pass_time(LIMIT)
    assert ear.canary.is_deaf


async def test_a_time_in_which_the_process_stood_still_does_not_count(ear: Ear) -> None:
    await ear.pass_time(5)
    ear.echo = False
    await ear.pass_time(INTERVAL + 1)
    ear.now += 90
    assert not ear.canary.is_deaf
    await ear.pass_time(LIMIT - 2)
    assert not ear.canary.is_deaf
    await ear.pass_time(6)
    assert ear.canary.is_deaf
