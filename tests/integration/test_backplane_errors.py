"""A backplane that answers, but refuses: it is said at once, in its own words, and passes by itself."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
import redis.asyncio

from tests.support.plain import PlainClient, spread
from tests.support.ports import free_port
from tests.support.service import Answer, Service
from tests.support.valkeys import Starter, binary, port_of, valkeys
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

QUICK = 4.0
"""Seconds: a refusal is answered well before the five that an absent backplane takes."""


@pytest.fixture(scope="module")
def shared_url() -> Iterator[str]:
    """Of a server for the tests that repair what they have done to it."""
    with valkeys() as start:
        yield start("--appendonly", "yes")


@pytest.fixture(scope="module")
def service(shared_url: str) -> Iterator[Service]:
    """Its service."""
    running = Service(BACKPLANE_URL=shared_url).start()
    yield running
    running.stop()


async def publish(service: Service) -> Answer:
    return await service.post("/ws/broadcast", {"type": "status", "event": "tick", "data": 1})


async def status(service: Service) -> dict[str, Any]:
    body: dict[str, Any] = (await service.get("/status")).body
    return body


async def metric(service: Service, name: str) -> float:
    page = (await service.get("/metrics")).body
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


class Hurt(NamedTuple):
    """Something that makes a server refuse writes."""

    hurt: list[str]
    """The command that does it."""
    repair: list[str]
    """The one that takes it back."""
    code: str
    """In the answers to publishers."""
    words: str
    """What the status says of it."""
    cause: str
    """How the metric counts it."""


HURTS = {
    "a replica": Hurt(
        ["REPLICAOF", "127.0.0.1", "1"],
        ["REPLICAOF", "NO", "ONE"],
        "BACKPLANE_UNAVAILABLE",
        "READONLY",
        "readonly",
    ),
    "too few replicas": Hurt(
        ["CONFIG", "SET", "min-replicas-to-write", "1"],
        ["CONFIG", "SET", "min-replicas-to-write", "0"],
        "BACKPLANE_UNAVAILABLE",
        "NOREPLICAS",
        "noreplicas",
    ),
    "memory is full": Hurt(
        ["CONFIG", "SET", "maxmemory", "100kb"],
        ["CONFIG", "SET", "maxmemory", "0"],
        "BACKPLANE_FULL",
        "OOM",
        "oom",
    ),
    "an access rule": Hurt(
        ["ACL", "SETUSER", "default", "-xadd"],
        ["ACL", "SETUSER", "default", "+xadd"],
        "BACKPLANE_UNAVAILABLE",
        "its access rules forbid",
        "noperm",
    ),
}


@pytest.mark.parametrize(
    ("hurt", "repair", "code", "words", "cause"), HURTS.values(), ids=list(HURTS)
)
async def test_a_backplane_that_refuses(
    shared_url: str,
    service: Service,
    hurt: list[str],
    repair: list[str],
    code: str,
    words: str,
    cause: str,
) -> None:
    valkey = redis.asyncio.Redis.from_url(shared_url)
    first = await service.publish()
    client = await PlainClient.open(service, types="status")
    await client.barrier()
    assert (await status(service))["causes"] == []
    await valkey.execute_command(*hurt)

    # Without any publish under way it is seen as well.
    async def is_seen() -> bool:
        """By whichever worker answers."""
        answers = [await status(service) for _ in range(6)]
        return all(
            said["status"] == said["backplane"]["status"] == "degraded"
            and said["backplane"]["writable"] is False
            and words in said["backplane"]["cause"]
            and f"backplane: {said['backplane']['cause']}" in said["causes"]
            for said in answers
        )

    await until(is_seen, "the status says why", 10)
    for _ in range(20):
        async with asyncio.timeout(QUICK):
            answer = await publish(service)
        assert (answer.status, answer.body["code"]) == (503, code), answer
        assert words in answer.body["error"]
        assert answer.headers["Retry-After"] == "1"
    assert (await service.history("status"))[-1]["seq"] == first["seq"]  # reading goes on
    await until(
        lambda: metric(service, f'realtime_backplane_errors_total{{cause="{cause}"}}'),
        "the cause is counted",
    )

    async def is_unwritable() -> bool:
        return await metric(service, "realtime_backplane_writable") == 0

    await until(is_unwritable, "the metric says so")
    await valkey.execute_command(*repair)
    answer = await until(lambda: _published(service), "publishing works again", 5)  # type: ignore[arg-type, return-value]
    assert answer.body["seq"] == first["seq"] + 1

    async def is_well() -> bool:
        return bool((await status(service))["causes"] == [])

    await until(is_well, "the status is well again", 10)
    await client.wait_seq("status", answer.body["seq"])
    await client.close()
    await valkey.aclose()


async def _published(service: Service) -> Answer | None:
    answer = await publish(service)
    return answer if answer.status == 200 else None


async def test_a_blocking_script_is_named(start_valkey: Starter) -> None:
    url = start_valkey("--busy-reply-threshold", "100")
    valkey = redis.asyncio.Redis.from_url(url, socket_timeout=60, retry=None)
    async with Service(BACKPLANE_URL=url) as service:
        await service.publish()
        endless = asyncio.create_task(valkey.eval("while true do end", 0))  # type: ignore[arg-type]
        await asyncio.sleep(0.5)
        async with asyncio.timeout(QUICK):
            answer = await publish(service)
        assert answer.status == 503
        assert "BUSY" in answer.body["error"]

        async def is_seen() -> bool:
            return "BUSY" in str((await status(service))["causes"])

        await until(is_seen, "the status says why", 10)
        killer = redis.asyncio.Redis.from_url(url)
        await killer.script_kill()
        with contextlib.suppress(redis.RedisError):
            await endless
        await until(lambda: _published(service), "publishing works again", 5)
        await killer.aclose()
    await valkey.aclose()


async def test_paused_writes_are_noticed(start_valkey: Starter) -> None:
    url = start_valkey()
    valkey = redis.asyncio.Redis.from_url(url)
    async with Service(BACKPLANE_URL=url, WORKERS=1) as service:
        first = await service.publish()
        await valkey.execute_command("CLIENT", "PAUSE", "100000", "WRITE")

        async def is_seen() -> bool:
            said = await status(service)
            return bool(said["status"] == "degraded" and not said["backplane"]["writable"])

        await until(is_seen, "the status says that nothing can be written", 15)
        waiting = asyncio.create_task(publish(service))
        await asyncio.sleep(1)
        await valkey.execute_command("CLIENT", "UNPAUSE")
        answer = await waiting
        assert answer.status == 200
        events = [one["event"] for one in await service.history("status")]
        assert events == ["tick"] * 2
        assert answer.body["seq"] == first["seq"] + 1
    await valkey.aclose()


async def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """Files that may not grow stand for the disk."""
    port = free_port()
    process = subprocess.Popen(
        [binary(), "--port", str(port), "--dir", str(tmp_path), "--appendonly", "yes",
         "--appendfsync", "everysec", "--save", "", "--auto-aof-rewrite-percentage", "0"],
        stdout=subprocess.DEVNULL,
        restore_signals=False,  # SIGXFSZ stays ignored: writing fails, as on a full disk
    )  # fmt: skip
    try:
        url = f"redis://127.0.0.1:{port}/0"
        probe = redis.asyncio.Redis.from_url(url)

        async def answers() -> bool:
            with contextlib.suppress(redis.RedisError):
                return bool(await probe.ping())
            return False

        await until(answers, "Valkey answers")
        await probe.aclose()
        async with Service(BACKPLANE_URL=url) as service:
            await service.publish()
            enough = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3_000_000, enough[1]))
            full: Answer | None = None
            for _ in range(200):
                body = {"type": "status", "event": "big", "data": "x" * 100_000}
                async with asyncio.timeout(QUICK):
                    answer = await service.post("/ws/broadcast", body)
                if answer.status != 200:
                    full = answer
                    break
            assert full is not None
            assert full.body["code"] == "BACKPLANE_UNAVAILABLE"
            assert "MISCONF" in full.body["error"]

            async def is_seen() -> bool:
                return "MISCONF" in str((await status(service))["causes"])

            await until(is_seen, "the status says why", 10)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, enough)
            await until(lambda: _published(service), "publishing works again", 15)
    finally:
        process.kill()
        process.wait()


async def test_the_connection_moves_to_the_new_primary(start_valkey: Starter) -> None:
    """The name leads to another server, as after a failover; the old one lives on as a replica."""
    old, new = start_valkey(), start_valkey()
    front = Front()
    await front.start(old)
    try:
        before = redis.asyncio.Redis.from_url(old)
        after = redis.asyncio.Redis.from_url(new)
        async with Service(BACKPLANE_URL=f"redis://127.0.0.1:{front.port}/0") as service:
            await service.publish()
            clients = await spread(service, types="status")
            await after.execute_command("REPLICAOF", "127.0.0.1", port_of(old))

            async def is_synced() -> bool:
                return bool((await after.info("replication"))["master_link_status"] == "up")

            await until(is_synced, "the new server has it all")
            await after.execute_command("REPLICAOF", "NO", "ONE")
            front.target = port_of(new)  # for connections that are made from now on
            await before.execute_command("REPLICAOF", "127.0.0.1", port_of(new))
            answer = await until(lambda: _published(service), "publishing works again", 5)
            for client in clients:
                await client.wait_seq("status", answer.body["seq"])  # type: ignore[union-attr]
                await client.close()
        await before.aclose()
        await after.aclose()
    finally:
        await front.stop()


class Front:
    """A name that leads to one server or another: open connections stay where they are."""

    def __init__(self) -> None:
        self.port = free_port()
        self.target = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, url: str) -> None:
        self.target = port_of(url)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.target)
        for source, sink in ((reader, other_writer), (other_reader, writer)):
            task = asyncio.create_task(self._copy(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()


async def test_a_password_that_is_changed(start_valkey: Starter) -> None:
    """Connections are ended and cannot come back: that is said at once, in the server's own words."""
    url = start_valkey("--appendonly", "yes")
    valkey = redis.asyncio.Redis.from_url(url, single_connection_client=True)
    await valkey.execute_command("ACL", "SETUSER", "yujian", "on", ">one", "+@all", "~*", "&*")
    with_login = url.replace("redis://", "redis://yujian:one@")
    async with Service(BACKPLANE_URL=with_login) as service:
        first = await service.publish()
        client = await PlainClient.open(service, types="status")
        await client.barrier()
        await valkey.execute_command("ACL", "SETUSER", "yujian", "resetpass", ">two")
        await valkey.execute_command("CLIENT", "KILL", "USER", "yujian")

        async def is_seen() -> bool:
            said = await status(service)
            return said["status"] == "degraded" and "WRONGPASS" in str(said["causes"])

        await until(is_seen, "the status says why", 10)
        for _ in range(10):
            async with asyncio.timeout(QUICK):
                answer = await publish(service)
            assert (answer.status, answer.body["code"]) == (503, "BACKPLANE_UNAVAILABLE"), answer
            assert "WRONGPASS" in answer.body["error"]
            assert "one" not in answer.body["error"].split()
        await valkey.execute_command("ACL", "SETUSER", "yujian", "resetpass", ">one")
        answer = await until(lambda: _published(service), "publishing works again", 5)  # type: ignore[arg-type, return-value]
        assert answer.body["seq"] == first["seq"] + 1
        await client.wait_seq("status", answer.body["seq"])
        assert client.events("gap") == []
        await client.close()
    await valkey.aclose()
