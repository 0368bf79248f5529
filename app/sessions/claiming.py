"""The places of a user: a connection claims one, waits for one, or takes one over.

The counts are in the slot table, or in the backplane where machines share users.
"""

from __future__ import annotations

import asyncio

from app.backoff import Backoff
from app.backplane.claims import LEASE, UserClaims
from app.errors import LOW_ON_MEMORY, ClientError, ErrorCode, NoRoomNow
from app.ports import Slots
from app.refusals import Refusals
from app.sessions.probing import Prober
from app.sessions.registry import Registry
from app.sessions.resume_tokens import ResumeTokens
from app.sessions.retry import draw_delay
from app.sessions.session import Session, Work
from app.transport.connection import MOVING, OPEN

REPLACE_SECONDS = 2.0
"""How long a connection waits for the one that it replaces to go away on another worker."""
REPLACE_SHARED_SECONDS = LEASE + REPLACE_SECONDS
"""The same where machines share users: the other one's machine may be dead, and its lease not."""
FULL_SECONDS = 5.0
"""How long a user whose holders have all answered is refused without asking them again."""
MAX_FULL = 10_000
"""Such users that are remembered."""
FIRST_CLAIM_PAUSE, LONGEST_CLAIM_PAUSE = 0.05, 0.25
"""Seconds between two tries meanwhile: twice the last, within these."""


class Claiming:
    """Claims places for sessions.

    Args:
        most: places of each user.
        slots: counts that the workers of this machine share.
        claims: counts that all machines share, if there are several.
        registry: the sessions of this worker.
        tokens: tell which connection a new one takes the place of.
        refusals: counts users without a place.
        prober: asks all workers whether the holders of places still answer.
    """

    def __init__(
        self,
        *,
        most: int,
        slots: Slots,
        claims: UserClaims | None,
        registry: Registry,
        tokens: ResumeTokens,
        refusals: Refusals,
        prober: Prober,
    ) -> None:
        self._most = most
        self._slots = slots
        self._claims = claims
        self._registry = registry
        self._tokens = tokens
        self._refusals = refusals
        self._prober = prober
        self._full: dict[str, float] = {}
        """Users at their cap, all of whose connections answer, and until when that is believed."""
        self._loop = asyncio.get_running_loop()

    # Claiming.

    def claim(
        self, session: Session, resume: str | None = None, patience: float = 0.0
    ) -> Work | None:
        """Claim a place for the session's user, if it has one.

        Args:
            session: connected and, if the service takes tokens, authenticated; one that has ended
                claims nothing.
            resume: token of a connection that this one takes the place of, if that is silent.
            patience: seconds for which a place may take to become free.

        Returns:
            What remains to be awaited, if it cannot be done at once.

        Raises:
            ClientError: MAX_CONNECTIONS_EXCEEDED; the same from what is returned, and
                BACKPLANE_UNAVAILABLE or SERVICE_UNAVAILABLE.
        """
        if session.state != OPEN:
            # It ended before its turn came: what it claims now would never be given back.
            return None
        replacing = self.replace_owner(session, resume) if resume else None
        user = session.user
        if replacing is not None:
            return self._claim_slowly(session, replacing, patience)
        if user is None:
            return None
        if self._claims is None:
            try:
                has_place = self._slots.claim_user(user)
            except OSError:
                has_place = False  # what is awaited then says what is wrong
            if has_place:
                session.claimed = True
                return None
            if self._is_surely_full(user):
                raise self._too_many(user, self._most)
        return self._claim_slowly(session, None, patience)

    async def _claim_slowly(
        self, session: Session, replacing: asyncio.Task[bool] | None, patience: float
    ) -> None:
        if replacing is not None and not await asyncio.shield(replacing):
            patience = self.replace_patience
        until = self._loop.time() + patience
        user = session.user
        if user is None:
            return
        probe: asyncio.Task[int] | None = None
        pauses = Backoff(FIRST_CLAIM_PAUSE, LONGEST_CLAIM_PAUSE)
        while not await self._claim(user):
            if session.state != OPEN:
                return
            if self._loop.time() >= until:
                if self._is_surely_full(user):
                    raise self._too_many(user, self._most)
                if probe is not None and probe.done():
                    raise self._too_many(user, probe.result())
            if probe is None:
                probe = self._loop.create_task(self._prober.count_answering(user))
            await asyncio.sleep(pauses.take())
        if session.state == OPEN:
            session.claimed = True
        else:
            self._release(user)

    async def _claim(self, user: str) -> bool:
        if self._claims is not None:
            return await self._claims.claim(user)
        try:
            return self._slots.claim_user(user)
        except OSError:  # the table of users is full, and /dev/shm too
            self._refusals.note("memory")
            raise ClientError(ErrorCode.SERVICE_UNAVAILABLE, LOW_ON_MEMORY) from None

    def _is_surely_full(self, user: str) -> bool:
        """Whether all holders of a user's places have answered a ping a moment ago."""
        until = self._full.get(user)
        return until is not None and self._loop.time() < until

    def _too_many(self, user: str, answering: int) -> ClientError:
        """What to tell a client whose user has no place left.

        Args:
            user: at the cap.
            answering: how many connections of it have answered a ping.
        """
        most = self._most
        self._refusals.note("user")
        if answering < most:
            return NoRoomNow(
                f"This user has reached the limit of {most} connections, some of which do not answer;"
                " reconnect later.",
                draw_delay(),
            )
        if len(self._full) >= MAX_FULL:
            self._full.clear()
        self._full[user] = self._loop.time() + FULL_SECONDS
        return ClientError(
            ErrorCode.MAX_CONNECTIONS_EXCEEDED,
            f"A user may have {most} connections; close another one first.",
        )

    # Taking the place of an older connection.

    @property
    def replace_patience(self) -> float:
        """Seconds for which a connection waits for the place of the one that it replaces."""
        return REPLACE_SECONDS if self._claims is None else REPLACE_SHARED_SECONDS

    def replace_owner(self, session: Session, token: str) -> asyncio.Task[bool] | None:
        """Close the connection that a `resume` or `pid` is of, unless it answers a ping.

        Returns what tells whether it does; None when the token is not one of ours, or another
        user's.
        """
        owner = self._tokens.read_owner(token, session.user)
        if owner is None or owner == session.id:
            return None
        task = self._loop.create_task(self._replace_unless_alive(owner))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _replace_unless_alive(self, id: str) -> bool:
        old = self._registry.by_id.get(id)
        if old is None or old.state == MOVING:
            return await self._prober.replace_one(id)
        if await old.answers_ping():
            return True
        old.end_replaced()
        return False

    # Giving back, and handing over.

    def release(self, session: Session) -> None:
        """Give the claim of a session back, if it holds one."""
        if session.claimed:
            session.claimed = False
            assert session.user is not None
            self._release(session.user)

    def _release(self, user: str) -> None:
        if self._claims is not None:
            self._claims.release(user)
        else:
            self._slots.release_user(user)

    def give(self, session: Session) -> None:
        """The claim of a session is another worker's now."""
        if session.claimed and self._claims is not None:
            assert session.user is not None
            self._claims.hand_over(session.user)

    def adopt(self, session: Session) -> None:
        """The claim of a session of another worker is this one's now."""
        if session.claimed and self._claims is not None:
            assert session.user is not None
            self._claims.adopt(session.user)
