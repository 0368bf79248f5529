"""How a session begins once it may: its subscriptions, `connected`, and the hold before they flow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

from app.broadcast.fanout import FanOut
from app.config import Settings
from app.protocol import envelope
from app.protocol.requests import ConnectOptions
from app.sessions.expiry import Expiry
from app.sessions.pages import Pages
from app.sessions.resume_tokens import ResumeTokens
from app.sessions.session import FLOWING, HELD, Session, Work
from app.transport.connection import OPEN
from app.types import Position

logger = logging.getLogger("realtime.session")

HOLD_SECONDS = 1.0
"""How long default subscriptions wait for the client's first frame (docs/PROTOCOL.md)."""
MAX_RECONNECT_ATTEMPTS = 10
"""What clients are advised; the service itself does not count."""
MAX_LISTS, MAX_LIMITS = 2048, 64
"""Parts of greetings that are kept ready: one for each set of subscriptions that clients chose, some 700
bytes each, and one for each set of types that tokens allow."""


class Chosen(NamedTuple):
    """What a client is subscribed to at first."""

    types: tuple[str, ...]
    """In the order in which they are listed."""
    set: frozenset[str]
    listed: bytes
    """As JSON."""


def _chosen(types: Iterable[str]) -> Chosen:
    ordered = tuple(types)
    return Chosen(ordered, frozenset(ordered), envelope.encode_json(ordered))


class Welcome:
    """Welcomes sessions.

    Args:
        settings: of the service.
        fanout: has the groups that sessions are in.
        tokens: make what a client comes back with.
        expiry: watches their tokens from then on.
        pages: send the newest messages to those that ask for them.
    """

    def __init__(
        self, settings: Settings, fanout: FanOut, tokens: ResumeTokens, expiry: Expiry, pages: Pages
    ) -> None:
        self._settings = settings
        self._fanout = fanout
        self._tokens = tokens
        self._expiry = expiry
        self._pages = pages
        self._default = _chosen(settings.default_subscriptions)
        self._limits: dict[Collection[str], bytes] = {}
        """What `connected` says to all that may have the same types, as JSON, but for the beginning."""
        self._kept: dict[Collection[str], Chosen] = {}
        """What clients chose or their tokens left of the default: by the former's set, the latter's tuple."""
        self._held: deque[tuple[float, Session]] = deque()
        """When the hold of each session ends (seconds of the loop), in this order."""
        self._release_planned = False
        self._loop = asyncio.get_running_loop()

    def greet(
        self,
        session: Session,
        options: ConnectOptions,
        positions: dict[str, Position] | None = None,
    ) -> Work | None:
        """Subscribe a session, whose claim is held if it needs one, and send `connected`.

        Returns what remains to be awaited: the newest messages that it asked for.

        Args:
            session: it.
            options: what it asked for.
            positions: where each type goes on, for one that recovers; nothing is held then.
        """
        chosen = self.chosen_by(session, options)
        session.group = self._fanout.group(session.codec, chosen.set, options.batch)
        if positions is None:
            session.track = session.track or self._fanout.positions
            self.hold(session)
        else:
            session.phase = FLOWING
            session.track = positions
        opened = session.hub.opened
        opened[session.protocol] = opened.get(session.protocol, 0) + 1
        session.send_event("connected", self._connected(session, chosen))
        if session.extra is not None:
            self._expiry.watch(session)
        if options.history is None or positions is not None:
            return None
        return self._pages.send_past(session, options.history)

    def chosen_by(self, session: Session, options: ConnectOptions) -> Chosen:
        """What a client is subscribed to at first."""
        types: Collection[str]
        if options.types is not None:
            types = frozenset(options.types)
        else:
            extra = session.extra
            if extra is None or extra.allowed is None:
                return self._default
            types = tuple(type for type in self._default.types if type in extra.allowed)
        chosen = self._kept.get(types)
        if chosen is None:
            if len(self._kept) >= MAX_LISTS:
                self._kept.clear()
            ordered = types if isinstance(types, tuple) else sorted(types)
            chosen = self._kept[types] = _chosen(ordered)
        return chosen

    def hold(self, session: Session) -> None:
        """Let nothing flow before the client's first frame, or a second."""
        session.phase = HELD
        self._held.append((self._loop.time() + HOLD_SECONDS, session))
        if not self._release_planned:
            self._release_planned = True
            self._loop.call_later(HOLD_SECONDS, self._release_held)

    def _release_held(self) -> None:
        now = self._loop.time()
        held = self._held
        while held and (held[0][0] <= now or held[0][1].phase != HELD):
            session = held.popleft()[1]
            if session.phase == HELD and session.state == OPEN and not self._is_busy(session):
                try:
                    session.release()
                except Exception:
                    logger.exception("A session cannot go on", extra={"connection": session.id})
                    session.drop("internal error")
        self._release_planned = bool(held)
        if held:
            self._loop.call_later(max(0.01, held[0][0] - now), self._release_held)

    @staticmethod
    def _is_busy(session: Session) -> bool:
        """Its first frame is being handled, which releases it in the end."""
        return session.extra is not None and session.extra.task is not None

    def _connected(self, session: Session, chosen: Chosen) -> bytes:
        allowed = session.types
        limits = self._limits.get(allowed)
        if limits is None:
            limits = self._make_limits(allowed)
        now = int(time.time() * 1000)
        return (
            b'{"id":"%b","type":"system","timestamp":%d,"direction":"server-to-client",'
            b'"event":"connected","data":{"connectionId":"%b","resume":"%b","user":%b,'
            b'"serverTime":%d,"subscriptions":%b,%b}'
        ) % (
            envelope.new_id().encode(),
            now,
            session.id.encode(),
            self._tokens.resume(session.id, session.user).encode(),
            b"null" if session.user is None else envelope.encode_json(session.user),
            now,
            chosen.listed,
            limits,
        )

    def _make_limits(self, allowed: Collection[str]) -> bytes:
        settings = self._settings
        fields = {
            "supportedTypes": [name for name in settings.message_types if name in allowed],
            "heartbeatInterval": round(settings.heartbeat_interval * 1000),
            "heartbeatTimeout": round(settings.heartbeat_timeout * 1000),
            "recoveryWindow": round(settings.recovery_window * 1000),
            "maxReconnectAttempts": MAX_RECONNECT_ATTEMPTS,
            "maxMessageSize": settings.max_message_size,
        }
        if len(self._limits) >= MAX_LIMITS:
            self._limits.clear()
        limits = self._limits[allowed] = envelope.encode_json(fields)[1:]
        return limits
