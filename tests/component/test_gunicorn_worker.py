"""Real gunicorn, workers and Valkey round an application that can be broken on purpose."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.copies import SERVICE, Copy
from tests.support.ports import free_port
from tests.support.service import quick
from tests.support.waiting import until_now
from workers.gunicorn_worker import _note_failure, _pause_after
from workers.leader import valkey
from workers.shared import paths
from workers.shared.processes import start_time

pytestmark = pytest.mark.no_cover  # a copy of the code runs, whose lines do not count

REPO = Path(__file__).parents[2]

ADDED = """

import gc
import os

from aiohttp import web

_really_reach, _really_make = reach_backplane, make_application
_urls = []


async def reach_backplane(settings, url, worker_name, replica=None):
    if os.path.exists("broken"):
        raise ValueError("broken on purpose")
    if os.path.exists("slow"):
        await asyncio.sleep(3600)
    _urls.append(url)
    return await _really_reach(settings, url, worker_name, replica)


def make_application(worker, machine):
    slots = worker.parts.slots
    cap = worker.parts.settings.max_total_connections

    async def status(request):
        rows = {row.pid: [row.state, row.connections] for row in slots.rows()}
        return web.json_response(
            {"rows": rows, "cap": cap, "url": _urls[0], "collects": gc.isenabled()}
        )

    application = _really_make(worker, machine)
    application.router.add_get("/", status)
    slots.reserve_connection()
    return application
