"""One client: its user, its subscriptions, its requests in order. Protocols are subclasses."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from sys import getsizeof
from typing import TYPE_CHECKING, Any

from app.broadcast.subscriber import Subscriber
from app.errors import ClientError, CloseCode, ErrorCode
from app.protocol.requests import Allowed, Request
from app.sessions.auth import Identity
from app.sessions.rates import metered
from app.transport.connection import OPEN
from app.transport.hub import PAUSE_INBOX
from app.types import Gap, Position

if TYPE_CHECKING:
    from app.sessions.realtime import Realtime

logger = logging.getLogger("realtime.session")

INBOX_BYTES = 256 * 1024
"""Bytes of messages behind a request that is being worked on, past which nothing more is read."""
INBOX_MESSAGES = 100
"""The same in messages."""

MAX_HANDLERS = 100
"""Handlers of the application that run for one connection at a time; later events wait."""
FREE_ENVIRON = 4096
"""Bytes of the request that a connection began with, which are not counted as input."""
_ACK = "43"
"""How an answer to a handler begins, which some handler may be waiting for."""
_VALUE_COST = 80
"""Bytes of memory that a container in JSON takes once it is decoded, beside its text."""
_ITEM_COST = 40
"""The same for a value in a container."""

Work = Coroutine[Any, Any, None]
"""What remains to be awaited of a request."""


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """What a client asked for when it connected."""

    types: Collection[str] | None = None
    """Subscriptions in place of the default ones."""
    batch: bool = False
    """It wants `batch_update` events."""
    resume: str | None = None
    """Token of a connection that this one takes the place of."""
    history: int | None = None
    """Newest messages of each of its types that it gets before live ones; None: none."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """A Socket.IO client that comes back."""

    options: ConnectOptions
    positions: dict[str, Position]
    """Where each of its types goes on."""
    gaps: tuple[Gap, ...]
    """What it will not get."""
    pid: str | None
    """What it keeps as its `pid`; None when it has missed something and begins anew."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer with history that waits until its client has read what came before."""

    type: str
    limit: int
    """Messages that may still be sent."""
    before: int | None
    """Only messages with a lower `seq`."""
    request: Request
    """What it answers, without the payload."""
    is_one: bool
    """The request has this one answer; otherwise pages follow until there are `limit`."""


class Extra:
    """What few connections have, made at first use so that idle ones stay small."""

    __slots__ = (
        "allowed",
        "environ",
        "expires_at",
        "expiry",
        "handlers",
        "held_frames",
        "inbox",
        "inbox_size",
        "namespaces",
        "options",
        "packet_size",
        "pages",
        "recovery",
        "rooms",
        "session",
        "task",
    )  # fmt: skip

    def __init__(self) -> None:
        self.inbox: deque[str | bytes] = deque()
        self.inbox_size = 0
        self.packet_size = 0
        """Bytes of the Socket.IO packet that waits for its attachments, with those it has."""
        self.pages: deque[Page] = deque()
        """Answers that come before anything else; later messages wait in the inbox."""
        self.task: asyncio.Task[None] | None = None
        """Works on a request; later ones wait in the inbox."""
        self.expiry: asyncio.TimerHandle | None = None
        """Next step in the life of its token, or the end of the time to show one."""
        self.expires_at: float | None = None
        """Unix time in seconds at which its token ends."""
        self.allowed: Allowed | None = None
        """Types that its token allows; None: all."""
        self.handlers = 0
        """Event handlers of the application that are running for it."""
        self.environ: dict[str, Any] | None = None
        self.options: ConnectOptions | None = None
        """Of a client that has to show its token first."""
        self.session: dict[str, Any] = {}
        """python-socketio's user sessions, by namespace."""
        self.namespaces: dict[str, tuple[str, int]] = {}
        """Socket.IO ids and states by namespace, without the main one's."""
        self.recovery: Recovery | None = None
        """How a Socket.IO client that comes back goes on, between its CONNECT and the answer."""
        self.rooms: dict[tuple[str, str], None] = {}
        """Socket.IO rooms that are not subscriptions: (namespace, room)."""
        self.held_frames: dict[str, list[bytes]] | None = None
        """What handlers emitted before the CONNECT packet of a namespace."""

    def is_busy(self, message: str | bytes) -> bool:
        """Whether a message must wait until something before it is done."""
        if self.task is not None or self.pages:
            return True
        # A handler may wait for what the client answers.
        return self.handlers >= MAX_HANDLERS and message[:2] != _ACK


def weigh(message: str | bytes) -> int:
    """About the bytes that a message takes in memory, decoded or not."""
    if isinstance(message, bytes):
        return getsizeof(message)
    containers = message.count("[") + message.count("{")
    return getsizeof(message) + _VALUE_COST * containers + _ITEM_COST * message.count(",")


