"""Follows a reload in the slot table until the new workers serve, or do not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.handoff.report import HandoffReport
from workers.shared import paths
from workers.shared.polling import block_until
from workers.shared.processes import children, command_line, read_pid, start_time
from workers.shared.slots import READY, STARTING, Row, SlotTable

START_SECONDS = 60.0
"""Time for new workers to serve; they themselves give up on an absent backplane after 20."""
EXIT_SECONDS = 30.0
"""Time beyond `graceful_timeout` for old workers to leave."""
_INTERVAL = 0.05
"""Seconds between two looks."""
_SETTLED = 1.5
"""Seconds for which nothing moves after a failure: the master replaces a dead worker in one."""
_FIGURES_SECONDS = 5.0
"""Time for new workers to write their figures."""
_SLOTS_SECONDS = 5.0
"""Time for the service to put a slot table back that was removed."""
_LINES = 6


class Failed(Exception):
    """The reload did not bring new workers; the message says why.

    Args:
        unchanged: whether the old workers serve as before.
    """

    def __init__(self, message: str, *, unchanged: bool = True) -> None:
        super().__init__(message)
        self.unchanged = unchanged


class Watch:
    """One reload.

    Args:
        data_dir: of the service.
        master: pid of its master.
        settings: those that the new workers will have.
    """

    def __init__(self, data_dir: Path, master: int, settings: Mapping[str, Any]) -> None:
        self.count: int = settings["workers"]
        """How many new workers are to come."""
        self.lost = 0
        """Connections of old workers that died without a word."""
        self.reports: list[HandoffReport] = []
        """Of the old workers that have left."""
        self.unreported = 0
        """Old workers of which there is none: they were killed, or could not write it."""
        self._data_dir = data_dir
        self._pid_files = paths.pid_files(data_dir)
        self._master = master
        self._born = start_time(master)
        """When the master started, which tells it from a later process of its pid."""
        try:
            self._slots = SlotTable(paths.slots_file(data_dir), 1, wait=_SLOTS_SECONDS)
        except FileNotFoundError:
            raise Failed("the slot table was removed and is not restored") from None
        rows = self._await_rows()
        self._newest = max((row.generation for row in rows), default=0)
        """The highest generation among the old workers: those above it are new."""
        self._old = {row.pid: row for row in rows}
        """Rows of the old workers that have not left, by pid."""
        self._old_count = len(rows)
        """How many there were."""
        self._begun = False
        """A new worker was seen."""
        self._births = {pid: start_time(pid) for pid in self._old}
        """When the old workers started, by pid."""
        self._began = time.time()
        """Unix time in seconds."""
        self._failed_before = self._slots.failed_starts
        """Workers that had died at their start by then."""
        self._drain = float(settings["graceful_timeout"])
        """Seconds that an old worker may take to end."""

    def _await_rows(self) -> list[Row]:
        """The rows of the workers that run, once each has one: by these all is counted."""
        rows: list[Row] = []
        missing: set[int] = set()

        def all_known() -> bool:
            rows[:] = self._slots.rows()
            missing.clear()
            missing.update(workers_of(self._master) - {row.pid for row in rows})
            return not missing

        if not block_until(all_known, _SLOTS_SECONDS, _INTERVAL):
            listed = ", ".join(map(str, sorted(missing)))
            raise Failed(f"the slot table does not know the workers that run: {listed}")
        return rows

    # The two ways.

    def renew_workers(self) -> None:
        """HUP: new workers of the same master.

        Raises:
            Failed: they died, or did not come in time.
        """
        self._refuse_second_master()
        os.kill(self._master, signal.SIGHUP)
        self._await_new(self._master, lambda: start_time(self._master) == self._born)
        self._await_end_of_old(self._master)

    def change_masters(self) -> None:
        """USR2: a new master with workers of its own; the old one leaves when they serve.

        Raises:
            Failed: they did not come; the new master is gone again.
        """
        self._refuse_second_master()
        before = children(self._master)
        os.kill(self._master, signal.SIGUSR2)
        try:
            new = self._await_new_master(before)
        except BaseException:
            for pid in self._new_children(before):
                self._end_process(pid, start_time(pid))
            raise
        self.await_successor(new)
        # Until then it would not understand another USR2.
        first = self._pid_files.first
        self._until(lambda: read_pid(first) == new, EXIT_SECONDS)

    def await_successor(self, new: int) -> None:
        """Let the old master end when the workers of a new one serve.

        Args:
            new: its pid; it has the listening sockets, and need not be a child of the old one.

        Raises:
            Failed: its workers did not come; it is gone again.
        """
        born = start_time(new)
        try:
            self._await_new(new, lambda: born is not None and start_time(new) == born)
        except BaseException:
            self._end_process(new, born)
            raise
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._master, signal.SIGTERM)
        self._await_end_of_old(new)
        self._until(lambda: start_time(self._master) != self._born, EXIT_SECONDS)

    # Steps.

    def _refuse_second_master(self) -> None:
        second = find_second_master(self._pid_files.second, self._master)
        if second is not None:
            raise Failed(
                f"a change of masters is under way already: the new one is {second};"
                f" {end_one(self._master, second)}"
            )

    def _new_children(self, before: set[int]) -> set[int]:
        # Workers that the old master replaces just now have rows.
        rows = {row.pid for row in self._slots.rows()}
        return children(self._master) - before - rows

    def _await_new_master(self, before: set[int]) -> int:
        found: set[int] = set()

        def appeared() -> bool:
            found.update(self._new_children(before))
            return read_pid(self._pid_files.second) in found or (
                bool(found) and not any(map(start_time, found))
            )

        self._until(appeared, START_SECONDS)
        pid = read_pid(self._pid_files.second)
        if pid is None or not start_time(pid):
            raise Failed(self._reason("the new master ended at once: see the log of the service"))
        return pid

    def _await_new(self, master: int, is_alive: Callable[[], bool]) -> None:
        """Until all new workers are ready."""
        stands_still = _Lasting()
        deadline = time.monotonic() + START_SECONDS
        while True:
            alive = is_alive()
            self._look()
            new = self._new(master)
            if sum(row.state == READY for row in new) >= self.count:
                return
            if not alive:
                unchanged = master != self._master and self._is_unchanged()
                reason = "the master has ended: see the log of the service"
                raise Failed(self._reason(reason), unchanged=unchanged)
            if stands_still(self._has_begun() and self._is_settled()):
                reason = "new workers died when they had just started: see the log of the service"
                raise Failed(self._reason(reason), unchanged=self._is_unchanged())
            if time.monotonic() > deadline:
                reason = f"the new workers are not ready after {START_SECONDS:.0f} s"
                raise Failed(self._reason(reason), unchanged=self._is_unchanged())
            time.sleep(_INTERVAL)

    def _await_end_of_old(self, master: int) -> None:
        """Until the old workers have left and the new ones serve; these may still die."""
        stands_still = _Lasting()
        deadline = time.monotonic() + self._drain + EXIT_SECONDS
        while True:
            gone = self._look()
            serves = sum(row.state == READY for row in self._new(master)) >= self.count
            if gone and serves:
                return
            # An old worker whose loop hangs has not said yet that it leaves.
            if stands_still(not serves and self._is_settled()):
                reason = "new workers died when they had just started: see the log of the service"
                raise Failed(self._reason(reason), unchanged=self._is_unchanged())
            if time.monotonic() > deadline:
                listed = ", ".join(map(str, sorted(self._old)))
                reason = f"old workers do not leave: {listed}: see the log of the service"
                raise Failed(self._reason(reason), unchanged=self._is_unchanged())
            time.sleep(_INTERVAL)

    def wait_for_figures(self) -> None:
        """Until every new worker with connections has written its figures once more, as each does within a few seconds.

        One without any has nothing new to say of them, and on a machine at rest writes more rarely.
        """
        since = time.time()
        with contextlib.suppress(Failed):
            self._until(
                lambda: all(row.updated > since for row in self._slots.rows() if row.connections),
                _FIGURES_SECONDS,
            )

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        if not block_until(condition, seconds, _INTERVAL):
            raise Failed(
                f"not done after {seconds:.0f} s: see the log of the service",
                unchanged=self._is_unchanged(),
            )

    def _look(self) -> bool:
        """Note what old workers have come to; True when all are gone."""
        self._slots.restore()
        self._slots.sweep()
        rows = {row.pid: row for row in self._slots.rows()}
        for pid in list(self._old):
            row = rows.get(pid)
            if row is not None and row.generation == self._old[pid].generation:
                self._old[pid] = row
            elif start_time(pid) != self._births[pid]:
                report = HandoffReport.fetch(self._data_dir, pid, self._births[pid])
                if report is not None:
                    self.reports.append(report)
                else:
                    self.unreported += 1
                    self.lost += self._old[pid].connections
                del self._old[pid]
        return not self._old

    def _new(self, master: int) -> list[Row]:
        return [
            row
            for row in self._slots.rows()
            if row.generation > self._newest
            and row.master == master
            and row.state in (STARTING, READY)
        ]

    def _has_begun(self) -> bool:
        """Whether new workers were ever seen; the master may be busy with something else."""
        if any(row.generation > self._newest for row in self._slots.rows()):
            self._begun = True
        return self._begun or self._slots.failed_starts != self._failed_before

    def _is_settled(self) -> bool:
        """Whether no worker is about to start or to leave.

        One that has given its row up takes a while to end on a machine that is busy.
        """
        rows = self._slots.rows()
        leaving = self._old.keys() - {row.pid for row in rows}
        return not leaving and all(row.state == READY for row in rows)

    def _is_unchanged(self) -> bool:
        """Whether all old workers serve as before."""
        serving = [row for row in self._slots.rows() if row.pid in self._old]
        ready = all(row.state == READY for row in serving)
        return ready and len(serving) == self._old_count and not self.lost

    def _reason(self, otherwise: str) -> str:
        """What a worker that could not start has left as its reason, if one did."""
        try:
            note = json.loads(paths.failure_file(self._data_dir).read_bytes())
            if note["at"] < self._began:
                return otherwise
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return otherwise
        return "\n".join(str(note.get("reason")).strip().splitlines()[-_LINES:])

    def _end_process(self, pid: int, born: int | None) -> None:
        """Roll back: end a master that has not come into service, and its workers."""
        if born is None or start_time(pid) != born:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(Failed):
            self._until(lambda: start_time(pid) != born, self._drain + EXIT_SECONDS)


class _Lasting:
    """Tells whether a condition has held for `_SETTLED` seconds at every look."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __call__(self, holds: bool) -> bool:
        now = time.monotonic()
        self._since = (self._since or now) if holds else None
        return self._since is not None and now - self._since >= _SETTLED


def find_second_master(pid_file: Path, master: int) -> int | None:
    """The master that is taking the place of `master`, if one does; `pid_file` is that of the second one."""
    pid = read_pid(pid_file)
    return None if pid is None or pid == master or not start_time(pid) else pid


def end_one(master: int, second: int) -> str:
    """What an operator can do where two masters are left."""
    return f"where what began it was killed, end one of the two: kill {master}, or kill {second}"


def workers_of(master: int) -> set[int]:
    """Children of a master that run what it runs: a Valkey that it was left with does not."""
    command = command_line(master)
    return {pid for pid in children(master) if command and command_line(pid) == command}
