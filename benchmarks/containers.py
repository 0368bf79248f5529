"""Deployments in containers under a steady stream: what clients and publishers notice.

    python -m benchmarks.containers [--clients 500] [--deployments 3] [--reloads 3]

Root's own engine (tests/containers/engine) runs the repository's docker-compose.yml. Half of the
clients speak plain JSON, half Socket.IO, straight to the backend; one publisher sends 20 messages a
second through Caddy, by TLS, on one connection. Each deployment brings another version. Reloads of
the container that runs (HUP) come after them, for comparison: what is left then is the engine's part.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.procs import TOKEN, BenchmarkError, LoadClient
from benchmarks.stream import Publisher
from tests.containers import project as containers

_SETTLE = 1.5
"""Seconds: default subscriptions flow after the first frame or one second."""


class CaddyPublisher(Publisher):
    """Publishes through Caddy."""

    def __init__(self, project: containers.Project) -> None:
        super().__init__(None)
        self._project = project
        self._trusted = ssl.create_default_context(cafile=str(project.certificate))

    def connection(self) -> http.client.HTTPConnection:
        """One by TLS to what Caddy publishes."""
        return _Tls(self._project.port, self._trusted)


class _Tls(http.client.HTTPSConnection):
    """Connects to this machine, whatever the name of the certificate stands for."""

    def __init__(self, port: int, trusted: ssl.SSLContext) -> None:
        super().__init__(containers.API, port, timeout=10, context=trusted)
        self._trusted = trusted

    def connect(self) -> None:
        raw = self._create_connection(("127.0.0.1", self.port), self.timeout)  # type: ignore[attr-defined]
        # Head and body are two segments.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._trusted.wrap_socket(raw, server_hostname=self.host)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def measure(
    project: containers.Project, clients: int, deployments: int, reloads: int
) -> list[dict[str, Any]]:
    """Deploy and reload so often; the figures of each."""
    host, _, port = project.address.partition(":")
    rows = []
    with LoadClient(module="fleet") as fleet, CaddyPublisher(project) as publisher:
        for wire in ("json", "sio"):
            fleet("connect", host=host, port=int(port), wire=wire, clients=clients // 2)
        deadline = time.monotonic() + 120
        while (seen := fleet("counts"))["ready"] < clients // 2 * 2:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"not all of {clients} are connected: {seen}")
            time.sleep(0.2)
        time.sleep(_SETTLE)
        fleet("mark")
        for number in range(deployments + reloads):
            fleet("mark_pauses")
            begun, repeats = len(publisher.seconds), sum(publisher.repeats.values())
            closed = fleet("counts")["lost"]
            if number < deployments:
                project.version(f"9.0.{number}")
                done = project.deploy()
                if done.code:
                    raise BenchmarkError(f"{done.err}\n{done.out}")
                report = done.json
            else:
                report = reload(project)
            time.sleep(1)
            seen = fleet("report")
            seconds = publisher.seconds[begun:]
            rows.append(
                {
                    "of it": "deploy" if number < deployments else "reload",
                    "seconds": report["seconds"],
                    "handed over": report["handed_over"],
                    "clients closed": seen["lost"] - closed,
                    "longest pause of a client, p50, s": seen["pause_s"]["p50"],
                    "  max, s": seen["pause_s"]["max"],
                    "  at the workers, s": report["pause_ms"] / 1000
                    if "pause_ms" in report
                    else report["pause_max"],
                    "messages published": len(seconds),
                    "  errors": sum(publisher.repeats.values()) - repeats,
                    "  answered after, p50, ms": 1000 * percentile(seconds, 0.5),
                    "  p99, ms": 1000 * percentile(seconds, 0.99),
                    "  max, ms": 1000 * max(seconds),
                    "load of the machine": os.getloadavg()[0],
                }
            )
            print(*(f"{k}={_cell(v)}" for k, v in rows[-1].items()), sep="\n  ")
            print(f"  errors so far: {dict(publisher.repeats)}")
        publisher.stop()
        deadline = time.monotonic() + 15
        last = publisher.answered[-1]
        while (seen := fleet("report"))["least"] < last and time.monotonic() < deadline:
            time.sleep(0.2)
        rows[-1] |= {
            "missed, over all": seen["missing"],
            "not arrived": max(0, last - seen["least"]),
            "repeated": seen["repeated"],
            "stored twice": publisher.twice,
        }
    return rows


def reload(project: containers.Project) -> dict[str, Any]:
    """Send HUP to the master of the container; the report."""
    backend = project.compose("ps", "--quiet", "backend")
    output = project.docker("exec", backend, "python", "-m", "workers.reload", "--json")
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]]) -> str:
    """The figures, a column for each deployment, and the median of the deployments."""
    lines = []
    for name in rows[-1]:
        values = [row.get(name, "") for row in rows]
        cells = "".join(f"{_cell(value):>10}" for value in values)
        numbers = [row[name] for row in rows if name in row and row["of it"] == "deploy"]
        numbers = [value for value in numbers if not isinstance(value, str)]
        median = _cell(float(statistics.median(numbers))) if numbers else ""
        lines.append(f"{name:<36}{cells}{median:>12}")
    return "\n".join(lines)


def main() -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--deployments", type=int, default=3)
    parser.add_argument("--reloads", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="yj-containers-") as home:
        project = containers.Project(Path(home))
        try:
            project.write_settings(
                PUBLISH_TOKEN=TOKEN,
                # The deployment's own look is one more.
                MAX_TOTAL_CONNECTIONS=str(options.clients + 100),
                HEARTBEAT_INTERVAL="10m",
                HEARTBEAT_TIMEOUT="20m",
            )
            project.version("9.0.0")
            first = project.deploy()
            if first.code:
                raise BenchmarkError(f"{first.err}\n{first.out}")
            project.fetch_certificate()
            rows = measure(project, options.clients, options.deployments, options.reloads)
        finally:
            project.destroy()
            containers.stop_engine()
    print(f"\n{options.clients} clients, 20 messages a second; the last column is the median")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
