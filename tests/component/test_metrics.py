"""The metrics of one worker, in the plain mode that tests use and in the mode of the service."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import CollectorRegistry

from app.prometheus_private import process_name
from workers.shared.metrics_files import is_alive
from workers.shared.processes import start_time


@pytest.fixture(autouse=True)
def plain_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def test_identity_tells_a_process_from_the_next_with_its_pid() -> None:
    assert process_name() == f"{os.getpid()}-{start_time(os.getpid())}"
    with subprocess.Popen(["sleep", "60"]) as child:
        name = f"{child.pid}-{start_time(child.pid)}"
        assert is_alive(name)
        assert not is_alive(f"{name}0")
        child.kill()
        # Dead, but not waited for: its entry in /proc is still there for a while.
        while is_alive(name):
            pass
        assert Path(f"/proc/{child.pid}").exists()
    assert not is_alive(name)


def test_processes_count_in_files_that_outlive_them(tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    program = textwrap.dedent(
        """
        import os
        from app.metrics import Metrics
        from app.prometheus_private import process_name
        metrics = Metrics(["status"])
        metrics.delivered["status"].inc(7)
        metrics.subscriptions["status"].set(5)
        metrics.delivery_latency.observe_many(0.2, 4)
        child = os.fork()
        if child == 0:
            metrics.delivered["status"].inc(1)
            os._exit(0)
        os.waitpid(child, 0)
        print(process_name())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PROMETHEUS_MULTIPROC_DIR": str(directory), "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    identity = done.stdout.strip()
    assert (directory / f"counter_{identity}.db").exists()
    assert len(list(directory.glob("counter_*.db"))) == 2

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    page = generate_latest(registry).decode()
    assert 'realtime_messages_delivered_total{type="status"} 8.0' in page
    assert 'realtime_subscriptions{type="status"} 5.0' in page
    assert 'realtime_delivery_latency_seconds_bucket{le="0.25"} 4.0' in page
    assert "realtime_delivery_latency_seconds_count 4.0" in page
