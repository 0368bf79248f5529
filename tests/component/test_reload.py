"""The parts of `make reload` that need no running service; see tests/integration/test_reload.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from scripts import log_level
from workers.reload import command as reload
from workers.reload import fingerprint
from workers.reload.watch import Failed
from workers.shared import paths


def test_records_of_dead_masters_are_removed(data_dir: Path, root: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    old = paths.fingerprint_file(data_dir, child.pid)
    old.write_text("{}")
    fingerprint.record(root, data_dir, "127.0.0.1:3001")
    assert not old.exists()


def test_a_master_that_is_no_gunicorn_is_not_running(data_dir: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (data_dir / "gunicorn.pid").write_text(str(child.pid))
    with pytest.raises(reload.NotRunning):
        reload.find_master(data_dir)
    child.communicate(b"\n")


@pytest.mark.parametrize("step", ["check_home", "check", "choose", "Watch"])
def test_a_service_that_ends_while_it_is_looked_at_is_not_running(
    step: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def end(*_: object) -> None:
        child.communicate(b"\n")
        os.kill(child.pid, signal.SIGHUP)

    monkeypatch.setattr(reload, "find_master", lambda _: child.pid)
    monkeypatch.setattr(reload, "data_directory", lambda: data_dir)
    for name, answer in {
        "check_home": lambda _: None,
        "check": lambda _: {"workers": 2, "graceful_timeout": 30, "bind": "127.0.0.1:3001"},
        "choose": lambda *_: (signal.SIGHUP, "of a test"),
    }.items():
        monkeypatch.setattr(reload, name, end if name == step else answer)
    if step == "Watch":
        monkeypatch.setattr("workers.reload.watch.Watch.__init__", end)
    assert reload.main([]) == reload.NOT_RUNNING
    assert capsys.readouterr().err.endswith(
        "Not reloaded: the service ended while the reload was prepared\n"
    )


def test_a_wrong_setting_is_reported_in_one_line() -> None:
    with pytest.raises(Failed, match=r"^WORKERS='none'[^\n]*$") as caught:
        reload.check({**os.environ, "WORKERS": "none"})
    assert caught.value.unchanged


COMMANDS = pytest.mark.parametrize(
    ("command", "arguments"), [(reload.main, []), (log_level.main, ["debug"])]
)


@COMMANDS
def test_a_dotenv_that_cannot_be_read_is_said_in_one_line(
    command: Callable[[Sequence[str]], int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(b"PUBLISH_TOKEN=\xff\n")
    assert command(arguments) == reload.FAILED
    assert ".env: cannot be read: " in capsys.readouterr().err


@COMMANDS
def test_another_user_gets_one_line(
    command: Callable[[Sequence[str]], int],
    arguments: list[str],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(f"{data_dir} belongs to another user")

    monkeypatch.setenv("DATA_DIR", str(data_dir))
    monkeypatch.chdir(paths.home())
    for module, name in ((reload, "only_one"), (log_level, "change")):
        monkeypatch.setattr(module, name, refuse)
    for module in (reload, log_level):
        monkeypatch.setattr(module, "find_master", lambda _: os.getpid())
    assert command(arguments) == reload.FAILED
    assert "belongs to another user" in capsys.readouterr().err
