"""What `GET /status` says while workers come, go, hang and are missing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.service import Service
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One for all tests that leave it with two workers that serve."""
    running = Service().start()
    yield running
    running.stop()


async def causes(service: Service) -> list[str]:
    body: dict[str, Any] = (await service.get("/status")).body
    assert body["status"] == ("degraded" if body["causes"] else "ok"), body
    assert body["expectedWorkers"] == service.workers
    found: list[str] = body["causes"]
    return found


async def test_a_reload_that_goes_well_is_ok_throughout(service: Service) -> None:
    seen: list[list[str]] = []

    async def watch() -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                seen.append(await causes(service))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    await service.hup()
    await service.hup()
    watching.cancel()
    assert len(seen) > 20
    assert [one for one in seen if one] == []


async def test_a_dead_worker_is_missed_until_another_serves(service: Service) -> None:
    victim = service.kill_worker()

    async def is_missed() -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            return await causes(service) == ["workers: 1 of 2"]
        return False

    await until(is_missed, "the status says that one is missing")
    await service.replaced(victim)

    async def is_well() -> bool:
        return await causes(service) == []

    await until(is_well, "the status is well")


async def test_a_worker_that_was_taken_away_is_missed(service: Service) -> None:
    """By the operator: the setting still asks for two."""
    assert service.process is not None
    service.process.send_signal(signal.SIGTTOU)

    async def is_missed() -> bool:
        return await causes(service) == ["workers: 1 of 2"]

    await until(is_missed, "the status says that one is missing")
    page = (await service.get("/metrics")).body
    assert "realtime_expected_workers 2.0" in page
    service.process.send_signal(signal.SIGTTIN)

    async def is_well() -> bool:
        return await causes(service) == []

    await until(is_well, "the status is well")


async def test_a_worker_that_hangs_is_named(service: Service) -> None:
    victim = service.worker_pids()[0]
    os.kill(victim, signal.SIGSTOP)
    try:

        async def is_named() -> bool:
            # Some calls get to the one that hangs.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    return f"workers: {victim} has been silent" in str(await causes(service))
            return False

        await until(is_named, "the status names it", 25)
    finally:
        os.kill(victim, signal.SIGCONT)

    async def is_well() -> bool:
        return await causes(service) == []

    await until(is_well, "the status is well")


async def test_the_limit_of_open_files_is_raised_at_the_start() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    service = Service(WORKERS=1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # the processes begin with it
    try:
        await asyncio.to_thread(service.start)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = Path(f"/proc/{service.worker_pids()[0]}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert line.split()[3:5] == [str(hard)] * 2
    await asyncio.to_thread(service.stop)
    assert "MAX_TOTAL_CONNECTIONS" not in service.log


async def test_a_limit_of_open_files_that_does_not_fit_is_one_line() -> None:
    async with Service(open_files=1500, WORKERS=1) as service:
        lines = [line for line in service.log.splitlines() if "MAX_TOTAL_CONNECTIONS" in line]
        assert len(lines) == 1
        assert "1500 files" in lines[0]