"""


class Service(Copy):
    """gunicorn with a copy of `workers`, in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data_dir = home / "data"
        self.root = home
        self.fill(SERVICE)
        with (home / "app" / "main.py").open("a") as main:
            main.write(ADDED)
        self.port = free_port()
        (absent := home / "absent").mkdir()
        self.environ = {
            **os.environ,
            **quick(absent),
            "BIND": f"127.0.0.1:{self.port}",
            "WORKERS": "2",
            "DATA_DIR": str(self.data_dir),
            "COLLECTOR": "0",
            "PAGE": "0",
            "DRAIN_SECONDS": "1",
            "GRACEFUL_TIMEOUT": "3",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", *arguments],
                cwd=self.home,
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    @property
    def master(self) -> int:
        """Pid of the master; 0 while one hands over to another."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.data_dir / "gunicorn.pid").read_text())
        return 0

    def ask(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except OSError:
            return {"rows": {}}
        finally:
            connection.close()
        return answer

    def ready(self, count: int = 2) -> set[int]:
        """Pids of the workers, once they are `count` and all of them are ready."""
        rows: dict[str, list[Any]] = {}

        def all_ready() -> bool:
            rows.clear()
            rows.update(self.ask()["rows"])
            return len(rows) == count and all(row == ["ready", 1] for row in rows.values())

        self.until(all_ready)
        return {int(pid) for pid in rows}

    def valkey(self) -> int:
        """Pid of the private Valkey, once it runs."""
        self.until(lambda: valkey.find(self.data_dir))
        pid = valkey.find(self.data_dir)
        assert pid
        return pid

    def until(self, condition: Callable[[], object], seconds: float = 45) -> None:
        try:
            until_now(condition, timeout=seconds)
        except AssertionError as error:
            error.add_note(self.log[-4000:])
            raise

    def stopped(self, code: int = 0) -> None:
        """Wait for the end, and look for anything left of it."""
        assert self.process
        assert self.process.wait(20) == code, self.log
        assert valkey.find(self.data_dir) is None
        assert not paths.slots_file(self.data_dir).exists()
        assert not paths.metrics_dir(self.data_dir).exists()

    def destroy(self) -> None:
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            if self.master:
                os.kill(self.master, signal.SIGKILL)
        self.process.wait()
        valkey.stop(self.data_dir)
        paths.slots_file(self.data_dir).unlink(missing_ok=True)
        shutil.rmtree(paths.metrics_dir(self.data_dir), ignore_errors=True)
        shutil.rmtree(paths.runtime_dir(self.data_dir), ignore_errors=True)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.destroy()


def test_start_crashes_reload_and_ctrl_c(service: Service) -> None:
    process = service.start()
    first = service.ready()
    asked = service.ask()
    assert asked["url"] == f"unix://{paths.valkey_place(service.data_dir).socket}"
    assert asked["collects"]  # it did not while it started
    server = service.valkey()

    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    service.until(lambda: str(victim) not in service.ask()["rows"])
    second = service.ready()
    assert len(first & second) == 1

    (service.home / ".env").write_text("MAX_TOTAL_CONNECTIONS=77\n")
    process.send_signal(signal.SIGHUP)
    service.until(lambda: service.ask().get("cap") == 77)
    third = service.ready()
    assert not third & second
    assert valkey.find(service.data_dir) == server

    os.killpg(process.pid, signal.SIGINT)
    service.stopped()
    assert "Traceback" not in service.log
    errors = [line for line in service.log.splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert "was sent SIGKILL" in errors[0]


def test_reload_that_cannot_start_changes_nothing(service: Service) -> None:
    process = service.start()
    before = service.ready()
    (service.home / "broken").touch()
    process.send_signal(signal.SIGHUP)
    service.until(lambda: service.log.count("exited with code 1") >= 2)

    def serving() -> set[int]:
        """Without those that the master starts one after the other, and that end."""
        return {int(pid) for pid, row in service.ask()["rows"].items() if row == ["ready", 1]}

    service.until(lambda: serving() == before)
    assert process.poll() is None
    (service.home / "broken").unlink()
    process.send_signal(signal.SIGHUP)
    service.until(lambda: not before & {int(pid) for pid in service.ask()["rows"]})
    assert not service.ready() & before


def test_a_stop_that_comes_while_workers_still_leave_for_dead_successors(service: Service) -> None:
    """Its TERM looks like the one of the reload that comes again until the master has noticed."""
    service.environ["GRACEFUL_TIMEOUT"] = "100"
    process = service.start()
    before = service.ready()
    (service.home / "slow").touch()
    process.send_signal(signal.SIGHUP)

    new: set[int] = set()

    def started() -> bool:
        rows = {int(pid): row[0] for pid, row in service.ask()["rows"].items()}
        new.update(rows.keys() - before)
        return len(new) == 2 and all(rows.get(pid) == "leaving" for pid in before)

    service.until(started)
    for pid in before:
        os.kill(pid, signal.SIGSTOP)  # as on a machine that is busy
    for pid in new:
        os.kill(pid, signal.SIGKILL)
    service.until(lambda: service.log.count("was sent SIGKILL") == 2)
    process.terminate()
    service.until(lambda: all(has_pending_term(pid) for pid in before))
    for pid in before:
        os.kill(pid, signal.SIGCONT)
    service.stopped()  # at once: the time that a worker has is longer than this waits
    assert service.log.count("was sent SIGKILL") == 2
    assert "Traceback" not in service.log


def has_pending_term(pid: int) -> bool:
    """Whether a stopped process has got TERM."""
    (pending,) = (
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("ShdPnd:")
    )
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def test_wrong_settings_keep_the_last_good_ones(service: Service) -> None:
    (service.home / ".env").write_text("MAX_TOTAL_CONNECTIONS=77\n")
    process = service.start()
    before = service.ready()
    (service.home / ".env").write_text("MAX_TOTAL_CONNECTIONS=many\n")
    process.send_signal(signal.SIGHUP)
    service.until(lambda: not before & {int(pid) for pid in service.ask()["rows"]})
    service.ready()
    assert service.ask()["cap"] == 77
    complaint = [line for line in service.log.splitlines() if "settings stay" in line]
    assert len(complaint) == 1
    assert "MAX_TOTAL_CONNECTIONS='many'" in complaint[0]


def test_new_master_takes_over(service: Service) -> None:
    process = service.start()
    before = service.ready()
    server = service.valkey()
    os.kill(service.master, signal.SIGUSR2)
    assert service.ready(4) >= before
    process.terminate()
    assert process.wait(10) == 0
    after = service.ready()
    assert not after & before
    assert valkey.find(service.data_dir) == server
    service.until(lambda: service.master not in (0, process.pid))
    os.kill(service.master, signal.SIGTERM)
    service.until(lambda: valkey.find(service.data_dir) is None)
    assert "Traceback" not in service.log


def test_killed_master_leaves_nothing(service: Service) -> None:
    process = service.start()
    workers = service.ready()
    process.kill()
    process.wait()
    service.until(lambda: not any(map(start_time, workers)))
    service.until(lambda: valkey.find(service.data_dir) is None)
    service.start()
    assert not service.ready() & workers


def test_workers_that_fail_over_and_over_are_started_ever_more_rarely(tmp_path: Path) -> None:
    """As when the code of a running service was deleted, and one of its workers dies."""
    paths.failure_file(tmp_path).parent.mkdir()
    error = ValueError("gone")
    counts = [_note_failure(tmp_path, error) for _ in range(12)]
    assert counts == list(range(12))
    pauses = [_pause_after(count) for count in counts]
    assert pauses[:5] == [1.0] * 5
    assert pauses[5:9] == [2.0, 4.0, 8.0, 16.0]
    assert max(pauses) == 16.0
    assert _note_failure(tmp_path, ValueError("another reason")) == 0
    note = json.loads(paths.failure_file(tmp_path).read_bytes())
    note["at"] -= 60  # long ago
    paths.failure_file(tmp_path).write_text(json.dumps(note))
    assert _note_failure(tmp_path, ValueError("another reason")) == 0
    paths.failure_file(tmp_path).write_text('{"pid": 1, "at": 1, "reason": "of an older version"}')
    assert _note_failure(tmp_path, error) == 0


def test_a_service_whose_code_was_deleted_leaves_nothing_behind(service: Service) -> None:
    process = service.start()
    service.ready()
    service.valkey()
    shutil.rmtree(service.home / "app")
    shutil.rmtree(service.home / "workers")
    (service.home / "gunicorn.conf.py").unlink()
    process.terminate()
    service.stopped()
    assert "Traceback" not in service.log
    assert service.log.count("without the code of the service") == 1


def test_start_that_fails_ends_the_service(service: Service) -> None:
    (service.home / "broken").touch()
    service.start()
    service.stopped(3)
    assert "ValueError: broken on purpose" in service.log


def test_wrong_setting_ends_the_start_with_one_line(service: Service) -> None:
    service.environ["WORKERS"] = "some"
    service.start()
    service.stopped(1)
    (line,) = service.log.splitlines()
    assert line.startswith("WORKERS='some'")


def test_tls_is_refused_with_one_line(service: Service) -> None:
    for name in ("cert", "key"):
        (service.home / name).touch()
    process = service.start("--certfile", "cert", "--keyfile", "key")
    assert process.wait(20) == 1
    assert "TLS in the worker is not supported" in service.log.splitlines()[-1]


def test_ctrl_c_while_a_worker_starts(service: Service) -> None:
    (service.home / "slow").touch()
    service.environ["GRACEFUL_TIMEOUT"] = "100"
    process = service.start()
    service.until(lambda: "Valkey started" in service.log)
    os.killpg(process.pid, signal.SIGINT)
    service.stopped()  # at once: the time that a worker has is longer than this waits
    assert "Traceback" not in service.log


def test_terminated_while_a_worker_starts(service: Service) -> None:
    (service.home / "slow").touch()
    service.environ["GRACEFUL_TIMEOUT"] = "100"
    process = service.start()
    service.until(lambda: "Valkey started" in service.log)
    process.terminate()
    service.stopped()
