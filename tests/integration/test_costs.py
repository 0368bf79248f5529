"""What things cost, in counts that no noise of the machine changes: system calls and bytes, not times.

A limit here is what it costs now and a little more. A change that lowers a cost lowers its limit; a limit is
raised only for something that is worth it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.raw import TEXT, encode, text
from tests.support.service import TOKEN, Service
from tests.support.waiting import DEADLINE, until

pytestmark = pytest.mark.long

RECEIVERS = 10
CALLS = 150
"""Publishing calls that are counted."""
IDLE_SECONDS = 6.0
"""All that recurs does so within these; in a shorter time it may come twice, or not at all."""
QUIET: dict[str, Any] = {"HANDLERS": "", "HEARTBEAT_INTERVAL": 3600, "HEARTBEAT_TIMEOUT": 7200}
"""Settings with which clients that answer no pings stay, however long a busy machine takes."""

PLAIN = "/ws/realtime?types=status"
SOCKETIO = "/ws/realtime/?EIO=4&transport=websocket"


class Trace:
    """The system calls of a worker while this is entered.

    Args:
        pid: of the worker.
        path: of the file that strace writes.
    """

    def __init__(self, pid: int, path: Path) -> None:
        self._pid = pid
        self._path = path
        self._began = 0.0
        self.seconds = 0.0
        self.calls: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._strace = await asyncio.create_subprocess_exec(
            "strace", "-f", "-p", str(self._pid), "-o", str(self._path),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._strace.stderr is not None
        await self._strace.stderr.readuntil(b"attached")
        self._began = time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        self._strace.terminate()
        await self._strace.wait()
        lines = self._path.read_text(errors="replace")
        self.calls.update(re.findall(r"^\d+ +(\w+)\(", lines, re.MULTILINE))


class Client:
    """A WebSocket client that reads what comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, service: Service, path: str) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        client = cls(reader, writer)
        if "EIO" in path:
            await client.until(b'0{"sid"')
            writer.write(encode(TEXT, b"40"))
            await client.until(b'"connected"')
            writer.write(encode(TEXT, b'42["ping",{"id":"behind"}]'))
        else:
            writer.write(encode(TEXT, text("ping", id="behind")))
        await client.until(b"behind")
        return client

    async def until(self, words: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            await self._reader.readuntil(words)


@contextlib.asynccontextmanager
async def clients(service: Service, path: str, count: int) -> AsyncIterator[list[Client]]:
    made = [await Client.connect(service, path) for _ in range(count)]
    try:
        yield made
    finally:
        for client in made:
            client.writer.transport.abort()


class Publisher:
    """Publishes over connections of its own."""

    def __init__(self, service: Service, *, keep: bool) -> None:
        self._service = service
        self._keep = keep
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._number = 0

    async def publish(self, size: int, receivers: Sequence[Client]) -> None:
        """One call with `size` messages, until all receivers have them."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._service.port)
        reader, writer = self._streams
        self._number += size
        messages = [
            {"type": "status", "event": "counted", "data": {"pad": "x" * 60, "n": f"<{n}>"}}
            for n in range(self._number - size, self._number)
        ]
        body = json.dumps(messages if size > 1 else messages[0]).encode()
        writer.write(
            b"POST /ws/broadcast HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: %b\r\n"
            b"Authorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (b"keep-alive" if self._keep else b"close", TOKEN.encode(), len(body), body)
        )
        async with asyncio.timeout(DEADLINE):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"}\n" if size == 1 else b"]\n")
        if not self._keep:
            writer.close()
            self._streams = None
        for receiver in receivers:
            await receiver.until(b"<%d>" % (self._number - 1))

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()


async def idle_of(worker: int, path: Path) -> Counter[str]:
    """System calls a second of a worker that has nothing to do."""
    async with Trace(worker, path) as trace:
        await asyncio.sleep(IDLE_SECONDS)
    return Counter({name: round(n / trace.seconds) + 1 for name, n in trace.calls.items()})


def per(trace: Trace, idle: Counter[str], count: int, *names: str) -> float:
    """Calls of some names for each of `count`, without those of an idle worker."""
    found = sum(trace.calls[name] - 1.2 * idle[name] * trace.seconds for name in names)
    return found / count


WRITES = ("write", "writev", "sendto", "sendmsg")
READS = ("read", "readv", "recvfrom", "recvmsg")
POLLS = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
SETTLE_SECONDS, LONG_IDLE_SECONDS = 3.0, 12.0


@pytest.mark.needs("strace")
@pytest.mark.parametrize("keep", [False, True], ids=["new connections", "one connection"])
@pytest.mark.parametrize("size", [1, 100])
async def test_system_calls_of_a_publish(tmp_path: Path, keep: bool, size: int) -> None:
    # In a trace of one second its recurring work would weigh as much as a tenth of the calls.
    count = CALLS if size == 1 else CALLS // 2
    async with (
        Service(WORKERS=1, AUDIT_RATE=0, **QUIET) as service,
        clients(service, SOCKETIO, RECEIVERS) as receivers,
    ):
        (worker,) = service.worker_pids()
        publisher = Publisher(service, keep=keep)
        await publisher.publish(size, receivers)
        idle = await idle_of(worker, tmp_path / "idle")
        async with Trace(worker, tmp_path / "trace") as trace:
            for _ in range(count):
                await publisher.publish(size, receivers)
        publisher.close()

    def calls(*names: str) -> float:
        return per(trace, idle, count, *names)

    assert calls(*WRITES) <= RECEIVERS + 3.3, "the receivers, two commands, and the answer"
    # A long request may come in two parts.
    assert calls(*READS) <= (3.3 if size == 1 else 4.3), "the request, and two replies"
    assert calls("fcntl") <= 4.3, "the lock of the slot table, twice"
    assert calls(*POLLS) <= 4.0, (
        "two when replies come together, and one for a rest after a long flush"
    )
    assert calls("accept4") <= (0.05 if keep else 1.2), "it has sent its request by then"
    assert calls("close", "ioctl") <= (0.1 if keep else 2.2)
    assert calls("epoll_ctl") <= (0.05 if keep else 0.2)
    assert calls("setsockopt", "getsockname", "dup") <= 0.05
    # Asyncio asks for it at each look at the running loop.
    assert calls("getpid") <= 1.5
    assert calls(*trace.calls) <= (25.5 if keep else 28.5)


@pytest.mark.needs("strace")
@pytest.mark.parametrize("path", [PLAIN, SOCKETIO], ids=["plain", "socketio"])
async def test_system_calls_of_a_delivery(tmp_path: Path, path: str) -> None:
    """One write for each connection and flush, and nothing else that depends on connections."""
    receivers, posts = 300, 10
    async with (
        Service(WORKERS=1, AUDIT_RATE=0, **QUIET) as service,
        clients(service, path, receivers) as connected,
    ):
        (worker,) = service.worker_pids()
        publisher = Publisher(service, keep=True)
        await publisher.publish(1, connected)
        idle = await idle_of(worker, tmp_path / "idle")
        for size in (1, 100):
            async with Trace(worker, tmp_path / "trace") as trace:
                for _ in range(posts):
                    await publisher.publish(size, connected)
            flushes = posts * receivers
            assert 1.0 <= per(trace, idle, flushes, *WRITES) <= 1.02
            assert per(trace, idle, flushes, *trace.calls) <= 1.1
        publisher.close()


@pytest.mark.needs("strace")
@pytest.mark.parametrize(("path", "most"), [(PLAIN, 17), (SOCKETIO, 28)], ids=["plain", "socketio"])
async def test_system_calls_of_a_connect(tmp_path: Path, path: str, most: int) -> None:
    """Of a client that connects, asks for something, and leaves."""
    count = 200
    async with Service(WORKERS=1, **QUIET) as service:
        (worker,) = service.worker_pids()
        async with clients(service, path, 1):
            pass
        idle = await idle_of(worker, tmp_path / "idle")
        trace_file = tmp_path / "trace"
        async with Trace(worker, trace_file) as trace:
            for _ in range(count):
                async with clients(service, path, 1):
                    pass
            await until(lambda: trace_file.read_text().count(" close(") >= count, "all are gone")
    assert per(trace, idle, count, *trace.calls) <= most


@pytest.mark.needs("strace")
async def test_system_calls_of_an_idle_service(tmp_path: Path) -> None:
    """What recurs in a process shares one wake-up a second."""
    async with Service(WORKERS=2, COLLECTOR=1, HANDLERS="") as service:
        await asyncio.sleep(SETTLE_SECONDS)
        pids = (service.valkey_pid(), *service.worker_pids())
        valkey, *workers = (Trace(pid, tmp_path / str(pid)) for pid in pids)
        async with contextlib.AsyncExitStack() as stack:
            for trace in (valkey, *workers):
                await stack.enter_async_context(trace)
            await asyncio.sleep(LONG_IDLE_SECONDS)
    follower, leader = sorted(workers, key=lambda trace: trace.calls.total())

    def a_second(trace: Trace, *names: str) -> float:
        return sum(trace.calls[name] for name in names or trace.calls) / trace.seconds

    # Its seconds, the read that waits for news, a third of the probes that find deaf workers, and a
    # status every other second where the machine is busy with something else.
    assert a_second(follower, *POLLS) <= 10
    assert a_second(follower) <= 110
    # Beside that the collector, which measures in a thread, and what it publishes.
    assert a_second(leader, *POLLS) <= 26
    assert a_second(leader) <= 280
    # Two by itself; the reads of both workers, probes, and questions of the collector.
    assert a_second(valkey, *POLLS) <= 12
    assert a_second(valkey) <= 60


MEMORY = """
import os, threading, time, tracemalloc

def measure():
    while not os.path.exists(f"{place}0"):
        time.sleep(0.02)
    tracemalloc.start(1)
    os.remove(f"{place}0")
    while True:
        if not os.path.exists(f"{place}1"):
            time.sleep(0.02)
            continue
        now, peak = tracemalloc.get_traced_memory()
        with open(f"{place}.new", "w") as file:
            print(now, peak, file=file)
        os.remove(f"{place}1")
        os.rename(f"{place}.new", f"{place}.out")

place = os.environ["MEASURED"]
os.register_at_fork(after_in_child=lambda: threading.Thread(target=measure, daemon=True).start())
"""
"""The `sitecustomize` of a service whose worker counts the bytes that Python takes."""


@pytest.mark.parametrize(
    ("path", "most", "most_at_once"),
    [(PLAIN, 455, 585), (SOCKETIO, 455, 565)],
    ids=["plain", "socketio"],
)
async def test_bytes_of_a_connection(
    tmp_path: Path, path: str, most: int, most_at_once: int
) -> None:
    """What Python holds for a connection that is idle, and at most while many connect."""
    count = 1000
    (tmp_path / "sitecustomize.py").write_text(MEMORY)
    place = tmp_path / "measured"
    environ: dict[str, Any] = {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    }
    async with Service(WORKERS=1, MEASURED=str(place), COLLECTOR=0, **QUIET, **environ) as service:
        async with clients(service, path, 20):  # what is made for the first clients
            pass
        Path(f"{place}0").touch()
        await until(lambda: not Path(f"{place}0").exists(), "the count has begun")
        async with clients(service, path, count):

            async def bytes_now() -> int:
                place.with_suffix(".out").unlink(missing_ok=True)
                Path(f"{place}1").touch()
                await until(place.with_suffix(".out").exists, "the count is over")
                return int(place.with_suffix(".out").read_text().split()[0])

            async def is_idle() -> bool:
                await asyncio.sleep(0.2)
                return await bytes_now() <= most * count

            # Accounts of the seconds in which they came are dropped a little later.
            await until(is_idle, f"at most {most} bytes for each connection")
            peak = int(place.with_suffix(".out").read_text().split()[1])
    assert peak / count <= most_at_once
