"""What the service expects of gunicorn's undocumented names, on gunicorn itself."""

from __future__ import annotations

import errno
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gunicorn.arbiter
import pytest
from aiohttp.worker import GunicornWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.pidfile import Pidfile
from gunicorn.workers.workertmp import WorkerTmp

from workers import gunicorn_private


class Application(BaseApplication):  # type: ignore[misc]
    """With gunicorn's defaults."""

    def load_config(self) -> None: ...

    def load(self) -> None: ...


@pytest.fixture
def arbiter() -> Any:
    made = Arbiter(Application())
    made.WORKERS = {}
    made.pid = os.getpid()
    return made


def import_anew() -> None:
    """Import the module once more, beside the one that is in use."""
    spec = importlib.util.spec_from_file_location("again", str(gunicorn_private.__file__))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


class Nothing:
    def __init__(self) -> None: ...


@pytest.mark.parametrize(
    ("owner", "name", "got"),
    [
        (Arbiter, "murder_workers", "Arbiter.murder_workers"),
        (Arbiter, "WORKER_BOOT_ERROR", "Arbiter.WORKER_BOOT_ERROR"),
        (WorkerTmp, "last_update", "WorkerTmp.last_update"),
        (GunicornWebWorker, "_notify_waiter_done", "GunicornWebWorker._notify_waiter_done"),
    ],
)
def test_a_release_without_a_name_fails_at_the_import(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, got: str
) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError) as caught:
        import_anew()
    assert got in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "got"),
    [
        (
            Arbiter,
            "Arbiter().SIG_QUEUE, Arbiter().pidfile, Arbiter().systemd, Arbiter().worker_age",
        ),
        (Pidfile, "Pidfile().fname, Pidfile().pid"),
        (GunicornWebWorker, "GunicornWebWorker()._task, GunicornWebWorker()._notify_waiter"),
    ],
)
def test_a_release_without_an_attribute_fails_at_the_import(
    monkeypatch: pytest.MonkeyPatch, owner: type, got: str
) -> None:
    monkeypatch.setattr(owner, "__init__", Nothing.__init__)
    with pytest.raises(ImportError) as caught:
        import_anew()
    assert got in str(caught.value)


def test_the_module_imports_with_the_release_that_is_installed() -> None:
    import_anew()


def source(method: Callable[..., Any]) -> str:
    return inspect.getsource(method)


def test_gunicorn_uses_the_names_as_expected() -> None:
    """Names may stay and no longer mean anything."""
    assert "murder_workers()" in source(Arbiter.run)
    assert "self.systemd" in source(Arbiter.stop)
    assert "self.systemd" in source(Arbiter.reexec)
    assert "self.pidfile is not None" in source(Arbiter.reload)
    assert "worker_age" in source(Arbiter.spawn_worker)
    assert "self.START_CTX" in source(Arbiter.reexec)
    assert ".tmp.last_update()" in source(Arbiter.murder_workers)
    assert "self.app.reload()" in source(Arbiter.reload)
    assert "self._task = " in source(GunicornWebWorker.run)


def test_before_the_end(arbiter: Any) -> None:
    seen: list[object] = []
    arbiter.stop = lambda graceful=True: seen.append(graceful)
    gunicorn_private.before_stop(arbiter, lambda: seen.append("first"))
    arbiter.stop(False)
    assert seen == ["first", False]
    assert not arbiter.systemd
    gunicorn_private.keep_socket_paths(arbiter, keep=True)
    assert arbiter.systemd


def test_a_configuration_that_fails_changes_nothing(arbiter: Any) -> None:
    good = arbiter.app.cfg
    errors: list[str] = []

    def fail() -> None:
        arbiter.app.cfg = None
        sys.exit("no such setting")

    arbiter.app.reload = fail
    gunicorn_private.on_wrong_configuration(arbiter, errors.append)
    arbiter.app.reload()
    assert errors == ["no such setting"]
    assert arbiter.app.cfg is good


def test_at_each_look(arbiter: Any) -> None:
    seen: list[str] = []
    waits: list[float] = []

    def wait(timeout: float) -> list[int]:
        waits.append(timeout)
        return [1]

    arbiter.murder_workers = lambda: seen.append("gunicorn's")
    arbiter.wait_for_signals = wait
    gunicorn_private.at_each_look(arbiter, lambda: seen.append("ours"), 2.0)
    arbiter.murder_workers()
    assert seen == ["ours", "gunicorn's"]
    assert arbiter.wait_for_signals(timeout=1.0) == [1]
    assert waits == [2.0]


@pytest.mark.parametrize(("ends", "expected"), [(True, ["term", "hup"]), (False, ["hup"])])
def test_a_hup_may_end_the_service(arbiter: Any, ends: bool, expected: list[str]) -> None:
    seen: list[str] = []
    arbiter.handle_hup = lambda: seen.append("hup")
    arbiter.handle_term = lambda: seen.append("term")
    gunicorn_private.before_hup(arbiter, lambda: ends)
    arbiter.handle_hup()
    assert seen == expected


