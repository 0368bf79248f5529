"""What is measured of each server of the field."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

from benchmarks.peers.field import Contender
from benchmarks.peers.load import Load
from benchmarks.procs import BenchmarkError, Server

_SETTLE = 1.5
"""Seconds until subscriptions that begin after the connect are there."""

CONNECTS = 5000
"""Connects of a figure, at least: fewer take so little time that anything else on the machine would show in it."""

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
        make = partial(Load, server, contender.wire, contender.path, port, contender.publish_path)
        time.sleep(_SETTLE)
        with make() as few:
            few.connect(10)  # what is made with the first connection belongs to no other one
            time.sleep(_SETTLE)
        time.sleep(_SETTLE)
        row: Row = {"fresh_mb": server.pss() / 1e6}
        with _connected(server, make, clients, row) as load:
            return row | _figures(server, load, clients, seconds)


@contextmanager
def _connected(server: Server, make: Callable[[], Load], clients: int, row: Row) -> Iterator[Load]:
    """Connections to a server, after waves of as many that have come and gone; adds their figures."""
    waves = -(-CONNECTS // clients)
    memory, used = server.own_pss(), 0.0
    for wave in range(waves):
        if wave:
            time.sleep(_SETTLE)
        with make() as load:
            cpu = server.cpu()
            load.connect(clients)
            time.sleep(_SETTLE)
            used += server.cpu() - cpu
            if not wave:
                row["memory_kb"] = (server.own_pss() - memory) / clients / 1024
            if wave == waves - 1:
                row["connect_us"] = used / (waves * clients) * 1e6
                yield load


def _figures(server: Server, load: Load, clients: int, seconds: float) -> Row:
    load.publish(3)
    row: Row = {}
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
