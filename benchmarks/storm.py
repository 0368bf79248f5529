"""Clients that all come back, or ask, at once: how soon they are served, and what those connected notice of it.

Those that come or ask beside a stream would be on other machines. So they give way to its clients and to
the service, or the figure would be of how the kernel divides two processors.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.hostile import WAVES
from benchmarks.peers.load import Load
from benchmarks.procs import (
    HEADERS,
    TOKEN,
    BenchmarkError,
    LoadClient,
    Server,
    cpu_seconds,
    service,
)
from benchmarks.scenarios import PLAIN, SOCKETIO, Figures, Size, say
from benchmarks.stream import INTERVAL

CONNECTED = 1000
"""Clients that get a stream while the others come."""
SECONDS = 5.0
"""Length of a measurement."""
WARM_SECONDS = 2.0
"""Length of the stream before the first one."""
_SETTLE = 1.5
_PUBLISH_PATH = "/ws/broadcast"
OTHERS = "/ws/realtime?types=health"
"""What those want that come beside the stream: none of it."""
REQUESTS = {
    "presence": '{"action":"presence","id":"a","payload":{"type":"health"}}',
    "subscribe": '{"action":"subscribe","id":"b","payload":{"types":["health"]}}',
    "get_history": '{"action":"get_history","id":"c","payload":{"type":"status","limit":10}}',
}
"""What they ask when all of them do so at once."""
CALLERS = 1000
"""Clients that call over HTTP at once, and the addresses that they come from."""
ADDRESSES = 50
WIRES = (("json", "raw", PLAIN), ("socketio", "sio", SOCKETIO))


def storm(size: Size, figures: Figures) -> None:
    """Seconds until all of many clients are subscribed, and the p99 of the others' deliveries.

    The load client takes processor time of the same machine; how much is among the figures.
    """
    queue = int(Path("/proc/sys/net/core/somaxconn").read_text())
    if queue < size.many:
        figures.notes.append(
            f"storm: the kernel holds {queue} new connections (net.core.somaxconn); with more at"
            " once, the load client waits a second until it may try again"
        )
    for name, wire, path in WIRES:
        for number in range(size.connect_rounds):
            say(f"storm: {size.many} clients of {name}, round {number + 1}")
            with service(2, pinned=False) as server:
                time.sleep(_SETTLE)
                _come_back(server, name, wire, path, size.many, figures)
    with service(2, pinned=False) as server, LoadClient() as load:
        _listen(server, load)
        for number in range(size.connect_rounds):
            say(f"storm: beside {CONNECTED} clients, round {number + 1}")
            calm = _stream(server, load)
            load.begin("stream", headers=HEADERS, seconds=SECONDS, interval=INTERVAL)
            with _clients(server, "raw", OTHERS) as others:
                others.give_way()
                time.sleep(1.0)
                others.connect(size.many)
                beside = _latency(server, load.result())
            figures.add("storm_p99_ms", "calm", calm)
            figures.add("storm_p99_ms", "beside", beside)
            figures.add("storm_p99_ratio", "beside", beside / calm)


def requests(size: Size, figures: Figures) -> None:
    """The p99 of deliveries to some while many others ask something at once.

    Those that are connected do so over their sockets, and as many over HTTP, each over a connection of its own.
    """
    with (
        service(2, pinned=False) as server,
        LoadClient() as load,
        _clients(server, "raw", OTHERS) as others,
        LoadClient(module="hostile") as callers,
    ):
        others.give_way()
        callers.give_way()
        _listen(server, load)
        others.connect(size.many)
        time.sleep(_SETTLE)
        for number in range(size.connect_rounds):
            for name, text in REQUESTS.items():
                say(f"requests: {size.many} times {name}, round {number + 1}")
                calm = _stream(server, load)
                load.begin("stream", headers=HEADERS, seconds=SECONDS, interval=INTERVAL)
                time.sleep(1.0)
                answer = others.ask(size.many, text)
                beside = _latency(server, load.result())
                figures.add("requests_p99_ms", name, beside)
                figures.add("requests_calm_ms", name, calm)
                figures.add("requests_p99_ratio", name, beside / calm)
                figures.add("requests_seconds", name, answer["seconds"])
            for name in WAVES:
                say(f"requests: {CALLERS} times {name}, round {number + 1}")
                calm = _stream(server, load)
                load.begin("stream", headers=HEADERS, seconds=SECONDS, interval=INTERVAL)
                time.sleep(1.0)
                callers.begin("attack", **_wave(server, name))
                beside = _latency(server, load.result())
                answers = callers.result()["results"]
                # They run where a processor is idle, and an address has a budget.
                figures.notes.append(f"{name}: {CALLERS} clients were answered {answers}")
                if not answers.keys() <= {"200", "429"}:
                    raise BenchmarkError(figures.notes[-1])
                figures.add("requests_p99_ms", name, beside)
                figures.add("requests_calm_ms", name, calm)
                figures.add("requests_p99_ratio", name, beside / calm)


def _wave(server: Server, name: str) -> dict[str, object]:
    return {
        "port": server.port,
        "kind": name,
        "clients": CALLERS,
        "addresses": ADDRESSES,
        "token": TOKEN,
        "seconds": SECONDS - 1.0,
    }


def _listen(server: Server, load: LoadClient) -> None:
    """Connect those that get a stream, and let the first of it go by."""
    time.sleep(_SETTLE)
    result = load("connect", port=server.port, path=PLAIN, wire="json", clients=CONNECTED)
    if result["ready"] != CONNECTED:
        raise BenchmarkError(f"only {result} connected:\n{server.log()}")
    load("stream", headers=HEADERS, seconds=WARM_SECONDS, interval=INTERVAL)


def _come_back(
    server: Server, name: str, wire: str, path: str, clients: int, figures: Figures
) -> None:
    with _clients(server, wire, path) as load:
        load.connect(10)  # what is made with the first connection belongs to no other one
        load(f"flight {clients}")
        before, cpu = load.cpu(), server.cpu()
        answer = load.connect(clients - 10)
        figures.add("storm_seconds", name, answer["seconds"])
        figures.add("storm_client_seconds", name, load.cpu() - before)
        figures.add("storm_server_seconds", name, server.cpu() - cpu)


class _Clients(Load):
    """The load client in C, and the processor time that it has used."""

    def cpu(self) -> float:
        """In seconds."""
        return cpu_seconds(self._process.pid)


def _clients(server: Server, wire: str, path: str) -> _Clients:
    return _Clients(server, wire, path, server.port, _PUBLISH_PATH)


def _stream(server: Server, load: LoadClient) -> float:
    return _latency(server, load("stream", headers=HEADERS, seconds=SECONDS, interval=INTERVAL))


def _latency(server: Server, result: dict[str, object]) -> float:
    """The p99 of a stream in milliseconds."""
    if result["lost"] or result["missing"]:
        raise BenchmarkError(f"clients lost something: {result}\n{server.log()}")
    latency = result["latency_ms"]
    assert isinstance(latency, dict)
    return float(latency["p99"])
