"""What the master does at each look beside gunicorn's own: with a clock that the test moves."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.seconds import REST
from workers import master as master_module
from workers.master import Master, WrongSettings
from workers.shared import paths
from workers.shared.locks import MastersLock
from workers.shared.slots import CONNECTIONS, SlotTable

TIMEOUT = 30.0


class Worker:
    """As gunicorn keeps one: when it was last active."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.active_at = now
        self.tmp = self

    def last_update(self) -> float:
        return self.active_at

    def notify(self) -> None:
        self.active_at = self.clock.now  # type: ignore[attr-defined]


class Arbiter:
    """gunicorn's, as far as silent workers go."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.killed: list[int] = []
        self.WORKERS = {pid: Worker(self.now) for pid in (11, 12)}
        for worker in self.WORKERS.values():
            worker.clock = self  # type: ignore[attr-defined]
        self.pidfile: Any = None
        self.pid = 1

    def murder_workers(self) -> None:
        for pid, worker in self.WORKERS.items():
            if self.now - worker.last_update() > TIMEOUT:
                self.killed.append(pid)

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        raise NotImplementedError

    def run(self, seconds: int, silent: tuple[int, ...] = ()) -> None:
        for _ in range(seconds):
            self.now += 1
            for pid, worker in self.WORKERS.items():
                if pid not in silent:
                    worker.active_at = self.now
            self.murder_workers()


def make_master(arbiter: Arbiter) -> Any:
    """A master that looks when the arbiter does, at nothing yet."""
    master: Any = Master.__new__(Master)
    master._monotonic = lambda: arbiter.now
    master.keep_files = lambda _: None
    master.slots = SimpleNamespace(has_connections=lambda: True)
    master._in_terminal, master._terminal_lost = False, -math.inf
    return master


@pytest.fixture
def arbiter() -> Arbiter:
    arbiter = Arbiter()
    make_master(arbiter).watch_over(arbiter)
    return arbiter


def test_shared_files_are_looked_at_every_third_second_and_more_rarely_without_clients() -> None:
    arbiter = Arbiter()
    looked_at: list[float] = []
    master = make_master(arbiter)
    master.keep_files = lambda _: looked_at.append(arbiter.now)
    master.watch_over(arbiter)
    began = arbiter.now
    arbiter.run(9)
    assert [at - began for at in looked_at] == [1, 4, 7]
    master.slots = SimpleNamespace(has_connections=lambda: False)
    arbiter.run(16)
    assert [at - began for at in looked_at[3:]] == [13, 19, 25]
    master.slots = SimpleNamespace(has_connections=lambda: True)
    arbiter.run(3)
    assert [at - began for at in looked_at[6:]] == [28]


def test_the_table_says_whether_any_client_is_connected(tmp_path: Path) -> None:
    table = SlotTable(tmp_path / "slots")
    row = table.claim_row(1)
    assert not table.has_connections()
    table.columns[CONNECTIONS][row] = 1
    assert table.has_connections()


class Terminal:
    """A master in a terminal that can be closed, and what HUP does to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, nohup: bool = False) -> None:
        self.arbiter = Arbiter()
        self.open = True
        self.seen: list[str] = []
        monkeypatch.setattr(master_module, "has_terminal", lambda: self.open)
        master = make_master(self.arbiter)
        master._in_terminal = not nohup
        arbiter: Any = self.arbiter
        arbiter.handle_hup = lambda: self.seen.append("reload")
        arbiter.handle_term = self._end
        master.watch_over(arbiter)
        master.guard_terminal(arbiter)

    def _end(self) -> None:
        self.seen.append("end")
        raise StopIteration

    def hup(self) -> str:
        """HUP comes; what the master does."""
        arbiter: Any = self.arbiter
        with contextlib.suppress(StopIteration):
            arbiter.handle_hup()
        return self.seen[-1]


def test_hup_is_a_reload_as_long_as_the_terminal_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    assert terminal.hup() == "reload"
    terminal.arbiter.run(10)
    assert terminal.hup() == "reload"


@pytest.mark.parametrize("blocked", [0, 30])
def test_the_hup_of_a_terminal_that_is_closed_ends_the_service(
    monkeypatch: pytest.MonkeyPatch, blocked: int
) -> None:
    """Also when the master's loop stood still for a reload, and looks first."""
    terminal = Terminal(monkeypatch)
    terminal.arbiter.run(5)
    terminal.open = False
    if blocked:
        terminal.arbiter.now += blocked
        terminal.arbiter.murder_workers()
    assert terminal.hup() == "end"
    assert terminal.seen == ["end"]


