"""What the log tells of calls and connections, and its level while the service runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.seconds import REST
from tests.support import REPO
from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.waiting import until
from workers.log_level import LOOK_SECONDS


def set_level(data_dir: Path, level: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.log_level", level],
        cwd=REPO,
        env=dict(os.environ) | {"DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
    )


def lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]


def workers_that_logged(service: Service, text: str) -> set[int]:
    """Workers that have written a line which begins so."""
    return {line["worker"] for line in lines(service) if line["message"].startswith(text)}


async def test_debug_and_back_without_a_reload() -> None:
    async with Service(LOG_FORMAT="json") as service:
        before = await service.get("/status")
        workers = service.worker_pids()
        done = set_level(service.data_dir, "debug")
        assert done.returncode == 0
        assert f"within {LOOK_SECONDS} seconds ({REST} where no client" in done.stdout
        await until(
            lambda: len(workers_that_logged(service, "The log level is debug")) == 2,
            "debug in both",
        )
        async with await PlainClient.open(service) as client:
            await client.barrier()
        answer = await service.get("/status")
        await until(
            lambda: workers_that_logged(service, "Closed"), "a line about the connection that ended"
        )
        request = answer.headers["X-Request-ID"]
        (call,) = (line for line in lines(service) if line.get("request") == request)
        assert call["message"] == "GET /status: 200"
        assert call["level"] == "debug"
        opened = [line for line in lines(service) if line["message"] == "Opened"]
        closed = [line for line in lines(service) if line["message"].startswith("Closed")]
        assert [line["connection"] for line in opened] == [line["connection"] for line in closed]
        assert before.headers["X-Request-ID"] not in service.log

        assert set_level(service.data_dir, "default").returncode == 0
        await until(
            lambda: len(workers_that_logged(service, "The log level is info")) == 2, "info in both"
        )
        request = (await service.get("/status")).headers["X-Request-ID"]
        await service.hup()
        assert request not in service.log
        assert not set(workers) & set(service.worker_pids())


async def test_a_level_holds_over_a_reload_but_not_over_a_restart(tmp_path: Path) -> None:
    async with Service(data_dir=tmp_path, LOG_FORMAT="json") as service:
        set_level(tmp_path, "debug")
        await service.hup()
        request = (await service.get("/status")).headers["X-Request-ID"]
        await until(lambda: request in service.log, "the call in the log of the new worker")
    async with Service(data_dir=tmp_path, LOG_FORMAT="json") as service:
        request = (await service.get("/status")).headers["X-Request-ID"]
        await service.hup()
        assert request not in service.log


def test_without_a_service_nothing_is_changed(tmp_path: Path) -> None:
    done = set_level(tmp_path, "debug")
    assert done.returncode == 2
    assert "no service runs" in done.stderr
    assert not list(tmp_path.iterdir())
    assert set_level(tmp_path, "loud").returncode == 2
