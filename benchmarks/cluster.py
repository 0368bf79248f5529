"""What a message costs a node of a Cluster, and one server, with workers that read it.

    .venv/bin/python -m benchmarks.cluster [readers]...

Three nodes without replicas on the loopback, and then one server, each with so many workers' own readers. Single
messages are published, one at a time, to one type, and then to each type in turn. Prints the CPU time of the node that has the
type, of all nodes and of the one server for each message, the bytes that they send for it, and what they use in a second
without messages.
The readers run in this process, on the last processor where there are several.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, Self

from app.backplane.client import Backplane
from app.backplane.publisher import StreamPublisher
from app.backplane.reader import StreamReader
from app.config import Settings
from app.types import Position
from benchmarks.procs import cpu_seconds, cpus
from tests.support.backplane import draft
from tests.support.cluster import Cluster, Side
from tests.support.ports import free_port
from tests.support.sentinels import ServerProcess

MESSAGES = 300
PAUSE = 0.005
"""Seconds between two messages, so that each is read alone."""
IDLE = 3.0
"""Seconds in which nothing is published."""
READERS = (0, 8, 32, 80)
TYPES = ("status", "stats", "health", "config", "system")
BODY = b"x" * 150
SERVERS, OTHERS = cpus()


class Cost(NamedTuple):
    """Of a server, or of several."""

    cpu: float
    """Seconds for a message."""
    sent: float
    """Bytes for a message."""


class Meter:
    """What servers have used."""

    def __init__(self, servers: Sequence[ServerProcess]) -> None:
        self._servers = servers
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self._cpu, self._sent = self._now()

    def per(self, number: float) -> Cost:
        """What was used since, divided by a number."""
        cpu, sent = self._now()
        return Cost((cpu - self._cpu) / number, (sent - self._sent) / number)

    def _now(self) -> tuple[float, int]:
        cpu = sum(cpu_seconds(server.pid) for server in self._servers)
        stats = [server.client.info("stats") for server in self._servers]
        return cpu, sum(int(one["total_net_output_bytes"]) for one in stats)  # type: ignore[index]


class Plain:
    """One worker's reader and publisher of one server."""

    def __init__(self, url: str) -> None:
        self._backplane = Backplane(url, Settings(), "bench")
        self._reader = StreamReader(self._backplane)
        self._publisher = StreamPublisher(self._backplane, self._reader.positions)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        await self._backplane.connect(loop.time() + 10)
        await self._reader.start()
        self._task = loop.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._backplane.close()

    async def _read(self) -> None:
        while True:
            await self._reader.read()

    def at(self, type: str) -> int:
        """The newest message that it has read."""
        return self._reader.positions[type].seq

    async def publish(self, type: str) -> int:
        """Publish a message; returns its number."""
        (found,) = await self._publisher.store(
            [draft(BODY, type=type)], asyncio.get_running_loop().time() + 10
        )
        assert isinstance(found, Position)
        return found.seq


class Noded(Side):
    """One worker's reader and publisher of a Cluster."""

    def at(self, type: str) -> int:
        """The newest message that it has read."""
        return self.reader.positions[type].seq

    async def publish(self, type: str, within: float = 10.0) -> int:  # type: ignore[override]
        """Publish a message; returns its number."""
        await super().publish(type, within)
        return self.stored[type][-1]


async def measure(
    workers: Sequence[Plain | Noded], types: Sequence[str], meters: Sequence[Meter]
) -> list[Cost]:
    """Publish with the first worker, and wait each time until all others have read it."""
    publisher, *readers = workers
    for type in types:
        await publisher.publish(type)
    await asyncio.sleep(0.2)
    for meter in meters:
        meter.begin()
    for number in range(MESSAGES):
        type = types[number % len(types)]
        seq = await publisher.publish(type)
        while any(reader.at(type) < seq for reader in readers):
            await asyncio.sleep(0)
        await asyncio.sleep(PAUSE)
    return [meter.per(MESSAGES) for meter in meters]


async def idle(meter: Meter) -> float:
    """CPU seconds in a second in which nothing is published."""
    meter.begin()
    await asyncio.sleep(IDLE)
    return meter.per(IDLE).cpu


@contextlib.contextmanager
def pinned(processors: set[int]) -> Iterator[None]:
    """What is started meanwhile runs on these processors; what goes on, on the last one."""
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, OTHERS)


async def of_cluster(readers: int) -> None:
    """Print the rows of a Cluster."""
    async with AsyncExitStack() as stack:
        with pinned(SERVERS):
            cluster = stack.enter_context(Cluster(replicas=False))
        workers = [
            await stack.enter_async_context(Noded(cluster.url, f"bench{number}"))
            for number in range(readers + 1)
        ]
        node, everyone = Meter([cluster.primary_of("status")]), Meter(cluster.nodes)
        one, all_of_one = await measure(workers, ["status"], [node, everyone])
        (spread,) = await measure(workers, TYPES, [everyone])
        rest = await idle(everyone)
    _print(readers, "Cluster, one type, its node", one)
    _print(readers, "Cluster, one type, all nodes", all_of_one)
    _print(readers, "Cluster, types in turn, all nodes", spread, rest)


async def of_server(readers: int) -> None:
    """Print the row of one server."""
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yj-b-")))
        port = free_port()
        words = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""]
        with pinned(SERVERS):
            server = ServerProcess(root / "server", port, *words, "--appendfsync", "no")
        stack.callback(server.close)
        workers = [
            await stack.enter_async_context(Plain(f"redis://127.0.0.1:{port}/0"))
            for _ in range(readers + 1)
        ]
        meter = Meter([server])
        (one,) = await measure(workers, ["status"], [meter])
        (spread,) = await measure(workers, TYPES, [meter])
        rest = await idle(meter)
    _print(readers, "one server, one type", one)
    _print(readers, "one server, types in turn", spread, rest)


def _print(readers: int, what: str, cost: Cost, rest: float | None = None) -> None:
    end = "" if rest is None else f" | {rest * 1e6:8.0f}"
    print(f"{readers:>7} | {what:<34} | {cost.cpu * 1e6:8.0f} | {cost.sent:8.0f}{end}")


def main() -> None:
    """Measure and print a table."""
    numbers = [int(word) for word in sys.argv[1:]] or READERS
    print(f"{MESSAGES} single messages of {len(BODY)} bytes, {time.strftime('%d %B %Y')}")
    print("readers | what                               | CPU, us  | bytes    | idle, us/s")
    for readers in numbers:
        asyncio.run(of_cluster(readers))
        asyncio.run(of_server(readers))


if __name__ == "__main__":
    main()
