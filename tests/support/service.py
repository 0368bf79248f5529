"""Starts the real service and looks at it from outside, as an operator would.

Nothing of the service runs in here, only its names of files are shared: processes are found
through /proc, answers through HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import aiohttp
import psutil

from tests.support import REPO, programs
from tests.support.ports import free_port
from tests.support.waiting import until, until_now
from workers.shared import paths
from workers.shared.processes import children

TOKEN = "integration-token"

MARK = "YUJIAN_TEST_ID"


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read to its end; `body` is parsed when it is JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Service:
    """`gunicorn -c gunicorn.conf.py` with its own port and data directory.

    Args:
        data_dir: kept after the end when given; otherwise a temporary one.
        allow_traceback: whether a traceback in the log is part of the test.
        open_files: limit of descriptors of each process; 0: that of the tests.
        port: to listen on, such as that of a service that has stopped; 0: a free one.
        settings: environment settings by name, on top of quiet defaults: two workers,
            no collector, no rate limit and test handlers.
    """

    running: ClassVar[list[Service]] = []
    root: Path = REPO
    """Where its code is."""

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        allow_traceback: bool = False,
        open_files: int = 0,
        port: int = 0,
        **settings: Any,
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="yj-"))
        self.data_dir = data_dir or self.home / "data"
        self.absent = self.home / "absent"
        self.absent.mkdir()
        self.allow_traceback = allow_traceback
        self.open_files = open_files
        self.port = port or free_port()
        self.settings: dict[str, str] = {
            "BIND": f"127.0.0.1:{self.port}",
            "WORKERS": "2",
            "COLLECTOR": "0",
            "RATE_LIMIT": "0",
            "PUBLISH_TOKEN": TOKEN,
            "HANDLERS": "tests.support.handlers",
            "DRAIN_SECONDS": "5",
            "DATA_DIR": str(self.data_dir),
        }
        self.settings |= {name: str(value) for name, value in settings.items()}
        self.log_path = self.home / "service.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.mark = uuid.uuid4().hex

    # Life cycle

    @property
    def base(self) -> str:
        """Address of the service for HTTP clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def workers(self) -> int:
        """Workers that the service is set to run."""
        return int(self.settings["WORKERS"])

    @property
    def log(self) -> str:
        """All that the service has said so far."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_text(errors="replace")

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its processes, by which they are found."""
        return dict(os.environ) | self.quick | self.settings | {MARK: self.mark}

    @property
    def quick(self) -> dict[str, str]:
        """Variables with which its processes import what they do in production."""
        return quick(self.absent)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the processes and do not wait for anything."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(
                        [programs.find("prlimit"), f"--nofile={self.open_files}"]
                        if self.open_files
                        else []
                    ),
                    *(sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"),
                ],
                cwd=self.root,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        Service.running.append(self)
        return self.process

    def start(self) -> Self:
        """Start, and return when every worker serves."""
        process = self.spawn()
        try:
            until_now(lambda: process.poll() is not None or self.is_ready(), "service ready", 45)
            assert process.poll() is None, f"the service ended at start:\n{self.log[-4000:]}"
        except BaseException:
            self.destroy()
            raise
        return self

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """Stop gracefully, then assert that it was clean and left nothing."""
        process = self.process
        assert process is not None
        try:
            if process.poll() is None:
                process.send_signal(signum)
            code = process.wait(60)
            self.assert_nothing_left()
            assert code == 0, f"the service exited with {code}:\n{self.log[-4000:]}"
            if not self.allow_traceback:
                assert "Traceback (most recent call last)" not in self.log, self.log[-8000:]
        finally:
            self.destroy()

    def assert_nothing_left(self) -> None:
        """Wait for every process of this service to be gone, Valkey included."""
        until_now(lambda: not self.processes(), f"processes gone: {self.processes()}")

    def destroy(self) -> None:
        """Kill what is left and remove what was written, however it came to that."""
        if self.process is not None:
            self.process.kill()  # first, so that it starts no worker anew
            self.process.wait()
            if self in Service.running:
                Service.running.remove(self)
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        for shared in (paths.slots_file(self.data_dir), paths.metrics_dir(self.data_dir)):
            shutil.rmtree(shared, ignore_errors=True)
            with contextlib.suppress(OSError):
                shared.unlink()
        shutil.rmtree(self.home, ignore_errors=True)

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            await asyncio.to_thread(self.stop)
            return
        error.add_note(f"service log:\n{self.log[-6000:]}")
        await asyncio.to_thread(self.destroy)

    def is_ready(self) -> bool:
        """Whether as many workers serve as the settings ask for."""
        # The answer first: as long as nothing listens, it costs less than a look at the processes.
        answering = self._answering()
        if len(answering) < self.workers:
            return False
        # One look at the processes: the child that checks the settings comes and goes.
        pids = set(self.worker_pids())
        return len(pids) >= self.workers and pids <= answering

    def is_idle(self) -> bool:
        """Whether just the workers that its settings ask for serve, and no connection is open."""
        pids = set(self.worker_pids())
        status = self._status()
        return (
            status is not None
            and len(pids) == self.workers
            and pids == self._ready(status)
            and status["connections"] == 0
        )

    def _answering(self) -> set[int]:
        """Workers that listen and serve: those whose row the service shows as ready."""
        status = self._status()
        return set() if status is None else self._ready(status)

    def _ready(self, status: Mapping[str, Any]) -> set[int]:
        """Workers that a body of `GET /status` shows as ready."""
        if all("pid" in row for row in status["workers"]):
            return ready_workers(status)
        ready = sum(row["state"] == "ready" for row in status["workers"])
        return set(self.worker_pids()) if ready >= self.workers else set()

    def _status(self) -> Mapping[str, Any] | None:
        """The body of `GET /status`; None unless it is answered with 200."""
        connection = None
        try:
            connection = socket.create_connection(("127.0.0.1", self.port), 1)
            connection.settimeout(5)
            connection.sendall(
                b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"X-Publish-Token: %b\r\n\r\n" % self.settings["PUBLISH_TOKEN"].encode()
            )
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        except OSError:
            return None
        finally:
            if connection is not None:
                connection.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            return None
        status: Mapping[str, Any] = json.loads(body)
        return status

    # Processes

    def processes(self) -> list[psutil.Process]:
        """Every live process of this service: master, workers, Valkey."""
        mark = f"{MARK}={self.mark}".encode()
        valkeys = self._valkey_candidates()
        found = []
        for pid in psutil.pids():
            # Without psutil, which would look at each process of the machine several times.
            with contextlib.suppress(OSError, psutil.Error):
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                if pid in valkeys or mark in environ.split(b"\0"):
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def worker_pids(self) -> list[int]:
        """Live children of the master, Valkey excepted."""
        assert self.process is not None
        # Without psutil, which would look at each process of the machine.
        return [pid for pid in sorted(children(self.process.pid)) if _is_worker(pid)]

    def _valkey_candidates(self) -> set[int]:
        pids = set()
        for path in self.data_dir.glob("valkey/*.pid"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                pid = int(path.read_text())
                if "valkey" in psutil.Process(pid).name():
                    pids.add(pid)
        return pids

    def valkey_pid(self) -> int:
        """Process id of the private Valkey, once it runs."""
        found = until_now(self._valkey_candidates, "a running Valkey with a pid file")
        assert len(found) == 1, f"several Valkeys: {found}"
        return found.pop()

    def valkey_socket(self) -> str:
        """Path of the Unix socket that the private Valkey listens on."""
        for connection in psutil.Process(self.valkey_pid()).net_connections("unix"):
            if connection.laddr:
                return str(connection.laddr)
        raise AssertionError("the private Valkey listens on no Unix socket")

    def holders(self) -> dict[int, int]:
        """The worker that holds each connection, by the client's port of the loopback."""
        ports: dict[str, int] = {}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *_, inode = line.split()[:10]
            if int(local.rpartition(":")[2], 16) == self.port:
                ports[f"socket:[{inode}]"] = int(remote.rpartition(":")[2], 16)
        found: dict[int, int] = {}
        for pid in self.worker_pids():
            with contextlib.suppress(OSError):
                for file in list(Path(f"/proc/{pid}/fd").iterdir()):
                    with contextlib.suppress(OSError):
                        # 0: what it listens on.
                        if port := ports.get(os.readlink(file), 0):
                            found.setdefault(port, pid)
        return found

    def worker_of(self, client_port: int) -> int:
        """The worker that holds the connection from this port of the loopback."""
        pid = self.holders().get(client_port)
        assert pid is not None, f"no worker holds a connection from port {client_port}"
        return pid

    def kill_worker(self, pid: int | None = None) -> int:
        """Kill -9 one worker, and return its process id."""
        victim = pid or self.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        return victim

    async def replaced(self, victim: int) -> None:
        """Wait until a worker that ended has a successor that serves."""

        def again() -> bool:
            return victim not in self.worker_pids() and self.is_ready()

        await until(lambda: asyncio.to_thread(again), "a new worker serves", 45)

    def kill_valkey(self) -> int:
        """Kill -9 the private Valkey, and return its process id."""
        victim = self.valkey_pid()
        os.kill(victim, signal.SIGKILL)
        return victim

    async def hup(self) -> None:
        """Reload, and wait until only new workers run and serve."""
        assert self.process is not None
        old = set(self.worker_pids())
        self.process.send_signal(signal.SIGHUP)

        def done() -> bool:
            now = set(self.worker_pids())
            return not (now & old) and len(now) == self.workers and self.is_ready()

        await until(lambda: asyncio.to_thread(done), "old workers gone, new ones serve", 60)

    # HTTP

    async def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        """One call on a connection of its own, so that any worker may get it."""
        head = dict(headers or {})
        if token is not None:
            head["Authorization"] = f"Bearer {token}"
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
            session.request(method, self.base + path, headers=head, **options) as response,
        ):
            text = await response.text()
            kind = response.headers.get("Content-Type", "")
            body = json.loads(text) if "json" in kind else text
            return Answer(response.status, response.headers, body)

    async def get(self, path: str, **params: str | int) -> Answer:
        """GET, with `params` as the query."""
        return await self.request("GET", path, params=params)

    async def post(self, path: str, body: object, token: str | None = TOKEN) -> Answer:
        """POST of a JSON body with the service's token."""
        return await self.request("POST", path, json=body, token=token)

    async def publish(
        self, type: str = "status", event: str = "tick", data: object = None, **more: object
    ) -> dict[str, Any]:
        """Publish one message, and return what the service says of it."""
        body = {"type": type, "event": event, "data": {} if data is None else data, **more}
        answer = await self.post("/ws/broadcast", body)
        assert answer.status == 200, answer
        assert isinstance(answer.body, dict), answer
        return answer.body

    async def publish_all(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Publish an array, and return what the service says of each."""
        answer = await self.post("/ws/broadcast", list(messages))
        assert answer.status == 200, answer
        assert isinstance(answer.body, list), answer
        return answer.body

    async def history(self, type: str, **params: str | int) -> list[dict[str, Any]]:
        """Newest messages of a type, newest last."""
        answer = await self.get("/history", type=type, **params)
        assert answer.status == 200, answer
        messages: list[dict[str, Any]] = answer.body["messages"]
        return messages

    async def full_history(self, type: str) -> list[dict[str, Any]]:
        """All that the history still holds of a type, page by page, newest last."""
        messages = await self.history(type, limit=100)
        while messages:
            page = await self.history(type, limit=100, before=messages[0]["seq"])
            if not page:
                break
            messages = page + messages
        return messages

    async def total_connections(self) -> int:
        """Connections of all workers, as /ws/stats says."""
        answer = await self.get("/ws/stats")
        assert answer.status == 200, answer
        total: int = answer.body["totalConnections"]
        return total

    async def wait_connections(self, count: int) -> None:
        """Wait until the service counts exactly so many connections."""

        async def reached() -> bool:
            return await self.total_connections() == count

        await until(reached, f"{count} connections in /ws/stats")


def _is_worker(pid: int) -> bool:
    """Whether a child of a master lives, and is no Valkey."""
    try:
        name, _, figures = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    return "valkey" not in name and figures.split()[0] != "Z"


def quick(absent: Path) -> dict[str, str]:
    """Variables with which a service imports what it does in production, and reads no more files.

    requests is there for a tool of the tests, and python-socketio imports it where it is; with the
    authorities that aiohttp reads it takes a quarter of a start. What a test trusts it names itself.

    Args:
        absent: an empty directory, which gets what hides requests.
    """
    (absent / "requests.py").write_text("raise ImportError\n")
    path = f"{absent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return {"SSL_CERT_FILE": os.devnull, "PYTHONPATH": path}


def ready_workers(status: Mapping[str, Any]) -> set[int]:
    """Process ids of the workers that `GET /status` shows as ready."""
    return {row["pid"] for row in status["workers"] if row["state"] == "ready"}
