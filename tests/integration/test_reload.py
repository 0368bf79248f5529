"""`make reload` on a copy of the code that changes: what it chooses, does and says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.support.copies import CopiedService
from tests.support.plain import PlainClient
from tests.support.waiting import until
from workers.shared import paths
from workers.shared.processes import start_time

pytestmark = pytest.mark.timeout(120)

CLIENTS = 20


class Reloaded(CopiedService):
    """A service that its own `make reload` reloads."""

    def __init__(self) -> None:
        super().__init__(allow_traceback=True, DRAIN_SECONDS=1, GRACEFUL_TIMEOUT=30)
        self.clients: list[PlainClient] = []

    @property
    def master(self) -> int:
        """Pid of the master; 0 while one hands over to another."""
        try:
            return int((self.data_dir / "gunicorn.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def workers_now(self) -> set[int]:
        """Workers of the present master."""
        children = psutil.Process(self.master).children()
        return {child.pid for child in children if "valkey" not in child.name()}

    def begin_reload(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "workers.reload", "--json", *arguments],
            cwd=self.root,
            env=dict(os.environ) | {"DATA_DIR": str(self.data_dir)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def reload(self, *arguments: str) -> dict[str, Any]:
        """The report, with the exit code as `code` and standard error as `errors`."""
        process = self.begin_reload(*arguments)
        printed, errors = await asyncio.to_thread(process.communicate, timeout=90)
        assert printed, errors
        report: dict[str, Any] = json.loads(printed)
        assert report["code"] == process.returncode
        return report | {"errors": errors}

    async def serves(self, version: str | None) -> None:
        """Assert which version answers, and that no client has noticed anything."""
        status = (await self.get("/status")).body
        assert version is None or status["version"] == version
        assert status["connections"] == len(self.clients)
        message = await self.publish("status", "test", {})
        for client in self.clients:
            await until(
                lambda client=client: any(e.get("seq") == message["seq"] for e in client.received),  # type: ignore[arg-type]
                "the message at every client",
            )
            assert not any(e.get("event") == "gap" for e in client.received)
            numbers = [e["seq"] for e in client.received if e.get("event") == "test"]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@contextmanager
def reloaded(*, bind_in_dotenv: bool = False) -> Iterator[Reloaded]:
    """Two workers of the version `first`, which end without leaving anything."""
    running = Reloaded()
    running.version("first")
    if bind_in_dotenv:
        (running.root / ".env").write_text(f"BIND={running.settings.pop('BIND')}\n")
    running.start()
    try:
        yield running
        if running.master:
            os.kill(running.master, signal.SIGTERM)
        running.assert_nothing_left()
    finally:
        running.destroy()


@asynccontextmanager
async def connected(running: Reloaded) -> AsyncIterator[Reloaded]:
    """The service with clients that must not notice anything."""
    try:
        for _ in range(CLIENTS):
            running.clients.append(await PlainClient.open(running, types="status"))
        yield running
        for client in running.clients:
            await client.close()
    finally:
        running.clients.clear()


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Reloaded]:
    """A service for one test, with clients."""
    with reloaded() as running:
        async with connected(running):
            yield running


@pytest.fixture(scope="module")
def kept() -> Iterator[Reloaded]:
    """A service for the tests after which it serves as before, with any version."""
    with reloaded() as running:
        yield running


@pytest_asyncio.fixture
async def reused(kept: Reloaded) -> AsyncIterator[Reloaded]:
    """That one, with clients of this test alone."""
    async with connected(kept):
        yield kept
    await kept.wait_connections(0)


async def test_new_code_by_hup(reused: Reloaded) -> None:
    service = reused
    master, old = service.master, service.workers_now()
    service.version("second")
    report = await service.reload()
    assert report["code"] == 0, report
    assert report["signal"] == "SIGHUP"
    assert service.master == master
    assert not old & service.workers_now()
    await service.serves("second")
    assert (report["handed_over"], report["drained"], report["lost"]) == (CLIENTS, 0, 0)
    assert 0 < report["pause_p50"] <= report["pause_p99"] <= report["pause_max"] < 1
    assert 0 < report["seconds"] < 20


async def test_new_master_when_the_master_itself_changes(service: Reloaded) -> None:
    master = service.master
    service.version("second")
    with (service.root / "workers/shared/paths.py").open("a") as file:
        file.write("# changed\n")
    report = await service.reload()
    assert report["code"] == 0, report
    assert report["signal"] == "SIGUSR2"
    assert "workers/shared/paths.py" in report["why"]
    assert start_time(master) is None
    assert service.master not in (0, master)
    await service.serves("second")
    assert (report["handed_over"], report["drained"], report["lost"]) == (CLIENTS, 0, 0)
    # And again: what changed is what this master does not have.
    again = await service.reload()
    assert (again["code"], again["signal"]) == (0, "SIGHUP")
    await service.serves("second")


def broken_code(service: Reloaded) -> str:
    with (service.root / "app/main.py").open("a") as file:
        file.write("import no_such_module\n")
    return "No module named 'no_such_module'"


def wrong_setting(service: Reloaded) -> str:
    (service.root / ".env").write_text("HISTORY_SIZE=many\n")
    return "HISTORY_SIZE"


def raising_configuration(service: Reloaded) -> str:
    with (service.root / "gunicorn.conf.py").open("a") as file:
        file.write("raise ValueError('not this time')\n")
    return "not this time"


def missing_handlers(service: Reloaded) -> str:
    (service.root / "handlers.py").write_text("x = 1\n")
    return "register"


def dying_worker(service: Reloaded) -> str:
    service.change(
        "app/main.py",
        "async def reach_backplane(",
        "async def reach_backplane(*_: object) -> Reached:\n"
        "    raise ValueError('not today')\n\n\nasync def really_reach(",
    )
    return "ValueError: not today"


@pytest.mark.parametrize(
    "spoil", [broken_code, wrong_setting, raising_configuration, missing_handlers, dying_worker]
)
async def test_what_cannot_start_changes_nothing(reused: Reloaded, spoil: Any) -> None:
    service = reused
    master, workers = service.master, service.workers_now()
    before = (await service.get("/status")).body["version"]
    said = len(service.log)
    code = {path: path.read_bytes() for path in service.root.rglob("*.py")}
    service.version("spoiled")
    reason = spoil(service)
    report = await service.reload()
    assert report["code"] == 1
    assert reason in report["error"]
    assert (service.master, service.workers_now()) == (master, workers)
    await service.serves(before)
    if spoil is not dying_worker:
        assert "Handling signal" not in service.log[said:], "it was found out before that"
    else:
        # The master is not held up by what failed: it replaces a worker that dies now.
        await service.serves(before)

    for path, content in code.items():
        path.write_bytes(content)
    (service.root / ".env").unlink(missing_ok=True)
    repaired = f"without {spoil.__name__}"
    service.version(repaired)
    report = await service.reload()
    assert (report["code"], report["handed_over"]) == (0, CLIENTS), report
    await service.serves(repaired)


async def test_new_workers_that_die_when_they_take_over(service: Reloaded) -> None:
    master = service.master
    service.change(
        "app/sessions/handoff/transfer.py",
        "        return [self._check(state, chunks) for state in states]\n",
        "        os._exit(9)\n",
    )
    report = await service.reload()
    # The master may have started one more in place of an old worker that had left already.
    assert report["code"] in (1, 3), report
    assert "new workers died" in report["error"]
    assert service.master == master
    await service.serves(None)


async def test_new_master_that_does_not_come(service: Reloaded) -> None:
    master, workers = service.master, service.workers_now()
    reason = dying_worker(service)
    report = await service.reload("--signal", "USR2")
    assert report["code"] == 1
    assert reason in report["error"]
    assert (service.master, service.workers_now()) == (master, workers)
    assert not (service.data_dir / "gunicorn.pid.2").exists()
    await service.serves("first")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
async def test_an_interrupted_change_of_masters_is_taken_back(
    reused: Reloaded, by: signal.Signals
) -> None:
    """By ^C, a terminal that is closed, or a supervisor whose time is up: no two masters stay."""
    service = reused
    version = (await service.get("/status")).body["version"]
    master, workers = service.master, service.workers_now()
    second = service.data_dir / "gunicorn.pid.2"
    second.unlink(missing_ok=True)
    process = service.begin_reload("--signal", "USR2")
    # It checks the configuration first, which takes long beside other tests.
    await until(lambda: second.exists() or process.poll() is not None, "a new master", 60)
    process.send_signal(by)
    printed, errors = await asyncio.to_thread(process.communicate, timeout=90)
    assert "Traceback" not in errors
    assert (process.returncode, json.loads(printed)["error"]) == (3, "interrupted"), errors
    assert (service.master, service.workers_now()) == (master, workers)
    await service.serves(version)


async def test_master_goes_on_after_a_failed_reload(service: Reloaded) -> None:
    dying_worker(service)
    assert (await service.reload())["code"] == 1
    before = service.log.count("Booting worker")
    os.kill(min(service.workers_now()), signal.SIGKILL)
    # Without help gunicorn would wait for GRACEFUL_TIMEOUT, 30 s.
    await until(lambda: service.log.count("Booting worker") > before, "a replacement", 10)
    service.clients.clear()


async def test_two_at_once(reused: Reloaded) -> None:
    service = reused
    version = (await service.get("/status")).body["version"]
    first, second = service.begin_reload(), service.begin_reload()
    got = ""
    for process in (first, second):
        printed, errors = await asyncio.to_thread(process.communicate, timeout=90)
        assert process.returncode == 0, errors
        assert json.loads(printed)["handed_over"] == CLIENTS
        got += errors
    assert got.count("Another reload is under way") == 1
    await service.serves(version)


async def test_reports_that_cannot_be_written_are_missed(reused: Reloaded) -> None:
    """Neither on the disk nor in memory: what they would have said is not taken for nothing."""
    service = reused
    version = (await service.get("/status")).body["version"]
    taken = []
    for pid in service.workers_now():
        for file in paths.left_files(service.data_dir, pid):
            taken.append(file.with_name(f".{file.name}.{pid}"))
            taken[-1].mkdir()
    report = await service.reload()
    for directory in taken:
        directory.rmdir()
    assert report["unreported"] == len(taken) / 2 == 2, report
    await service.serves(version)


@pytest.mark.parametrize("one", ["master", "worker"])
async def test_a_process_that_is_stopped_is_not_waited_for(reused: Reloaded, one: str) -> None:
    """A master would renew nothing, and a worker hand nothing over."""
    service = reused
    pid = service.master if one == "master" else min(service.workers_now())
    os.kill(pid, signal.SIGSTOP)
    try:
        report = await service.reload()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert report["code"] == 1
    assert (
        f"{one} {pid} is stopped by a signal: continue it with kill -CONT {pid}" in report["error"]
    )
    await service.serves(None)


async def test_an_address_that_is_taken_changes_nothing() -> None:
    with reloaded(bind_in_dotenv=True) as service:
        async with connected(service):
            with socket.create_server(("127.0.0.1", 0)) as taken:
                bind = f"127.0.0.1:{taken.getsockname()[1]}"
                (service.root / ".env").write_text(f"BIND={bind}\n")
                before = service.workers_now()
                report = await service.reload()
                assert report["code"] == 1
                said = f"BIND: cannot listen on {bind}: Address already in use"
                assert said in report["error"]
                assert service.workers_now() == before
                os.kill(service.master, signal.SIGHUP)  # past the check
                await until(lambda: f"stay as they were: {said}" in service.log, "its refusal")
                await until(service.is_ready, "workers with the settings from before")
                await service.serves("first")
            service.port = int(bind.rpartition(":")[2])
            assert (await service.reload())["handed_over"] == CLIENTS
            await service.serves("first")


async def test_a_new_master_listens_on_another_address() -> None:
    """A USR2 past the check of one that is taken changes nothing either."""
    with reloaded(bind_in_dotenv=True) as service:
        async with connected(service):
            with socket.create_server(("127.0.0.1", 0)) as taken:
                bind = f"127.0.0.1:{taken.getsockname()[1]}"
                (service.root / ".env").write_text(f"BIND={bind}\n")
                master = service.master
                os.kill(master, signal.SIGUSR2)
                said = f"BIND: cannot listen on {bind}: Address already in use"
                await until(lambda: said in service.log, "its refusal", 40)
                await until(
                    lambda: not service.data_dir.joinpath("gunicorn.pid.2").exists(), "gone"
                )
                assert service.master == master
            service.port, old = int(bind.rpartition(":")[2]), service.port
            report = await service.reload("--signal=USR2")
            assert report["handed_over"] == CLIENTS
            assert f"BIND becomes {bind}, no longer 127.0.0.1:{old}" in report["errors"]
            await service.serves("first")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", old))


async def test_a_master_that_ends_by_an_error_leaves_nothing() -> None:
    service = Reloaded()
    fails = """

    def fail() -> None:
        raise RuntimeError("an error of a test")

    server.handle_ttin = fail
