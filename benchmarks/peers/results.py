"""Figures of the field as a file: medians of rounds, kept after each row, runs put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.measure import Row
from benchmarks.procs import BenchmarkError

Result = dict[str, Any]
"""`runs`, each with a number, date, command and machine; `missing`; `rows`, each with its run's number."""

_FILE = "peers.json"


def head(row: Row) -> tuple[int, int, str]:
    """What a row is the only one of."""
    return row["workers"], row["clients"], row["name"]


def medians(samples: Sequence[Row]) -> Row:
    """One row of those of several rounds, whichever figures each of them has."""
    merged: Row = {}
    for name in dict.fromkeys(name for row in samples for name in row):
        values = [row[name] for row in samples if name in row]
        if isinstance(values[0], float):
            merged[name] = round(median(values), 3)
        elif isinstance(values[0], list):
            merged[name] = [one for value in values for one in value]
        else:
            merged[name] = values[0]
    return merged


def begin(run: Mapping[str, Any], missing: Mapping[str, str], earlier: Result | None) -> Result:
    """A result without rows of this run yet, and with those of earlier ones.

    Args:
        run: date, command and machine.
        missing: servers that this run leaves out, and how they are installed.
        earlier: what `load` gave, where the run adds to it.
    """
    runs = earlier["runs"] if earlier else []
    number = max((one["number"] for one in runs), default=0) + 1
    return {
        "runs": [*runs, {"number": number, **run}],
        "missing": {**(earlier["missing"] if earlier else {}), **missing},
        "rows": list(earlier["rows"]) if earlier else [],
    }


def put(result: Result, row: Row) -> None:
    """Add a row of the last run, in the place of one that is there."""
    row = row | {"run": result["runs"][-1]["number"]}
    rows = [one for one in result["rows"] if head(one) != head(row)]
    result["rows"] = [*rows, row]
    result["missing"].pop(row["name"], None)
    used = {one["run"] for one in result["rows"]}
    result["runs"] = [one for one in result["runs"] if one["number"] in used]


def load(directory: Path) -> Result:
    """The results in a directory.

    Raises:
        BenchmarkError: there are none.
    """
    try:
        result: Result = json.loads((directory / _FILE).read_text())
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{directory / _FILE}: {error}") from error
    if "runs" not in result:
        raise BenchmarkError(f"{directory / _FILE} does not say which run its rows are of")
    return result


def save(result: Result, directory: Path) -> None:
    """Write the results; what was there stays until they are complete."""
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f"{_FILE}.new"
    new.write_text(json.dumps(result, indent=1) + "\n")
    new.replace(directory / _FILE)
