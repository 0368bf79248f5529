"""What the HTTP side needs of the rest of a worker."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from app.config import Settings
from app.errors import ClientError, ErrorCode, QueueOverflow
from app.http.audit import Audit
from app.http.bodies import ReceivedBodies
from app.http.budgets import Budgets
from app.http.clients import Clients
from app.http.cors import Hosts, Origins
from app.http.errors import HttpError
from app.http.writers import Writers
from app.ports import Slots
from app.presence import Presence
from app.sessions.auth import TokenVerifier
from app.sessions.roster import Roster
from app.turns import SLICE, Slice
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


async def _no_series(_: str) -> bytes:
    raise HttpError(404, ErrorCode.NOT_FOUND, "This service keeps no series.")


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
    clients: Clients
    origins: Origins
    backplane_available: Callable[[], bool]
    """Whether the backplane has answered within the last few seconds."""
    warnings: Callable[[], Sequence[str]]
    """What an operator should know, such as a backplane that can lose messages."""
    count_request: Callable[[str, str, int], None]
    """Counts an answer by route, method and status."""
    received: ReceivedBodies
    """Counts what is held of the bodies of requests."""
    started_at: float
    """Unix time in seconds at which the service started."""
    version: str
    series: Callable[[str], Awaitable[bytes]] = _no_series
    """Samples of all machines in a range, as JSON; app/backplane/series.py."""
    roster: Roster | None = None
    """Knows the connections of all workers; None: such calls are answered with 404."""
    machine_status: Callable[[], Mapping[str, object]] = dict
    """The newest figures of this machine, as in `status_update`; empty where none are collected."""
    audit: Audit = field(default_factory=lambda: Audit(0))
    """Logs calls that write."""
    hosts: Hosts | None = None
    """Which names are served; None: all."""
    note_refused: Callable[[str, str | None], object] | None = None
    """Counts and logs a refusal by reason and origin."""
    budgets: Budgets | None = None
    """What each address may ask for; None: no limit."""
    now: Callable[[], float] = time.time
    """Unix time in seconds."""
    silent_for: Callable[[WorkerRow], float] = lambda _: 0.0
    """Seconds since a worker of this machine said something of itself."""
    backplane_fault: Callable[[], str | None] = lambda: None
    """What is wrong with the backplane as this worker sees it; None: nothing."""
    backplane_replica: Callable[[], dict[str, object] | None] = lambda: None
    """What `GET /status` says of the replica of this machine; None: it has none."""
    backplane_writable: Callable[[], bool] = lambda: True
    """Whether this worker can publish."""
    accepting: Callable[[], bool] = lambda: False
    """Whether this worker accepts new clients; it may still do so after TERM."""
    expected_workers: Callable[[], int] = lambda: 0
    """Workers that should be ready; 0: any number will do."""
    since_death: Callable[[], float] = lambda: math.inf
    """Seconds since a worker of this machine exited unexpectedly."""
    room: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    """Waits for the memory of an answer with history, which is then made within."""
    local_faults: Callable[[], Sequence[str]] = tuple
    """What is wrong on this machine beside, such as a shared file that is gone."""
    slice: Slice = lambda: SLICE
    """Seconds that handlers may have of each pass of the loop, those of publishers excepted."""
