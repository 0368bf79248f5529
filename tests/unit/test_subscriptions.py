"""Where a client that recovers goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from app.protocol.offsets import Offset, encode_offset
from app.sessions import subscriptions as module
from app.sessions.pages import READ_SECONDS
from app.sessions.subscriptions import AHEAD_SECONDS, Start, Subscriptions
from app.types import Gap, Position
from tests.support.delivery import messages
from tests.support.sessions import Worker
from tests.support.waiting import until
from tests.unit.test_event_stream import client as event_stream
from tests.unit.test_phases import socketio

TYPES = [f"t{n}" for n in range(32)]


def recovering(fanout: Any, history: Any = None) -> Subscriptions:
    unused: Any = None
    return Subscriptions(
        known=frozenset(TYPES),
        fanout=fanout,
        catchup=unused,
        history=history,
        pages=unused,
        rates=Mock(),
        metrics=unused,
    )


async def test_a_client_that_is_ahead_in_many_types_waits_no_longer_than_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    fanout: Any = SimpleNamespace(positions={type: Position("e", 5) for type in TYPES})
    subscriptions = recovering(fanout)
    session: Any = None
    starts = await subscriptions.find_starts(session, {type: Position("e", 9) for type in TYPES})
    assert now - 100.0 < AHEAD_SECONDS + module.LONGEST_AHEAD_PAUSE + 0.001
    for start in starts.values():
        assert (start.position, start.recovered) == (Position("e", 4), False)
        assert start.gap is not None
        assert start.gap.reason == "epoch"


async def test_an_epoch_that_begins_while_the_history_is_read_is_announced() -> None:
    fanout: Any = SimpleNamespace(positions={"t0": Position("e", 5)})

    async def after(*_: object) -> list[object]:
        fanout.positions = {"t0": Position("f", 7)}
        return []

    session: Any = None
    subscriptions = recovering(fanout, SimpleNamespace(after=after))
    starts = await subscriptions.find_starts(session, {"t0": Position("e", 2)})
    assert starts["t0"] == Start(Position("f", 6), False, Gap("t0", "f", 1, 6, "epoch"))


def recover_plain(worker: Worker, seen: Position) -> None:
    recover = {"status": {"epoch": seen.epoch, "seq": seen.seq}}
    worker.client().ask("subscribe", {"types": ["status"], "recover": recover})


def recover_events(worker: Worker, seen: Position) -> None:
    event_stream(worker, offset=Offset({"status": seen}, False))


def recover_socketio(worker: Worker, seen: Position) -> None:
    pid = worker.context.tokens.pid("c0", None, ("status",), False, worker.fanout.positions)
    offset = encode_offset({"status"}, {"status": seen}, batch=False)
    socketio(worker).say("40" + json.dumps({"pid": pid, "offset": offset}))


@pytest.mark.parametrize("recover", [recover_plain, recover_events, recover_socketio])
async def test_a_recovery_is_charged_alike_by_each_protocol(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, recover: Callable[[Worker, Position], None]
) -> None:
    worker.history.items = messages(1, 6)
    await worker.fanout.deliver(messages(1, 6))
    charge = Mock()
    monkeypatch.setattr(worker.rates, "charge", charge)
    recover(worker, Position("e1", 3))
    await until(lambda: any(call.args[1] == READ_SECONDS for call in charge.mock_calls))
