"""Answers with history: built when their client has read what came before and memory has room."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.backplane.history import History
from app.broadcast.catchup import CatchUp
from app.errors import ClientError
from app.protocol.envelope import answer
from app.protocol.requests import Request
from app.sessions.rates import Rates
from app.sessions.session import HELD, Page, Session
from app.transport.connection import OPEN
from app.transport.hub import Hub
from app.turns import Sliced
from app.types import Message, Position

READ_SECONDS = 0.002
"""What a read of history counts as, for all that share it: Valkey and its answer take the time of others."""
ROOM_SECONDS = 0.05
"""Between two looks whether there is room for the answers that wait for it."""


_Key = tuple[str, int, int | None, bool]
"""What a `Page` asks for: its type, limit, before and whether it is one."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What all that ask for the same are answered."""

    data: bytes
    """Of the envelope."""
    left: int
    """Messages that another page is to bring; 0: none follows."""
    first: int
    """`seq` of the first message of this page, if one follows."""


class Pages:
    """Sends the answers that sessions have in `Extra.pages`, one after the other.

    Those that ask for the same while it is read are answered from one read, in slices of passes of the loop.

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
        self._begun: dict[Session, Page] = {}
        """Sessions whose next answer is being read, or waits for a slice."""
        self._askers: dict[_Key, list[Session]] = {}
        """Those among them that wait for the next read, by what they ask for."""
        self._reads: dict[_Key, asyncio.Task[None]] = {}
        self._found: deque[tuple[Session, _Found | Exception, float]] = deque()
        """Answers that wait for a slice, and what their reads count as."""
        self._answering = Sliced(self._answer_some, hub.pace.slices())
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

    def start(self, session: Session) -> None:
        """Begin with the next answer of a session, if its client and the memory have room for it.

        The session goes on when it is answered; without room, when it has drained or when there is room.
        """
        if session in self._begun:
            return
        if queued := session.hub.take_queued(session):
            session.write(queued)
        if session.state != OPEN or session.pending is not None:
            return
        if self._waiting or not self._hub.output.has_room():
            self._wait_for_room(session)
            return
        self._begin(session)

    def _begin(self, session: Session) -> None:
        page = session.need_extra().pages[0]
        self._begun[session] = page
        self._hub.output.reserve()
        key = (page.type, page.limit, page.before, page.is_one)
        self._askers.setdefault(key, []).append(session)
        if not self._found:
            self._start_read(key)

    def _start_read(self, key: _Key) -> None:
        """Read for all that ask for this, unless an earlier read of it is under way."""
        if key not in self._reads:
            self._reads[key] = asyncio.get_running_loop().create_task(self._read(key))

    async def _read(self, key: _Key) -> None:
        askers = self._askers.pop(key)
        found: _Found | Exception
        try:
            found = _find(key, *await self._history.newest(*key[:3]))
        except Exception as error:  # noqa: BLE001 (answered to each of them)
            found = error
        finally:
            del self._reads[key]
        share = READ_SECONDS / len(askers)
        self._found.extend((session, found, share) for session in askers)
        self._answering.plan()

    def _answer_some(self, seconds: float) -> bool:
        """Send as many answers as this pass has time for."""
        now = time.monotonic()
        ends = now + seconds
        while self._found and now < ends:
            began = now
            session, found, share = self._found.popleft()
            try:
                self._answer(session, found)
            except Exception as error:  # noqa: BLE001 (logged and reported)
                session.report(error)
            now = time.monotonic()
            self._rates.charge(session, share + now - began)
            session.go_on()
        if self._found:
            return True
        # Not before: those that have asked meanwhile share a read.
        for key in list(self._askers):
            self._start_read(key)
        return False

    def _answer(self, session: Session, found: _Found | Exception) -> None:
        self._hub.output.unreserve()
        page = self._begun.pop(session)
        pages = session.need_extra().pages
        if session.state != OPEN or not pages or pages[0] is not page:
            return  # it has ended, or is on its way to another worker, which answers
        pages.popleft()
        request = page.request
        if isinstance(found, ClientError):
            session.send_error(found, request)
        elif isinstance(found, Exception):
            session.report(found, request)
        else:
            if found.left:
                pages.appendleft(replace(page, limit=found.left, before=found.first))
            envelope = answer(page.type, "history_data", found.data, request.id)
            if page.is_one:
                session.reply(request, "history_data", envelope)
            else:
                session.send_event("history_data", envelope)
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
                and session not in self._begun
            ):
                self._begin(session)
        if self._waiting and time.monotonic() - self._looked_at >= 1.0:
            self._looked_at = time.monotonic()
            self._hub.unread.close_stalled()


def _find(key: _Key, messages: Sequence[Message], more: bool) -> _Found:
    _, limit, _, is_one = key
    left = limit - len(messages) if more and not is_one else 0
    joined = b",".join(message.envelope for message in messages)
    ends = b'%b,"follows":true' if left else b"%b"
    data = b'{"messages":[%b],"more":%b}' % (joined, ends % (b"true" if more else b"false"))
    return _Found(data, left, messages[0].seq if left else 0)
