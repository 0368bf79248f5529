"""The private Valkey, with the real server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import REPO
from tests.support.waiting import until
from workers.leader import valkey
from workers.leader.valkey import Valkey
from workers.shared import paths
from workers.shared.polling import block_until
from workers.shared.processes import start_time
from workers.shared.slots import SlotTable


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    pid = valkey.find(tmp_path)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def supervised(server: Valkey) -> AsyncIterator[None]:
    task = asyncio.create_task(server.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def call(data_dir: Path, *words: str) -> str:
    """One command, and its answer as it came."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(paths.valkey_place(data_dir).socket))
        client.sendall((" ".join(words) + "\r\n").encode())
        return client.recv(65536).decode()


async def running(data_dir: Path, other_than: int | None = None) -> int:
    def answering() -> int | None:
        pid = valkey.find(data_dir)
        if pid is None or pid == other_than:
            return None
        with contextlib.suppress(OSError):
            return pid if call(data_dir, "PING") == "+PONG\r\n" else None
        return None

    await until(answering)
    pid = valkey.find(data_dir)
    assert pid is not None
    return pid


async def test_started_with_safe_settings_and_stopped(data_dir: Path) -> None:
    assert not valkey.stop(data_dir)
    async with supervised(Valkey(data_dir, "always")):
        pid = await running(data_dir)
        assert os.getsid(pid) == pid, "a session of its own: Ctrl-C must not reach it"
        for name, value in {
            "appendfsync": "always",
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "port": "0",
        }.items():
            assert call(data_dir, "CONFIG", "GET", name).split("\r\n")[4:5] == [value]
        assert call(data_dir, "SET", "key", "value") == "+OK\r\n"
    assert valkey.find(data_dir) == pid, "it outlives its supervisor"
    assert await asyncio.to_thread(valkey.stop, data_dir)
    assert start_time(pid) is None
    assert valkey.find(data_dir) is None
    async with supervised(Valkey(data_dir, "no")):
        await running(data_dir)
        assert call(data_dir, "GET", "key") == "$5\r\nvalue\r\n"


