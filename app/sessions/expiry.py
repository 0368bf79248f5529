"""The end of users' tokens: a warning, then the end of the connection.

Between the two a client has the time that is promised, also where the machine's clock is set meanwhile.
"""

from __future__ import annotations

import asyncio
import time

from app.errors import ClientError, CloseCode, ErrorCode
from app.protocol import envelope
from app.sessions.session import Session

AUTH_SECONDS = 10.0
"""How long a client may take to show its token."""
EXPIRY_WARNING = 60.0
"""Seconds before the expiry of a token at which its client gets `token_expiring`."""
_STEP = 5.0
"""Seconds by which a warning may be early before it counts as one for which the clock was set back."""


class Expiry:
    """Sets the timers of sessions whose tokens end; each is in the session's rare part."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def watch(self, session: Session, *, handed_over: bool = False) -> None:
        """Warn and close a session, from when it is welcome, when its token ends.

        One that was handed over in the last minute of its token has been warned already.
        """
        extra = session.extra
        if extra is None:
            return
        if extra.expiry is not None:
            extra.expiry.cancel()
            extra.expiry = None
        if extra.expires_at is not None and session.welcomed:
            left = extra.expires_at - time.time()
            if handed_over and left <= EXPIRY_WARNING:
                extra.expiry = self._loop.call_later(max(0.0, left), self._expire, session)
            else:
                extra.expiry = self._loop.call_later(
                    max(0.0, left - EXPIRY_WARNING),
                    self._warn,
                    session,
                    extra.expires_at,
                    min(max(0.0, left), EXPIRY_WARNING),
                )

    def await_token(self, session: Session) -> None:
        """Give a session `AUTH_SECONDS` to authenticate."""
        session.need_extra().expiry = self._loop.call_later(AUTH_SECONDS, self._expire, session)

    def _warn(self, session: Session, expires_at: float, promised: float) -> None:
        left = expires_at - time.time()
        if left > EXPIRY_WARNING + _STEP:
            self.watch(session)
            return
        data = {"expiresAt": round(expires_at * 1000)}
        session.send_event("token_expiring", envelope.envelope("system", "token_expiring", data))
        session.need_extra().expiry = self._loop.call_later(
            max(promised, left), self._expire, session
        )

    def _expire(self, session: Session) -> None:
        session.send_error(
            ClientError(
                ErrorCode.UNAUTHORIZED, "A valid token is required; reconnect with a new one."
            )
        )
        session.end(CloseCode.UNAUTHORIZED, "no valid token")
