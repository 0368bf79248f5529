"""A DATA_DIR whose disk has no space or no inode left: what goes on, and what is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.waiting import until
from workers.shared import paths

pytestmark = pytest.mark.timeout(120)

ADVICE = "make room there (df -h, df -i)"


class Disk:
    """A small file system.

    Args:
        directory: where it is mounted.
    """

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self.data_dir.mkdir(mode=0o700)
        self._filler = directory / "filler"
        self._filler.mkdir()

    def take_all_space(self, name: str = "space") -> None:
        with (self._filler / name).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def take_all_inodes(self) -> None:
        with contextlib.suppress(OSError):
            for number in range(1000):
                (self._filler / str(number)).touch()

    def make_room(self) -> None:
        for file in self._filler.iterdir():
            file.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    options = "size=60m,nr_inodes=80,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", tmp_path], check=True)
    try:
        yield Disk(tmp_path)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


async def reload(service: Service, *arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.reload", "--json", *arguments),
        cwd=service.root,
        env=service.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, errors = await process.communicate()
    assert b"Traceback" not in errors, errors.decode()
    report: dict[str, Any] = json.loads(printed)
    return report


async def is_served(client: PlainClient, service: Service) -> None:
    await client.barrier()
    assert (await service.get("/status")).status == 200


async def test_no_space_while_it_runs(disk: Disk) -> None:
    """A reload passes all connections on and says so; a new master is refused in one line."""
    async with Service(data_dir=disk.data_dir) as service:
        clients = [await PlainClient.open(service, types="status") for _ in range(5)]
        disk.take_all_space()
        report = await reload(service, "--signal", "HUP")
        assert report["code"] == 0
        assert (report["handed_over"], report["lost"], report["unreported"]) == (5, 0, 0)
        disk.take_all_space("more")
        report = await reload(service, "--signal", "USR2")
        assert report["code"] == 1
        line = f"No space left on device ({paths.pid_files(disk.data_dir).second}): {ADVICE}"
        assert line in service.log
        for client in clients:
            await is_served(client, service)
            await client.close()
        assert list(disk.data_dir.glob("tmp*")) == []


async def test_a_pid_file_that_cannot_be_written_ends_no_service(disk: Disk) -> None:
    """Something has removed it, and then comes a HUP."""
    async with Service(data_dir=disk.data_dir) as service:
        client = await PlainClient.open(service, types="status")
        pid_file = paths.pid_files(disk.data_dir).first
        disk.take_all_space()
        pid_file.unlink()
        disk.take_all_space("more")
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)
        await until(lambda: "The pid file is missing" in service.log, "the line about it", 20)
        await until(service.is_ready, "new workers")
        await is_served(client, service)
        disk.make_room()
        await until(pid_file.exists, "the pid file", 20)
        assert pid_file.read_text() == f"{service.process.pid}\n"
        await client.close()


async def test_no_inode_while_it_runs(disk: Disk) -> None:
    """New workers cannot have their sockets: the old ones serve as before."""
    async with Service(data_dir=disk.data_dir) as service:
        client = await PlainClient.open(service, types="status")
        disk.take_all_inodes()
        report = await reload(service)
        assert report["code"] == 1
        assert f"({paths.reload_lock(disk.data_dir)}): {ADVICE}" in report["error"]
        disk.make_room()
        paths.reload_lock(disk.data_dir).touch(0o600)
        disk.take_all_inodes()
        report = await reload(service)
        assert report["code"] == 1
        assert ADVICE in report["error"]
        await is_served(client, service)
        disk.make_room()
        assert (await reload(service))["handed_over"] == 1
        await client.close()


USING = """
import contextlib, os, pathlib, random, sys
from app.metrics import Metrics
from workers.shared.metrics_files import MetricsFiles
from workers.shared.slots import SlotTable

directory = pathlib.Path(sys.argv[1])
table = SlotTable(directory / "slots", 1000)
row = table.claim_row(master=os.getpid())
metrics = Metrics(["status"])
with (directory / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
    while True:
        file.write(bytes(4096))
table.set_stats(row, {"connections": 1})
with table.lock:
    # Users that come and go: the table is cleaned now and then, for which there is no room.
    numbers = random.Random(1)
    for _ in range(50_000):
        key = numbers.getrandbits(63)
        assert table.users.claim(key, row, 3)
        table.users.release(key, row)
for number in range(100):
    metrics.count_request(f"/{number}", "GET", 200)
MetricsFiles(directory / "metrics").collect()
"""


def test_no_space_in_shared_memory_kills_no_worker(disk: Disk) -> None:
    """To write to a map of memory that is not there would: SIGBUS."""
    done = subprocess.run(
        [sys.executable, "-c", USING, disk.data_dir],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(disk.data_dir / "metrics")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["space", "inodes"])
def test_it_does_not_start_and_says_why(disk: Disk, kind: str) -> None:
    if kind == "space":
        disk.take_all_space()
    else:
        disk.take_all_inodes()
    service = Service(data_dir=disk.data_dir)
    process = service.spawn()
    assert process.wait(20) == 1
    line = [line for line in service.log.splitlines() if " INFO " not in line]
    service.destroy()
    assert len(line) == 1, line
    assert str(disk.data_dir) in line[0]
    assert ADVICE in line[0]
    assert not os.path.exists(paths.pid_files(disk.data_dir).first)
