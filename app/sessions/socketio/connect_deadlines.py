"""Socket.IO clients that are in no namespace: they must enter one in time."""

from __future__ import annotations

import asyncio
import logging

from app.errors import CloseCode
from app.refusals import Refusals
from app.sessions.socketio.client import SocketIOClient
from app.transport.connection import OPEN

logger = logging.getLogger("realtime.session")

CONNECT_SECONDS = 10.0
"""How long a Socket.IO client may be in no namespace."""


class ConnectDeadlines:
    """Closes those that take too long.

    Args:
        refusals: counts them.
    """

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._outside: dict[SocketIOClient, float] = {}
        """Clients that are in no namespace, by deadline, the earliest first."""
        self._is_planned = False
        self._loop = asyncio.get_running_loop()

    def await_connect(self, session: SocketIOClient) -> None:
        """Give a session that is in no namespace `CONNECT_SECONDS` to enter one."""
        if session not in self._outside:
            self._outside[session] = self._loop.time() + CONNECT_SECONDS
            if not self._is_planned:
                self._is_planned = True
                self._loop.call_later(CONNECT_SECONDS, self._end_late)

    def entered(self, session: SocketIOClient) -> None:
        """A session is in a namespace, or gone."""
        self._outside.pop(session, None)

    def _end_late(self) -> None:
        """Close the sessions that have entered no namespace in time."""
        self._is_planned = False
        now = self._loop.time()
        while self._outside:
            session, due = next(iter(self._outside.items()))
            if due > now:
                self._is_planned = True
                self._loop.call_at(due, self._end_late)
                return
            del self._outside[session]
            if session.is_entering:
                # A connect handler of the application takes its time.
                self._outside[session] = now + CONNECT_SECONDS
            elif session.state == OPEN:
                self._refusals.note("connect")
                try:
                    session.end(CloseCode.HEARTBEAT_TIMEOUT, "no Socket.IO CONNECT came in time")
                except Exception:  # the deadlines of the others must not depend on it
                    logger.exception("A session fails", extra={"connection": session.id})
