"""Whether the service is well, and what is wrong if it is not: the judgement of `GET /status`.

Every worker judges by the same rows of the slot table, in which each says what it sees; of the
backplane the worker that answers adds what it sees itself, which is newer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.http.context import HttpContext
from app.types import WorkerRow

SILENCE = 10.0
"""Seconds without figures (they come every `REST` seconds at least) after which a worker counts as stopped."""
START_GRACE = 15.0
"""Seconds for which a worker that starts counts as serving, unless it replaces one that died: a
reload that goes well leaves no other trace."""
DEATH_MEMORY = 30.0
"""Seconds for which a death is remembered for that."""


@dataclass(frozen=True, slots=True)
class Health:
    """The judgement."""

    causes: list[str]
    """What is wrong, each `<what>: <how>`; empty when all is well."""
    serving: bool
    """Whether any worker can serve clients."""
    backplane: dict[str, object]
    """`status`, `cause` and `writable`, as they stand in the answer."""

    @property
    def kinds(self) -> list[str]:
        """What is wrong without how: nothing of the inside of the service."""
        return list(dict.fromkeys(cause.partition(":")[0] for cause in self.causes))

    @classmethod
    def of(cls, rows: Sequence[WorkerRow], context: HttpContext) -> Health:
        """Judge."""
        ready = [row for row in rows if row.state == "ready"]
        deaf = sum(row.stats.get("deaf") is True for row in ready)
        # Before new workers are ready those that leave serve as before: no proxy may turn away.
        serving = deaf < len(ready) or (not ready and context.accepting())
        backplane = _backplane(rows, context)
        causes = _workers(rows, context)
        if deaf:
            causes.append(f"deaf: {deaf} of {len(ready)} workers receive no messages")
        if backplane["cause"] is not None:
            causes.append(f"backplane: {backplane['cause']}")
        causes += context.local_faults()
        return cls(causes, serving, backplane)


def _workers(rows: Sequence[WorkerRow], context: HttpContext) -> list[str]:
    """What is wrong with the number of workers."""
    now = context.now()
    silences = [
        (row, context.silent_for(row)) for row in rows if row.state != "starting" and row.updated
    ]
    silent = [(row.pid, seconds) for row, seconds in silences if seconds > SILENCE]
    # One that leaves serves until others have taken its connections over.
    serving = sum(row.state != "starting" for row in rows) - len(silent)
    expected = context.settings.workers
    missing = expected - serving
    if missing <= 0 and not silent:
        return []
    if not silent and context.slots.since_death() > DEATH_MEMORY:
        young = sum(row.state == "starting" and now - row.started < START_GRACE for row in rows)
        if young >= missing:
            return []
    causes = [f"workers: {pid} has been silent for {seconds:.0f} s" for pid, seconds in silent]
    if missing > 0:
        causes.insert(0, f"workers: {serving} of {expected}")
    return causes


def _backplane(rows: Sequence[WorkerRow], context: HttpContext) -> dict[str, object]:
    available = context.backplane_available()
    faults = [context.backplane_fault()]
    faults += [str(row.stats["fault"]) for row in rows if row.stats.get("fault")]
    cause = next((fault for fault in faults if fault), None)
    unwritable = any(row.stats.get("unwritable") for row in rows if row.state != "starting")
    writable = available and context.backplane_writable() and not unwritable
    if cause is None and not available:
        cause = "it does not answer"
    elif cause is None and not writable:
        cause = "messages cannot be stored"
    status = "unavailable" if not available else "ok" if cause is None else "degraded"
    return {"status": status, "cause": cause, "writable": writable}
