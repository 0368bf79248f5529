"""Leadership: excluded processes are real ones, duties are small coroutines."""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from tests.support.waiting import until
from workers.leader import election as module
from workers.leader.election import Leader
from workers.shared.locks import FileLock

FORK = multiprocessing.get_context("fork")


def hold(path: Path) -> None:
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        path.with_suffix(".held").touch()
        time.sleep(60)


def is_blocked(process: ForkProcess) -> bool:
    """Whether it waits for a lock that another process has."""
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(row[1] == "->" and str(process.pid) in row for row in rows)


async def test_takes_over_when_the_leader_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "leader.lock"
    other = FORK.Process(target=hold, args=(path,), daemon=True)
    other.start()
    await until(path.with_suffix(".held").exists)
    tries: list[bool] = []
    real = FileLock.try_enter

    def counted(lock: FileLock) -> bool:
        tries.append(real(lock))
        return tries[-1]

    monkeypatch.setattr(FileLock, "try_enter", counted)
    leader = Leader(path, pause=lambda: asyncio.sleep(0.01))
    await leader.start()
    try:
        await until(lambda: len(tries) >= 5)
        assert not any(tries)
        assert not leader.leading
        assert other.pid
        os.kill(other.pid, signal.SIGKILL)
        await until(lambda: leader.leading)
    finally:
        await leader.stop()
        other.kill()
        other.join()


async def test_duties_begin_and_end_with_leadership(tmp_path: Path) -> None:
    events: list[str] = []

    async def duty(name: str) -> None:
        events.append(f"{name} begins")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            events.append(f"{name} ends")

    leader = Leader(tmp_path / "leader.lock")
    leader.add(lambda: duty("first"))
    assert events == []
    await leader.start()
    await leader.start()
    await until(lambda: leader.leading)
    leader.add(lambda: duty("second"))
    await until(lambda: len(events) == 2)
    await leader.stop()
    assert events[:2] == ["first begins", "second begins"]
    assert sorted(events[2:]) == ["first ends", "second ends"]
    assert not leader.leading


async def test_leadership_that_was_given_up_is_free(tmp_path: Path) -> None:
    path = tmp_path / "leader.lock"
    leader = Leader(path, pause=lambda: asyncio.sleep(0.01))
    await leader.start()
    await until(lambda: leader.leading)
    other = FORK.Process(target=hold, args=(path,), daemon=True)
    other.start()
    await until(lambda: is_blocked(other))
    assert not path.with_suffix(".held").exists()
    await leader.stop()
    await until(path.with_suffix(".held").exists)
    other.kill()
    other.join()
    await leader.start()
    await until(lambda: leader.leading)
    await leader.stop()
    await leader.stop()


async def test_failed_duty_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF", 0.01)
    calls = 0

    async def duty() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise RuntimeError("on purpose")

    leader = Leader(tmp_path / "leader.lock")
    leader.add(duty)
    await leader.start()
    await until(lambda: calls == 3)
    await leader.stop()
    assert caplog.text.count("RuntimeError: on purpose") == 2


async def test_a_leader_whose_directory_is_gone_leads_on_and_logs_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be made again nothing else can lead either."""
    directory, looks, ended = tmp_path / "data", 0, False

    async def pause() -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.001)

    async def duty() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            ended = True

    leader = Leader(directory / "leader.lock", pause=pause)
    leader.add(duty)
    await leader.start()
    await until(lambda: leader.leading)
    shutil.rmtree(directory)
    directory.touch()
    before = looks
    await until(lambda: looks >= before + 10)
    assert leader.leading
    assert not ended
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "The leader's lock cannot be opened" in line.getMessage()
    directory.unlink()
    await until((directory / "leader.lock").exists)
    before = looks
    await until(lambda: looks >= before + 2)
    assert leader.leading
    await leader.stop()


async def test_a_lock_that_cannot_be_opened_at_first_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "data"
    directory.touch()
    looks = 0

    async def pause() -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0.001)

    leader = Leader(directory / "leader.lock", pause=pause)
    await leader.start()
    await until(lambda: looks >= 10)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    directory.unlink()
    await until(lambda: leader.leading)
    await leader.stop()
