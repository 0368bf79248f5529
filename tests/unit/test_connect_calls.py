"""What a client costs that connects and leaves: calls of this service's functions, which no noise changes.

A limit is what it costs now and a little more; see tests/integration/test_costs.py for system calls and bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from app.protocol.envelope import connection_id
from app.protocol.requests import DEFAULT_OPTIONS
from app.sessions.plain import PlainSession
from app.sessions.session import FLOWING, HELD
from app.sessions.socketio.session import SocketIOSession
from tests.support.raw import TEXT, encode
from tests.support.sessions import Worker

ROOT = Path(__file__).resolve().parents[2]
CODE = f"{ROOT}/app/", f"{ROOT}/workers/"


def calls_of(work: Callable[[], object]) -> int:
    """How many functions of this service are called by something."""
    count = 0

    def note(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(CODE)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def plain(worker: Worker, fd: int) -> PlainSession:
    """A client that is subscribed by the query of its request."""
    session = PlainSession(worker.context, fd, connection_id(), None)
    worker.hub.begin(session, lambda: session.begin(None, DEFAULT_OPTIONS))
    worker.hub.flush()
    return session


def socketio(worker: Worker, fd: int, connect: bytes = b"40") -> SocketIOSession:
    """A client whose CONNECT comes after the OPEN packet."""
    session = SocketIOSession(worker.context, fd, connection_id(), None)
    worker.hub.begin(session, lambda: session.begin(DEFAULT_OPTIONS))
    worker.hub.flush()
    session.receive(encode(TEXT, connect))
    worker.hub.flush()
    return session


def named(worker: Worker, fd: int) -> SocketIOSession:
    """The same with `auth`."""
    return socketio(worker, fd, b'40{"user":"ann"}')


@pytest.mark.parametrize(
    ("begin", "most"),
    [(plain, 65), (socketio, 101), (named, 139)],
    ids=["plain", "socketio", "with auth"],
)
async def test_calls_of_a_client_that_comes_and_goes(
    worker: Worker, begin: Callable[[Worker, int], PlainSession | SocketIOSession], most: int
) -> None:
    def come_and_go(fd: int) -> None:
        session = begin(worker, fd)
        assert session.phase == HELD
        session.release()
        assert session.phase == FLOWING
        session.drop("gone")
        assert session.id not in worker.context.registry.by_id

    come_and_go(worker.descriptor()[0])  # what is made for the first one is kept for all
    fd, _ = worker.descriptor()
    calls = calls_of(lambda: come_and_go(fd))
    assert calls <= most
