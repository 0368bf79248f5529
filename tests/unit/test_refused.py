"""What an operator sees of clients that are refused after their handshake."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import jwt
import pytest

from app.errors import ClientError, ErrorCode
from app.protocol.requests import DEFAULT_OPTIONS
from app.sessions.plain import PlainSession
from app.sessions.socketio.session import SocketIOSession
from tests.support.sessions import Client, Worker
from tests.support.waiting import until

SECRET = "s" * 32


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "ann", **claims}, SECRET, "HS256")


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def worker(**changes: Any) -> Worker:
        made.append(Worker(**changes))
        return made[-1]

    yield worker
    for one in made:
        one.close()


def counted(worker: Worker) -> dict[str, float]:
    """Errors and refusals that were counted, by code and by reason."""
    found = {}
    for children in (worker.context.metrics.errors, worker.context.metrics.refused):
        found |= {str(key): child._value.get() for key, child in children.items()}
    return found


class SocketIOPeer:
    """The other end of a Socket.IO session that has just begun."""

    def __init__(self, worker: Worker) -> None:
        fd, self.sock = worker.descriptor()
        self.session = SocketIOSession(worker.context, fd, "c1", None)
        worker.hub.attach(self.session)
        self.session.begin(DEFAULT_OPTIONS)
        self._received = b""

    def say(self, packet: str) -> None:
        self.session.on_text(packet)

    async def refused(self, namespace: str = "") -> dict[str, Any]:
        """What the CONNECT_ERROR says."""
        start = f"44{namespace}".encode()

        def has_come() -> bool:
            try:
                self._received += self.sock.recv(65536)
            except BlockingIOError:
                pass
            return start in self._received

        await until(has_come, "a CONNECT_ERROR")
        said, _ = json.JSONDecoder().raw_decode(
            self._received.partition(start)[2].decode(errors="replace")
        )
        return dict(said)


@pytest.mark.parametrize(
    ("packet", "code", "reason"),
    [
        ("40", "UNAUTHORIZED", "token"),
        (f"40{json.dumps({'token': 'a.b.c'})}", "UNAUTHORIZED", "token"),
        (f"40{json.dumps({'token': token(), 'types': ['no']})}", "INVALID_TYPE", "types"),
        (
            f"40{json.dumps({'token': token(types=['stats']), 'types': ['status']})}",
            "FORBIDDEN",
            "types",
        ),
        (f"40{json.dumps({'token': token(), 'batch': 3})}", "INVALID_PAYLOAD", "query"),
        ("40{", "PARSE_ERROR", "query"),
        (f"40{json.dumps({'x': 'x' * 70000})}", "MESSAGE_TOO_LARGE", "query"),
    ],
)
async def test_a_refused_connect_packet_is_counted_and_logged(
    make: Callable[..., Worker],
    caplog: pytest.LogCaptureFixture,
    packet: str,
    code: str,
    reason: str,
) -> None:
    caplog.set_level(logging.INFO)
    worker = make(auth_secret=SECRET)
    peer = SocketIOPeer(worker)
    peer.say(packet)
    said = await peer.refused()
    assert said["data"] == {"code": code}
    assert counted(worker) == {code: 1, reason: 1}
    (line,) = (record for record in caplog.records if record.name == "realtime.refused")
    assert (line.__dict__["reason"], line.__dict__["detail"]) == (reason, said["message"])


async def test_an_unknown_namespace_is_counted(make: Callable[..., Worker]) -> None:
    worker = make()
    peer = SocketIOPeer(worker)
    peer.say("40/nowhere,")
    await peer.refused("/nowhere,")
    assert counted(worker) == {"INVALID_PAYLOAD": 1, "query": 1}


@pytest.mark.parametrize("failure", [False, ConnectionRefusedError(), RuntimeError("a fault")])
async def test_what_a_connect_handler_refuses_is_counted(
    make: Callable[..., Worker], failure: Exception | bool
) -> None:
    worker = make()

    async def connect(sid: str, environ: object) -> bool:
        if isinstance(failure, Exception):
            raise failure
        return False

    worker.context.sio.on("connect", connect)
    peer = SocketIOPeer(worker)
    peer.say("40")
    await peer.refused()
    assert counted(worker) == {"handler": 1}


async def test_a_claim_that_fails_is_counted(
    make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every protocol; here that of plain clients."""
    worker = make()

    def claim(*_: object) -> None:
        raise ClientError(ErrorCode.BACKPLANE_UNAVAILABLE, "It does not answer.")

    monkeypatch.setattr(worker.context.claiming, "claim", claim)
    client = worker.client(user="ann")
    assert (await client.event())["event"] == "error"
    assert counted(worker) == {"BACKPLANE_UNAVAILABLE": 1, "backplane": 1}


async def test_a_wrong_token_before_the_welcome_is_counted_and_a_renewal_is_not(
    make: Callable[..., Worker],
) -> None:
    worker = make(auth_secret=SECRET)
    fd, theirs = worker.descriptor()
    session = PlainSession(worker.context, fd, "c1", None)
    worker.hub.attach(session)
    session.begin(None, DEFAULT_OPTIONS)
    client = Client(session, theirs)
    client.ask("auth", {"token": "a.b.c"})
    assert (await client.event())["event"] == "error"
    assert counted(worker) == {"UNAUTHORIZED": 1, "token": 1}
    client.ask("auth", {"token": token()})
    assert [(await client.event())["event"] for _ in range(2)] == ["authenticated", "connected"]
    client.ask("auth", {"token": "a.b.c"})
    assert (await client.event())["event"] == "error"
    assert counted(worker) == {"UNAUTHORIZED": 2, "token": 1}
