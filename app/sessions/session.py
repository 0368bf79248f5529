"""A session as the parts of a worker see it: its identity, its resources, and its operations.

What it does with its client's messages is in `protocol_session.py`, above all the parts.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass
from sys import getsizeof
from typing import Any, ClassVar

from app.broadcast.subscriber import Subscriber
from app.errors import ClientError, CloseCode
from app.protocol.envelope import envelope as build_envelope
from app.protocol.requests import Allowed, ConnectOptions, Request
from app.sessions.auth import Identity
from app.transport.connection import OPEN
from app.transport.hub import PAUSE_INBOX, Hub
from app.types import Gap, Position

INBOX_BYTES = 256 * 1024
"""Bytes of messages behind a request that is being worked on, past which nothing more is read."""
INBOX_MESSAGES = 100
"""The same in messages."""

MAX_HANDLERS = 100
"""Handlers of the application that run for one connection at a time; later events wait."""
FREE_ENVIRON = 4096
"""Bytes of the request that a connection began with, which are not counted as input."""
PROBE_SECONDS = 1.0
"""How long a client may take to answer a ping that decides whether it keeps its place."""
PROBE_STEP = 0.02
"""Seconds between two looks whether it has."""
_ACK = "43"
"""How an answer to a handler begins, which some handler may be waiting for."""
_VALUE_COST = 80
"""Bytes of memory that a container in JSON takes once it is decoded, beside its text."""
_ITEM_COST = 40
"""The same for a value in a container."""

Work = Coroutine[Any, Any, None]
"""What remains to be awaited of a request."""


class Phase(enum.IntEnum):
    """How far a session has come, in the main namespace if it speaks Socket.IO.

    OUTSIDE ──► ENTERING ──► ENTERED ──► HELD ──► FLOWING ──► LEAVING ──► OUTSIDE

    The steps, and what each of them means:

    OUTSIDE -> ENTERING                   Socket.IO: a CONNECT packet has come
    ENTERING -> OUTSIDE                   it is refused
    ENTERING -> ENTERED                   it is accepted, or the connection has ended meanwhile
    ENTERED -> HELD                       `connected` is sent
    ENTERED -> FLOWING                    the same, to a client that recovers
    OUTSIDE -> HELD                       plain: its place is claimed, and `connected` is sent
    OUTSIDE -> FLOWING                    the same over server-sent events, without history
    HELD -> FLOWING                       its first frame is handled, a second is over, or its
                                          history can be sent
    ENTERED, HELD, FLOWING -> LEAVING     Socket.IO: disconnect handlers begin
    LEAVING -> OUTSIDE                    they are done
    ENTERED, HELD, FLOWING -> OUTSIDE     Socket.IO: it leaves where there are no such handlers
    OUTSIDE -> ENTERED                    Socket.IO: it was in the namespace at another worker

    A session that comes from another worker takes these steps at once, up to where it was.
    A connection that ends stays in its phase, unless it speaks Socket.IO.

    Each of these stands for itself, beside the phase: `state` of the connection (open, closing,
    closed, moving); `claimed`: it counts as one of its user's; `track`: None while it is live,
    else where it stands; `extra.task`: a request is worked on, and later ones wait.
    """

    OUTSIDE = 0
    """In no namespace, or its token is awaited, or its place is claimed."""
    ENTERING = 1
    """A claim or a connect handler is at work for it."""
    ENTERED = 2
    """The namespace has it, and `connected` is sent next."""
    HELD = 3
    """`connected` is sent, and default subscriptions wait for the client's first frame."""
    FLOWING = 4
    """Gets what it is subscribed to."""
    LEAVING = 5
    """Disconnect handlers are running."""


# A lookup in the module costs less than one in the class.
OUTSIDE, ENTERING, ENTERED = Phase.OUTSIDE, Phase.ENTERING, Phase.ENTERED
HELD, FLOWING, LEAVING = Phase.HELD, Phase.FLOWING, Phase.LEAVING