@pytest.mark.parametrize("given", [None, "glibc.malloc.check=1"])
async def test_many_small_blocks_are_kept_ready_unless_the_environment_says_otherwise(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    async with supervised(Valkey(data_dir, "no")):
        pid = await running(data_dir)
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (tunables,) = [text for text in environment if text.startswith(b"GLIBC_TUNABLES=")]
    if given is None:
        assert int(tunables.rpartition(b"tcache_count=")[2]) >= 256 * 11, "strings of a batch"
    else:
        assert tunables == b"GLIBC_TUNABLES=" + given.encode()


async def test_running_server_is_taken_over(data_dir: Path) -> None:
    async with supervised(Valkey(data_dir, "no")):
        pid = await running(data_dir)
    async with supervised(Valkey(data_dir, "everysec")):
        await until(lambda: "everysec" in call(data_dir, "CONFIG", "GET", "appendfsync"))
        assert valkey.find(data_dir) == pid


async def test_killed_server_is_back_at_once_with_everything(data_dir: Path) -> None:
    async with supervised(Valkey(data_dir, "no")):
        pid = await running(data_dir)
        for n in range(100):
            assert call(data_dir, "SET", f"k{n}", "v") == "+OK\r\n"
        os.kill(pid, signal.SIGKILL)
        await running(data_dir, other_than=pid)
        assert call(data_dir, "DBSIZE") == ":100\r\n"


async def test_server_that_someone_else_left_is_restarted_when_killed(data_dir: Path) -> None:
    async with supervised(Valkey(data_dir, "no")):
        pid = await running(data_dir)
    async with supervised(Valkey(data_dir, "no")):
        os.kill(pid, signal.SIGKILL)
        assert await running(data_dir, other_than=pid) != pid


async def test_a_check_that_outlives_the_service_ends_its_server(data_dir: Path) -> None:
    """`make reload` checks the configuration as a master; the service may end meanwhile."""

    def check() -> None:
        words = [sys.executable, "-m", "gunicorn", "--check-config", "-c", "gunicorn.conf.py"]
        environ = os.environ | {"DATA_DIR": str(data_dir), "BIND": "127.0.0.1:0"}
        subprocess.run(words, cwd=REPO, env=environ, check=True)

    async with supervised(Valkey(data_dir, "no")):
        pid = await running(data_dir)
    slots = SlotTable(paths.slots_file(data_dir), 10)
    slots.claim_row(os.getpid())
    await asyncio.to_thread(check)
    assert valkey.find(data_dir) == pid, "a worker is there"
    slots.free(os.getpid())
    await asyncio.to_thread(check)
    assert valkey.find(data_dir) is None
    assert not paths.slots_file(data_dir).exists()


async def test_silent_server_is_killed(data_dir: Path) -> None:
    async with supervised(Valkey(data_dir, "no", silence=2)):
        pid = await running(data_dir)
        os.kill(pid, signal.SIGSTOP)
        assert valkey.find(data_dir) == pid
        await running(data_dir, other_than=pid)
        assert start_time(pid) is None


async def test_pause_is_survived(data_dir: Path) -> None:
    async with supervised(Valkey(data_dir, "no", silence=3)):
        pid = await running(data_dir)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
        await running(data_dir)
        assert call(data_dir, "CONFIG", "GET", "port")
        assert valkey.find(data_dir) == pid


async def test_hung_server_is_killed_by_stop(data_dir: Path) -> None:
    async with supervised(Valkey(data_dir, "no")):
        pid = await running(data_dir)
    os.kill(pid, signal.SIGSTOP)
    assert await asyncio.to_thread(valkey.stop, data_dir, 0.2)
    assert start_time(pid) is None


async def test_a_server_that_ends_as_soon_as_it_is_asked_is_not_waited_for(
    data_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervised(Valkey(data_dir, "no")):
        pid = await running(data_dir)

    def end(_: Path) -> None:
        os.kill(pid, signal.SIGKILL)
        assert block_until(lambda: start_time(pid) is None, 10)

    monkeypatch.setattr(valkey, "_ask_to_end", end)
    monkeypatch.setattr(valkey, "_STOP_GRACE", 0.1)
    assert await asyncio.to_thread(valkey.stop, data_dir, 0.1)
    assert "does not react" not in caplog.text


def aof(data_dir: Path) -> Path:
    (found,) = data_dir.rglob("*.incr.aof")
    return found


async def test_torn_end_of_the_file_is_repaired(data_dir: Path) -> None:
    async with supervised(Valkey(data_dir, "no")):
        await running(data_dir)
        call(data_dir, "SET", "key", "value")
    valkey.stop(data_dir)
    with aof(data_dir).open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$3\r\nke")
    async with supervised(Valkey(data_dir, "no")):
        await running(data_dir)
        assert call(data_dir, "GET", "key") == "$5\r\nvalue\r\n"


async def test_reason_why_it_cannot_start_is_reported(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervised(Valkey(data_dir, "no")):
        await running(data_dir)
        call(data_dir, "SET", "key", "value")
    valkey.stop(data_dir)
    content = aof(data_dir).read_bytes()
    aof(data_dir).write_bytes(b"*1\r\n$3\r\nxyz\r\nrubbish\r\n" + content)
    with caplog.at_level(logging.ERROR):
        async with supervised(Valkey(data_dir, "no")):
            await until(lambda: caplog.records)
            assert "Valkey cannot start, next try in" in caplog.text
            assert "reading the append only file" in caplog.text
            aof(data_dir).write_bytes(content)
            await running(data_dir)
    assert call(data_dir, "GET", "key") == "$5\r\nvalue\r\n"


async def test_no_second_server_on_the_same_files(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervised(Valkey(data_dir, "no")):
        pid = await running(data_dir)
    # Whatever hides the first server, its lock is still there.
    paths.valkey_place(data_dir).socket.unlink()
    (paths.valkey_place(data_dir).directory / "valkey.pid").unlink()
    with caplog.at_level(logging.ERROR):
        async with supervised(Valkey(data_dir, "no")):
            await until(lambda: "another server still holds its files" in caplog.text)
            await running(data_dir, other_than=pid)
    assert f"Something removed the files of Valkey (pid {pid}): stopped" in caplog.text
    assert start_time(pid) is None


async def test_a_server_whose_directory_was_removed_is_found_and_stopped(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = data_dir / "removed"
    place.mkdir()
    async with supervised(Valkey(place, "no")):
        pid = await running(place)
    shutil.rmtree(place)
    assert valkey.find(place) is None
    # One that is busy with what it cannot write takes no TERM.
    os.kill(pid, signal.SIGSTOP)
    assert await asyncio.to_thread(valkey.stop, place, 0.2)
    assert start_time(pid) is None
    assert f"Process {pid} does not react to signal {signal.SIGTERM}" in caplog.text
    assert not valkey.stop(place)


async def test_a_server_whose_directory_was_removed_does_not_stay_beside_the_next(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = data_dir / "removed"
    place.mkdir()
    caplog.set_level(logging.INFO)
    async with supervised(Valkey(place, "no")):
        first = await running(place)
        # Before that the supervisor itself waits for the socket, and as long as for a slow start.
        await until(lambda: f"Valkey started (pid {first})" in caplog.text)
        shutil.rmtree(place)
        second = await running(place, other_than=first)
        assert valkey.servers(place) == [second]
        assert start_time(first) is None
    await asyncio.to_thread(valkey.stop, place)


async def test_only_the_servers_of_a_directory_are_stopped(data_dir: Path) -> None:
    """Names that begin alike, and programs that mention the socket within an argument."""
    socket_path = paths.valkey_place(data_dir).socket
    code = "import time; time.sleep(60)"
    like = (f"{socket_path}2", f"x{socket_path}")
    others = [subprocess.Popen([sys.executable, "-c", code, name]) for name in like]
    try:
        assert valkey.servers(data_dir) == []
        assert not valkey.stop(data_dir)
        assert [one.poll() for one in others] == [None, None]
    finally:
        for one in others:
            one.kill()
            one.wait()


async def test_pid_of_another_program_is_not_signalled(data_dir: Path) -> None:
    paths.make_private(paths.valkey_place(data_dir).directory)
    (paths.valkey_place(data_dir).directory / "valkey.pid").write_text(f"{os.getpid()}\n")
    assert valkey.find(data_dir) is None
    assert not valkey.stop(data_dir)


def is_limited_to(data_dir: Path, limit: int) -> bool:
    return str(limit) in call(data_dir, "CONFIG GET maxmemory")


async def test_the_memory_is_limited_from_the_start_and_anew(data_dir: Path) -> None:
    limits = [64 * 2**20, 96 * 2**20]
    for limit in limits:
        async with supervised(Valkey(data_dir, "no", maxmemory=limit)):
            await running(data_dir)
            await until(partial(is_limited_to, data_dir, limit))
    assert "noeviction" in call(data_dir, "CONFIG", "GET", "maxmemory-policy")


async def test_a_server_whose_socket_was_removed_is_restarted(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With everything that it has acknowledged, long before it counts as silent."""
    caplog.set_level(logging.INFO)
    async with supervised(Valkey(data_dir, "no")):
        first = await running(data_dir)
        # Before that the supervisor itself waits for the socket, and as long as for a slow start.
        await until(lambda: f"Valkey started (pid {first})" in caplog.text)
        assert call(data_dir, "SET", "a", "1") == "+OK\r\n"
        paths.valkey_place(data_dir).socket.unlink()
        await running(data_dir, other_than=first)
        assert call(data_dir, "GET", "a") == "$1\r\n1\r\n"
