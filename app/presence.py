"""What the team's lab is doing: `{state, task, updatedAt}`, kept in the backplane for all workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from app.backplane.client import PRESENCE_SILENCE
from app.errors import ClientError, ErrorCode
from app.protocol.schema.limits import MAX_TASK_LENGTH, PRESENCE_STATES, PresenceName
from app.shared_calls import SharedCalls

logger = logging.getLogger(__name__)

SILENCE = PRESENCE_SILENCE
"""Seconds without an update after which the state is `offline`."""

RETRY = 1.0
"""Seconds after a read that failed until the backplane is asked again."""

_LATEST = 2**53
"""Milliseconds; clients count in doubles."""

_READ = "presence"
PATIENCE = 0.5
"""Seconds that a reader waits for the backplane before it gets the last known state."""


@dataclass(frozen=True, slots=True)
class PresenceState:
    """The state that was last set."""

    state: PresenceName
    task: str | None
    updated_at: int | None
    """Unix time in milliseconds; None: no state has been set yet."""

    since: int | None = field(default=None, compare=False)
    """Unix time in milliseconds from which on state and task have been these."""

    def to_json(self) -> dict[str, object]:
        """The state as it stands in HTTP answers and messages."""
        return {"state": self.state, "task": self.task, "updatedAt": self.updated_at}

    def at(self, now: float) -> PresenceState:
        """The state as it is to be shown at Unix time `now`, in seconds."""
        if self.updated_at is not None and now - self.updated_at / 1000 <= SILENCE:
            return self
        silent = self.updated_at
        since = None if silent is None else silent + round(SILENCE * 1000)
        return PresenceState("offline", None, silent, since)


class Presence:
    """Reads and writes the presence state.

    Reads that wait at the same time share one answer, so that a crowd of readers costs the
    backplane one question for each of its answers. No answer is kept for later readers: what was
    set in one worker is shown by every other one from then on.

    Args:
        get: reads the fields that `set` has stored last; empty before that.
        set: stores fields. Where state and task stay as they are it keeps the `since` that is
            stored: another worker may have set it.
        now: Unix time in seconds.
        monotonic: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        get: Callable[[], Awaitable[Mapping[str, str]]],
        set: Callable[[Mapping[str, str]], Awaitable[None]],
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._get = get
        self._set = set
        self._now = now
        self._monotonic = monotonic
        self._known = PresenceState("offline", None, None)
        """The last that was read or set."""
        self._confirmed = False
        """The last read of it succeeded."""
        self._failed = float("-inf")
        """When a read last failed (monotonic seconds)."""
        self._reads = SharedCalls()
        self._updates = 0
        """Updates of this worker: what a read brings may be older than one that came meanwhile."""

    async def update(self, state: object, task: object = None) -> PresenceState:
        """Say what the lab is doing.

        Raises:
            ClientError: INVALID_PAYLOAD, or BACKPLANE_UNAVAILABLE.
        """
        checked = _check_state(state), _check_task(task)
        old = self._known.at(self._now())
        now = round(self._now() * 1000)
        new = PresenceState(*checked, now, now)
        if (old.state, old.task) == (new.state, new.task) and old.since is not None:
            new = replace(new, since=old.since)
        await self._set(_to_fields(new))
        self._updates += 1
        self._learn(new)
        return new

    async def read(self) -> tuple[PresenceState, bool]:
        """The state, and whether the backplane has confirmed it during this call.

        Waits for `PATIENCE` at most; while the backplane is unavailable it is the last known state.
        """
        confirmed = False
        if self._monotonic() - self._failed >= RETRY:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._refresh()
                    confirmed = self._confirmed
        return self._known.at(self._now()), confirmed

    async def _refresh(self) -> None:
        """Wait for the answer to a question that is asked after this call began."""
        await self._reads.settle(_READ)
        await self._reads.share(_READ, self._ask)

    async def _ask(self) -> None:
        updates = self._updates
        try:
            stored = await self._get()
            if updates == self._updates:  # else what was read may be older than the update
                self._learn(_from_fields(stored))
        except ClientError as error:
            if self._confirmed:
                logger.warning("Cannot read the presence state: %s", error)
            self._confirmed = False
            self._failed = self._monotonic()

    def _learn(self, state: PresenceState) -> None:
        self._known = state
        self._confirmed = True
        self._failed = float("-inf")


def _check_state(state: object) -> PresenceName:
    for known in PRESENCE_STATES:
        if state == known:
            return known
    message = f"'state' must be one of {', '.join(PRESENCE_STATES)}."
    raise ClientError(ErrorCode.INVALID_PAYLOAD, message)


def _check_task(task: object) -> str | None:
    if not task and (task is None or isinstance(task, str)):
        return None
    if not isinstance(task, str) or len(task) > MAX_TASK_LENGTH or not _is_text(task):
        message = f"'task' must be a string of at most {MAX_TASK_LENGTH} characters, or null."
        raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    return task


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can express
        return False
    return True


def _to_fields(state: PresenceState) -> dict[str, str]:
    return {
        "state": state.state,
        "task": state.task or "",
        "updatedAt": str(state.updated_at),
        "since": str(state.since),
    }


def _from_fields(fields: Mapping[str, str]) -> PresenceState:
    """Read what any version of the service may have stored."""
    try:
        return PresenceState(
            _check_state(fields["state"]),
            _check_task(fields.get("task")),
            _time(fields["updatedAt"]),
            _time(fields.get("since") or fields["updatedAt"]),
        )
    except (ClientError, KeyError, ValueError):
        return PresenceState("offline", None, None)


def _time(text: str) -> int:
    milliseconds = int(text)
    if not 0 <= milliseconds < _LATEST:
        raise ValueError("not a time")
    return milliseconds