def test_silent_workers_are_forgiven(arbiter: Any) -> None:
    """On the file by which a worker of gunicorn tells that it lives."""
    cfg = arbiter.cfg
    active, silent = WorkerTmp(cfg), WorkerTmp(cfg)
    try:
        active.notify()
        os.utime(silent._tmp.fileno(), (1, 1))
        arbiter.WORKERS = {1: SimpleNamespace(tmp=active), 2: SimpleNamespace(tmp=silent)}
        now = active.last_update() + 1
        assert gunicorn_private.forgive(arbiter, now, 5.0) == [2]
        assert gunicorn_private.forgive(arbiter, now, 5.0) == []
    finally:
        active.close()
        silent.close()


def test_workers_are_made_younger(arbiter: Any) -> None:
    arbiter.worker_age = 7
    one, two = SimpleNamespace(age=3), SimpleNamespace(age=2)
    arbiter.WORKERS = {1: one, 2: two}
    assert gunicorn_private.age(arbiter) == 7
    assert not gunicorn_private.make_younger(arbiter, 2)
    assert (one.age, two.age) == (3, 2)
    assert gunicorn_private.make_younger(arbiter, 3)
    assert (one.age, two.age, arbiter.worker_age) == (9, 8, 9)


def test_the_pid_file(arbiter: Any, tmp_path: Path) -> None:
    assert not gunicorn_private.has_pid_file(arbiter)
    gunicorn_private.claim_pid_file(arbiter)
    arbiter.pidfile = Pidfile(str(tmp_path / "one"))
    assert gunicorn_private.has_pid_file(arbiter)
    gunicorn_private.claim_pid_file(arbiter)
    assert arbiter.pidfile.pid == os.getpid()
    other = tmp_path / "other"
    other.write_text(f"{os.getpid()}\n")
    gunicorn_private.move_pid_file(arbiter, str(other), os.getpid())
    arbiter.pidfile.unlink()
    assert not other.exists()
    gunicorn_private.forget_pid_file(arbiter)
    assert not gunicorn_private.has_pid_file(arbiter)


def test_a_worker_that_cannot_be_forked_is_missing(arbiter: Any) -> None:
    """No process or no memory is left: the arbiter would end, and the service with it."""
    assert "self.spawn_worker()" in source(Arbiter.spawn_workers)
    assert "self.spawn_worker()" in source(Arbiter.reload)
    errors: list[OSError] = []

    def fails() -> int:
        raise BlockingIOError(errno.EAGAIN, "no process")

    arbiter.pid, arbiter.spawn_worker = os.getpid(), fails
    gunicorn_private.survive_failed_spawn(arbiter, errors.append)
    assert arbiter.spawn_worker() is None
    assert [error.errno for error in errors] == [errno.EAGAIN]
    arbiter.pid = os.getppid()
    with pytest.raises(BlockingIOError):  # in the worker itself
        arbiter.spawn_worker()
    arbiter.spawn_worker = lambda: 7
    gunicorn_private.survive_failed_spawn(arbiter, errors.append)
    assert arbiter.spawn_worker() == 7


def test_a_new_master_that_cannot_be_started_ends_nothing(
    arbiter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[str] = []

    def no_process() -> int:
        raise BlockingIOError(errno.EAGAIN, "no process")

    def ends(code: int) -> None:
        errors.append(f"exit {code}")

    gunicorn_private.survive_failed_successor(arbiter, lambda error: errors.append(str(error)))
    monkeypatch.setattr(os, "fork", no_process)
    monkeypatch.setattr(os, "_exit", ends)
    arbiter.reexec()
    assert errors == ["[Errno 11] no process"]
    assert arbiter.reexec_pid == 0
    monkeypatch.setattr(os, "fork", lambda: 0)
    arbiter.pid = os.getppid()  # in the fork
    arbiter.START_CTX = {"cwd": "/nowhere", "args": []}
    arbiter.reexec()
    assert errors[1:] == ["[Errno 2] No such file or directory: '/nowhere'", "exit 1"]


def test_pid_files_are_written_by_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunicorn.arbiter, "Pidfile", Pidfile)
    written: list[tuple[Path, int]] = []
    gunicorn_private.write_pid_files_by(lambda path, pid: written.append((path, pid)))
    assert "= Pidfile(" in source(Arbiter.start)
    assert "= Pidfile(" in source(Arbiter.reload)
    path = tmp_path / "pid"
    made = gunicorn.arbiter.Pidfile(str(path))
    made.create(os.getpid())
    assert written == [(path, os.getpid())]
    assert made.pid == os.getpid()
    path.write_text(f"{os.getpid()}\n")
    made.create(os.getpid())
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(RuntimeError, match=f"process {os.getppid()} of .* 'make reload'"):
        made.create(os.getpid())
    assert len(written) == 1


def test_what_the_configuration_takes(arbiter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gunicorn_private.signals(arbiter) is arbiter.SIG_QUEUE
    monkeypatch.setattr(sys, "argv", ["gunicorn", "-c", "x"])
    gunicorn_private.start_again_by_module(arbiter)
    assert arbiter.START_CTX["args"] == [sys.executable, "-m", "gunicorn", "-c", "x"]
    arbiter.LISTENERS = [SimpleNamespace(sock="a"), SimpleNamespace(sock="b")]
    listening: list[Any] = list(gunicorn_private.listening_sockets(arbiter))
    assert listening == ["a", "b"]
    assert gunicorn_private.BOOT_ERROR == 3
