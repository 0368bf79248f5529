"""The service as a wheel, in an environment and a directory of its own: no checkout in sight."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

import pytest

from app import __version__
from tests.support.copies import build_wheel
from tests.support.ports import free_port
from tests.support.waiting import until_now

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the installed programs. The requirements are those of this environment."""
    directory = tmp_path_factory.mktemp("installed")
    wheel = build_wheel(directory)
    environment = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install"]
    subprocess.run([*pip, "-qq", "--no-deps", "--no-index", wheel], check=True)  # type: ignore[list-item]
    return environment / "bin"


def ask(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return bytes(answer.read())


def serves(port: int) -> bool:
    try:
        return json.loads(ask(port, "/status"))["status"] == "ok"
    except OSError:
        return False


def test_it_starts_reloads_and_stops_where_it_is_called(programs: Path, tmp_path: Path) -> None:
    """Settings, data and the `.env` that it writes belong to the current directory."""
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "BIND": f"127.0.0.1:{port}",
        "WORKERS": "1",
        "COLLECTOR": "0",
        "DRAIN_SECONDS": "0",
    }
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [programs / "yujian-presence"],
            cwd=tmp_path,
            env=environ,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until_now(lambda: serves(port), "the service answers", 30)
        assert b"<!doctype html>" in ask(port, "/").lower()
        assert "PUBLISH_TOKEN=" in (tmp_path / ".env").read_text()
        assert (tmp_path / "data/gunicorn.pid").read_text().strip() == str(process.pid)
        before = {worker["pid"] for worker in json.loads(ask(port, "/status"))["workers"]}
        done = subprocess.run(
            [programs / "yujian-presence-reload"],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        after = {worker["pid"] for worker in json.loads(ask(port, "/status"))["workers"]}
        assert not before & after
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_it_says_what_it_is_without_starting(programs: Path, tmp_path: Path, option: str) -> None:
    done = subprocess.run(
        [programs / "yujian-presence", option], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    said = __version__ if option == "--version" else "usage: yujian-presence "
    assert done.stdout.startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_one_line(programs: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [programs / "yujian-presence"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "WORKERS": "none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("WORKERS=")
