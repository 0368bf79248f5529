"""What a reload makes of old workers, with real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.waiting import until_now
from workers.reload import watch as reload_watch
from workers.reload.watch import Watch
from workers.shared import paths
from workers.shared.slots import CONNECTIONS, READY, SlotTable


def test_a_worker_that_has_given_its_row_up_is_still_leaving(tmp_path: Path) -> None:
    """On a busy machine it takes a while to end, which is no death of a new worker."""
    path = paths.slots_file(tmp_path)
    table = SlotTable(path)
    master = os.getpid()
    worker = os.fork()
    if not worker:
        mine = SlotTable(path)
        mine.set_state(mine.claim_row(master), READY)
        signal.pause()
    try:
        until_now(lambda: [row.state for row in table.rows()] == [READY], "the worker serves")
        watch = Watch(tmp_path, master, {"workers": 1, "graceful_timeout": 1})
        assert watch._is_settled()
        table.free(worker)
        assert not watch._look()
        assert not watch._is_settled()
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        worker = 0
        assert watch._look()
        assert watch._is_settled()
    finally:
        if worker:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
        path.unlink()


def test_an_old_worker_that_hangs_is_no_death_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on saying that it serves, until its loop has a turn."""
    path = paths.slots_file(tmp_path)
    master = os.getpid()
    workers: list[int] = []

    def fork() -> None:
        before = len(SlotTable(path).rows())
        if not (pid := os.fork()):
            mine = SlotTable(path)
            mine.set_state(mine.claim_row(master), READY)
            signal.pause()
        workers.append(pid)
        until_now(lambda: len(SlotTable(path).rows()) > before, "the worker serves")

    def end(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        workers.remove(pid)

    try:
        fork()
        watch = Watch(tmp_path, master, {"workers": 1, "graceful_timeout": 1})
        fork()
        monkeypatch.setattr(reload_watch, "_SETTLED", 0.0)
        monkeypatch.setattr("time.sleep", lambda _: end(workers[0]))
        watch._await_end_of_old(master)
        assert len(workers) == 1
    finally:
        for pid in [*workers]:
            end(pid)
        path.unlink()


def test_only_workers_with_connections_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that rests writes its figures more rarely than the reload waits for them."""
    table = SlotTable(paths.slots_file(tmp_path))
    looks: list[bool] = []

    def look(condition: Callable[[], bool], _seconds: float, _interval: float) -> bool:
        looks.append(condition())
        return looks[-1]

    try:
        row = table.claim_row(os.getpid())
        table.set_state(row, READY)
        watch = Watch(tmp_path, os.getpid(), {"workers": 1, "graceful_timeout": 1})
        monkeypatch.setattr(reload_watch, "block_until", look)
        watch.wait_for_figures()
        table.columns[CONNECTIONS][row] = 1
        watch.wait_for_figures()
        assert looks == [True, False]
    finally:
        paths.slots_file(tmp_path).unlink()
