"""The end of users' tokens while the machine's clock is set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from app.sessions import expiry
from app.sessions.auth import Identity
from app.transport.connection import OPEN
from tests.support.sessions import Client, Worker
from tests.support.waiting import until

HOUR = 3600.0
SOON = 0.05
"""Seconds until the warning."""


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client whose token is about to end."""
    worker = Worker()
    made = worker.client(user="ann")
    assert (await made.event())["event"] == "connected"
    made.session.authenticated(Identity("ann", time.time() + expiry.EXPIRY_WARNING + SOON))
    yield made
    worker.close()


def seconds_left(client: Client) -> float:
    """Until the next step."""
    handle = client.session.need_extra().expiry
    assert handle is not None
    return handle.when() - asyncio.get_running_loop().time()


async def warned(client: Client) -> None:
    assert (await client.event())["event"] == "token_expiring"


async def test_a_client_has_a_minute_after_the_warning(client: Client) -> None:
    await warned(client)
    assert expiry.EXPIRY_WARNING - 30 < seconds_left(client) <= expiry.EXPIRY_WARNING


async def test_a_clock_that_is_set_forward_takes_none_of_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + HOUR)
    await warned(client)
    assert expiry.EXPIRY_WARNING - 30 < seconds_left(client) <= expiry.EXPIRY_WARNING
    assert client.session.state == OPEN


async def test_a_clock_that_is_set_back_puts_the_warning_off(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda now=time.time: now() - HOUR)
    await until(lambda: seconds_left(client) > HOUR - 30, "the warning is put off")
    client.ask("ping")
    assert (await client.event())["event"] == "pong"  # and no warning before it
