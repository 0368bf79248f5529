"""The parts of `make reload` that need no running service; see tests/integration/test_reload.py."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from workers.handoff.report import HandoffReport, Outcome, Pause, percentiles
from workers.reload import command as reload
from workers.reload import fingerprint
from workers.shared import paths
from workers.shared.processes import start_time


def test_an_unchanged_master_needs_hup(data_dir: Path, root: Path) -> None:
    fingerprint.record(root, data_dir, "127.0.0.1:3001")
    assert fingerprint.changes(data_dir, os.getpid()) == []
    assert reload.choose(data_dir, os.getpid())[0] == signal.SIGHUP


def test_a_changed_file_needs_usr2(data_dir: Path, root: Path) -> None:
    fingerprint.record(root, data_dir, "127.0.0.1:3001")
    (root / "gunicorn.conf.py").write_text("workers = 2\n")
    chosen, why = reload.choose(data_dir, os.getpid())
    assert chosen == signal.SIGUSR2
    assert "gunicorn.conf.py" in why


def test_a_changed_library_needs_usr2(
    data_dir: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "site-packages"
    (library / "aiohttp-3.0.dist-info").mkdir(parents=True)
    (library / "redis-7.0.dist-info").mkdir()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(library))
    fingerprint.record(root, data_dir, "127.0.0.1:3001")
    assert fingerprint.changes(data_dir, os.getpid()) == []
    (library / "aiohttp-3.0.dist-info").rename(library / "aiohttp-3.1.dist-info")
    assert fingerprint.changes(data_dir, os.getpid()) == ["aiohttp"]


def test_a_master_that_has_said_nothing_needs_usr2(data_dir: Path, root: Path) -> None:
    assert reload.choose(data_dir, os.getpid())[0] == signal.SIGUSR2
    fingerprint.record(root, data_dir, "127.0.0.1:3001")
    written = paths.fingerprint_file(data_dir, os.getpid())
    # The record of another process that had this pid.
    written.write_text(json.dumps(json.loads(written.read_text()) | {"born": 1}))
    assert fingerprint.changes(data_dir, os.getpid()) is None


def test_the_first_process_of_a_container_stays(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "changes", lambda *_: ["redis"])
    chosen, why = reload.choose(data_dir, 1)
    assert chosen == signal.SIGHUP
    assert "container" in why


def test_percentiles_are_weighted() -> None:
    assert percentiles([]) == (0.0, 0.0, 0.0)
    assert percentiles([Pause(0.5, 1), Pause(0.1, 98), Pause(0.2, 1)]) == (0.1, 0.2, 0.5)
    assert percentiles([Pause(0.5, 10)]) == (0.5, 0.5, 0.5)


def test_report_of_a_worker_is_fetched_once(data_dir: Path) -> None:
    first = Outcome(passed=3, left=1, successors=2, seconds=0.5, pauses=[Pause(0.1, 3)])
    last = Outcome(passed=1, left=2, successors=1, seconds=0.25, pauses=[Pause(0.2, 1)])
    report = HandoffReport.of(first, last)
    assert "Handed 4 connections over to 2 workers in 0.75 s; 2 are drained" in str(report)
    assert "100 ms (p50), 200 ms (p99), 200 ms (max)" in str(report)
    report.save(data_dir)
    born = start_time(os.getpid())
    assert HandoffReport.fetch(data_dir, os.getpid(), 1) is None, "another process with this pid"
    fetched = HandoffReport.fetch(data_dir, os.getpid(), born)
    assert fetched is not None
    assert (fetched.passed, fetched.left, fetched.pauses) == (4, 2, [(0.1, 3), (0.2, 1)])
    assert HandoffReport.fetch(data_dir, os.getpid(), born) is None


def test_only_the_end_of_an_error_is_shown() -> None:
    text = "\n\n".join(str(n) for n in range(100))
    assert reload.last_lines(text).splitlines() == [str(n) for n in range(94, 100)]
