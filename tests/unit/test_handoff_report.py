"""Reports of workers that left, as `make reload` finds them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from workers.handoff.report import HandoffReport, Pause
from workers.shared import paths
from workers.shared.processes import start_time

GOOD = {"pid": 7, "passed": 3, "left": 1, "heirs": 2, "seconds": 0.5, "pauses": [[0.1, 3]]}


def fetch(data_dir: Path, text: str | bytes) -> HandoffReport | None:
    path = paths.left_files(data_dir, 7).on_disk
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return HandoffReport.fetch(data_dir, 7, 11)


def test_a_report_is_found_once(tmp_path: Path) -> None:
    found = fetch(tmp_path, json.dumps(GOOD | {"born": 11}))
    assert found is not None
    assert "3 connections over to 2 workers" in str(found)
    assert HandoffReport.fetch(tmp_path, 7, 11) is None


def test_another_version_can_read_the_file(tmp_path: Path) -> None:
    """A worker of one version leaves it for the `make reload` of the other."""
    report = HandoffReport(7, 3, 1, 2, 0.5, [Pause(0.1, 3)])
    report.save(tmp_path)
    written = json.loads(paths.left_files(tmp_path, 7).on_disk.read_bytes())
    written.pop("born")
    assert written == GOOD


def test_a_disk_that_takes_no_file(tmp_path: Path) -> None:
    """A full one, or one without inodes: the report is left in memory."""
    paths.runtime_dir(tmp_path).write_text("no directory can be here")
    shutil.rmtree(paths.metrics_dir(tmp_path), ignore_errors=True)
    report = HandoffReport(os.getpid(), 3, 1, 2, 0.5, [Pause(0.1, 3)])
    try:
        report.save(tmp_path)
        born = start_time(os.getpid())
        assert HandoffReport.fetch(tmp_path, os.getpid(), born) == report
        assert paths.all_left_files(tmp_path) == []
    finally:
        shutil.rmtree(paths.metrics_dir(tmp_path), ignore_errors=True)


@pytest.mark.parametrize("text", ["", "[]", "null", "5", "{}", "[" * 50_000, b"\\xff", "{"])
def test_a_file_that_is_no_report(tmp_path: Path, text: str | bytes) -> None:
    assert fetch(tmp_path, text) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"born": 12},
        {"born": None},
        {"passed": "many"},
        {"passed": None},
        {"other": 1},
        {"pauses": 5},
        {"pauses": [1]},
        {"pauses": [[1]]},
        {"pauses": [["a", "b"]]},
    ],
)
def test_odd_values_in_a_report(tmp_path: Path, odd: dict[str, Any]) -> None:
    assert fetch(tmp_path, json.dumps(GOOD | {"born": 11} | odd)) is None
