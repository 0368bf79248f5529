"""`make bench-peers`: this service beside others, each as its own documentation advises.

The figures are written after each row. A run that is interrupted keeps the rows that it has, and
`--merge` measures the others later; the page marks rows of different runs.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.command_line import make_parser
from benchmarks.peers import results
from benchmarks.peers.field import FIELD, Contender
from benchmarks.peers.measure import Row, measure
from benchmarks.peers.pages import write_page, write_plots
from benchmarks.procs import ROOT, BenchmarkError
from benchmarks.scenarios import say

DOCS = ROOT / "docs" / "benchmarks"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the field, and write the figures, the page and its plots.

    Returns:
        1 where a figure of a server that is installed is missing, or the run was interrupted, else 0.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _options(arguments)
    try:
        earlier = results.load(options.out) if options.merge or options.page else None
    except BenchmarkError as error:
        say(str(error))
        return 1
    if options.page and earlier is not None:
        _write(earlier, options.out)
        return 0
    field = [one for one in FIELD if not options.only or one.name in options.only]
    missing = {one.name: one.install for one in field if one.missing()}
    for name, install in missing.items():
        say(f"{name} is missing: {install}")
    result = results.begin(_run(options, arguments), missing, earlier)
    failed = False
    try:
        for row in _rows([one for one in field if one.name not in missing], options):
            results.put(result, row)
            results.save(result, options.out)
            failed = failed or "failed" in row
    except KeyboardInterrupt:
        say(f"interrupted: {options.out} has the rows until now")
        failed = True
    _write(result, options.out)
    return int(failed)


def _write(result: results.Result, out: Path) -> None:
    """Write the figures, the page and its plots, and print the page."""
    results.save(result, out)
    write_plots(result, out)
    print(write_page(result, out))


def _options(argv: Sequence[str]) -> argparse.Namespace:
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
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[one.name for one in FIELD],
        help="a server of the field; may be repeated",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="keep the rows of earlier runs that this one does not measure",
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing: write page and plots from the figures"
    )
    parser.add_argument("--out", type=Path, default=DOCS, help="directory of the results")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": shlex.join(["python", "-m", "benchmarks.peers", *argv]),
        "machine": _machine(),
        "rounds": options.rounds,
    }


def _rows(field: Sequence[Contender], options: argparse.Namespace) -> Iterator[Row]:
    """A row of each server for each number of connections and workers, again after each round."""
    samples: dict[tuple[int, int, str], list[Row]] = {}
    heads = [
        (workers, clients, one)
        for _ in range(options.rounds)
        for workers in options.workers
        for clients in options.clients
        for one in field
        if workers == 1 or one.scales
    ]
    for number, (workers, clients, one) in enumerate(heads, 1):
        what = f"{one.name}, {clients} clients, {workers} workers"
        say(f"row {number} of {len(heads)}: {what}")
        row = {"name": one.name, "clients": clients, "workers": workers, "version": one.version()}
        row |= measure(one, clients, workers, options.seconds)
        say(", ".join(f"{part} {seconds}" for part, seconds in row["took_s"].items()) + " s")
        if "failed" in row:
            say(f"failed: {row['failed']}")
        of_head = samples.setdefault(results.head(row), [])
        of_head.append(row)
        yield results.medians(of_head)


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    count = subprocess.run(["nproc"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{count} processors, {model}, Linux {platform.release()}"


def _interrupt(*_: object) -> None:
    """End the run as Ctrl-C does, once: `timeout` signals a process and then its group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
