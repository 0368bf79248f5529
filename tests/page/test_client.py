"""`@yujian/realtime` in Node and Bun against the real service: recovery, reloads, gaps, tokens, drains."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from tests.support import REPO
from tests.support.node import Node, script
from tests.support.service import Service
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

LIVE = REPO / "clients/js/test/live.mjs"
SECRET = "0123456789abcdef0123456789abcdef"


RUNTIMES = {"node": "", "bun": str(REPO / "node_modules/.bin/bun")}

Client = Callable[..., AbstractAsyncContextManager[Node]]


@pytest.fixture(params=RUNTIMES)
def client(request: pytest.FixtureRequest, packages: Path) -> Client:
    """Starts a client of a service, in each runtime."""
    program = RUNTIMES[request.param]

    @asynccontextmanager
    async def start(base: str, **environ: str) -> AsyncIterator[Node]:
        async with script(LIVE, program=program, BASE=base, **environ) as node:
            assert await node.line() == {"runtime": request.param}
            yield node

    return start


async def until_open(node: Node) -> None:
    await node.until("state", "open")


async def collect(node: Node, last: int | str) -> list[dict[str, Any]]:
    """Lines up to the message whose data is `last`."""
    lines = []
    while True:
        lines.append(await node.line())
        if lines[-1].get("event") == "tick" and lines[-1]["data"] == last:
            return lines


def ticks(lines: list[dict[str, Any]]) -> list[int]:
    return [line["data"] for line in lines if line.get("event") == "tick"]


async def test_the_newest_state_comes_first(client: Client, service: Service) -> None:
    for number in range(3):
        await service.publish("config", "tick", number)
    async with client(service.base, TYPES="config") as node:
        await until_open(node)
        first = await node.until("event", "tick")
        assert (first["data"], first["origin"]) == (2, "history")
        await service.publish("config", "tick", 3)
        assert (await node.until("event", "tick"))["origin"] == "live"
        await node.tell(action="presence", payload={"type": "config"})
        assert set((await node.until("answer", "presence_data"))["data"]) == {
            "connections",
            "users",
        }
        await node.tell(action="get_history", payload={"type": "nope"})
        await node.until("refused", "INVALID_TYPE")


async def test_kill_9_loses_nothing_and_repeats_nothing(client: Client, service: Service) -> None:
    async with client(service.base, TYPES="config") as node:
        await until_open(node)
        await service.publish("config", "tick", 100)
        await collect(node, 100)  # what other tests have published comes before it
        for victim in service.worker_pids():
            service.kill_worker(victim)
        marks = {number: uuid.uuid4().hex for number in range(101, 110)}
        for number, mark in marks.items():
            await until(lambda n=number, m=mark: _published(service, n, m), "published")  # type: ignore[misc]
        lines = await collect(node, 109)
        assert ticks(lines) == list(range(101, 110))
        assert [line["cause"] for line in lines if line.get("state") == "waiting"]
    await until(lambda: len(service.worker_pids()) == service.workers, "all workers again")


async def _published(service: Service, number: int, mark: str) -> bool:
    """Publish once the service answers; an id makes repeating harmless."""
    body = {"type": "config", "event": "tick", "data": number, "id": mark}
    try:
        return (await service.post("/ws/broadcast", body)).status == 200
    except (OSError, aiohttp.ClientError):
        return False


async def test_a_reload_is_not_noticed(client: Client, service: Service) -> None:
    async with client(service.base, TYPES="config") as node:
        await until_open(node)
        await service.hup()
        await service.publish("config", "tick", 200)
        lines = await collect(node, 200)
        assert [line for line in lines if "state" in line] == []


@pytest.fixture(scope="module")
def forgetful() -> Iterator[Service]:
    """A service with a short history, whose worker tests kill."""
    running = Service(HISTORY_SIZE=5, RECOVERY_WINDOW=0, WORKERS=1).start()
    yield running
    running.stop()


async def test_a_gap_is_announced(client: Client, forgetful: Service) -> None:
    service = forgetful
    async with client(service.base, TYPES="config") as node:
        await until_open(node)
        await service.publish("config", "tick", 0)
        await collect(node, 0)
        os.kill(node.process.pid, signal.SIGSTOP)
        victim = service.kill_worker()
        await service.replaced(victim)
        for number in range(1, 21):
            await service.publish("config", "tick", number)
        # What a worker still has in memory it would replay.
        victim = service.kill_worker()
        await service.replaced(victim)
        os.kill(node.process.pid, signal.SIGCONT)
        lines = await collect(node, 20)
        (gap,) = [line["gap"] for line in lines if "gap" in line]
        assert gap["reason"] == "history"
        assert ticks(lines) == list(range(1 + gap["last"] - gap["first"] + 1, 21))
        await node.tell(counts=True)
        counts = (await node.line())["counts"]
        assert counts["missed"] == gap["last"] - gap["first"] + 1
        assert counts["reconnects"] >= 1


@pytest.fixture(scope="module")
def guarded() -> Iterator[Service]:
    """A service that asks its clients for a token."""
    running = Service(AUTH_SECRET=SECRET).start()
    yield running
    running.stop()


async def test_tokens_are_renewed(client: Client, guarded: Service) -> None:
    def token(seconds: float) -> str:
        return jwt.encode({"sub": "ann", "exp": time.time() + seconds}, SECRET)

    # The first is refused, the second ends within the minute of the warning.
    tokens = json.dumps([token(-60), token(55), token(600)])
    async with client(guarded.base, TYPES="config", TOKENS=tokens) as node:
        await until_open(node)
        while (await node.line()).get("token") != 1:
            pass
        mark = uuid.uuid4().hex
        await guarded.publish("config", "tick", mark)
        await collect(node, mark)
        states = [line["state"] for line in node.lines if "state" in line]
        assert states == ["waiting", "connecting", "open"]


async def test_a_drain_says_when_to_come_back(client: Client) -> None:
    first = Service(DRAIN_SECONDS=1)
    await first.__aenter__()
    data = first.data_dir
    async with client(first.base, TYPES="config") as node:
        await until_open(node)
        await first.publish("config", "tick", 1)
        await node.until("event", "tick")
        kept = data.parent.parent / f"{data.parent.name}-kept"
        assert first.process is not None
        first.process.terminate()
        waiting = await node.until("state", "waiting")
        assert (waiting["code"], waiting["cause"]) == (1012, "restart")
        first.process.wait(30)
        data.rename(kept)
        await first.__aexit__(None, None, None)
        async with Service(data_dir=kept, port=first.port) as second:
            await second.publish("config", "tick", 2)
            lines = await collect(node, 2)
            assert ticks(lines) == [2]


async def test_a_type_that_is_removed_keeps_no_other_from_flowing(
    client: Client, tmp_path: Path
) -> None:
    first = Service(data_dir=tmp_path / "data", MESSAGE_TYPES="lab", DRAIN_SECONDS=1, WORKERS=1)
    await first.__aenter__()
    try:
        async with client(first.base, TYPES="lab,config") as node:
            await until_open(node)
            await first.publish("config", "tick", 1)
            await collect(node, 1)
            await first.publish("lab", "tick", 2)
            await collect(node, 2)
            await asyncio.to_thread(first.stop)
            async with Service(data_dir=first.data_dir, port=first.port, WORKERS=1) as second:
                await second.publish("config", "tick", 3)
                lines = await collect(node, 3)
                assert ticks(lines) == [3]
                if {"error": "INVALID_TYPE"} not in lines:
                    await node.until("error", "INVALID_TYPE")
    finally:
        await asyncio.to_thread(first.destroy)
