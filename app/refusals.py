"""What the log says of refusals: one line a minute for each reason and origin, with the setting.

That is one line of all workers of the machine. A worker whose line another one has written asks again a
few seconds later, and what it has not logged meanwhile is in the next line of whichever worker writes it.

A flood of refused clients costs a look into a small table each, and a line names the setting that
an operator would change, or says what the client must change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("realtime.refused")

INTERVAL = 60.0
"""Seconds between two lines about the same reason and origin."""
PAUSE = 5.0
"""Seconds after which a worker asks again whether it may write a line."""
MAX_KEYS = 50
"""Pairs of reason and origin that are remembered, and so lines of a worker in a minute; past it only the
reason counts: a client can write any origin."""
MAX_ORIGIN = 200
"""Characters of an origin that a line shows."""

HINTS = {
    "accept": "The kernel cannot accept connections: descriptors or memory are short",
    "address": "An address has reached MAX_CONNECTIONS_PER_ADDRESS",
    "address_rate": "An address has reached MAX_CONNECTS_PER_ADDRESS",
    "backplane": "The place of a user cannot be claimed: the backplane does not answer (BACKPLANE_URL)",
    "cap": "The machine has reached MAX_TOTAL_CONNECTIONS",
    "connect": "A client sent no Socket.IO CONNECT in time",
    "descriptors": "File descriptors are short: raise the limit of open files (ulimit -n)",
    "flood": "A connection exceeded RATE_LIMIT, RATE_LIMIT_BYTES or RATE_LIMIT_TIME",
    "handshake": "Not a WebSocket handshake: a proxy must forward the headers Connection and Upgrade",
    "handler": "A connect handler of the application refuses a client",
    "head": "The head of an HTTP request is too large",
    "host": "This Host is not allowed: see ALLOWED_HOSTS and TRUSTED_PROXIES",
    "http_rate": "An address exceeded HTTP_RATE_LIMIT or HTTP_RATE_TIME",
    "idle": "Many HTTP connections are kept between two requests: the longest idle one is closed",
    "keys": "The keys of tokens cannot be fetched (AUTH_JWKS_URL)",
    "malformed": "A request that is not valid",
    "memory": "Memory is low: raise the memory limit of the service",
    "not_ready": "The worker accepts no connections now",
    "origin": "This origin is not allowed: see ALLOWED_ORIGINS",
    "query": "The query of a handshake, or a Socket.IO CONNECT packet, is invalid",
    "silent": "A client sent no complete HTTP request in time",
    "stream": "A client cannot read server-sent events: it needs HTTP/1.1 and Accept: text/event-stream",
    "token": "A token is not valid (AUTH_SECRET, AUTH_JWKS_FILE, AUTH_JWKS_URL)",
    "transport": "A client requests long polling or an old protocol: set transports: ['websocket'] in its options",
    "types": "A client asks for types that are not served or not allowed (MESSAGE_TYPES)",
    "unread": "A client does not read the answer to its HTTP request",
    "user": "A user name is invalid, or the user has reached MAX_CONNECTIONS_PER_USER",
}
"""What the log says, by reason."""

_FOR_OPERATORS = {"accept", "backplane", "cap", "descriptors", "host", "keys", "memory", "origin"}
"""Reasons that a setting or the machine can change: warnings. The others are clients' faults."""


class Refusals:
    """Counts refusals and logs them.

    Args:
        count: called with the reason of each.
        begin_line: claims the one line of a kind within a time: see `Slots.begin_line`; None: this
            worker is the only one.
        now: monotonic seconds.
    """

    def __init__(
        self,
        count: Callable[[str], object],
        begin_line: Callable[[str, float, int], int | None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count
        self._begin_line = begin_line
        self._now = now
        self._next: dict[str, float] = {}
        """When the next line of each kind may be written, as far as this worker knows."""
        self._unlogged: dict[str, int] = {}
        self._forget_next = float("-inf")

    def note(self, reason: str, origin: str | None = None, detail: str = "") -> None:
        """Count a refusal and log it."""
        self._count(reason)
        self.log(reason, origin, detail)

    def log(self, reason: str, origin: str | None = None, detail: str = "") -> None:
        """Log a refusal if no such line was written within `INTERVAL`.

        Args:
            reason: one of `HINTS`.
            origin: the request's Origin header.
            detail: the answer to the client; nothing secret.
        """
        key = f"{reason} {origin[:MAX_ORIGIN]}" if origin else reason
        now = self._now()
        if key not in self._next and len(self._next) >= MAX_KEYS:
            self._forget_old(now)
            if len(self._next) >= MAX_KEYS:  # too many origins to tell them apart
                key, origin = reason, None
        if now < self._next.get(key, now):
            self._unlogged[key] = self._unlogged.get(key, 0) + 1
            return
        unlogged: int | None = self._unlogged.pop(key, 0)
        if self._begin_line is not None:
            unlogged = self._begin_line(key, INTERVAL, unlogged or 0)
        if unlogged is None:
            self._next[key] = now + PAUSE
            return
        self._next[key] = now + INTERVAL
        self._log(reason, origin, detail, unlogged)

    def _forget_old(self, now: float) -> None:
        if now < self._forget_next:
            return
        self._forget_next = now + PAUSE
        self._next = {key: at for key, at in self._next.items() if now < at}
        self._unlogged = {key: n for key, n in self._unlogged.items() if key in self._next}

    def _log(self, reason: str, origin: str | None, detail: str, unlogged: int) -> None:
        level = logging.WARNING if reason in _FOR_OPERATORS else logging.INFO
        fields: dict[str, object] = {"reason": reason}
        if origin:
            fields["origin"] = origin[:MAX_ORIGIN]
        if detail:
            fields["detail"] = detail
        if unlogged:
            fields["unlogged"] = unlogged
        logger.log(level, "Refused: %s", HINTS.get(reason, reason), extra=fields)