def environ_cost(environ: dict[str, Any]) -> int:
    """Bytes by which a connection's environ is longer than what every connection may have."""
    return max(0, sum(len(str(value)) for value in environ.values()) - FREE_ENVIRON)


class Session(Subscriber):
    """A connection with an identity.

    Args:
        realtime: the parts of this worker.
        fd: descriptor, see `Connection`.
        id: connection id.
        user: who it is; None for nobody in particular.
    """

    __slots__ = ("claimed", "extra", "realtime", "user", "welcomed")

    protocol: str
    connects_by_frame = False
    """The frame that a client is welcomed for belongs to its handshake."""

    def __init__(self, realtime: Realtime, fd: int, id: str, user: str | None) -> None:
        super().__init__(realtime.hub, fd, id)
        self.realtime = realtime
        self.user = user
        self.extra: Extra | None = None
        self.group = realtime.no_subscriptions[self.codec.name]
        self.track = None
        self.held = False
        self.claimed = False
        """It counts as one of its user's connections."""
        self.welcomed = False
        """`connected` is sent."""
        realtime.sessions[id] = self

    # What protocols implement.

    def send_event(self, event: str, envelope: bytes) -> None:
        """Send an event of this service."""
        self.send(self.codec.event(event, envelope))

    def reply(self, request: Request, event: str, envelope: bytes) -> None:
        """Send the answer to a request."""
        raise NotImplementedError

    def welcome(self) -> Work | None:
        """Go on with a client that has now shown its token."""
        raise NotImplementedError

    def request_of(self, message: str | bytes) -> Request | None:
        """What the answer to a message that is not parsed refers to, if its beginning tells."""
        raise NotImplementedError

    def handle(self, message: str | bytes) -> Work | None:
        """Act on a message; what cannot be done at once is returned to be awaited."""
        raise NotImplementedError

    @property
    def is_entering(self) -> bool:
        """Whether it is on its way into a namespace."""
        return False

    def end(self, code: CloseCode, reason: str) -> None:
        """Close for a reason of the service; `reason` goes into the close frame."""
        self.close(code, reason)

    def tell_offset(self) -> None:
        """After a change of subscriptions: tell clients that keep an offset where they stand."""
        offset = self.offset(self.realtime.fanout.positions if self.track is None else self.track)
        if offset:
            self.send(offset)

    # Messages, one after the other.

    def on_text(self, text: str) -> None:
        """Handle a message now, or behind the one that is being worked on."""
        self._receive(text)

    def on_binary(self, data: bytes) -> None:
        """Like a text message."""
        self._receive(data)

    def on_flood(self) -> None:
        """Close, with a log line."""
        detail = f"user {self.user}" if self.user is not None else "no user"
        self.realtime.refusals.log("flood", None, detail)
        self.end(CloseCode.FLOOD, "flood")

    def on_too_large(self) -> None:
        """Say so; the message is gone."""
        self.send_error(self._too_large())

    def on_unusable(self) -> None:
        """Say so before the close frame."""
        self.send_error(self._too_large())

    def _too_large(self) -> ClientError:
        return ClientError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"Messages are at most {self.hub.max_message} bytes long.",
        )

    def _receive(self, message: str | bytes) -> None:
        over_rate = self.realtime.count_message(self)
        if over_rate is not None:
            self.send_error(over_rate, self.request_of(message))
            return
        extra = self.extra
        if extra is not None and extra.is_busy(message):
            self.put_aside(extra, message)
            return
        self._handle_now(message)
        if self.extra is not None and self.extra.pages:
            self.go_on()

    def put_aside(self, extra: Extra, message: str | bytes) -> None:
        """Let a message wait; when too many do, nothing more is read."""
        size = getsizeof(message)
        extra.inbox.append(message)
        extra.inbox_size += size
        self.hub.keep(self, size)
        if len(extra.inbox) >= INBOX_MESSAGES or extra.inbox_size >= INBOX_BYTES:
            self.hub.pause(self, PAUSE_INBOX)

    def _handle_now(self, message: str | bytes) -> None:
        was_welcomed = self.welcomed
        work: Work | None = None
        try:
            work = self.handle(message)
        except ClientError as error:
            self.send_error(error)
        except Exception as error:  # noqa: BLE001 (logged and told)
            self._failed(error)
        if work is not None:
            self.start_task(work, was_welcomed, size=weigh(message))
        else:
            self._frame_handled(was_welcomed)

    def _frame_handled(self, was_welcomed: bool) -> None:
        """Let default subscriptions flow after the first frame of a client that is welcome."""
        if self.held and self.welcomed and (was_welcomed or not self.connects_by_frame):
            self.release()

    def start_task(
        self, work: Work, was_welcomed: bool = False, *, is_frame: bool = True, size: int = 0
    ) -> None:
        """Run something that the client's next messages must wait for.

        Args:
            work: it.
            was_welcomed: whether `connected` had been sent before it began.
            is_frame: whether it comes from a frame of the client, which lets default
                subscriptions flow when it is handled.
            size: bytes of the client's input that it keeps.
        """
        extra = self.need_extra()
        if size:
            self.hub.keep(self, size)
        extra.task = asyncio.get_running_loop().create_task(
            self._work(work, was_welcomed, is_frame, size)
        )

    async def _work(self, work: Work, was_welcomed: bool, is_frame: bool, size: int) -> None:
        extra = self.need_extra()
        try:
            await metered(work, self._spent)
        except ClientError as error:
            self.send_error(error)
        except Exception as error:  # noqa: BLE001 (logged and told)
            self._failed(error)
        finally:
            extra.task = None
            if size:
                self.hub.keep(self, -size)
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
                if not self.realtime.router.start_page(self):
                    return
            elif extra.inbox:
                if extra.is_busy(extra.inbox[0]):
                    return
                message = extra.inbox.popleft()
                size = getsizeof(message)
                extra.inbox_size -= size
                self.hub.keep(self, -size)
                self._handle_now(message)
            else:
                self.hub.resume(self, PAUSE_INBOX)
                return

    def _spent(self, seconds: float) -> None:
        self.realtime.charge(self, seconds)

    def _failed(self, error: Exception) -> None:
        logger.error("request failed", extra={"connection": self.id}, exc_info=error)
        self.send_error(
            ClientError(ErrorCode.INTERNAL_ERROR, "The server failed to do this; it is logged.")
        )

    def keep_environ(self, environ: dict[str, Any]) -> None:
        """Keep the request that the connection began with, for handlers; a long one counts."""
        self.need_extra().environ = environ
        self.hub.keep(self, environ_cost(environ))

    def need_extra(self) -> Extra:
        """The rare part, made if it is not there."""
        if self.extra is None:
            self.extra = Extra()
        return self.extra

    def send_error(self, error: ClientError, request: Request | None = None) -> None:
        """Tell the client what it did wrong."""
        envelope = self.realtime.error_envelope(error, request.id if request else None)
        if request is None:
            self.send_event("error", envelope)
        else:
            self.reply(request, "error", envelope)

    # The life of a connection.

    def authenticated(self, identity: Identity) -> None:
        """Become the user that a token names, until it expires."""
        self.user = identity.user
        extra = self.need_extra()
        extra.expires_at = identity.expires_at
        extra.allowed = self.realtime.allowed(identity.types)
        self.realtime.watch_expiry(self)

    @property
    def types(self) -> Collection[str]:
        """Types that it may subscribe to and read."""
        extra = self.extra
        if extra is None or extra.allowed is None:
            return self.realtime.known_types
        return extra.allowed

    def release(self) -> None:
        """Let default subscriptions flow."""
        self.held = False
        self.realtime.catchup.start(self)

    def is_held(self) -> bool:
        """Whether nothing of its subscriptions may be written yet."""
        # One that another worker has given back or over before it was welcome has a `track` too.
        return self.held or not self.welcomed or (self.extra is not None and bool(self.extra.pages))

    def on_drained(self) -> None:
        """Go on with answers, or catch up on what was not written meanwhile."""
        if self.extra is not None and self.extra.pages:
            self.go_on()
        elif self.track is not None and self.welcomed:
            self.realtime.catchup.start(self)

    def heartbeat_missed(self) -> None:
        """Nothing came for the whole timeout."""
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
        realtime = self.realtime
        self.forget()
        realtime.fanout.discard(self)
        realtime.catchup.discard(self)
        extra = self.extra
        if extra is not None:
            extra.pages.clear()
            extra.inbox.clear()
            self.hub.keep(self, -extra.inbox_size)
            extra.inbox_size = 0
            if extra.environ is not None:
                self.hub.keep(self, -environ_cost(extra.environ))
            if extra.expiry is not None:
                extra.expiry.cancel()
                extra.expiry = None
        realtime.release_claim(self)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "closed: %s",
                reason,
                extra={"connection": self.id, "user": self.user, "code": code},
            )

    def forget(self) -> None:
        """Be found no more by id."""
        self.realtime.forget(self)

    def on_detached(self) -> None:
        """Give the place in the cap back."""
        self.realtime.slots.release_connection()
        if self.realtime.addresses is not None:
            self.realtime.addresses.release(self)
