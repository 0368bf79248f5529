"""The steps between the phases of a session are those that its drawing has, and no others."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.frames import Opcode

from app.protocol.envelope import connection_id
from app.protocol.offsets import Offset, encode_offset
from app.protocol.requests import ConnectOptions
from app.sessions.event_stream import EventStreamSession
from app.sessions.handoff.payload import Payload
from app.sessions.handoff.state import check_state, dump_session, load_session
from app.sessions.plain import PlainSession
from app.sessions.session import Opening, Phase, Session
from app.sessions.socketio.session import SocketIOSession
from app.transport.connection import CLOSED
from app.types import Position
from tests.support.delivery import messages, turn
from tests.support.sessions import Client, Worker
from tests.support.waiting import until

Step = tuple[Phase, Phase]


def drawn() -> set[Step]:
    """The steps of the table in the docstring of `Phase`."""
    rows = re.findall(r"^ *([A-Z]+(?:, [A-Z]+)*) -> ([A-Z]+)  ", Phase.__doc__ or "", re.MULTILINE)
    steps = {(Phase[one], Phase[to]) for before, to in rows for one in before.split(", ")}
    assert steps, "the table is there"
    return steps


class Steps:
    """The steps that sessions have taken."""

    def __init__(self) -> None:
        self.seen: set[Step] = set()

    def recorder(self, slot: Any) -> property:
        """What takes the place of the attribute."""

        def get(session: Session) -> Phase:
            phase: Phase = slot.__get__(session)
            return phase

        def set(session: Session, phase: Phase) -> None:
            try:
                before = get(session)
            except AttributeError:
                pass  # it is just being made
            else:
                if phase != before:
                    self.seen.add((before, phase))
            slot.__set__(session, phase)

        return property(get, set)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setattr("app.sessions.session.PROBE_SECONDS", 0.05)
    steps = Steps()
    monkeypatch.setattr(Session, "phase", steps.recorder(Session.__dict__["phase"]))
    return steps


@pytest.fixture
async def worker(steps: Steps) -> AsyncIterator[Worker]:
    worker = Worker()
    worker.history.open.set()
    yield worker
    worker.close()
    await turn()


class SocketIO(Client):
    """The other end of a session of Socket.IO."""

    async def text(self, start: str) -> str:
        """The next text that begins like this; those before it are dropped."""

        def found() -> list[str]:
            while self.read():
                frame = self.frames.pop(0)
                if frame.opcode is Opcode.TEXT and bytes(frame.data).decode().startswith(start):
                    return [bytes(frame.data).decode()]
            return []

        (text,) = await until(found)
        return text


def socketio(worker: Worker) -> SocketIO:
    fd, theirs = worker.descriptor()
    session: Any = SocketIOSession(worker.context, fd, connection_id(), None)
    worker.hub.attach(session)
    session.begin(ConnectOptions())
    return SocketIO(session, theirs)


def events(worker: Worker, options: ConnectOptions, offset: Offset | None = None) -> Session:
    fd, _ = worker.descriptor()
    session = EventStreamSession(worker.context, fd, "c1", None)
    worker.hub.attach(session)
    session.begin(Opening(b"", {}, is_browser=False), None, options, offset)
    return session


async def reach(session: Session, phase: Phase) -> None:
    await until(lambda: session.phase == phase, phase.name)


async def run_plain(worker: Worker) -> None:
    client = worker.client()
    assert client.session.phase == Phase.HELD
    client.ask("ping")
    await client.events(2)
    assert client.session.phase == Phase.FLOWING
    client.session.drop("gone")
    waiting = PlainSession(worker.context, worker.descriptor()[0], "c2", None)
    worker.hub.attach(waiting)
    assert waiting.phase == Phase.OUTSIDE


async def run_events(worker: Worker) -> None:
    stream = events(worker, ConnectOptions())
    assert stream.phase == Phase.FLOWING
    stream.drop("gone")
    stream = events(worker, ConnectOptions(history=1))
    assert stream.phase == Phase.HELD
    await reach(stream, Phase.FLOWING)
    stream.drop("gone")
    worker.history.items = messages(1, 3)
    await worker.fanout.deliver(worker.history.items)
    stream = events(worker, ConnectOptions(), Offset({"status": Position("e1", 1)}, False))
    await reach(stream, Phase.FLOWING)


async def run_socketio(worker: Worker) -> None:
    client = socketio(worker)
    client.say("40")
    await client.text('42["connected"')
    assert client.session.phase == Phase.HELD
    client.say("41", "40")
    await client.text('42["connected"')
    client.say('42["ping"]')
    await reach(client.session, Phase.FLOWING)
    client.session.drop("gone")
    await turn()
    assert client.session.phase == Phase.OUTSIDE


async def run_handlers(worker: Worker) -> None:
    """As an application with connect and disconnect handlers sees it."""
    sio = worker.context.sio
    opened = asyncio.Event()
    entered: list[str] = []

    async def connect(sid: str, *_: Any) -> bool:
        entered.append(sid)
        await opened.wait()
        return len(entered) > 1

    async def disconnect(sid: str, *_: Any) -> None: ...

    sio.on("connect", connect)
    client = socketio(worker)
    client.say("40")
    await reach(client.session, Phase.ENTERING)
    opened.set()
    await client.text("44")
    assert client.session.phase == Phase.OUTSIDE
    for has_disconnect in (False, True):
        if has_disconnect:
            sio.on("disconnect", disconnect)
        client.say("40")
        await client.text('42["connected"')
        client.say("41", "40")  # out of HELD, and in again
        await client.text('42["connected"')
        client.say('42["ping"]')
        await reach(client.session, Phase.FLOWING)
        client.say("41")
        await reach(client.session, Phase.OUTSIDE)
        opened.clear()
        client.say("40")
        await reach(client.session, Phase.ENTERING)
        client.session.drop("gone")
        opened.set()
        await reach(client.session, Phase.OUTSIDE)
        client = socketio(worker)


async def run_recovery(worker: Worker) -> None:
    client = socketio(worker)
    client.say("40")
    pid = json.loads((await client.text("40"))[2:])["pid"]
    await client.text('42["connected"')
    offset = encode_offset({"status"}, worker.fanout.positions, batch=False)
    back = socketio(worker)
    back.say("40" + json.dumps({"pid": pid, "offset": offset}))
    await back.text('42["connected"')
    assert back.session.phase == Phase.FLOWING


async def run_handoff(worker: Worker) -> None:
    """Sessions that come from another worker."""
    for client, hello in ((worker.client(), ""), (socketio(worker), "40")):
        if hello:
            client.say(hello)
            await reach(client.session, Phase.HELD)
        session = client.session
        packed = dump_session(session, worker.hub.wheel.times(session), 0.0, Payload())
        state = check_state(worker.context, packed)
        worker.hub.release(session)
        worker.context.registry.discard(session.id)
        session.state = CLOSED
        assert load_session(worker.context, session.fd, state).phase == Phase.HELD


async def test_the_steps_are_those_of_the_drawing(steps: Steps, worker: Worker) -> None:
    for run in (run_plain, run_events, run_recovery, run_socketio, run_handoff, run_handlers):
        await run(worker)
    assert steps.seen == drawn()
