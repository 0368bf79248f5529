"""The users that are subscribed to a type, for clients that may list them.

Pages come from the list that all workers share (app/backplane/attendance.py). One read is under way at a
time, equal ones share it, and its answer is given again for a second: so what this costs the backplane
does not grow with the clients that ask.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping

from app.errors import ClientError, ErrorCode
from app.sessions.session import Session
from app.shared_calls import SharedCalls

FRESH = 1.0
"""Seconds for which an answer is given again."""
MOST_KEPT = 64
"""Answers that are kept so, of some 5 KB each."""

NamesPage = tuple[int, Mapping[str, int]]
"""How many users there are, and the connections of those on the page."""
Question = tuple[str, str, int]
"""Type, the user before the page, users of the page."""


class Names:
    """Reads pages for the sessions of one worker.

    Args:
        types: whose users may be listed.
        needs_claim: only clients whose token has the claim `presence` may.
        read: one page; raises `BackplaneUnavailable`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        types: frozenset[str],
        *,
        needs_claim: bool,
        read: Callable[[str, str, int], Awaitable[NamesPage]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._types = types
        self._needs_claim = needs_claim
        self._read = read
        self._clock = clock
        self._kept: dict[Question, tuple[float, NamesPage]] = {}
        self._reads = SharedCalls()
        self._place = asyncio.Lock()

    def check(self, session: Session, type: str) -> None:
        """Make sure that a client may list the users of a type.

        Raises:
            ClientError: FORBIDDEN.
        """
        if type not in self._types:
            raise ClientError(
                ErrorCode.FORBIDDEN,
                f"The users of {type!r} are not listed: PRESENCE_NAMES does not name it.",
            )
        extra = session.extra
        listed = frozenset[str]() if extra is None else extra.listed
        if self._needs_claim and listed is not None and type not in listed:
            raise ClientError(
                ErrorCode.FORBIDDEN,
                f"The token's 'presence' claim does not allow listing the users of {type!r}.",
            )

    async def page(self, type: str, after: str, limit: int) -> NamesPage:
        """One page, at most a second older than the list.

        Raises:
            BackplaneUnavailable: it cannot be read.
        """
        question = type, after, limit
        kept = self._kept.get(question)
        if kept is not None and self._clock() - kept[0] < FRESH:
            return kept[1]
        return await self._reads.share(question, functools.partial(self._ask, question))

    async def _ask(self, question: Question) -> NamesPage:
        async with self._place:
            page = await self._read(*question)
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[question] = self._clock(), page
        return page
