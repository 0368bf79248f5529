"""`make bench-peers`: this service beside others, each as its own documentation advises."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from app.command_line import make_parser
from benchmarks.peers.field import FIELD, Contender
from benchmarks.peers.measure import Row, measure
from benchmarks.peers.pages import write_page, write_plots
from benchmarks.procs import ROOT, BenchmarkError
from benchmarks.scenarios import say

DOCS = ROOT / "docs" / "benchmarks"

_Head = tuple[str, int, int]
"""A server, its connections and its workers."""


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
    rows: dict[_Head, list[Row]] = {}
    failed: list[str] = []
    for number in range(1, options.rounds + 1):
        _round(number, present, options, rows, failed)
        # What is measured so far is kept where a later round is interrupted.
        page = _write(missing, rows, failed, options.out, argv or sys.argv[1:])
    print(page)
    return 1 if failed else 0


def _write(
    missing: Mapping[str, str],
    rows: Mapping[_Head, list[Row]],
    failed: Sequence[str],
    out: Path,
    argv: Sequence[str],
) -> str:
    """Write the figures, the page and its plots; returns the text of the page."""
    result = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join(["python -m benchmarks.peers", *argv]),
        "machine": _machine(),
        "rounds": max((len(samples) for samples in rows.values()), default=0),
        "missing": missing,
        "failed": failed,
        "rows": [_medians(samples) for samples in rows.values()],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
    write_plots(result, out)
    return write_page(result, out)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m benchmarks.peers", __doc__)
    parser.add_argument(
        "--clients",
        type=int,
        nargs="+",
        default=[1000, 5000, 10_000],
        help="connections, a run for each number (default: 1000 5000 10000)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 2],
        help="of each server that has workers, likewise (default: 1 2)",
    )
    parser.add_argument("--seconds", type=float, default=2, help="for each figure, roughly")
    parser.add_argument("--rounds", type=int, default=3, help="figures are medians of these")
    parser.add_argument("--only", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--out", type=Path, default=DOCS, help="directory of the results")
    return parser.parse_args(argv)


def _round(
    number: int,
    field: Sequence[Contender],
    options: argparse.Namespace,
    rows: dict[_Head, list[Row]],
    failed: list[str],
) -> None:
    """One row of each server for each number of connections and workers.

    Args:
        number: of this round, for what is printed.
        field: the servers, which take turns.
        options: of the command.
        rows: gets the rows.
        failed: gets a line for each server that gave no figures.
    """
    for workers in options.workers:
        for clients in options.clients:
            for one in field:
                if workers > 1 and not one.scales:
                    continue
                head = {"name": one.name, "clients": clients, "workers": workers}
                say(f"round {number}: {one.name}, {clients} clients, {workers} workers")
                try:
                    row = head | measure(one, clients, workers, options.seconds)
                except BenchmarkError as error:
                    failed.append(f"{one.name}, {clients} clients, {workers} workers: {error}")
                    say(failed[-1])
                    continue
                rows.setdefault((one.name, clients, workers), []).append(row)


def _medians(samples: Sequence[Row]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name, value in samples[0].items():
        if isinstance(value, float):
            merged[name] = round(median(row[name] for row in samples if name in row), 3)
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
