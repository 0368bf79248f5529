"""Processes of a benchmark: starting, measuring and stopping servers and loads."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.ports import free_port
from workers.shared import paths

ROOT = Path(__file__).resolve().parent.parent
TOKEN = secrets.token_hex(16)
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


class BenchmarkError(Exception):
    """Something did not start or did not answer: there is no figure."""


def cpus() -> tuple[set[int], set[int]]:
    """Processors for servers and for everything else; the same where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[0]}, {usable[-1]}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the process has gone
        return b""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads together.

    The clock of another process as clock_getcpuclockid(3) makes it: /proc/<pid>/stat counts the
    same in steps of 10 ms.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _memory(pid: int, names: Collection[bytes]) -> int:
    """Sum of fields of /proc/<pid>/smaps_rollup, in bytes."""
    lines = (line.split() for line in _read(f"/proc/{pid}/smaps_rollup").splitlines())
    return sum(int(fields[1]) * 1024 for fields in lines if fields[0] in names)


def _stat(pid: int) -> tuple[str, int]:
    """State and parent of a process."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
    return (fields[0].decode(), int(fields[1])) if fields else ("X", 0)


class Server:
    """A server under test: all its processes, wherever they hang in the tree.

    Args:
        argv: its command line; `{port}` is replaced.
        env: what its environment has beside PATH and HOME; `{port}` and `{dir}` are replaced.
        pinned: whether it runs on the servers' processor only.
        root: directory in which it is started.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], *, pinned: bool = True, root: Path = ROOT
    ) -> None:
        self.port = free_port()
        self.directory = tempfile.mkdtemp(prefix="yujian-bench-")
        names = {"port": str(self.port), "dir": self.directory}
        self._argv = [part.format_map(names) for part in argv]
        self._env = {name: value.format_map(names) for name, value in env.items()}
        self._pinned = pinned
        self._root = root
        self._known: dict[int, float] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path(self.directory, "bench.log")

    def start(self) -> None:
        """Start the server and wait until it has answered one request."""
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        wanted = cpus()[0] if self._pinned else os.sched_getaffinity(0) | cpus()[0]
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, wanted)  # a child inherits it
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._argv,
                    cwd=self._root,
                    env=environ | self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            os.sched_setaffinity(0, mine)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.answers():
                return
            time.sleep(0.05)
        raise BenchmarkError(f"{' '.join(self._argv)} does not answer:\n{self.log()}")

    def answers(self) -> bool:
        """Whether it serves requests."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/status")[0] == 200
        return False

    def get(self, path: str, timeout: float = 5) -> tuple[int, Any]:
        """GET a JSON page of the server; returns status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")

    def log(self) -> str:
        """The end of what the server wrote."""
        return self.full_log()[-3000:]

    def full_log(self) -> str:
        """All that the server wrote."""
        return _read(str(self._log)).decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started: the master, where there is one."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def pids(self) -> list[int]:
        """All processes of the server: descendants, and those that work in its directory.

        The private Valkey has a session of its own and may have no parent among these.
        """
        parents = {}
        for name in (entry.name for entry in Path("/proc").iterdir()):
            if name.isdigit():
                state, parent = _stat(int(name))
                if state not in "XZ":
                    parents[int(name)] = parent
        mine = {self._process.pid} if self._process else set()
        directory = self.directory.encode()
        mine |= {pid for pid in parents if self._works_here(pid, directory)}
        grown = True
        while grown:
            children = {pid for pid, parent in parents.items() if parent in mine} - mine
            grown = bool(children)
            mine |= children
        found = sorted(pid for pid in mine if pid in parents)
        for pid in found:
            self._known.setdefault(pid, 0.0)
        return found

    @staticmethod
    def _works_here(pid: int, directory: bytes) -> bool:
        if directory in _read(f"/proc/{pid}/environ") or directory in _read(f"/proc/{pid}/cmdline"):
            return True
        try:
            return directory in bytes(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:
            return False

    def find(self, word: str) -> list[int]:
        """Processes of the server whose command line contains `word`."""
        wanted = word.encode()
        return [pid for pid in self.pids() if wanted in _read(f"/proc/{pid}/cmdline")]

    def cpu(self) -> float:
        """CPU seconds used so far by all processes of the server, gone ones included."""
        return sum(self.cpu_by_process().values())

    def cpu_by_process(self) -> dict[int, float]:
        """The same of each process."""
        for pid in self.pids():
            self._known[pid] = max(self._known[pid], cpu_seconds(pid))
        return dict(self._known)

    def pss(self) -> int:
        """Proportional set size of all processes of the server, in bytes."""
        return sum(_memory(pid, [b"Pss:"]) for pid in self.pids())

    def own_pss(self) -> int:
        """The same without mapped files.

        The share of a library's pages changes with what else runs on the machine, by megabytes.
        """
        return sum(_memory(pid, [b"Pss_Anon:", b"Pss_Shmem:"]) for pid in self.pids())

    def stop(self) -> None:
        """Stop the server; what is left after 15 s is killed."""
        if self._process is not None:
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            deadline = time.monotonic() + 15
            while (pids := self.pids()) and time.monotonic() < deadline:
                self._process.poll()
                time.sleep(0.05)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        data_dir = Path(self.directory)
        paths.slots_file(data_dir).unlink(missing_ok=True)
        for left in (paths.metrics_dir(data_dir), paths.runtime_dir(data_dir), data_dir):
            shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


_GIVES_WAY = 10
"""The nice value of processes that have a ninth of a processor where others want it."""
# Long heartbeats: loads answer no pings, and none should fall into a measurement. All clients of a
# scenario that lasts longer would be closed at once.
_HEARTBEAT = {"HEARTBEAT_INTERVAL": "3600", "HEARTBEAT_TIMEOUT": "7200"}


def service(workers: int = 1, *, pinned: bool = True, root: Path = ROOT, **settings: str) -> Server:
    """This repository, or another checkout of it, under its own gunicorn.conf.py."""
    env = {
        "BIND": "127.0.0.1:{port}",
        "WORKERS": str(workers),
        "DATA_DIR": "{dir}",
        "PUBLISH_TOKEN": TOKEN,
        "COLLECTOR": "0",
        "MAX_TOTAL_CONNECTIONS": "20000",
        **_HEARTBEAT,
        **settings,
    }
    argv = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]
    return Server(argv, env, pinned=pinned, root=root)


