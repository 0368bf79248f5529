"""The presence state: what may be said, how it ages, and reads while the backplane is away."""

from __future__ import annotations

import asyncio
import logging

import pytest

from app.errors import BackplaneUnavailable, ClientError, ErrorCode
from app.presence import RETRY, SILENCE, Presence, PresenceState
from app.protocol.schema.limits import MAX_TASK_LENGTH
from tests.support.clock import Clock
from tests.support.http_side import MemoryFields


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000.0)


@pytest.fixture
def fields() -> MemoryFields:
    return MemoryFields()


@pytest.fixture
def presence(fields: MemoryFields, clock: Clock) -> Presence:
    return Presence(fields.get, fields.set, now=clock, monotonic=clock)


async def test_nothing_is_set_yet(presence: Presence) -> None:
    state, confirmed = await presence.read()
    assert confirmed
    assert state.to_json() == {"state": "offline", "task": None, "updatedAt": None}


async def test_what_was_said_is_shown_at_once_and_elsewhere(
    presence: Presence, fields: MemoryFields, clock: Clock
) -> None:
    expected = PresenceState("working", "写测试", 1_700_000_000_000)
    assert await presence.update("working", "写测试") == expected
    assert await presence.read() == (expected, True)
    other = Presence(fields.get, fields.set, now=clock, monotonic=clock)
    assert await other.read() == (expected, True)
    await other.update("idle")
    assert await presence.read() == (PresenceState("idle", None, 1_700_000_000_000), True)


async def test_silence_is_offline(presence: Presence, clock: Clock) -> None:
    await presence.update("working", "x")
    clock.now += SILENCE
    assert (await presence.read())[0].state == "working"
    clock.now += 1
    state, _ = await presence.read()
    assert state == PresenceState("offline", None, 1_700_000_000_000)
    await presence.update("idle")
    assert (await presence.read())[0].state == "idle"


@pytest.mark.parametrize(
    ("state", "task"),
    [
        (None, None),
        ("busy", None),
        (1, None),
        ([], None),
        ("idle", 1),
        ("idle", False),
        ("idle", []),
        ("idle", "x" * (MAX_TASK_LENGTH + 1)),
        ("idle", "\ud800"),
    ],
)
async def test_what_may_not_be_said(
    presence: Presence, fields: MemoryFields, state: object, task: object
) -> None:
    with pytest.raises(ClientError) as caught:
        await presence.update(state, task)
    assert caught.value.code is ErrorCode.INVALID_PAYLOAD
    assert fields.fields == {}


async def test_an_update_needs_the_backplane(presence: Presence, fields: MemoryFields) -> None:
    fields.away = True
    with pytest.raises(BackplaneUnavailable):
        await presence.update("idle")
    fields.away = False
    assert (await presence.read())[0].state == "offline"


async def test_reads_that_wait_together_share_one_answer(
    presence: Presence, fields: MemoryFields
) -> None:
    await asyncio.gather(*(presence.read() for _ in range(100)))
    assert fields.reads == 2, "that of the first one, and one that is asked after all others came"
    await presence.read()
    assert fields.reads == 3


async def test_a_read_shows_what_was_set_elsewhere_before_it(
    presence: Presence, fields: MemoryFields, clock: Clock
) -> None:
    other = Presence(fields.get, fields.set, now=clock, monotonic=clock)
    fields.gate = asyncio.Event()
    early = asyncio.create_task(presence.read())
    while not fields.reads:
        await asyncio.sleep(0)
    said = await other.update("working", "x")
    late = [asyncio.create_task(presence.read()) for _ in range(3)]
    await asyncio.sleep(0)
    assert fields.reads == 1
    fields.gate.set()
    await early
    assert await asyncio.gather(*late) == [(said, True)] * 3
    assert fields.reads == 2


async def test_the_last_known_state_stands_while_the_backplane_is_away(
    presence: Presence, fields: MemoryFields, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    said = await presence.update("working", "x")
    fields.away = True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += RETRY
            assert await presence.read() == (said, False)
    assert len(caplog.records) == 1
    assert fields.reads == 3
    await presence.read()
    assert fields.reads == 3, "failures are cached like answers"
    fields.away = False
    clock.now += RETRY
    assert await presence.read() == (said, True)


async def test_a_backplane_that_hangs_delays_no_caller(
    presence: Presence,
    fields: MemoryFields,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.presence.PATIENCE", 0.01)
    said = await presence.update("working", "x")
    clock.now += RETRY
    fields.gate = asyncio.Event()
    assert await presence.read() == (said, False)
    assert await presence.read() == (said, False)
    assert fields.reads == 1
    fields.gate.set()
    monkeypatch.undo()
    assert await presence.read() == (said, True)


async def test_an_update_beats_a_read_that_began_before_it(
    presence: Presence, fields: MemoryFields, clock: Clock
) -> None:
    fields.gate = asyncio.Event()
    reading = asyncio.create_task(presence.read())
    while not fields.reads:
        await asyncio.sleep(0)
    clock.now -= 60  # clocks may jump: the order is that of the calls
    said = await presence.update("working", "x")
    fields.gate.set()
    assert await reading == (said, True)


@pytest.mark.parametrize(
    "stored",
    [
        {"state": "idle"},
        {"state": "dancing", "task": "", "updatedAt": "1"},
        {"state": "idle", "task": "", "updatedAt": "soon"},
    ],
)
async def test_what_cannot_be_read_is_nothing(
    presence: Presence, fields: MemoryFields, stored: dict[str, str]
) -> None:
    fields.fields = stored
    assert await presence.read() == (PresenceState("offline", None, None), True)


async def test_since_when_state_and_task_are_these(
    presence: Presence, fields: MemoryFields, clock: Clock
) -> None:
    began = round(clock.now * 1000)
    assert (await presence.update("working", "a")).since == began
    clock.now += 60
    assert (await presence.update("working", "a")).since == began
    clock.now += 60
    assert (await presence.update("working", "b")).since == began + 120_000
    clock.now += SILENCE + 1
    silent, _ = await presence.read()
    assert (silent.state, silent.since) == ("offline", began + 120_000 + SILENCE * 1000)
    assert (await presence.update("working", "b")).since == round(clock.now * 1000)


async def test_since_of_a_version_that_did_not_store_it(
    presence: Presence, fields: MemoryFields, clock: Clock
) -> None:
    fields.fields = {"state": "idle", "task": "", "updatedAt": "1700000000000"}
    assert (await presence.read())[0].since == 1_700_000_000_000
