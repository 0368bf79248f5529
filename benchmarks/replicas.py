"""What a message costs the shared server with workers that read from it, and from replicas of machines.

    .venv/bin/python -m benchmarks.replicas [readers] [machines]...

Publishes single messages, one at a time, to a Valkey on the loopback with so many readers in all: directly
(0 machines), and over so many machines, each with the replica that its leader would run. Prints the CPU time of
the shared server and of one replica for each message, and how long after the publish call its readers have it.
Everything runs on one machine and the readers in this process, so the times are those of a machine that is too small;
compare them with each other.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from app.backplane.publisher import StreamPublisher
from benchmarks.procs import cpu_seconds
from tests.support.backplane import draft
from tests.support.ports import free_port
from tests.support.replicas import Machine, Reading
from tests.support.sentinels import ServerProcess

MESSAGES = 300
PAUSE = 0.01
"""Seconds between two messages, so that each is read alone."""
IDLE = 3.0
"""Seconds without messages."""
READERS, MACHINES = 64, (0, 1, 4, 8)


class Result(NamedTuple):
    """Of one run."""

    primary: float
    """Seconds of CPU for a message."""
    replica: float
    """Of one replica; 0 without."""
    idle: float
    """Of the shared server, for a second without messages: the leaders look at it, and it at itself."""
    late: list[float]
    """Seconds until a reader has a message, for each of both."""


def _last(worker: Reading) -> int:
    return worker.reader.positions["status"].seq


async def measure(readers: int, machines: int) -> Result:
    """Publish with so many readers over so many machines; 0: all read from the shared server."""
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yj-b-")))
        port = free_port()
        words = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""]
        words += ["--appendfsync", "no", "--repl-diskless-sync-delay", "0"]
        server = ServerProcess(root / "server", port, *words)
        stack.callback(server.close)
        url = f"redis://127.0.0.1:{port}/0"
        shares = [readers // max(1, machines)] * max(1, machines)
        made = [Machine(url, share, follows=machines > 0) for share in shares]
        for machine in made:
            await stack.enter_async_context(machine)
            if machines:
                await machine.reads(replica=True)
        everyone = [worker for machine in made for worker in machine.workers]
        publisher = StreamPublisher(everyone[0].backplane, {}, time.time)
        loop = asyncio.get_running_loop()
        late: list[float] = []

        async def publish() -> None:
            began = time.perf_counter()
            (position,) = await publisher.store([draft(b"x" * 150)], loop.time() + 10)
            waiting = list(everyone)
            while waiting:
                left = [worker for worker in waiting if _last(worker) < position.seq]  # type: ignore[union-attr]
                late.extend([time.perf_counter() - began] * (len(waiting) - len(left)))
                waiting = left
                await asyncio.sleep(0)

        await publish()
        late.clear()
        pids = [machine.pid for machine in made] if machines else []
        quiet = cpu_seconds(server.pid)
        await asyncio.sleep(IDLE)
        idle = (cpu_seconds(server.pid) - quiet) / IDLE
        before = cpu_seconds(server.pid), sum(map(cpu_seconds, pids))
        for _ in range(MESSAGES):
            await publish()
            await asyncio.sleep(PAUSE)
        used = cpu_seconds(server.pid) - before[0]
        others = sum(map(cpu_seconds, pids)) - before[1]
        return Result(used / MESSAGES, others / MESSAGES / max(1, machines), idle, late)


def main() -> None:
    """Measure and print a table."""
    numbers = [int(word) for word in sys.argv[1:]]
    readers = numbers[0] if numbers else READERS
    print(f"{readers} readers in all, {MESSAGES} single messages of 150 bytes")
    print("machines | shared server, us | idle, us/s | each replica, us | median, ms | p99, ms")
    for machines in numbers[1:] or MACHINES:
        result = asyncio.run(measure(readers, machines))
        p99 = quantiles(result.late, n=100)[98]
        print(
            f"{machines or 'direct':>8} | {result.primary * 1e6:17.0f} | {result.idle * 1e6:10.0f}"
            f" | {result.replica * 1e6:16.0f}"
            f" | {median(result.late) * 1e3:10.2f} | {p99 * 1e3:7.2f}"
        )


if __name__ == "__main__":
    main()
