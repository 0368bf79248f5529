"""The plain protocol: JSON envelopes in text frames."""

from __future__ import annotations

from dataclasses import replace

from app.errors import ClientError, CloseCode, ErrorCode, NoRoomNow
from app.protocol.codecs import PLAIN
from app.protocol.requests import (
    ConnectOptions,
    Request,
    check_cost,
    check_type,
    parse_request,
    peek_id,
)
from app.sessions.auth import Identity
from app.sessions.protocol_session import ProtocolSession
from app.sessions.refused import note_refusal
from app.sessions.retry import retry_reason
from app.sessions.session import Work
from app.transport.connection import OPEN


class PlainSession(ProtocolSession):
    """A client of the plain protocol."""

    __slots__ = ()

    protocol = "plain"
    codec = PLAIN

    def begin(self, identity: Identity | None, options: ConnectOptions) -> None:
        """Welcome the client, or wait for its token."""
        if identity is not None:
            self.authenticated(identity)
        if self.user is None and self.context.verifier.enabled:
            self.need_extra().options = options
            # Where its subscriptions begin, once it is known what they are.
            self.track = self.context.fanout.positions
            self.context.expiry.await_token(self)
            return
        work = self._welcome(options)
        if work is not None:
            self.start_task(work, is_frame=False)

    def welcome(self) -> Work | None:
        """Go on with a client that has now shown its token."""
        return self._welcome(self.need_extra().options or ConnectOptions())

    def reply(self, request: Request, event: str, envelope: bytes) -> None:
        """Send the answer as an event; its `replyTo` names the request."""
        self.send_event(event, envelope)

    def request_of(self, message: str | bytes) -> Request | None:
        """The request that a frame holds, without its payload."""
        id = peek_id(message) if isinstance(message, str) else None
        return None if id is None else Request(None, None, id)

    def handle(self, message: str | bytes) -> Work | None:
        """Act on one frame."""
        if isinstance(message, bytes):
            raise ClientError(
                ErrorCode.PARSE_ERROR, "The plain protocol is JSON in text frames, not binary ones."
            )
        try:
            check_cost(message)
        except ClientError as error:
            self.send_error(error, self.request_of(message))
            return None
        request = parse_request(message)
        if not self.welcomed and request.action != "auth":
            message = 'Authenticate first, with the action "auth" and a token.'
            self.send_error(ClientError(ErrorCode.UNAUTHORIZED, message), request)
            return None
        return self.context.router.handle(self, request)

    def _welcome(self, options: ConnectOptions) -> Work | None:
        """Claim a place and greet; returns what remains to be awaited."""
        try:
            options = self._allowed_options(options)
            work = self.context.claiming.claim(self, options.resume)
        except ClientError as error:
            self._refuse(error)
            return None
        if work is not None:
            return self._welcome_slowly(work, options)
        return self.context.welcome.greet(self, options)

    def _allowed_options(self, options: ConnectOptions) -> ConnectOptions:
        """What a client that asked before it showed its token may have of it.

        Raises:
            ClientError: FORBIDDEN, it asked for a type that its token does not allow.
        """
        types, known = self.types, self.context.known_types
        if options.types is None or types is known:
            return options
        if frozenset(options.types) == known:
            return replace(options, types=frozenset(types))  # it asked for `all`
        for type in sorted(options.types):
            check_type(type, types)
        return options

    async def _welcome_slowly(self, work: Work, options: ConnectOptions) -> None:
        try:
            await work
        except ClientError as error:
            self._refuse(error)
        else:
            if (
                self.state == OPEN
                and (past := self.context.welcome.greet(self, options)) is not None
            ):
                await past

    def _refuse(self, error: ClientError) -> None:
        note_refusal(self.context.refusals, error)
        self.send_error(error)
        if isinstance(error, NoRoomNow):
            self.end(CloseCode.TRY_AGAIN_LATER, error.close_reason)
        elif error.code is ErrorCode.FORBIDDEN:
            self.end(CloseCode.POLICY_VIOLATION, "the token does not allow these types")
        elif error.code is ErrorCode.MAX_CONNECTIONS_EXCEEDED:
            self.end(CloseCode.POLICY_VIOLATION, "too many connections of this user")
        else:
            self.end(CloseCode.RESTART, retry_reason())
