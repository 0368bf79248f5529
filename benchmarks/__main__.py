"""`python -m benchmarks`: measure this service and its peers side by side.

The exit code says whether everything ran, not whether the targets were met.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import replace
from typing import NoReturn

from app.command_line import make_parser
from benchmarks import faults, reloads
from benchmarks.backplane import backplane
from benchmarks.fairness import fairness
from benchmarks.hostile import KINDS
from benchmarks.idle import idle
from benchmarks.procs import BenchmarkError
from benchmarks.report import as_json, as_text
from benchmarks.scenarios import FULL, QUICK, Figures
from benchmarks.scenarios import SCENARIOS as COSTS
from benchmarks.storm import requests, storm

SCENARIOS = (
    COSTS
    | {
        "idle": idle,
        "storm": storm,
        "requests": requests,
        "backplane": backplane,
        "fairness": fairness,
    }
    | reloads.SCENARIOS
)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = make_parser("python -m benchmarks", __doc__)
    parser.add_argument("--quick", action="store_true", help="500 connections, in seconds")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument(
        "--clients", type=int, help="connections on one worker; on two workers twice as many"
    )
    parser.add_argument(
        "--rounds", type=int, help="rounds of connects, of deliveries, and of each attack"
    )
    parser.add_argument(
        "--kind", choices=KINDS, action="append", help="of attacks of `fairness`; may be repeated"
    )
    parser.add_argument(
        "--crowd", type=int, action="append", help="hostile clients of `fairness`; may be repeated"
    )
    parser.add_argument(
        "--only",
        choices=(*SCENARIOS, "faults", *faults.FAULTS),
        action="append",
        help="a scenario; may be repeated (default: all measurements, no `faults`)",
    )
    return parser.parse_args()


def main() -> int:
    """Run the scenarios that were asked for and print what they found."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    size = QUICK if arguments.quick else FULL
    if arguments.clients:
        size = replace(size, clients=arguments.clients, many=2 * arguments.clients)
    if arguments.rounds:
        size = replace(
            size,
            connect_rounds=arguments.rounds,
            deliver_rounds=arguments.rounds,
            attack_rounds=arguments.rounds,
        )
    size = replace(size, attacks=tuple(arguments.kind or ()), crowds=tuple(arguments.crowd or ()))
    wanted = arguments.only or list(SCENARIOS)
    figures = Figures()
    passed = True
    try:
        for name, scenario in SCENARIOS.items():
            if name in wanted:
                scenario(size, figures)
        chosen = [name for name in faults.FAULTS if name in wanted or "faults" in wanted]
        passed = faults.run(chosen, quick=arguments.quick)
    except BenchmarkError as error:
        figures.problems.append(str(error))
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(json.dumps(as_json(figures, size), indent=2))
    else:
        print(as_text(figures, size))
    return 1 if figures.problems or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
