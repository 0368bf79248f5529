"""What the end of a connection means, and when to come back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from yujian_realtime.messages import Cause

LONGEST_HINT = 60.0
"""Seconds; no pause that the service asks for is taken to be longer."""

_CAUSES: dict[int, tuple[Cause, bool]] = {
    1001: ("restart", True),
    1002: ("protocol", True),
    1007: ("protocol", True),
    1008: ("user-limit", False),
    1009: ("protocol", True),
    1012: ("restart", True),
    1013: ("full", True),
    4401: ("token", False),
    4403: ("operator", False),
    4408: ("silent", True),
    4409: ("replaced", False),
    4413: ("slow", True),
    4429: ("flood", True),
}
"""By close code: why, and whether to come back without being asked to."""

_STATUSES: dict[int, tuple[Cause, bool]] = {
    400: ("protocol", False),
    401: ("token", False),
    403: ("origin", False),
    404: ("network", False),
    426: ("protocol", False),
    429: ("full", True),
    503: ("full", True),
}
"""The same by the HTTP status of a refused handshake."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended, or why there was none."""

    code: int = 1006
    """Close code."""
    reason: str = ""
    """Of the close frame."""
    status: int = 0
    """HTTP status of a refused handshake."""
    retry_after: str = ""
    """Header of that answer."""
    error: str = ""
    """Code of the last `error` of the service."""
    message: str = ""
    """What is known about the cause, for people."""

    @property
    def meaning(self) -> tuple[Cause, bool]:
        """Why it ended, and whether to come back without being asked to."""
        if self.status:
            return _STATUSES.get(self.status, ("network", True))
        cause, back = _CAUSES.get(self.code, ("network", True))
        if self.code == 1013 and self.error == "SERVICE_UNAVAILABLE":
            cause = "restart"
        if self.code == 1008 and self.error not in {"", "MAX_CONNECTIONS_EXCEEDED"}:
            cause = "protocol"
        return cause, back

    @property
    def hint(self) -> float | None:
        """Seconds after which the service asks the client to come back."""
        if self.status:
            try:
                return _limited(float(self.retry_after))
            except ValueError:
                return None
        try:
            delay = json.loads(self.reason)["retryAfter"]
            return None if isinstance(delay, bool) else _limited(float(delay) / 1000)
        except (ValueError, KeyError, TypeError):
            return None


def _limited(seconds: float) -> float | None:
    if not math.isfinite(seconds) or seconds < 0:
        return None
    return min(seconds, LONGEST_HINT)


class Backoff:
    """Pauses before reconnects: each twice the last, at random, never in step with other clients.

    Args:
        least: seconds of the first pause, about.
        most: seconds that none exceeds by more than a half.
        random: a number from 0 to 1.
    """

    def __init__(self, least: float, most: float, random: Callable[[], float]) -> None:
        self._least = least
        self._most = most
        self._random = random
        self._failures = 0

    def succeeded(self) -> None:
        """The next pause is short again."""
        self._failures = 0

    def pause(self, ending: Ending) -> float:
        """Seconds to wait after this ending."""
        grown: float = min(self._most, self._least * 2 ** min(self._failures, 16))
        self._failures += 1
        hint = ending.hint
        if hint is not None:
            return hint
        if ending.meaning[0] == "flood":
            grown = self._most
        return grown * (0.5 + self._random())
