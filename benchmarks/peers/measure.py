"""What is measured of each server of the field."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

from benchmarks.peers.field import Contender
from benchmarks.peers.load import PUBLISH_S, Load
from benchmarks.procs import BenchmarkError, Server

_REST = 0.2
"""Seconds: a server rests when it has used hardly any CPU in two such periods, one after the other."""

_REST_SHARE = 0.05
"""Of one processor, which a server that rests may use."""

_REST_LIMIT = 10
"""Seconds until a server that does not rest is measured all the same."""

CONNECTS = 5000
"""Connects of a figure, at least: fewer take so little time that anything else on the machine would show in it."""

_LAST = "delivery_100_us"
"""Figure of a complete row: where its call is cut, it is that of what was delivered until then."""

_LAST_S = 15
"""Seconds for a call of it."""

_SLOW = 2
"""A call that takes this many times the seconds of a figure is that figure."""

_SHARES = (25, 50, 75)
"""Percent of a server's own capacity."""

SAME_RATE = 50_000
"""Deliveries a second at which all servers are compared that can carry them."""

Row = dict[str, Any]


def measure(contender: Contender, clients: int, workers: int, seconds: float) -> Row:
    """All figures of one server with that many connections.

    Where something fails or takes too long, the row ends with `failed`, which says what, and has
    the figures that were measured before. Where only the last one was cut, it is a problem.

    Args:
        contender: the server.
        clients: connections, each of which gets every message.
        workers: processes that serve.
        seconds: roughly, for each figure.
    """
    row: Row = {}
    clock = _Clock()
    losses: Counter[str] = Counter()
    try:
        with contender.make(workers) as server:
            clock.lap("start")
            port = server.port + contender.publish
            make = partial(
                Load, server, contender.wire, contender.path, port, contender.publish_path
            )
            with make() as few:
                few.connect(10)  # what is made with the first connection belongs to no other one
                settle(server)
            settle(server)
            row["fresh_mb"] = server.pss() / 1e6
            clock.lap("settle")
            with _connected(server, make, clients, row) as load:
                clock.lap("connect")
                _Figures(server, load, clients, seconds, row, losses, clock).fill()
        clock.lap("stop")
    except BenchmarkError as error:
        clock.lap("until it failed")
        row["failed"] = str(error)
    row["problems"] = [f"{where} {count}" for where, count in losses.items()]
    if _LAST in row and "failed" in row:
        row["problems"].append(f"{row.pop('failed')}; the figure is of these")
    row["took_s"] = clock.laps
    return row


class _Clock:
    """Where the time of a row goes: seconds of each part, in `laps`."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, part: str) -> None:
        """Count the time since the last call as that part's."""
        now = time.monotonic()
        self.laps[part] = round(now - self._since, 1)
        self._since = now


def settle(server: Server) -> None:
    """Wait until a server has done what it was given, and rests."""
    deadline = time.monotonic() + _REST_LIMIT
    used, quiet = server.cpu(), 0
    while quiet < 2 and time.monotonic() < deadline:
        time.sleep(_REST)
        before, used = used, server.cpu()
        quiet = quiet + 1 if used - before < _REST * _REST_SHARE else 0


@contextmanager
def _connected(server: Server, make: Callable[[], Load], clients: int, row: Row) -> Iterator[Load]:
    """Connections to a server, after waves of as many that have come and gone; adds their figures."""
    waves = -(-CONNECTS // clients)
    memory, used = server.own_pss(), 0.0
    for wave in range(waves):
        if wave:
            settle(server)
        with make() as load:
            cpu = server.cpu()
            try:
                load.connect(clients)
            except BenchmarkError as error:
                raise BenchmarkError(f"connects, wave {wave + 1} of {waves}: {error}") from error
            settle(server)
            used += server.cpu() - cpu
            if not wave:
                row["memory_kb"] = (server.own_pss() - memory) / clients / 1024
            if wave == waves - 1:
                row["connect_us"] = used / (waves * clients) * 1e6
                yield load


class _Figures:
    """What is measured with all connections there.

    The order matters: a call that is cut leaves a server with work for minutes, and is the last of
    its row. So what may take longest comes last.

    Args:
        losses: gets how many messages were lost or repeated, by where.
        clock: of the row.
    """

    def __init__(
        self,
        server: Server,
        load: Load,
        clients: int,
        seconds: float,
        row: Row,
        losses: Counter[str],
        clock: _Clock,
    ) -> None:
        self._server = server
        self._load = load
        self._clients = clients
        self._seconds = seconds
        self._row = row
        self._losses = losses
        self._clock = clock

    def fill(self) -> None:
        """Measure all of them."""
        self._check("the first messages", self._load.publish(3))
        self._delivery(1)
        self._clock.lap("alone")
        self._capacity()
        self._clock.lap("capacity")
        self._latencies()
        self._clock.lap("latencies")
        self._delivery(10)
        self._clock.lap("10 a flush")
        self._delivery(100)
        self._clock.lap("100 a flush")

    def _check(self, where: str, answer: Row) -> None:
        """Note what was lost or repeated.

        Raises:
            BenchmarkError: not everything arrived in time.
        """
        if answer["cut"]:
            raise BenchmarkError(
                f"{where}: {answer['received']:,} of {answer['expected']:,} deliveries within "
                f"{answer['seconds']:.0f} s"
            )
        for name in ("missing", "repeated", "failed", "lost"):
            if answer[name]:
                self._losses[f"{where}: {name}"] += answer[name]

    def _delivery(self, size: int) -> None:
        """CPU of one delivery in microseconds: the median of three runs, or of the first slow call."""
        figure = f"delivery_{size}_us"
        self._row[figure], took = self._cost(figure, 1, size)
        if took > _SLOW * self._seconds:
            return
        calls = max(int(self._seconds / 3 / took), 1)
        self._row[figure] = median(self._cost(figure, calls, size)[0] for _ in range(3))

    def _cost(self, figure: str, calls: int, size: int) -> tuple[float, float]:
        """CPU of one delivery, and the seconds that all took.

        Where the calls are cut, it is that of the deliveries until then, and stays in the row.
        """
        began, cpu = time.monotonic(), self._server.cpu()
        limit = _LAST_S if figure == _LAST else PUBLISH_S
        answer = self._load.publish(calls, size, limit=limit)
        cost = (self._server.cpu() - cpu) / max(answer["received"], 1) * 1e6
        if answer["received"]:
            self._row.setdefault(figure, cost)
        self._check(f"{size} a flush", answer)
        return cost, time.monotonic() - began

    def _capacity(self) -> None:
        """The largest rate of deliveries a second: published a few calls ahead of what has arrived."""
        calls = 5
        while True:
            answer = self._load.publish(calls, rate=-1)
            self._check("at capacity", answer)
            if not answer["seconds"]:
                raise BenchmarkError(f"at capacity: nothing arrived: {answer}")
            if answer["seconds"] > self._seconds / 2:
                break
            calls = max(int(calls * self._seconds / answer["seconds"]), calls + 1)
        self._row["capacity"] = answer["received"] / answer["seconds"]

    def _latencies(self) -> None:
        capacity: float = self._row["capacity"]
        rates = {str(share): capacity * share / 100 for share in _SHARES}
        if capacity > SAME_RATE:
            rates["same"] = SAME_RATE
        for title, deliveries in rates.items():
            rate = deliveries / self._clients
            answer = self._load.publish(max(int(rate * self._seconds), 2), rate=rate)
            self._check(f"at {deliveries:,.0f} deliveries a second", answer)
            for name, value in answer["latency_ms"].items():
                self._row[f"at_{title}_{name}_ms"] = value