"""
    service.change(
        "gunicorn.conf.py",
        "def when_ready(server: Any) -> None:",
        f"def when_ready(server: Any) -> None:{fails}",
    )
    service.version("first")
    service.start()
    try:
        assert service.process is not None
        os.kill(service.master, signal.SIGTTIN)
        assert await asyncio.to_thread(service.process.wait, 60) != 0
        service.assert_nothing_left()
        assert "an error of a test" in service.log
        assert not paths.slots_file(service.data_dir).exists()
    finally:
        service.destroy()


async def test_every_line_of_a_json_log_is_json() -> None:
    """From the start to the end, of all that speak: gunicorn, the service, its handlers, Python."""
    service = Reloaded()
    service.settings["LOG_FORMAT"] = "json"
    service.data_dir.mkdir()
    service.data_dir.chmod(0o777)  # a warning before there is a configuration
    speaks = """import threading, warnings

def fail() -> None:
    raise RuntimeError("of a thread")

warnings.warn("of a library")
threading.Thread(target=fail).start()
"""
    handlers = service.root / "handlers.py"
    handlers.write_text(handlers.read_text() + speaks)
    service.version("first")
    service.start()
    try:
        configuration = service.read("gunicorn.conf.py")
        (service.root / "gunicorn.conf.py").write_text("import no_such_module\n")
        os.kill(service.master, signal.SIGHUP)
        await until(lambda: "No module named 'no_such_module'" in service.log, "its refusal", 60)
        (service.root / "gunicorn.conf.py").write_text(configuration)
        os.kill(service.master, signal.SIGUSR1)
        await until(service.is_ready, "workers", 60)
        assert (await service.reload("--signal=USR2"))["code"] == 0
        os.kill(service.master, signal.SIGTERM)
        await until(lambda: not service.processes(), "the end", 60)
        messages = [json.loads(line) for line in service.log.splitlines()]
        said = "\n".join(f"{one['message']} {one.get('traceback', '')}" for one in messages)
        for each in ("may write into DATA_DIR", "of a library", "of a thread", "Shutting down"):
            assert each in said
    finally:
        service.destroy()


def test_nothing_to_reload(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.reload"],
        env=dict(os.environ) | {"DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"no service runs with DATA_DIR {tmp_path}" in done.stderr
    assert list(tmp_path.iterdir()) == []
