"""What `make reload` says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from workers.handoff.report import percentiles
from workers.reload.watch import Watch


@dataclass(frozen=True)
class Report:
    """A reload that brought new workers. Pauses are times in which no worker served a client."""

    signal: str
    why: str
    seconds: float
    workers: int
    unreported: int
    """Old workers that have left no report: the figures may lack what became of their connections."""
    handed_over: int
    drained: int
    lost: int
    replayed: int
    """Messages written to connections that were behind."""
    pause_p50: float
    pause_p99: float
    pause_max: float

    @classmethod
    def make(
        cls, signal: str, why: str, seconds: float, watch: Watch, counts: Mapping[str, int]
    ) -> Self:
        """Put together what old workers have left behind, and what all have counted."""
        reports = watch.reports
        p50, p99, longest = percentiles([pause for one in reports for pause in one.pauses])
        return cls(
            signal=signal,
            why=why,
            seconds=round(seconds, 3),
            workers=watch.count,
            unreported=watch.unreported,
            handed_over=sum(one.passed for one in reports),
            drained=counts["drained"],
            lost=counts["lost"] + watch.lost,
            replayed=counts["replayed"],
            pause_p50=round(p50, 4),
            pause_p99=round(p99, 4),
            pause_max=round(longest, 4),
        )

    def __str__(self) -> str:
        return (
            f"Reloaded in {self.seconds:.1f} s: {self.workers} new workers serve.\n"
            f"  connections  {self.handed_over} handed over, {self.drained} drained,"
            f" {self.lost} lost\n"
            f"  pause        {self.pause_p50 * 1000:.0f} ms (p50), {self.pause_p99 * 1000:.0f} ms"
            f" (p99), {self.pause_max * 1000:.0f} ms (max)\n"
            f"  messages     {self.replayed} replayed"
        ) + (
            f"\n  {self.unreported} old workers have left no report, so what became of their connections"
            " is not known for certain: see the log (is the disk full?)"
            if self.unreported
            else ""
        )
