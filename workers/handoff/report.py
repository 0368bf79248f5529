"""What a worker that left says about its connections: one log line, and a file for `make reload`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from workers.shared import paths
from workers.shared.file import write_whole
from workers.shared.processes import start_time

if TYPE_CHECKING:  # `make reload` reads reports, and must run when `app` does not import
    from workers.handoff.giver import Outcome

log = logging.getLogger(__name__)

_KEPT_SECONDS = 3600


@dataclass(frozen=True)
class Handoff:
    """The connections of one worker that left."""

    pid: int
    passed: int
    left: int
    """Not passed, so they are drained."""
    heirs: int
    seconds: float
    pauses: Sequence[tuple[float, int]] = field(default_factory=list)
    """For each batch the seconds for which nobody served it, and its connections."""

    @classmethod
    def of(cls, first: Outcome, last: Outcome) -> Self:
        """The report of this process, out of the two rounds in which it gave."""
        return cls(
            pid=os.getpid(),
            passed=first.passed + last.passed,
            left=last.left,
            heirs=max(first.heirs, last.heirs),
            seconds=first.seconds + last.seconds,
            pauses=first.pauses + last.pauses,
        )

    def __str__(self) -> str:
        p50, p99, longest = (1000 * value for value in percentiles(self.pauses))
        return (
            f"Handed {self.passed} connections over to {self.heirs} workers in"
            f" {self.seconds:.2f} s; {self.left} are drained; pauses of"
            f" {p50:.0f} ms (p50), {p99:.0f} ms (p99), {longest:.0f} ms (max)"
        )

    def save(self, data_dir: Path) -> None:
        """Leave it for `make reload`; reports that nobody has fetched are removed."""
        with contextlib.suppress(OSError):
            paths.make_private(paths.runtime_dir(data_dir))  # it may be removed
        for old in paths.left_file(data_dir, 0).parent.glob("left-*.json"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                    old.unlink()
        try:
            text = json.dumps(asdict(self) | {"born": start_time(self.pid)})
            write_whole(paths.left_file(data_dir, self.pid), text.encode())
        except OSError:
            log.exception("The report on the handoff is not written")

    @classmethod
    def fetch(cls, data_dir: Path, pid: int, born: int | None) -> Self | None:
        """Take the report of a process, known by its start time too; None when there is none."""
        path = paths.left_file(data_dir, pid)
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.pop("born", None) != born:
            return None
        path.unlink(missing_ok=True)
        return cls(**found) if _is_report(found) else None


def _is_report(found: dict[str, Any]) -> bool:
    """Whether a file holds the fields of a report, and counts and seconds in them."""
    names = {field.name for field in fields(Handoff)}
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


def percentiles(pauses: Sequence[tuple[float, int]]) -> tuple[float, float, float]:
    """The median, the 99th percentile and the longest of weighted values; zeros for none."""
    ordered = sorted(pauses)
    total = sum(count for _, count in ordered)
    if not total:
        return 0.0, 0.0, 0.0

    def at(share: float) -> float:
        seen = 0
        for value, count in ordered:
            seen += count
            if seen >= share * total:
                return value
        return ordered[-1][0]

    return at(0.5), at(0.99), ordered[-1][0]
