"""What both protocols share: messages one after the other, errors, and the life of a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from sys import getsizeof

from app.errors import ClientError, CloseCode, ErrorCode
from app.log_limit import LogLimit
from app.protocol.envelope import error_envelope
from app.protocol.requests import Request
from app.sessions.auth import Identity
from app.sessions.context import SessionContext
from app.sessions.rates import Verdict, metered
from app.sessions.session import FLOWING, HELD, Extra, Session, Work, environ_cost, weigh
from app.transport.connection import OPEN
from app.transport.hub import PAUSE_INBOX

logger = logging.getLogger("realtime.session")

_RATE_LIMITED = ClientError(
    ErrorCode.RATE_LIMITED, "This connection exceeds its limits; the message was dropped."
)
_PAID_AT_ONCE = 0.001
"""Seconds of a request's work that are charged together: to charge each of its steps costs as much as the step."""
_TAKE, _CLOSE = Verdict.TAKE, Verdict.CLOSE
# A callback of the application that fails does so whenever a client acknowledges what it belongs to.
_log_limit = LogLimit(most=20)


class ProtocolSession(Session):
    """A session that acts on messages.

    Args:
        context: the parts of this worker.
        fd: descriptor, see `Connection`.
        id: connection id.
        user: its name; None for an anonymous client.
    """

    __slots__ = ("context",)

    connects_by_frame = False
    """The frame that a client is welcomed for belongs to its handshake."""

    def __init__(self, context: SessionContext, fd: int, id: str, user: str | None) -> None:
        super().__init__(context.hub, fd, id, user)
        self.context = context
        self.group = context.no_subscriptions[self.codec.protocol]
        context.registry.add(self)

    # What protocols implement, beside what `Session` lists.

    def request_of(self, message: str | bytes) -> Request | None:
        """What the answer to a message that is not parsed refers to, if its beginning tells."""
        raise NotImplementedError

    def handle(self, message: str | bytes) -> Work | None:
        """Act on a message; what cannot be done at once is returned to be awaited."""
        raise NotImplementedError

    # Sending.

    def send_event(self, event: str, envelope: bytes) -> None:
        """Send an event of this service."""
        self.send(self.codec.event(event, envelope))

    def send_error(self, error: ClientError, request: Request | None = None) -> None:
        """Tell the client what it did wrong."""
        self.context.metrics.errors[error.code].inc()
        if request is None:
            self.send_event("error", error_envelope(error.code, error.message))
        else:
            envelope = error_envelope(error.code, error.message, request.id)
            self.reply(request, "error", envelope)

    def send_offset(self) -> None:
        """After a change of subscriptions: send the offset to clients that keep one."""
        offset = self.offset(self.context.fanout.positions if self.track is None else self.track)
        if offset:
            self.send(offset)

    # Messages, one after the other.

    def on_text(self, text: str) -> None:
        """Handle a message now, or behind the one that is being worked on."""
        self._receive(text)

    def on_binary(self, data: bytes) -> None:
        """Like a text message."""
        self._receive(data)

    def on_throttled(self, seconds: float) -> None:
        """Get messages later than those that keep within their share."""
        self.context.catchup.put_late(self, seconds)

    def on_flood(self) -> None:
        """Close, with a log line."""
        detail = f"user {self.user}" if self.user is not None else "no user"
        self.context.refusals.note("flood", None, detail)
        self.end(CloseCode.FLOOD, "flood")

    def on_too_large(self) -> None:
        """Say so; the message is gone."""
        self.send_error(self._too_large())

    def on_oversized(self) -> None:
        """Say so before the close frame."""
        self.send_error(self._too_large())

    def _too_large(self) -> ClientError:
        return ClientError(
            ErrorCode.MESSAGE_TOO_LARGE, f"Messages are at most {self.hub.max_message} bytes long."
        )

    def _receive(self, message: str | bytes) -> None:
        verdict = self.context.rates.message(self)
        if verdict is not _TAKE:
            if verdict is _CLOSE:
                self.on_flood()
            self.send_error(_RATE_LIMITED, self.request_of(message))
            return
        extra = self.extra
        if extra is not None and extra.is_busy(message):
            self.put_aside(extra, message)
            return
        self._handle_now(message)
        if self.extra is not None and self.extra.pages:
            self.go_on()

    def _handle_now(self, message: str | bytes) -> None:
        was_welcomed = self.phase >= HELD
        work: Work | None = None
        try:
            work = self.handle(message)
        except ClientError as error:
            self.send_error(error)
        except Exception as error:  # noqa: BLE001 (logged and reported)
            self.report(error)
        if work is not None:
            self.start_task(work, was_welcomed, size=weigh(message))
        else:
            self._frame_handled(was_welcomed)

    def _frame_handled(self, was_welcomed: bool) -> None:
        """Let default subscriptions flow after the first frame of a client that is welcome."""
        if self.phase == HELD and (was_welcomed or not self.connects_by_frame):
            self.release()

    def start_task(
        self, work: Work, was_welcomed: bool = False, *, is_frame: bool = True, size: int = 0
    ) -> None:
        """Run something that the client's next messages must wait for; see `Session`."""
        extra = self.need_extra()
        if size:
            self.hub.input.keep(self, size)
        extra.task = asyncio.get_running_loop().create_task(
            self._work(work, was_welcomed, is_frame, size)
        )

    async def _work(self, work: Work, was_welcomed: bool, is_frame: bool, size: int) -> None:
        extra = self.need_extra()
        try:
            await self.hub.turns.take()
            await metered(work, self._spent)
        except ClientError as error:
            self.send_error(error)
        except Exception as error:  # noqa: BLE001 (logged and reported)
            self.report(error)
        finally:
            work.close()  # had it no turn
            extra.task = None
            self._pay(extra)
            if size:
                self.hub.input.keep(self, -size)
        if is_frame:
            self._frame_handled(was_welcomed)
        self.go_on()

    def go_on(self) -> None:
        """Do what waited, up to the next thing that must be awaited."""
        extra = self.extra
        if extra is None:
            return
        while extra.task is None and self.state == OPEN and not self.hub.is_leaving(self):
            if extra.pages:
                self.context.pages.start(self)
                return
            if extra.inbox:
                if extra.is_busy(extra.inbox[0]):
                    return
                message = extra.inbox.popleft()
                size = getsizeof(message)
                extra.inbox_size -= size
                self.hub.input.keep(self, -size)
                self._handle_now(message)
            else:
                self.hub.resume(self, PAUSE_INBOX)
                return

    def _spent(self, seconds: float) -> None:
        self.hub.turns.spend(seconds)
        extra = self.need_extra()
        extra.unpaid += seconds
        if extra.unpaid >= _PAID_AT_ONCE:
            self._pay(extra)

    def _pay(self, extra: Extra) -> None:
        unpaid, extra.unpaid = extra.unpaid, 0.0
        self.context.rates.charge(self, unpaid)

    def report(self, error: Exception, request: Request | None = None) -> None:
        """Log a failure of the service, and tell the client of it, and which request it belongs to."""
        if _log_limit.allows(type(error).__name__):
            logger.error("Request failed", extra={"connection": self.id}, exc_info=error)
        self.send_error(
            ClientError(
                ErrorCode.INTERNAL_ERROR,
                "An internal error occurred; the log of the server has details.",
            ),
            request,
        )

    # The life of a connection.

    def authenticated(self, identity: Identity) -> None:
        """Become the user that a token names, until it expires."""
        self.user = identity.user
        extra = self.need_extra()
        extra.expires_at = identity.expires_at
        extra.allowed = self.context.allowed.of(identity.types)
        extra.listed = identity.presence
        self.context.expiry.watch(self)

    @property
    def types(self) -> Collection[str]:
        """Types that it may subscribe to and read."""
        extra = self.extra
        if extra is None or extra.allowed is None:
            return self.context.known_types
        return extra.allowed

    def release(self) -> None:
        """Let default subscriptions flow."""
        self.phase = FLOWING
        self.context.catchup.start(self)

    def on_drained(self) -> None:
        """Go on with answers, or catch up on what was not written meanwhile."""
        if self.extra is not None and self.extra.pages:
            self.go_on()
        elif self.track is not None and self.phase >= HELD:
            self.context.catchup.start(self)

    def heartbeat_missed(self) -> None:
        """Nothing was received within the timeout."""
        if self.hub.spare(self):
            return
        self.send_error(
            ClientError(
                ErrorCode.HEARTBEAT_TIMEOUT, "Nothing was received within the heartbeat timeout."
            )
        )
        self.end(CloseCode.HEARTBEAT_TIMEOUT, "heartbeat timeout")

    def on_lost(self, code: int, reason: str) -> None:
        """Leave everything."""
        context = self.context
        self.forget()
        context.fanout.discard(self)
        context.catchup.discard(self)
        extra = self.extra
        if extra is not None:
            extra.pages.clear()
            extra.inbox.clear()
            self.hub.input.keep(self, -extra.inbox_size)
            extra.inbox_size = 0
            if extra.environ is not None:
                self.hub.input.keep(self, -environ_cost(extra.environ))
            if extra.expiry is not None:
                extra.expiry.cancel()
                extra.expiry = None
        context.claiming.release(self)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "Closed: %s", reason, extra={"connection": self.id, "user": self.user, "code": code}
            )

    def forget(self) -> None:
        """Remove this session from the registry."""
        self.context.registry.forget(self)

    def on_detached(self) -> None:
        """Give the place in the cap back."""
        context = self.context
        context.places.release_connection()
        if context.addresses is not None:
            context.addresses.release(self)
