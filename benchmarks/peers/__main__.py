"""`make bench-peers`: this service beside others, each as its own documentation advises."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.field import FIELD, Contender
from benchmarks.peers.measure import Row, measure
from benchmarks.peers.pages import write_page, write_plots
from benchmarks.procs import ROOT, BenchmarkError
from benchmarks.scenarios import say

DOCS = ROOT / "docs" / "benchmarks"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the field, and write the figures, the page and its plots.

    Returns:
        1 where a server that is installed gave no figures, else 0.
    """
    options = _options(argv)
    field = [one for one in FIELD if not options.only or one.name in options.only]
    missing = {one.name: one.install for one in field if one.missing()}
    for name, install in missing.items():
        say(f"{name} is missing: {install}")
    present = [one for one in field if one.name not in missing]
    rows, failed = _rounds(present, options)
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join(["python -m benchmarks.peers", *(argv or sys.argv[1:])]),
        "machine": _machine(),
        "missing": missing,
        "failed": failed,
        "rows": [_medians(samples) for samples in rows.values()],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
    write_plots(result, options.out)
    print(write_page(result, options.out))
    return 1 if failed else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 5000, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2, help="for each figure, roughly")
    parser.add_argument("--rounds", type=int, default=3, help="figures are medians of these")
    parser.add_argument("--only", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--out", type=Path, default=DOCS, help="directory of the results")
    return parser.parse_args(argv)


def _rounds(
    field: Sequence[Contender], options: argparse.Namespace
) -> tuple[dict[tuple[str, int, int], list[Row]], list[str]]:
    """Rows by server, connections and workers; the servers take turns within a round."""
    rows: dict[tuple[str, int, int], list[Row]] = {}
    failed: list[str] = []
    for number in range(options.rounds):
        for workers in options.workers:
            for clients in options.clients:
                for one in field:
                    if workers > 1 and not one.scales:
                        continue
                    head = {"name": one.name, "clients": clients, "workers": workers}
                    say(f"round {number + 1}: {one.name}, {clients} clients, {workers} workers")
                    try:
                        row = head | measure(one, clients, workers, options.seconds)
                    except BenchmarkError as error:
                        failed.append(f"{one.name}, {clients} clients, {workers} workers: {error}")
                        say(failed[-1])
                        continue
                    rows.setdefault((one.name, clients, workers), []).append(row)
    return rows, failed


def _medians(samples: Sequence[Row]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name, value in samples[0].items():
        if isinstance(value, float):
            merged[name] = round(median(row[name] for row in samples), 3)
        elif isinstance(value, list):
            merged[name] = [one for row in samples for one in row[name]]
        else:
            merged[name] = value
    return merged


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    count = subprocess.run(["nproc"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{count} processors, {model}, Linux {platform.release()}"


if __name__ == "__main__":
    sys.exit(main())
