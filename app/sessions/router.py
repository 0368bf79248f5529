"""Requests of clients, one method per action (docs/PROTOCOL.md, "Actions")."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.errors import ClientError, ErrorCode
from app.metrics import Metrics
from app.protocol import requests
from app.protocol.requests import Request
from app.protocol.schema.limits import MAX_ID, MAX_TOKEN
from app.refusals import Refusals
from app.sessions.auth import Identity, TokenVerifier
from app.sessions.names import Names
from app.sessions.pages import READ_SECONDS, Pages
from app.sessions.rates import Rates
from app.sessions.refused import note_refusal
from app.sessions.session import Page, Session, Work
from app.sessions.subscriptions import Subscriptions
from app.sessions.token_keys import KeysUnavailable
from app.transport.connection import OPEN
from app.types import Subscribers


class Router:
    """Acts on requests.

    Args:
        subscriptions: changes them.
        pages: answer with history.
        history_limit: messages of an answer with history where the client names no number.
        verifier: of tokens.
        subscribers: connections and users that are subscribed to a type, over all workers.
        names: the users that are subscribed to a type.
        rates: charges the sessions for reads.
        refusals: counts clients that show a wrong token before they are welcome.
        metrics: counts acks.
    """

    def __init__(
        self,
        *,
        subscriptions: Subscriptions,
        pages: Pages,
        history_limit: int,
        verifier: TokenVerifier,
        subscribers: Callable[[str], Subscribers],
        names: Names,
        rates: Rates,
        refusals: Refusals,
        metrics: Metrics,
    ) -> None:
        self._subscriptions = subscriptions
        self._pages = pages
        self._history_limit = history_limit
        self._verifier = verifier
        self._subscribers = subscribers
        self._names = names
        self._rates = rates
        self._refusals = refusals
        self._metrics = metrics
        self._actions: dict[str, Callable[[Session, Request], Work | None]] = {
            "subscribe": subscriptions.subscribe,
            "unsubscribe": subscriptions.unsubscribe,
            "get_history": self._get_history,
            "ping": self._ping,
            "ack": self._ack,
            "presence": self._presence,
            "auth": self._auth,
        }

    def handle(self, session: Session, request: Request) -> Work | None:
        """Act on a request; errors go to the session. Returns what remains to be awaited."""
        try:
            requests.check_action(request)
            work = self._actions[request.action](session, request)
        except ClientError as error:
            self._refuse(session, request, error)
            return None
        return None if work is None else self._guard(session, request, work)

    async def _guard(self, session: Session, request: Request, work: Work) -> None:
        try:
            await work
        except ClientError as error:
            self._refuse(session, request, error)

    def _refuse(self, session: Session, request: Request, error: ClientError) -> None:
        if request.action == "auth" and not session.welcomed:
            note_refusal(self._refusals, error)
        session.send_error(error, request)

    def _get_history(self, session: Session, request: Request) -> None:
        wanted = requests.parse_get_history(request.payload, session.types, self._history_limit)
        asked = Request(request.action, None, request.id, request.ack)
        self._pages.ask(session, Page(wanted.type, wanted.limit, wanted.before, asked, is_one=True))

    def _ping(self, session: Session, request: Request) -> None:
        data = {"payload": request.payload, "serverTime": int(time.time() * 1000)}
        session.answer(request, "pong", data)

    def _ack(self, session: Session, request: Request) -> None:
        requests.parse_string(request.payload, "id", MAX_ID)
        self._metrics.requests["ack"].inc()
        if request.ack is not None:
            # A client that repeats what is not acknowledged (`retries`) would wait for it.
            session.reply(request, "", b"")

    def _presence(self, session: Session, request: Request) -> Work | None:
        wanted = requests.parse_presence(request.payload, session.types)
        if wanted.limit is not None:
            self._names.check(session, wanted.type)
            return self._list_names(session, request, wanted.type, wanted.after, wanted.limit)
        data = self._count(wanted.type)
        session.answer(request, "presence_data", data)
        return None

    async def _list_names(
        self, session: Session, request: Request, type: str, after: str, limit: int
    ) -> None:
        """Answer `presence` with names, which are the backplane's."""
        self._rates.charge(session, READ_SECONDS)
        # One more tells whether there is another page.
        total, counts = await self._names.page(type, after, limit + 1)
        rows = [{"user": user, "connections": count} for user, count in counts.items()]
        data = self._count(type) | {
            "names": rows[:limit],
            "total": total,
            "more": len(rows) > limit,
        }
        if session.state == OPEN:
            session.answer(request, "presence_data", data)

    def _count(self, type: str) -> dict[str, object]:
        counts = self._subscribers(type)
        return {"connections": counts.connections, "users": counts.users}

    def _auth(self, session: Session, request: Request) -> Work | None:
        token = requests.parse_string(request.payload, "token", MAX_TOKEN)
        try:
            identity = self._verifier.verify(token)
        except KeysUnavailable as unavailable:
            if unavailable.fetch is None:
                raise
            return self._auth_slowly(session, request, token)
        return self._authenticated(session, request, identity)

    async def _auth_slowly(self, session: Session, request: Request, token: str) -> None:
        """Check a token with keys that have to be fetched first."""
        identity = await self._verifier.verify_patiently(token)
        if session.state == OPEN:
            work = self._authenticated(session, request, identity)
            if work is not None:
                await work

    def _authenticated(self, session: Session, request: Request, identity: Identity) -> Work | None:
        if session.welcomed and identity.user != session.user:
            raise ClientError(
                ErrorCode.UNAUTHORIZED,
                "The token belongs to another user; open another connection.",
            )
        session.authenticated(identity)
        expires = None if identity.expires_at is None else round(identity.expires_at * 1000)
        data: dict[str, object] = {"user": identity.user, "expiresAt": expires}
        if identity.types is not None:
            data["types"] = sorted(session.types)
        session.answer(request, "authenticated", data)
        if not session.welcomed:
            return session.welcome()
        had = session.group.types
        if not had.issubset(session.types):
            # The new token allows less than the one before.
            left = had.intersection(session.types)
            self._subscriptions.move(session, left, session.group.batch)
            session.send_offset()
        return None
