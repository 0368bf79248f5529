"""What the HTTP side needs of the rest of a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from app.config import Settings
from app.errors import ClientError, QueueOverflow
from app.http.audit import Audit
from app.http.bodies import ReceivedBodies
from app.http.budgets import Budgets
from app.http.clients import Clients
from app.http.cors import Hosts, Origins
from app.http.writers import Writers
from app.ports import Slots
from app.presence import Presence
from app.sessions.auth import TokenVerifier
from app.sessions.roster import Roster
from app.turns import Slice
from app.types import Draft, Message, Position, WorkerRow


class Queued(Protocol):
    """A message that was taken; app/broadcast/queue.py."""

    draft: Draft
    outcome: Position | ClientError | None
    """Where it stands, or why it is not stored; None: not known yet."""


class Publisher(Protocol):
    """Where messages go in; app/broadcast/queue.py."""

    def submit(self, draft: Draft) -> asyncio.Future[Position]:
        """Queue a message; see `BroadcastQueue.submit`."""

    def submit_all(
        self, drafts: Sequence[Draft], settled: Callable[[Queued], object]
    ) -> Sequence[Queued | QueueOverflow]:
        """Queue the messages of one call; see `BroadcastQueue.submit_all`."""


class MessageSource(Protocol):
    """Where messages come from; app/backplane/history.py."""

    async def newest(self, type: str, limit: int, before: int | None) -> tuple[list[Message], bool]:
        """The newest messages before a `seq`, newest last, and whether there are older ones."""

    async def latest(self, type: str) -> Message | None:
        """The newest message of a type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpContext:
    """The parts that routes use."""

    settings: Settings
    slots: Slots
    publisher: Publisher
    history: MessageSource
    presence: Presence
    verifier: TokenVerifier
    writers: Writers
    audit: Audit
    """Logs calls that write."""
    clients: Clients
    origins: Origins
    hosts: Hosts
    """Which names are served."""
    budgets: Budgets
    """What each address may ask for."""
    roster: Roster
    """Knows the connections of all workers."""
    received: ReceivedBodies
    """Counts what is held of the bodies of requests."""
    room: Callable[[], AbstractAsyncContextManager[None]]
    """Waits for the memory of an answer with history, which is then made within."""
    slice: Slice
    """Seconds that handlers may have of each pass of the loop, those of publishers excepted."""
    count_request: Callable[[str, str, int], None]
    """Counts an answer by route, method and status."""
    note_refused: Callable[[str, str | None], object]
    """Counts and logs a refusal by reason and origin."""
    series: Callable[[str], Awaitable[bytes]]
    """Samples of all machines in a range, as JSON; app/backplane/series.py."""
    machine_status: Callable[[], Mapping[str, object]]
    """The newest figures of this machine, as in `status_update`; empty where none are collected."""
    started_at: float
    """Unix time in seconds at which the service started."""
    version: str

    # What `GET /status` is made of.
    accepting: Callable[[], bool]
    """Whether this worker accepts new clients; it may still do so after TERM."""
    silent_for: Callable[[WorkerRow], float]
    """Seconds since a worker of this machine said something of itself."""
    backplane_available: Callable[[], bool]
    """Whether the backplane has answered within the last few seconds."""
    backplane_writable: Callable[[], bool]
    """Whether this worker can publish."""
    backplane_fault: Callable[[], str | None]
    """What is wrong with the backplane as this worker sees it; None: nothing."""
    backplane_replica: Callable[[], dict[str, object] | None]
    """What is said of the replica of this machine; None: it has none."""
    warnings: Callable[[], Sequence[str]]
    """What an operator should know, such as a backplane that can lose messages."""
    local_faults: Callable[[], Sequence[str]]
    """What is wrong on this machine beside, such as a shared file that is gone."""
    now: Callable[[], float] = time.time
    """Unix time in seconds."""
