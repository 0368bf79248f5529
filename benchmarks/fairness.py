"""What hostile clients cost honest ones: the latency of deliveries beside each kind of attack."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator

from benchmarks.hostile import KINDS
from benchmarks.procs import HEADERS, BenchmarkError, LoadClient, Server, service
from benchmarks.scenarios import PLAIN, Figures, Size, say
from benchmarks.stream import INTERVAL

HONEST = 1000
"""Clients that get every message."""
CROWDS = (1, 10, 100, 1000)
"""Numbers of hostile clients."""
SECONDS = 5.0
"""Length of a measurement."""
WARM_SECONDS = 2.0
"""Length of the stream before the first measurement: the first messages find nothing made yet."""
HEADSTART = 1.5
"""Seconds that an attack goes on before the measurement begins."""
ADDRESSES = 50
"""Addresses that a crowd comes from."""
REST_SECONDS = 1.0
"""After an attack, before the next measurement without one."""


def fairness(size: Size, figures: Figures) -> None:
    """The p99 of deliveries to honest clients, alone and beside each crowd, in turn."""
    crowds = size.crowds or (CROWDS if size.clients >= 1000 else CROWDS[:2])
    attacks = [(kind, number) for kind in size.attacks or KINDS for number in crowds]
    with service(2, pinned=False) as server, LoadClient() as load:
        time.sleep(1.5)
        _fill_history(server)
        result = load("connect", port=server.port, path=PLAIN, wire="json", clients=HONEST)
        if result["ready"] != HONEST:
            raise BenchmarkError(f"only {result} connected:\n{server.log()}")
        load("stream", headers=HEADERS, seconds=WARM_SECONDS, interval=INTERVAL)
        with LoadClient(module="hostile") as hostile:
            for kind, number in attacks * size.attack_rounds:
                calm = _measure(server, load)
                say(f"fairness: {number} times {kind}")
                with _attack(hostile, server, kind, number):
                    time.sleep(HEADSTART)
                    beside = _measure(server, load)
                figures.add("fairness_p99_ms", f"{kind}, {number}", beside["p99"])
                figures.add("fairness_ratio", f"{kind}, {number}", beside["p99"] / calm["p99"])
                time.sleep(REST_SECONDS)


def _fill_history(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        for type in ("status", "stats"):
            message = {"type": type, "event": "fill", "data": {"pad": "x" * 1000}}
            for _ in range(3):
                body = json.dumps([message] * 100)
                connection.request("POST", "/ws/broadcast", body, HEADERS)
                connection.getresponse().read()


def _measure(server: Server, load: LoadClient) -> dict[str, float]:
    result = load("stream", headers=HEADERS, seconds=SECONDS, interval=INTERVAL)
    if result["lost"] or result["missing"]:
        raise BenchmarkError(f"honest clients lost something: {result}\n{server.log()}")
    latency: dict[str, float] = result["latency_ms"]
    return latency


@contextlib.contextmanager
def _attack(hostile: LoadClient, server: Server, kind: str, clients: int) -> Iterator[None]:
    seconds = HEADSTART + SECONDS + 0.5
    hostile.begin(
        "attack",
        port=server.port,
        kind=kind,
        clients=clients,
        addresses=min(clients, ADDRESSES),
        seconds=seconds,
    )
    yield
    say(f"  {hostile.result()['results']}")
