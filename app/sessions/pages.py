"""Answers with history: built when their client has read what came before and memory has room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from app.backplane.history import History
from app.broadcast.catchup import CatchUp
from app.errors import ClientError
from app.protocol.envelope import answer
from app.protocol.requests import Request
from app.sessions.rates import Rates
from app.sessions.session import HELD, Page, Session
from app.transport.connection import OPEN
from app.transport.hub import Hub
from app.types import Message, Position

READ_SECONDS = 0.002
"""What a read of history counts as beside the time of the session: Valkey and its answer are others'."""
ROOM_SECONDS = 0.05
"""Between two looks whether there is room for the answers that wait for it."""


class Pages:
    """Sends the answers that sessions have in `Extra.pages`, one after the other.

    Args:
        hub: has the account of unsent bytes.
        history: where old messages are read.
        catchup: goes on with what flows behind them.
        rates: charges the sessions for the reads.
    """

    def __init__(self, hub: Hub, history: History, catchup: CatchUp, rates: Rates) -> None:
        self._hub = hub
        self._history = history
        self._catchup = catchup
        self._rates = rates
        self._waiting: dict[Session, None] = {}
        """Sessions with answers that wait for room in the output account."""
        self._looked_at = 0.0

    def ask(self, session: Session, page: Page) -> None:
        """Let an answer come before all that the session asks for later; `start` builds it."""
        session.need_extra().pages.append(page)

    def plan(
        self,
        session: Session,
        types: Iterable[str],
        limit: int,
        ends: Mapping[str, Position],
        reply_to: str | int | None,
    ) -> None:
        """Let the newest messages of types come before what flows.

        Args:
            session: which gets them, as events.
            types: of which.
            limit: messages of each.
            ends: where the history of a type ends, if not at its newest message.
            reply_to: the request's id.
        """
        request = Request("", None, reply_to)
        session.need_extra().pages.extend(
            Page(type, limit, ends[type].seq + 1 if type in ends else None, request, is_one=False)
            for type in sorted(types)
        )

    async def send_past(self, session: Session, limit: int) -> None:
        """Plan the newest messages of each type that a session is subscribed to, then live ones.

        The session is held, and is released even where the history cannot be read.
        """
        try:
            track, types = session.track, session.group.types
            assert track is not None
            ends = {type: await self.find_end(type, track[type]) for type in sorted(types)}
            if session.state == OPEN and session.track is track:
                session.track = ends
                self.plan(session, types, limit, ends, None)
        finally:
            if session.phase == HELD and session.state == OPEN:
                session.release()

    async def find_end(self, type: str, otherwise: Position) -> Position:
        """The newest message of a type, or `otherwise` where it has none of that epoch.

        Raises:
            BackplaneUnavailable: the stream cannot be read.
        """
        messages, _ = await self._history.newest(type, 1, None)
        if not messages or messages[-1].epoch != otherwise.epoch:
            return otherwise
        return Position(otherwise.epoch, max(otherwise.seq, messages[-1].seq))

    def start(self, session: Session) -> bool:
        """Begin with the next answer of a session, if its client and the memory have room for it.

        Otherwise the session goes on when it has drained, or when there is room.
        """
        if queued := session.hub.take_queued(session):
            session.write(queued)
        if session.state != OPEN or session.pending is not None:
            return False
        if self._waiting or not self._hub.output.has_room():
            self._wait_for_room(session)
            return False
        self._build(session)
        return True

    def _build(self, session: Session) -> None:
        output = self._hub.output
        output.reserve()

        async def send() -> None:
            try:
                await self._send(session)
            finally:
                output.unreserve()

        session.start_task(send(), is_frame=False)

    async def _send(self, session: Session) -> None:
        pages = session.need_extra().pages
        if not pages:
            return  # the session has ended before this began
        page = pages[0]
        request = page.request
        error = None
        messages: Sequence[Message] = ()
        more = False
        try:
            self._rates.charge(session, READ_SECONDS)
            messages, more = await self._history.newest(page.type, page.limit, page.before)
        except ClientError as failure:
            error = failure
        if not pages or pages[0] is not page or session.state != OPEN:
            return
        pages.popleft()
        if error is not None:
            session.send_error(error, request)
        else:
            left = page.limit - len(messages)
            follows = not page.is_one and more and left > 0
            data = _history_data(page.type, messages, more, follows, request.id)
            if follows:
                pages.appendleft(replace(page, limit=left, before=messages[0].seq))
            if page.is_one:
                session.reply(request, "history_data", data)
            else:
                session.send_event("history_data", data)
        if not pages:
            self._catchup.start(session)

    def _wait_for_room(self, session: Session) -> None:
        if not self._waiting:
            self._looked_at = time.monotonic()
            asyncio.get_running_loop().call_later(ROOM_SECONDS, self._look_for_room)
        self._waiting[session] = None

    def _look_for_room(self) -> None:
        """Let those go on that wait for room; where there is none, make some."""
        try:
            self._use_room()
        finally:  # what fails for one session must not stop the others
            if self._waiting:
                asyncio.get_running_loop().call_later(ROOM_SECONDS, self._look_for_room)

    def _use_room(self) -> None:
        while self._waiting and self._hub.output.has_room():
            session = next(iter(self._waiting))
            del self._waiting[session]
            extra = session.extra
            if (
                session.state == OPEN
                and session.pending is None
                and extra is not None
                and extra.pages
                and extra.task is None
            ):
                self._build(session)
        if self._waiting and time.monotonic() - self._looked_at >= 1.0:
            self._looked_at = time.monotonic()
            self._hub.unread.close_stalled()


def _history_data(
    type: str, messages: Sequence[Message], more: bool, follows: bool, reply_to: str | int | None
) -> bytes:
    joined = b",".join(message.envelope for message in messages)
    ends = b'%b,"follows":true' if follows else b"%b"
    data = b'{"messages":[%b],"more":%b}' % (joined, ends % (b"true" if more else b"false"))
    return answer(type, "history_data", data, reply_to)
