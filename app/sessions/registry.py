"""The sessions of one worker, found by their id."""

from __future__ import annotations

import asyncio

from app.errors import CloseCode
from app.protocol.envelope import connection_id
from app.sessions.session import Session
from app.transport.connection import OPEN


class Registry:
    """Knows every session that this worker serves.

    Attributes:
        by_id: the sessions; not to be changed by others.
        changes: how often a session was added, removed or renamed.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Session] = {}
        self.changes = 0
        self._awaited: dict[str, list[asyncio.Future[None]]] = {}
        """What waits for ids to be free."""

    def __len__(self) -> int:
        return len(self.by_id)

    def all(self) -> list[Session]:
        """The sessions that there are now."""
        return list(self.by_id.values())

    def add(self, session: Session) -> None:
        """Let a session be found."""
        self.changes += 1
        self.by_id[session.id] = session

    def rename(self, session: Session, id: str | None = None) -> None:
        """Give a session another id: that which it had before, or a new one to begin anew."""
        self.forget(session)
        if session.state == OPEN:
            session.id = id or connection_id()
            self.changes += 1
            self.by_id[session.id] = session

    def forget(self, session: Session) -> None:
        """Remove a session, if it is the one that has its id."""
        if self.by_id.get(session.id) is session:
            self.discard(session.id)

    def discard(self, id: str) -> None:
        """Remove whatever session has an id."""
        self.changes += 1
        self.by_id.pop(id, None)
        if id in self._awaited:
            for waiting in self._awaited.pop(id):
                if not waiting.done():
                    waiting.set_result(None)

    async def wait_free(self, id: str, seconds: float) -> None:
        """Wait until no session has an id, `seconds` at most."""
        if id not in self.by_id:
            return
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(id, []).append(free)
        try:
            await asyncio.wait([free], timeout=seconds)
        finally:
            waiting = self._awaited.get(id, [])
            if free in waiting:
                waiting.remove(free)
            if not waiting:
                self._awaited.pop(id, None)

    def end_all(self) -> None:
        """Close every session: the service stops."""
        for session in self.all():
            session.end(CloseCode.GOING_AWAY, "the service stops")