def test_a_hup_long_after_the_terminal_was_closed_is_a_reload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job that its shell has disowned gets none when the terminal is closed."""
    terminal = Terminal(monkeypatch)
    terminal.open = False
    terminal.arbiter.run(4)
    assert terminal.hup() == "reload"


def test_with_nohup_hup_is_always_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, nohup=True)
    terminal.open = False
    assert terminal.hup() == "reload"


def test_a_worker_that_hangs_alone_is_killed(arbiter: Arbiter) -> None:
    arbiter.run(29, silent=(11,))
    assert arbiter.killed == []
    arbiter.run(3, silent=(11,))
    assert set(arbiter.killed) == {11}


@pytest.mark.parametrize("seconds", [90, 3600])
def test_no_worker_is_killed_for_a_time_in_which_the_master_stood_still(
    arbiter: Arbiter, seconds: int, caplog: pytest.LogCaptureFixture
) -> None:
    arbiter.run(5)
    arbiter.now += seconds
    arbiter.murder_workers()
    assert arbiter.killed == []
    assert f"stopped for {seconds} s" in caplog.text
    # They have their time anew, and no more.
    arbiter.run(29, silent=(12,))
    assert arbiter.killed == []
    arbiter.run(3, silent=(12,))
    assert set(arbiter.killed) == {12}


def test_a_reload_that_takes_long_is_no_pause(
    arbiter: Arbiter, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop of the master stands still meanwhile, but its workers do not."""
    arbiter.run(25, silent=(11,))
    arbiter.now += 20
    arbiter.WORKERS[12].active_at = arbiter.now
    arbiter.murder_workers()
    assert "12" not in caplog.text


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Any]:
    """A master with its files."""
    master: Any = Master.__new__(Master)
    master.data_dir = tmp_path
    master.metrics_dir = paths.metrics_dir(tmp_path)
    master.slots = SlotTable(paths.slots_file(tmp_path))
    master.lock = MastersLock(paths.masters_lock(tmp_path))
    master.lock.share()
    master.settings = {"max_total_connections": 10_000}
    yield master
    paths.slots_file(tmp_path).unlink(missing_ok=True)
    if master.metrics_dir.exists():
        master.metrics_dir.rmdir()


def test_files_that_are_gone_are_put_back(home: Any, caplog: pytest.LogCaptureFixture) -> None:
    pid_file = home.data_dir / "gunicorn.pid"
    arbiter = SimpleNamespace(pidfile=SimpleNamespace(fname=str(pid_file), pid=os.getpid()))
    home.keep_files(arbiter)
    assert pid_file.read_text() == f"{os.getpid()}\n"
    for path in (pid_file, paths.slots_file(home.data_dir), paths.masters_lock(home.data_dir)):
        path.unlink()
    home.metrics_dir.rmdir()
    home.keep_files(arbiter)
    assert pid_file.read_text() == f"{os.getpid()}\n"
    assert paths.slots_file(home.data_dir).exists()
    assert home.metrics_dir.is_dir()
    assert paths.masters_lock(home.data_dir).exists()
    assert "the slot table" in caplog.text
    assert "the lock of the masters" in caplog.text
    caplog.clear()
    home.keep_files(arbiter)
    assert caplog.records == []


def test_files_that_cannot_be_put_back_are_logged_once(
    home: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the checkout was deleted, and nothing can be written in its place."""
    data_dir = home.data_dir
    home.data_dir = tmp_path / "a file" / "data"
    (tmp_path / "a file").touch()
    arbiter = SimpleNamespace(pidfile=SimpleNamespace(fname="", pid=os.getpid()))
    for _ in range(3):
        home.keep_files(arbiter)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "cannot be put back" in caplog.text
    home.data_dir = data_dir
    home.keep_files(arbiter)
    home.data_dir = tmp_path / "a file" / "data"
    home.keep_files(arbiter)
    assert caplog.text.count("cannot be put back") == 2, "it is another time"


def test_the_pid_file_of_another_master_is_left_alone(home: Any) -> None:
    pid_file = home.data_dir / "gunicorn.pid"
    pid_file.write_text("1\n")
    home.keep_files(SimpleNamespace(pidfile=SimpleNamespace(fname=str(pid_file), pid=2)))
    assert pid_file.read_text() == "1\n"


@pytest.mark.parametrize(
    ("limits", "cap", "set_to", "warned"),
    [
        ((1024, 20_000), 10_000, (20_000, 20_000), False),
        ((1024, 4096), 10_000, (4096, 4096), True),
        ((20_000, 20_000), 10_000, None, False),
        ((1024, resource.RLIM_INFINITY), 10_000, (resource.RLIM_INFINITY,) * 2, False),
    ],
)
def test_the_limit_of_open_files_is_raised(
    home: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limits: tuple[int, int],
    cap: int,
    set_to: tuple[int, int] | None,
    warned: bool,
) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: done.append(to))
    home.settings["max_total_connections"] = cap
    home.allow_open_files()
    assert done == ([set_to] if set_to else [])
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * warned
    assert ("MAX_TOTAL_CONNECTIONS=10000" in caplog.text) is warned


@pytest.mark.parametrize("given", [False, True], ids=["own", "of systemd"])
def test_another_bind_takes_the_place_of_own_sockets_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, given: bool
) -> None:
    settings: dict[str, Any] = {"data_dir": str(tmp_path / "data"), "backplane_url": ""}
    settings |= {"max_total_connections": 10, "bind": "127.0.0.1:0"}
    monkeypatch.setattr(master_module, "_read", lambda _: (settings, {}))
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() if given else 1))
    master = Master(tmp_path)
    settings = settings | {"bind": "[::1]:0"}
    master.reload()
    master.clean_up()
    shutil.rmtree(paths.runtime_dir(master.data_dir))
    assert master.settings["bind"] == "[::1]:0"
    assert master.bind == ("127.0.0.1:0" if given else "[::1]:0")


@pytest.mark.parametrize("orphans", [False, True])
def test_a_start_waits_for_workers_of_a_killed_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, orphans: bool
) -> None:
    waited: list[float] = []

    def wait(_: object, seconds: float, __: float) -> bool:
        waited.append(seconds)
        return True

    monkeypatch.setattr(master_module, "block_until", wait)
    master: Any = Master.__new__(Master)
    master.bind = "127.0.0.1:3001"
    master.slots = SlotTable(tmp_path / "slots")
    if orphans:
        master.slots.claim_row(1)
    master.await_address(Arbiter())
    assert (waited[0] > REST) is orphans


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    with pytest.raises(WrongSettings, match=r"\.env cannot be read: Is a directory"):
        Master(tmp_path)
