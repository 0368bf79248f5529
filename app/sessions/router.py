"""Requests of clients, one method per action (PROTOCOL.md, "Actions")."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.backplane.history import History
from app.errors import ClientError, ErrorCode
from app.protocol import requests
from app.protocol.envelope import body, envelope
from app.protocol.requests import Request, Subscribe
from app.sessions.auth import Identity
from app.sessions.realtime import Realtime
from app.sessions.session import Page, Session, Work
from app.sessions.token_keys import KeysUnavailable
from app.transport.connection import OPEN
from app.types import Gap, Message, Position

READ_SECONDS = 0.002
"""What a read of history counts as beside the time of the session: Valkey and its answer are others'."""
FIRST_AHEAD_PAUSE = 0.02
"""Seconds before a recovery looks again whether this worker has caught up; then twice the last."""
AHEAD_SECONDS = 2.0
"""How long a recovery waits for this worker to reach what the client saw on a faster one."""
ROOM_SECONDS = 0.05
"""Between two looks whether there is room for the answers that wait for it."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a type begins to flow for a client that recovers."""

    position: Position
    recovered: bool
    gap: Gap | None = None


class Router:
    """Acts on requests.

    Args:
        realtime: the parts of this worker.
        history: where old messages are read.
        presence: connections and users that are subscribed to a type, over all workers.
    """

    def __init__(
        self,
        realtime: Realtime,
        history: History,
        presence: Callable[[str], tuple[int, int]],
    ) -> None:
        self._realtime = realtime
        self._fanout = realtime.fanout
        self._history = history
        self._presence = presence
        self._known = frozenset(realtime.settings.message_types)
        self._waiting: dict[Session, None] = {}
        """Sessions with answers that wait for room in the output account."""
        self._looked_at = 0.0
        self._actions: dict[str, Callable[[Session, Request], Work | None]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "get_history": self._get_history,
            "ping": self._ping,
            "ack": self._ack,
            "presence": self._presence_of,
            "auth": self._auth,
        }

    def handle(self, session: Session, request: Request) -> Work | None:
        """Act on a request; errors go to the session. Returns what remains to be awaited."""
        try:
            requests.check_action(request)
            work = self._actions[request.action](session, request)
        except ClientError as error:
            session.send_error(error, request)
            return None
        return None if work is None else self._guard(session, request, work)

    async def _guard(self, session: Session, request: Request, work: Work) -> None:
        try:
            await work
        except ClientError as error:
            session.send_error(error, request)

    # Subscriptions.

    def _subscribe(self, session: Session, request: Request) -> Work | None:
        wanted = requests.parse_subscribe(request.payload, session.types)
        flowing = frozenset() if session.held else session.group.types
        if not flowing.isdisjoint(wanted.recover):
            # A client that repeats its request, since it has not got the answer.
            recover = {t: at for t, at in wanted.recover.items() if t not in flowing}
            wanted = dataclasses.replace(wanted, recover=recover)
        if wanted.recover or wanted.history is not None:
            return self._subscribe_with_past(session, request, wanted)
        self._begin(session, request, wanted, {}, {})
        return None

    async def _subscribe_with_past(
        self, session: Session, request: Request, wanted: Subscribe
    ) -> None:
        self._realtime.charge(session, READ_SECONDS * len(wanted.recover))
        starts = {
            type: await self.find_start(type, position) for type, position in wanted.recover.items()
        }
        ends: dict[str, Position] = {}
        if wanted.history is not None:
            # What is stored meanwhile must not fall between the history and live messages.
            before = self._fanout.positions
            new = wanted.types - starts.keys()
            if not session.held:
                new -= session.group.types
            self._realtime.charge(session, READ_SECONDS * len(new))
            ends = {type: await self._end_of_history(type, before[type]) for type in sorted(new)}
            starts |= {type: Start(end, recovered=False) for type, end in ends.items()}
        if session.state == OPEN:
            self._begin(session, request, wanted, starts, ends)

    def _begin(
        self,
        session: Session,
        request: Request,
        wanted: Subscribe,
        starts: dict[str, Start],
        ends: dict[str, Position],
    ) -> None:
        batch = session.group.batch if wanted.batch is None else wanted.batch
        positions = {type: start.position for type, start in starts.items()}
        self.move(session, session.group.types | wanted.types, batch, positions, start=False)
        assert session.track is not None
        live = self._fanout.positions
        types = {
            type: {
                "epoch": live[type].epoch,
                "seq": live[type].seq,
                "recovered": type in starts and starts[type].recovered,
                "from": session.track[type].seq + 1,
            }
            for type in sorted(wanted.types)
        }
        data = {"types": types, "batch": batch}
        session.reply(request, "subscribed", self._answer("config", "subscribed", data, request))
        for start in starts.values():
            if start.gap is not None:
                self._realtime.metrics.gaps[start.gap.reason].inc()
                session.send(session.codec.gap(start.gap))
        session.tell_offset()
        if wanted.history is not None:
            self._plan_pages(session, wanted.types, wanted.history, ends, request.id)
        self._realtime.catchup.start(session)

    def _plan_pages(
        self,
        session: Session,
        types: Iterable[str],
        limit: int,
        ends: dict[str, Position],
        reply_to: str | int | None,
    ) -> None:
        """Let the newest messages of types come before what flows; see `start_page`.

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
            ends = {type: await self._end_of_history(type, track[type]) for type in sorted(types)}
            if session.state == OPEN and session.track is track:
                session.track = ends
                self._plan_pages(session, types, limit, ends, None)
        finally:
            if session.held and session.state == OPEN:
                session.release()

    async def _end_of_history(self, type: str, otherwise: Position) -> Position:
        """The newest message of a type, or `otherwise` where it has none of that epoch.

        Raises:
            BackplaneUnavailable: the stream cannot be read.
        """
        messages, _ = await self._history.newest(type, 1, None)
        if not messages or messages[-1].epoch != otherwise.epoch:
            return otherwise
        return Position(otherwise.epoch, max(otherwise.seq, messages[-1].seq))

    async def find_start(self, type: str, position: Position) -> Start:
        """Where a client that has seen `position` goes on."""
        deadline = time.monotonic() + AHEAD_SECONDS
        pause = FIRST_AHEAD_PAUSE
        while self._is_ahead(type, position) and time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)
        live = self._fanout.positions[type]
        same_epoch = position.epoch == live.epoch
        if position == live:
            return Start(position, recovered=True)
        if same_epoch and position.seq < live.seq:
            items = await self._history.after(type, position.epoch, position.seq, 1)
            if items and isinstance(items[0], Message):
                return Start(position, recovered=True)
            live = self._fanout.positions[type]
        # The newest message stands for the state; what lies between will not come.
        start = Position(live.epoch, max(0, live.seq - 1))
        first = position.seq + 1 if same_epoch and position.seq < live.seq else 1
        reason: Any = "history" if same_epoch and position.seq < live.seq else "epoch"
        return Start(start, False, Gap(type, live.epoch, first, start.seq, reason))

    def _is_ahead(self, type: str, position: Position) -> bool:
        live = self._fanout.positions[type]
        return position.epoch == live.epoch and position.seq > live.seq

    def _unsubscribe(self, session: Session, request: Request) -> None:
        fields = request.payload if isinstance(request.payload, dict) else {}
        gone = requests.parse_types(fields.get("types"), self._known)
        left = session.group.types - gone
        self.move(session, left, session.group.batch)
        data = {"types": sorted(left)}
        session.reply(
            request, "unsubscribed", self._answer("config", "unsubscribed", data, request)
        )
        session.tell_offset()

    def move(
        self,
        session: Session,
        types: Iterable[str],
        batch: bool,
        positions: dict[str, Position] | None = None,
        *,
        start: bool = True,
    ) -> None:
        """Change what a session is subscribed to; new types begin where live is.

        Args:
            session: whose subscriptions change.
            types: all types that it has from now on.
            batch: whether it gets batches.
            positions: where types begin instead.
            start: let them flow at once, if nothing holds the session back.
        """
        chosen = frozenset(types)
        live = self._fanout.positions
        before = self._fanout.leave(session) if session.track is None else session.track
        had = session.group.types
        track = {type: before[type] if type in had else live[type] for type in chosen}
        track.update(positions or {})
        session.track = track
        session.group = self._fanout.group(session.codec, chosen, batch)
        if start:
            self._realtime.catchup.start(session)

    # History.

    def _get_history(self, session: Session, request: Request) -> None:
        wanted = requests.parse_get_history(
            request.payload, session.types, self._realtime.settings.default_history_limit
        )
        asked = Request(request.action, None, request.id, request.ack)
        page = Page(wanted.type, wanted.limit, wanted.before, asked, is_one=True)
        session.need_extra().pages.append(page)

    def start_page(self, session: Session) -> bool:
        """Begin with the next answer of `pages`, if its client and the memory have room for it.

        Otherwise the session goes on when it has drained, or when there is room.
        """
        if queued := session.hub.take_queued(session):
            session.write(queued)
        if session.state != OPEN or session.pending is not None:
            return False
        output = session.hub.output
        if self._waiting or not output.has_room(output.page):
            self._wait_for_room(session)
            return False
        self._build_page(session)
        return True

    def _build_page(self, session: Session) -> None:
        output = session.hub.output
        size = output.page
        output.reserved += size

        async def send() -> None:
            try:
                await self._send_page(session)
            finally:
                output.reserved -= size

        session.start_task(send(), is_frame=False)

    async def _send_page(self, session: Session) -> None:
        pages = session.need_extra().pages
        if not pages:
            return  # the session has ended before this began
        page = pages[0]
        request = page.request
        error = None
        messages: Sequence[Message] = ()
        more = False
        try:
            self._realtime.charge(session, READ_SECONDS)
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
            data = self._history_data(page.type, messages, more, follows, request.id)
            if follows:
                pages.appendleft(replace(page, limit=left, before=messages[0].seq))
            if page.is_one:
                session.reply(request, "history_data", data)
            else:
                session.send_event("history_data", data)
        if not pages:
            self._realtime.catchup.start(session)

    def _wait_for_room(self, session: Session) -> None:
        if not self._waiting:
            self._looked_at = time.monotonic()
            asyncio.get_running_loop().call_later(ROOM_SECONDS, self._look_for_room)
        self._waiting[session] = None

    def _look_for_room(self) -> None:
        """Let those go on that wait for room; where there is none, make some."""
        output = self._realtime.hub.output
        while self._waiting and output.has_room(output.page):
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
                self._build_page(session)
        if not self._waiting:
            return
        if time.monotonic() - self._looked_at >= 1.0:
            self._looked_at = time.monotonic()
            self._realtime.hub.close_stalled()
        asyncio.get_running_loop().call_later(ROOM_SECONDS, self._look_for_room)

    def _history_data(
        self,
        type: str,
        messages: Sequence[Message],
        more: bool,
        follows: bool,
        reply_to: str | int | None,
    ) -> bytes:
        # The envelopes are JSON already: they take the place of the data, `null`.
        head = body(type, "history_data", None)[: -len(b"null")]
        joined = b",".join(message.envelope for message in messages)
        tail = b"" if reply_to is None else b',"replyTo":' + requests.encode_id(reply_to)
        more_json = b"true" if more else b"false"
        if follows:
            more_json += b',"follows":true'
        return b'%b{"messages":[%b],"more":%b}%b}' % (head, joined, more_json, tail)

    # The others.

    def _ping(self, session: Session, request: Request) -> None:
        data = {"payload": request.payload, "serverTime": int(time.time() * 1000)}
        session.reply(request, "pong", self._answer("config", "pong", data, request))

    def _ack(self, session: Session, request: Request) -> None:
        requests.parse_string(request.payload, "id", requests.MAX_ID)
        self._realtime.metrics.requests["ack"].inc()

    def _presence_of(self, session: Session, request: Request) -> None:
        type = requests.parse_one_type(request.payload, session.types)
        connections, users = self._presence(type)
        data = {"connections": connections, "users": users}
        session.reply(
            request, "presence_data", self._answer("config", "presence_data", data, request)
        )

    def _auth(self, session: Session, request: Request) -> Work | None:
        token = requests.parse_string(request.payload, "token", 16 * 1024)
        try:
            identity = self._realtime.verifier.verify(token)
        except KeysUnavailable as unavailable:
            if unavailable.fetch is None:
                raise
            return self._auth_slowly(session, request, token)
        return self._authenticated(session, request, identity)

    async def _auth_slowly(self, session: Session, request: Request, token: str) -> None:
        """Check a token with keys that have to be fetched first."""
        identity = await self._realtime.verifier.verify_patiently(token)
        if session.state == OPEN:
            work = self._authenticated(session, request, identity)
            if work is not None:
                await work

    def _authenticated(self, session: Session, request: Request, identity: Identity) -> Work | None:
        if session.welcomed and identity.user != session.user:
            raise ClientError(
                ErrorCode.UNAUTHORIZED, "This token is another user's; open another connection."
            )
        session.authenticated(identity)
        expires = None if identity.expires_at is None else round(identity.expires_at * 1000)
        data: dict[str, object] = {"user": identity.user, "expiresAt": expires}
        if identity.types is not None:
            data["types"] = sorted(session.types)
        session.reply(
            request, "authenticated", self._answer("config", "authenticated", data, request)
        )
        if not session.welcomed:
            return session.welcome()
        had = session.group.types
        if not had.issubset(session.types):
            # The new token allows less than the one before.
            self.move(session, had.intersection(session.types), session.group.batch)
            session.tell_offset()
        return None

    def _answer(self, type: str, event: str, data: Any, request: Request) -> bytes:
        return envelope(type, event, data, reply_to=request.id)
