"""The sessions of a worker by id: added, renamed, removed."""

from __future__ import annotations

from typing import Any

from app.errors import CloseCode
from app.sessions.registry import Registry
from app.transport.connection import CLOSED, OPEN


class Fake:
    """What the registry looks at of a session."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.state = OPEN
        self.ended: CloseCode | None = None

    def end(self, code: CloseCode, reason: str) -> None:
        self.ended = code


def filled(*ids: str) -> tuple[Registry, list[Any]]:
    registry = Registry()
    sessions: list[Any] = [Fake(id) for id in ids]
    for session in sessions:
        registry.add(session)
    return registry, sessions


def test_a_session_is_found_under_its_new_id_only() -> None:
    registry, [session] = filled("a")
    registry.rename(session, "b")
    assert registry.by_id == {"b": session}
    assert session.id == "b"
    registry.rename(session)
    assert session.id not in {"a", "b"}
    assert registry.by_id == {session.id: session}


def test_a_session_that_has_ended_is_not_renamed_but_removed() -> None:
    registry, [session] = filled("a")
    session.state = CLOSED
    registry.rename(session, "b")
    assert len(registry) == 0
    assert session.id == "a"


def test_another_session_with_the_same_id_stays() -> None:
    registry, [old] = filled("a")
    new: Any = Fake("a")
    registry.add(new)
    registry.forget(old)
    assert registry.all() == [new]
    registry.discard("a")
    registry.discard("a")
    assert registry.all() == []


def test_all_are_ended_when_the_service_stops() -> None:
    registry, sessions = filled("a", "b")
    registry.end_all()
    assert [session.ended for session in sessions] == [CloseCode.GOING_AWAY] * 2
