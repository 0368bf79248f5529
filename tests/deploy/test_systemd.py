"""The systemd units, and the reload that notifies systemd of the master's pid."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from app import config
from scripts import release
from tests.support import REPO
from tests.support.copies import Installed
from tests.support.ports import free_port
from tests.support.waiting import until_now
from workers.reload import watch
from workers.reload.command import _CHECK_SECONDS

UNITS = REPO / "deploy/systemd"
SERVICE = str(UNITS / "yujian-presence.service")

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.needs("systemd-analyze", "systemd-notify"),
]


def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program is not None
    for name in sorted(path.name for path in UNITS.glob("yujian-*")):
        text = (UNITS / name).read_text()
        # What is installed there on a real host.
        for command in (
            ".venv/bin/python",
            "deploy/systemd/reload.sh",
            "scripts/start-containers.sh",
        ):
            text = text.replace(f"/opt/yujian-presence/{command}", program)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *tmp_path.iterdir()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "yujian-" not in done.stderr, done.stderr


def test_the_unit_is_hardened() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", SERVICE],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-400:]


def test_a_reload_has_the_time_that_it_may_take() -> None:
    """The manager takes the limit of a start, and no longer learns of a new master past it."""
    minutes = re.search(r"^TimeoutStartSec=(\d+)min$", Path(SERVICE).read_text(), re.MULTILINE)
    assert minutes is not None
    checks = 3 * _CHECK_SECONDS
    change = watch.START_SECONDS + config.load({}, None).graceful_timeout + 2 * watch.EXIT_SECONDS
    assert 60 * int(minutes[1]) > checks + change


def test_a_way_back_has_what_the_units_run() -> None:
    units = [*UNITS.iterdir(), *(REPO / "monitoring/systemd").iterdir()]
    run = {
        part
        for unit in units
        for line in re.findall(r"^Exec\w+=(.+)$", unit.read_text(), re.MULTILINE)
        for part in re.findall(r"/opt/yujian-presence/([^/ ]+)", line)
    }
    assert {"deploy", "monitoring", "scripts", "caddy"} <= run
    assert run - {".venv"} <= {*release.RELEASE, *release.CONFIGURATION}


class Manager:
    """Stands for systemd: notes its notifications, and lets processes that wait for them go on."""

    def __init__(self, path: Path) -> None:
        self.got: list[str] = []
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.bind(str(path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._inbox, 4096, 8)
            for descriptor in descriptors:
                os.close(descriptor)  # the barrier of systemd-notify
            if data == b"end":
                return
            self.got += data.decode().split("\n")

    def close(self) -> None:
        """End the thread."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", self._inbox.getsockname())
        self._thread.join()
        self._inbox.close()


LISTENING = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"])
"""


@pytest.mark.parametrize("activated", [False, True], ids=["service", "service and socket"])
def test_a_reload_as_the_unit_does_it(activated: bool) -> None:
    """READY=1, a change of the master itself, and MAINPID of the one that serves then."""
    service = Installed(allow_traceback=True)
    shutil.copytree(UNITS, service.root / "deploy/systemd")
    manager = Manager(service.home / "notify")
    environ = service.environ | {"NOTIFY_SOCKET": str(service.home / "notify")}
    listener = socket.create_server(("127.0.0.1", service.port if activated else 0))
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]
    more = {}
    if activated:
        command = [sys.executable, "-c", LISTENING, str(listener.fileno())]
        # Where systemd listens counts, not BIND.
        more = {"LISTEN_FDS": "1", "BIND": f"127.0.0.1:{free_port()}"}
    try:
        with service.log_path.open("ab") as log:
            service.process = subprocess.Popen(
                command,
                cwd=service.root,
                env=environ | more,
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
            )
        until_now(lambda: "READY=1" in manager.got, "READY=1")
        until_now(service.is_ready, "service ready")
        before = service.worker_pids()
        service.change("workers/master.py", '"""What a gunicorn', '"""What any gunicorn')
        done = subprocess.run(
            [service.root / "deploy/systemd/reload.sh"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr + service.log
        pid = next(int(line[8:]) for line in manager.got if line.startswith("MAINPID="))
        assert (pid == service.process.pid) is activated
        master = psutil.Process(pid)
        assert "gunicorn" in " ".join(master.cmdline())
        workers = {child.pid for child in master.children() if "valkey" not in child.name()}
        assert workers
        assert not workers & set(before)
        report = json.loads((service.data_dir / "reload.json").read_text())
        assert report["signal"] == ("SIGHUP" if activated else "SIGUSR2")
        master.terminate()
        service.process.wait(30)
        service.assert_nothing_left()
    finally:
        manager.close()
        listener.close()
        service.destroy()