def peer(name: str) -> Server:
    """A server of benchmarks/peers."""
    argv = [sys.executable, "-m", f"benchmarks.peers.{name}", "--port", "{port}"]
    return Server(argv, {"BENCH_DIR": "{dir}", **_HEARTBEAT})


def stock_under_gunicorn() -> Server:
    """python-socketio as it comes, in the way its documentation deploys it: it can be reloaded."""
    argv = [sys.executable, "-m", "gunicorn", "-k", "aiohttp.GunicornUVLoopWebWorker"]
    argv += ["-b", "127.0.0.1:{port}", "--graceful-timeout", "5", "--no-control-socket"]
    argv += ["benchmarks.peers.stock:application"]
    return Server(argv, {"BENCH_DIR": "{dir}", **_HEARTBEAT}, pinned=False)


class LoadProcess:
    """A process with clients, on the loads' processor: it gets lines and answers them.

    Args:
        argv: its command line.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus()[1])  # a child inherits it
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, mine)

    def give_way(self) -> None:
        """Run only while the service and its other clients leave a processor idle.

        For clients that would be on machines of their own: what is measured beside them is not to
        wait for them.
        """
        pid = self._process.pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), _GIVES_WAY)
        # Where the kernel groups processes by session, it compares the groups.
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(str(_GIVES_WAY), "ascii")

    def send(self, line: str) -> None:
        """Begin a command; `result` must be called before the next one."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `result` says so
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def result(self, limit: float | None = None) -> dict[str, Any]:
        """The answer to the command that was begun.

        Raises:
            BenchmarkError: it failed, or there is no answer within `limit` seconds.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise BenchmarkError(f"load: no answer within {limit} s")
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the load has ended"}
        if "error" in answer:
            raise BenchmarkError(f"load: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class LoadClient(LoadProcess):
    """A process with clients, and its commands.

    Args:
        options: of `benchmarks.load`.
        module: `load` or `fleet`, which have the commands.
    """

    def __init__(self, *options: str, module: str = "load") -> None:
        super().__init__([sys.executable, "-m", f"benchmarks.{module}", *options])

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def __call__(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a command and wait for its answer."""
        self.begin(command, **arguments)
        return self.result()

    def begin(self, command: str, **arguments: Any) -> None:
        """Start a command; `result` must be called before the next one."""
        self.send(json.dumps({"do": command, **arguments}))