@dataclass(frozen=True, slots=True)
class Opening:
    """What the answer to a request for server-sent events begins with."""

    head: bytes
    """Of the answer 200."""
    headers: Mapping[str, str]
    """Those for CORS, which belong to any other answer as well."""
    is_browser: bool
    """The client is a browser, which gives up at any other status."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """A client that comes back over Socket.IO, or with missing messages over server-sent events."""

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
        "listed",
        "namespaces",
        "opening",
        "options",
        "packet_size",
        "pages",
        "recovery",
        "rooms",
        "session",
        "task",
        "unpaid",
    )  # fmt: skip

    def __init__(self) -> None:
        self.inbox: deque[str | bytes] = deque()
        """Messages that wait until what came before them is done."""
        self.inbox_size = 0
        """Their bytes."""
        self.packet_size = 0
        """Bytes of the Socket.IO packet that waits for its attachments, with those it has."""
        self.pages: deque[Page] = deque()
        """Answers that come before anything else; later messages wait in the inbox."""
        self.task: asyncio.Task[None] | None = None
        """Works on a request; later ones wait in the inbox."""
        self.unpaid = 0.0
        """Seconds of that work that the connection was not charged with yet."""
        self.expiry: asyncio.TimerHandle | None = None
        """Next step in the life of its token, or the end of the time to show one."""
        self.expires_at: float | None = None
        """Unix time in seconds at which its token ends."""
        self.allowed: Allowed | None = None
        """Types that its token allows; None: all."""
        self.listed: frozenset[str] | None = frozenset()
        """Types whose users its token allows to list; None: all."""
        self.handlers = 0
        """Event handlers of the application that are running for it."""
        self.environ: dict[str, Any] | None = None
        """The request that it began with, for handlers of the application."""
        self.options: ConnectOptions | None = None
        """Of a client that has to show its token first."""
        self.session: dict[str, Any] = {}
        """python-socketio's user sessions, by namespace."""
        self.namespaces: dict[str, tuple[str, Phase]] = {}
        """Socket.IO ids and phases by namespace, without the main one's."""
        self.opening: Opening | None = None
        """Of a client of server-sent events whose request is not answered yet."""
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
        hub: the connections of this worker.
        fd: descriptor, see `Connection`.
        id: connection id.
        user: its name; None for an anonymous client.
    """

    __slots__ = ("claimed", "extra", "phase", "user")

    hub: Hub

    deflate: ClassVar[int | None] = None
    """Window size in bits, where permessage-deflate is negotiated."""

    protocol: str
    """Its name in metrics and in the state that is handed over."""

    def __init__(self, hub: Hub, fd: int, id: str, user: str | None) -> None:
        super().__init__(hub, fd, id)
        self.user = user
        self.extra: Extra | None = None
        self.track = None
        self.phase = OUTSIDE
        self.claimed = False
        """It counts as one of its user's connections."""

    @property
    def welcomed(self) -> bool:
        """Whether `connected` is sent."""
        return self.phase >= HELD

    @property
    def types(self) -> Collection[str]:
        """Types that it may subscribe to and read."""
        raise NotImplementedError

    # What it can be asked; `ProtocolSession` and the protocols implement it.

    def send_event(self, event: str, envelope: bytes) -> None:
        """Send an event of this service."""
        raise NotImplementedError

    def reply(self, request: Request, event: str, envelope: bytes) -> None:
        """Send the answer to a request."""
        raise NotImplementedError

    def answer(self, request: Request, event: str, data: Mapping[str, object]) -> None:
        """Send the answer to a request that is carried out, as an envelope of the type `config`."""
        self.reply(request, event, build_envelope("config", event, data, reply_to=request.id))

    def send_error(self, error: ClientError, request: Request | None = None) -> None:
        """Tell the client what it did wrong."""
        raise NotImplementedError

    def report(self, error: Exception, request: Request | None = None) -> None:
        """Log a failure of the service, and tell the client of it, and which request it belongs to."""
        raise NotImplementedError

    def send_offset(self) -> None:
        """After a change of subscriptions: send the offset to clients that keep one."""
        raise NotImplementedError

    def authenticated(self, identity: Identity) -> None:
        """Become the user that a token names, until it expires."""
        raise NotImplementedError

    def welcome(self) -> Work | None:
        """Go on with a client that has now shown its token."""
        raise NotImplementedError

    def release(self) -> None:
        """Let default subscriptions flow."""
        raise NotImplementedError

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
        raise NotImplementedError

    def go_on(self) -> None:
        """Do what waited, up to the next thing that must be awaited."""
        raise NotImplementedError

    def end(self, code: CloseCode, reason: str) -> None:
        """Close for a reason of the service; `reason` goes into the close frame."""
        self.close(code, reason)

    # What all sessions do alike.

    def end_replaced(self) -> None:
        """Close: there is a newer connection of the same client."""
        self.end(CloseCode.REPLACED, "replaced by a newer connection of the same client")

    async def answers_ping(self) -> bool:
        """Whether the client answers a ping within `PROBE_SECONDS`.

        A worker that is late may take twice as long. It looks in steps, since nothing signals an
        answer: what comes in is noted by its tick alone, and the kernel signals no acknowledgement.
        """
        if self.state != OPEN:
            return False
        loop = asyncio.get_running_loop()
        mark = self.mark_probe()
        self.ping()
        until = loop.time() + 2 * PROBE_SECONDS
        # Steps are counted, so that a loop which is late gives its clients as much longer.
        for _ in range(round(PROBE_SECONDS / PROBE_STEP)):
            await asyncio.sleep(PROBE_STEP)
            if self.state != OPEN:
                return False
            if self.has_answered(mark):
                return True
            if loop.time() > until:
                break
        return False

    def mark_probe(self) -> int:
        """What `has_answered` compares with, before a ping."""
        # What it sent before does not count; ticks are as long as a second.
        self.seen = min(self.seen, self.hub.wheel.now - 1)
        return self.seen

    def has_answered(self, mark: int) -> bool:
        """Whether anything has come from the client since `mark_probe` returned `mark`."""
        return self.seen > mark

    def is_held(self) -> bool:
        """Whether nothing of its subscriptions may be written yet."""
        return self.phase != FLOWING or (self.extra is not None and bool(self.extra.pages))

    def put_aside(self, extra: Extra, message: str | bytes) -> None:
        """Let a message wait; when too many do, nothing more is read."""
        size = getsizeof(message)
        extra.inbox.append(message)
        extra.inbox_size += size
        self.hub.input.keep(self, size)
        if len(extra.inbox) >= INBOX_MESSAGES or extra.inbox_size >= INBOX_BYTES:
            self.hub.pause(self, PAUSE_INBOX)

    def keep_environ(self, environ: dict[str, Any]) -> None:
        """Keep the request that the connection began with, for handlers; a long one counts."""
        self.need_extra().environ = environ
        self.hub.input.keep(self, environ_cost(environ))

    def need_extra(self) -> Extra:
        """The rare part, made if it is not there."""
        if self.extra is None:
            self.extra = Extra()
        return self.extra
