"""What is measured of each server of the field."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from benchmarks.peers.field import Contender
from benchmarks.peers.load import Load
from benchmarks.procs import BenchmarkError, Server

_SETTLE = 1.5
"""Seconds until subscriptions that begin after the connect are there."""

_FLUSHES = (1, 10, 100)
"""Messages of one call."""

_SLOW = 5
"""A call that takes this many times the seconds of a figure is that figure."""

_SHARES = (25, 50, 75)
"""Percent of a server's own capacity."""

SAME_RATE = 50_000
"""Deliveries a second at which all servers are compared that can carry them."""

Row = dict[str, Any]


def measure(contender: Contender, clients: int, workers: int, seconds: float) -> Row:
    """All figures of one server with that many connections.

    Args:
        contender: the server.
        clients: connections, each of which gets every message.
        workers: processes that serve.
        seconds: roughly, for each figure.

    Raises:
        BenchmarkError: it did not start, or did not serve all connections.
    """
    with contender.make(workers) as server:
        port = server.port + contender.publish
        with Load(server, contender.wire, contender.path, port, contender.publish_path) as load:
            return _figures(server, load, clients, seconds)


def _figures(server: Server, load: Load, clients: int, seconds: float) -> Row:
    time.sleep(_SETTLE)
    load.connect(10)  # what is made with the first connection belongs to no other one
    time.sleep(_SETTLE)
    cpu, memory, fresh = server.cpu(), server.own_pss(), server.pss()
    load.connect(clients - 10)
    time.sleep(_SETTLE)
    row: Row = {
        "fresh_mb": fresh / 1e6,
        "connect_us": (server.cpu() - cpu) / (clients - 10) * 1e6,
        "memory_kb": (server.own_pss() - memory) / (clients - 10) / 1024,
    }
    load.publish(3)
    problems = []
    for size in _FLUSHES:
        row[f"delivery_{size}_us"], answer = _delivery(server, load, size, seconds)
        problems += _problems(f"{size} a flush", answer)
    capacity, answer = _capacity(load, clients, seconds)
    row["capacity"] = capacity
    problems += _problems("at capacity", answer)
    rates = {str(share): capacity * share / 100 for share in _SHARES}
    if capacity > SAME_RATE:
        rates["same"] = SAME_RATE
    for title, deliveries in rates.items():
        rate = max(deliveries / clients, 0.2)
        answer = load.publish(max(int(rate * seconds), 3), rate=rate)
        problems += _problems(f"at {deliveries:,.0f} deliveries a second", answer)
        for name, value in answer["latency_ms"].items():
            row[f"at_{title}_{name}_ms"] = value
    row["problems"] = problems
    return row


def _delivery(server: Server, load: Load, size: int, seconds: float) -> tuple[float, Row]:
    """CPU of one delivery in microseconds: the median of three runs, or of the first slow call."""
    samples: list[float] = []
    total: Row = {}
    began, cpu = time.monotonic(), server.cpu()
    first = load.publish(1, size)
    took = time.monotonic() - began
    if took > _SLOW * seconds:
        return (server.cpu() - cpu) / max(first["received"], 1) * 1e6, first
    calls = max(int(seconds / 3 / took), 2)
    for _ in range(3):
        cpu = server.cpu()
        answer = load.publish(calls, size)
        samples.append((server.cpu() - cpu) / max(answer["received"], 1) * 1e6)
        for name in ("missing", "repeated", "failed", "lost"):
            total[name] = total.get(name, 0) + answer[name]
    return median(samples), total


def _capacity(load: Load, clients: int, seconds: float) -> tuple[float, Row]:
    """The largest rate of deliveries a second: published a few calls ahead of what has arrived."""
    began = time.monotonic()
    load.publish(5, rate=-1)
    calls = max(int(5 * seconds / (time.monotonic() - began)), 5)
    answer = load.publish(calls, rate=-1)
    if not answer["seconds"]:
        raise BenchmarkError(f"nothing arrived at {clients} clients: {answer}")
    return answer["received"] / answer["seconds"], answer


def _problems(where: str, answer: Row) -> list[str]:
    wrong = {name: answer[name] for name in ("missing", "repeated", "failed", "lost")}
    return [f"{where}: {name} {value}" for name, value in wrong.items() if value]
