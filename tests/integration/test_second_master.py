"""A second checkout takes the place of the first: another master that is no child of the old one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.support import REPO
from tests.support.copies import copy_code
from tests.support.plain import PlainClient
from tests.support.publishers import Aiohttp, HttpClient, Publisher, Requests
from tests.support.service import TOKEN, Service
from tests.support.waiting import until, until_now
from workers.shared.processes import start_time

pytestmark = pytest.mark.timeout(300)

CLIENTS = 30


class Checkouts(Service):
    """A service that runs from one of several copies of the code, with one DATA_DIR."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"DRAIN_SECONDS": 1, "GRACEFUL_TIMEOUT": 20, **settings})
        self.started: list[subprocess.Popen[bytes]] = []

    def checkout(self, version: str) -> Path:
        """A copy of the code, which says that it is of this version."""
        place = self.home / version
        for name in ("app", "workers", "tests"):
            copy_code(REPO / name, place / name)
        shutil.copy2(REPO / "gunicorn.conf.py", place)
        (place / "app/__init__.py").write_text(f'__version__ = "{version}"\n')
        return place

    def launch(self, place: Path, *options: str, **settings: str) -> subprocess.Popen[bytes]:
        """`python -m workers.start` in a checkout."""
        environ = self.environ | settings
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.start", *options],
                cwd=place,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    @property
    def master(self) -> int:
        """Pid of the master; 0 while there is none."""
        try:
            return int((self.data_dir / "gunicorn.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    async def version(self) -> set[str]:
        """Versions that answer, of a number of calls."""
        return {(await self.get("/status")).body["version"] for _ in range(6)}

    def end(self) -> None:
        """Stop what runs, and see that nothing is left."""
        if self.master:
            os.kill(self.master, signal.SIGTERM)
        for process in self.started:
            process.wait(30)
        self.assert_nothing_left()


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Checkouts]:
    running = Checkouts()
    Service.running.append(running)
    running.process = running.launch(running.checkout("first"))
    try:
        until_now(running.is_ready, "the first serves")
        yield running
        await asyncio.to_thread(running.end)
        assert "Traceback" not in running.log, running.log[-6000:]
    finally:
        for process in running.started:
            process.kill()
            process.wait()
        running.destroy()


async def test_there_and_back_and_no_client_notices(service: Checkouts) -> None:
    clients = [await PlainClient.open(service, types="status") for _ in range(CLIENTS)]
    url = f"{service.base}/ws/broadcast"
    publishers: list[Publisher] = [kind(url, 20) for kind in (Requests, HttpClient, Aiohttp)]
    for publisher in publishers:
        publisher.start()
    first, second = service.started[0], service.checkout("second")
    try:
        for place, version in ((second, "second"), (service.home / "first", "first")):
            old = service.started[-1]
            new = service.launch(place, "--replace")
            assert await asyncio.to_thread(old.wait, 60) == 0
            await until(lambda new=new: service.master == new.pid, "the pid file names the new one")
            assert not (service.data_dir / "gunicorn.pid.2").exists()
            assert await service.version() == {version}
            assert start_time(old.pid) is None
    finally:
        for publisher in publishers:
            publisher.enough.set()
        await asyncio.to_thread(lambda: [publisher.join(30) for publisher in publishers])
    assert {one.name: one.errors for one in publishers} == {one.name: [] for one in publishers}
    last = await service.publish("status", data={})
    for client in clients:
        await client.wait_seq("status", last["seq"])
        seqs = [got["seq"] for got in client.received if got.get("type") == "status"]
        assert seqs == list(range(seqs[0], last["seq"] + 1)), "missed or repeated"
        assert client.socket.close_code is None
        await client.close()
    assert first.returncode == 0


async def test_the_new_master_reloads_as_any_other(service: Checkouts) -> None:
    new = service.launch(service.checkout("second"), "--replace")
    await asyncio.to_thread(service.started[0].wait, 60)
    service.process = new
    client = await PlainClient.open(service, types="status")
    await service.hup()
    assert service.master == new.pid
    os.kill(new.pid, signal.SIGUSR2)
    second = service.data_dir / "gunicorn.pid.2"
    await until(second.exists, "a third master")
    third = int(second.read_text())
    await until(lambda: len(psutil.Process(third).children()) >= 2, "it has workers")
    await until(lambda: len(service._answering()) == 4, "they serve")
    os.kill(new.pid, signal.SIGTERM)
    await asyncio.to_thread(new.wait, 60)
    await until(lambda: service.master == third, "the third is the master")
    sent = await service.publish("status", data={})
    await client.wait_seq("status", sent["seq"])
    assert client.socket.close_code is None
    await client.close()


@pytest.mark.parametrize("fault", ["import nothing_of_this_name\n", "raise RuntimeError\n"])
async def test_one_that_cannot_start_changes_nothing(service: Checkouts, fault: str) -> None:
    client = await PlainClient.open(service, types="status")
    workers = service.worker_pids()
    place = service.checkout("bad")
    main = place / "app/main.py"
    main.write_text(main.read_text() + fault)
    new = service.launch(place, "--replace")
    assert await asyncio.to_thread(new.wait, 60) != 0
    await until(lambda: "The old service goes on" in service.log, "it is said")
    assert service.master == service.started[0].pid
    assert service.worker_pids() == workers
    assert not (service.data_dir / "gunicorn.pid.2").exists()
    sent = await service.publish("status", data={})
    await client.wait_seq("status", sent["seq"])
    await client.close()
    service.log_path.write_text("")


async def test_without_replace_both_serve_until_the_old_one_is_ended(service: Checkouts) -> None:
    client = await PlainClient.open(service, types="status")
    new = service.launch(service.checkout("second"))
    await until(lambda: len(service._answering()) == 4, "four workers serve")
    third = service.launch(service.home / "second")
    assert await asyncio.to_thread(third.wait, 30) == 1, "one change at a time"
    assert service.master == service.started[0].pid
    service.started[0].terminate()
    assert await asyncio.to_thread(service.started[0].wait, 60) == 0
    assert service.master == new.pid
    sent = await service.publish("status", data={})
    await client.wait_seq("status", sent["seq"])
    assert client.socket.close_code is None
    await client.close()


async def test_the_old_master_is_killed(service: Checkouts) -> None:
    new = service.launch(service.checkout("second"))
    await until(lambda: len(service._answering()) == 4, "four workers serve")
    service.started[0].kill()
    await asyncio.to_thread(service.started[0].wait)
    await until(lambda: len(service._answering()) == 2, "the old workers are gone")
    service.process = new
    await service.hup()
    assert service.master == new.pid


async def test_another_address_is_listened_on_anew(service: Checkouts) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = await PlainClient.open(service, types="status")
    service.launch(service.checkout("second"), "--replace", BIND=f"127.0.0.1:{port}")
    await asyncio.to_thread(service.started[0].wait, 60)
    service.port = port
    sent = await service.publish("status", data={})
    await client.wait_seq("status", sent["seq"])
    assert client.socket.close_code is None
    await client.close()


async def test_a_unix_socket_goes_there_and_back() -> None:
    """Its path stays the same file throughout, and is gone at the end."""
    running = Checkouts()
    path = running.home / "s"
    bind = {"BIND": f"unix:{path}"}
    Service.running.append(running)
    running.process = running.launch(running.checkout("first"), **bind)
    http = aiohttp.ClientSession(
        "http://localhost", connector=aiohttp.UnixConnector(str(path), force_close=True)
    )

    async def versions() -> set[str]:
        found = set()
        for _ in range(6):
            async with http.get("/status") as answer:
                found.add((await answer.json())["version"])
        return found

    async def serves() -> bool:
        try:
            async with http.get("/status") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def publish() -> int:
        head = {"Authorization": f"Bearer {TOKEN}"}
        body = {"type": "status", "event": "tick", "data": {}}
        async with http.post("/ws/broadcast", json=body, headers=head) as answer:
            assert answer.status == 200, await answer.text()
            return int((await answer.json())["seq"])

    try:
        await until(serves, "the first serves")
        inode = path.stat().st_ino
        client = await http.ws_connect("/ws/realtime?types=status")
        second = running.checkout("second")
        for place, version in ((second, "second"), (running.home / "first", "first")):
            old = running.started[-1]
            running.launch(place, "--replace", **bind)
            assert await asyncio.to_thread(old.wait, 60) == 0
            assert path.stat().st_ino == inode
            assert await versions() == {version}
            seq = await publish()
            async with asyncio.timeout(20):
                while (await client.receive_json()).get("seq") != seq:
                    pass
        # A second one that cannot start leaves the path alone.
        broken = running.checkout("broken")
        (broken / "app/main.py").write_text("raise RuntimeError\n")
        new = running.launch(broken, "--replace", **bind)
        assert await asyncio.to_thread(new.wait, 60) != 0
        assert path.stat().st_ino == inode
        assert await versions() == {"first"}
        await client.close()
        await asyncio.to_thread(running.end)
        assert not path.exists()
    finally:
        await http.close()
        for process in running.started:
            process.kill()
            process.wait()
        running.destroy()
