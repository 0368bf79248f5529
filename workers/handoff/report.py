"""What a worker that left says about its connections: one log line, and a file for `make reload`.

`make reload` must run when `app` does not import, so this module imports nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from workers.shared import paths
from workers.shared.file import write_atomically
from workers.shared.processes import start_time

logger = logging.getLogger(__name__)

_KEPT_SECONDS = 3600
"""Age from which on a report that was not fetched is removed."""

_KEYS = {"successors": "heirs"}
"""Fields that the file has under another name: a reload brings together two versions."""


class Pause(NamedTuple):
    """One batch on its way."""

    seconds: float
    """In which no worker served it."""
    connections: int


class Percentiles(NamedTuple):
    """Of pauses in seconds, weighted by their connections."""

    p50: float
    p99: float
    longest: float


@dataclass(slots=True)
class Outcome:
    """What became of the connections of a worker that left."""

    passed: int = 0
    left: int = 0
    """Not given: no successor would or could take them."""
    successors: int = 0
    """Workers that have taken connections."""
    orphaned: bool = False
    """There were successors, but they are gone."""
    seconds: float = 0.0
    pauses: list[Pause] = field(default_factory=list)
    """One for each batch."""

    def add(self, later: Outcome) -> None:
        """Add what became of connections that came late."""
        self.passed += later.passed
        self.left = later.left
        self.successors = max(self.successors, later.successors)
        self.seconds += later.seconds
        self.pauses += later.pauses


@dataclass(frozen=True)
class HandoffReport:
    """The connections of one worker that left."""

    pid: int
    passed: int
    left: int
    """Not passed, so they are drained."""
    successors: int
    seconds: float
    pauses: Sequence[Pause] = ()
    """One for each batch."""

    @classmethod
    def of(cls, first: Outcome, last: Outcome) -> Self:
        """The report of this process, out of the two rounds in which it gave."""
        return cls(
            pid=os.getpid(),
            passed=first.passed + last.passed,
            left=last.left,
            successors=max(first.successors, last.successors),
            seconds=first.seconds + last.seconds,
            pauses=first.pauses + last.pauses,
        )

    def __str__(self) -> str:
        p50, p99, longest = (1000 * value for value in percentiles(self.pauses))
        return (
            f"Handed {self.passed} connections over to {self.successors} workers in"
            f" {self.seconds:.2f} s; {self.left} are drained; pauses of"
            f" {p50:.0f} ms (p50), {p99:.0f} ms (p99), {longest:.0f} ms (max)"
        )

    def save(self, data_dir: Path) -> None:
        """Leave it for `make reload`; reports that were not fetched are removed."""
        for old in paths.all_left_files(data_dir):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                    old.unlink()
        values = {_KEYS.get(name, name): value for name, value in asdict(self).items()}
        text = json.dumps(values | {"born": start_time(self.pid)})
        faults = []
        for path in paths.left_files(data_dir, self.pid):
            try:
                paths.make_private(path.parent)  # it may be removed
                write_atomically(path, text.encode())
            except OSError as error:
                faults.append(str(error))
            else:
                return
        logger.error("The report on the handoff is not written: %s", "; ".join(faults))

    @classmethod
    def fetch(cls, data_dir: Path, pid: int, born: int | None) -> Self | None:
        """Take the report of a process, known by its start time too; None when there is none."""
        reports = (cls._fetch(path, born) for path in paths.left_files(data_dir, pid))
        return next((report for report in reports if report is not None), None)

    @classmethod
    def _fetch(cls, path: Path, born: int | None) -> Self | None:
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.pop("born", None) != born:
            return None
        path.unlink(missing_ok=True)
        if not _is_report(found):
            return None
        names = {key: name for name, key in _KEYS.items()}
        values: dict[str, Any] = {str(names.get(key, key)): value for key, value in found.items()}
        pauses = [Pause(*pause) for pause in values.pop("pauses", [])]
        return cls(**values, pauses=pauses)


def _is_report(found: dict[str, Any]) -> bool:
    """Whether a file holds the fields of a report, and counts and seconds in them."""
    names = {_KEYS.get(one.name, one.name) for one in fields(HandoffReport)}
    pauses = found.get("pauses", [])
    return (
        found.keys() <= names
        and names - {"pauses"} <= found.keys()
        and all(isinstance(found[name], int | float) for name in names - {"pauses"})
        and isinstance(pauses, list)
        and all(
            isinstance(pause, list)
            and len(pause) == 2
            and all(isinstance(value, int | float) for value in pause)
            for pause in pauses
        )
    )


def percentiles(pauses: Sequence[Pause]) -> Percentiles:
    """Of all pauses; zeros for none."""
    ordered = sorted(pauses)
    total = sum(count for _, count in ordered)
    if not total:
        return Percentiles(0.0, 0.0, 0.0)

    def at(share: float) -> float:
        seen = 0
        for value, count in ordered:
            seen += count
            if seen >= share * total:
                return value
        return ordered[-1].seconds

    return Percentiles(at(0.5), at(0.99), ordered[-1].seconds)
