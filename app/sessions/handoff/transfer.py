"""Gives live sessions to another worker and takes them from one, without their clients noticing.

Only one of the two writes to a socket at any time: the giver stops before it describes a
session, and the successor begins when the giver has said that it let go. What Socket.IO emitted in
between is in the control stream, and the successor, or the giver if it keeps the session
after all, delivers it from there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.backplane.history import History
from app.backplane.scripts import CONTROL
from app.backplane.worker_names import Place
from app.errors import BackplaneUnavailable
from app.ports import Slots
from app.sessions.context import SessionContext
from app.sessions.control import Unreadable
from app.sessions.handoff.payload import Payload, State
from app.sessions.handoff.state import (
    CannotPass,
    check_state,
    dump_session,
    is_at_rest,
    load_session,
)
from app.sessions.session import HELD, Session
from app.sessions.socketio.session import SocketIOSession
from app.transport.connection import CLOSED, MOVING, OPEN
from app.types import Message, Position

logger = logging.getLogger("realtime.handoff")


BATCH_BYTES = 4 * 1024 * 1024
"""Bytes of a batch past which no session is added to it."""


@dataclass(slots=True)
class SessionBatch:
    """Sessions on their way, in the order of their states."""

    sessions: list[Session]
    times: list[tuple[float, float]]
    states: list[State]
    control: Position
    """The last message between workers that was carried out for them."""
    payload: Payload
    """Their bytes."""

    @property
    def descriptors(self) -> list[int]:
        """One of each session."""
        return [session.fd for session in self.sessions]


class Transfer:
    """Both sides of a handoff.

    Args:
        context: the parts of this worker.
        history: where is read what was emitted while a session was on its way.
        slots: counts what passes as this worker's.
    """

    def __init__(self, context: SessionContext, history: History, slots: Slots) -> None:
        self._context = context
        self._manager = context.sio.manager
        self._history = history
        self._slots = slots
        self.stay: dict[Session, None] = {}
        """Sessions that cannot be handed over."""

    # The giver.

    def left(self) -> list[Session]:
        """Sessions that this worker still serves."""
        return [
            session for session in self._context.registry.by_id.values() if session.state == OPEN
        ]

    def at_rest(self, limit: int) -> list[Session]:
        """Sessions that can be described now, at most `limit`; the others read no more."""
        found: list[Session] = []
        for session in self._context.registry.by_id.values():
            if session.state != OPEN or session in self.stay:
                continue
            if is_at_rest(session):
                found.append(session)
                if len(found) == limit:
                    break
            else:
                self._context.hub.pause(session)
        return found

    def can_wait(self) -> bool:
        """Whether some session is only busy, and not bound to stay."""
        return any(session not in self.stay for session in self.left())

    def resume(self) -> None:
        """Read again from the sessions that are left."""
        for session in self.left():
            self._context.hub.resume(session)
            session.go_on()

    def pack(self, sessions: Iterable[Session]) -> SessionBatch:
        """Stop serving sessions and describe them; those that JSON cannot describe `stay`.

        Not all of them where their bytes are many: the rest is for the next batch.
        """
        context = self._context
        context.hub.flush()
        batch = SessionBatch([], [], [], self._manager.position, Payload())
        now = time.monotonic()
        for session in sessions:
            if batch.payload.size >= BATCH_BYTES:
                break
            if session.state != OPEN:
                continue
            if session.track is None:
                session.track = context.fanout.leave(session)
            context.catchup.discard(session)
            if session.state != OPEN:
                continue
            times = context.hub.wheel.times(session)
            try:
                state = dump_session(session, times, now, batch.payload)
            except CannotPass as error:
                logger.info("Not handed over: %s", error, extra={"connection": session.id})
                self.stay[session] = None
                context.catchup.start(session)
                continue
            context.hub.release(session)
            session.state = MOVING
            batch.sessions.append(session)
            batch.times.append(times)
            batch.states.append(state)
        return batch

    def let_go(self, sessions: Sequence[Session]) -> None:
        """Forget sessions that another worker has taken."""
        for session in sessions:
            session.state = CLOSED
            os.close(session.fd)
            self._context.hub.input.forget_kept(session)
            if session.pending is not None:
                session.pending.clear()
            if session.extra is not None and session.extra.expiry is not None:
                session.extra.expiry.cancel()
            self._context.registry.discard(session.id)
            self._context.claiming.give(session)
            if self._context.addresses is not None:
                self._context.addresses.give(session)
            if isinstance(session, SocketIOSession):
                self._manager.let_go(session)

    async def take_back(
        self, batch: SessionBatch, sessions: Sequence[Session], *, stay: bool
    ) -> None:
        """Go on serving sessions that were not taken; `stay`: no other successor will take them."""
        kept = frozenset(sessions)
        missing = await self._control_after(batch.control)
        for session, times in zip(batch.sessions, batch.times, strict=True):
            if session in kept:
                session.state = OPEN
                if stay:
                    self.stay[session] = None
                self._context.hub.attach(session, times)
                session.go_on()
                if session.phase == HELD:
                    self._context.welcome.hold(session)
                self._context.catchup.start(session)
        await self._manager.replay(missing, _over_socketio(kept))

    # The successor.

    def judge(self, states: Sequence[Any], chunks: Sequence[bytes] = ()) -> list[State | None]:
        """Each state with its bytes, which are among `chunks`, in place; None: it cannot be taken."""
        return [self._check(state, chunks) for state in states]

    def _check(self, state: Any, chunks: Sequence[bytes]) -> State | None:
        try:
            return check_state(self._context, state, chunks)
        except CannotPass as error:
            id = state.get("id") if isinstance(state, dict) else None
            logger.info("Not taken over: %s", error, extra={"connection": id})
            return None

    async def unpack(
        self,
        giver: Place,
        states: Sequence[State],
        descriptors: Sequence[int],
        control: Position,
    ) -> list[Session]:
        """Serve sessions that their giver has let go; `judge` has made their states."""
        missing = await self._control_after(control)
        self._slots.adopt_connections(*giver, len(states))
        taken: list[Session] = []
        for state, fd in zip(states, descriptors, strict=True):
            try:
                session = load_session(self._context, fd, state)
            except Exception:
                logger.exception("A connection was lost in the handoff: %s", state.get("id"))
                os.close(fd)
                self._context.registry.discard(state["id"])
                self._context.places.release_connection()
                self._context.metrics.handed_over["lost"].inc()
                continue
            try:
                self._adopt(session, state, giver)
            except Exception as error:  # noqa: BLE001 (the others must not pay for it)
                self._lose(session, error)
                continue
            taken.append(session)
        over_socketio = _over_socketio(taken)
        self._manager.skip(over_socketio, control)
        await self._manager.replay(missing, over_socketio)
        for session in taken:
            try:
                self._context.catchup.start(session)
                session.go_on()
            except Exception as error:  # noqa: BLE001 (the others must not pay for it)
                self._lose(session, error)
        metrics = self._context.metrics
        metrics.handed_over["taken"].inc(len(taken))
        if states:
            pause = time.monotonic() - states[0]["exported_at"]
            metrics.handoff_pause.observe_many(pause, len(taken))
        return taken

    def _adopt(self, session: Session, state: State, giver: Place) -> None:
        """Count a session here that its giver has counted."""
        address = state.get("address")
        if self._context.addresses is not None and isinstance(address, str):
            self._context.addresses.adopt(session, address, giver)
        if session.claimed:
            assert session.user is not None
            self._slots.adopt_user(*giver, session.user)
            self._context.claiming.adopt(session)

    def _lose(self, session: Session, error: Exception) -> None:
        """Drop a session that cannot go on here; the others of its batch do."""
        logger.error("A connection was lost in the handoff: %s", session.id, exc_info=error)
        self._context.metrics.handed_over["lost"].inc()
        session.drop("internal error")

    async def _control_after(self, position: Position) -> list[dict[str, Any]]:
        """Messages between workers after `position` that this worker has carried out."""
        found: list[Message] = []
        while True:
            now = self._manager.position
            if position.epoch != now.epoch or position.seq >= now.seq:
                break
            try:
                items = await self._history.after(CONTROL, position.epoch, position.seq, 100)
            except BackplaneUnavailable:
                items = []
            messages = [item for item in items if isinstance(item, Message)]
            if not messages:
                logger.warning(
                    "Control messages between workers are lost: they cannot be read again"
                )
                break
            found += messages
            position = messages[-1].position
        readable = []
        for message in found:
            with contextlib.suppress(Unreadable):
                readable.append(self._manager.parse(message))
        return readable


def _over_socketio(sessions: Iterable[Session]) -> list[SocketIOSession]:
    return [session for session in sessions if isinstance(session, SocketIOSession)]
