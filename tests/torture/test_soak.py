"""Two hours' events in minutes, after which the service holds what it held before.

Clients of every kind come and go while it is reloaded and its workers and backplane are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import random
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
import websockets
from websockets.asyncio.client import connect

from tests.support.envelopes import walk
from tests.support.mutations import seed_of_day
from tests.support.plain import endpoint
from tests.support.raw import BINARY, TEXT, RawClient, encode
from tests.support.service import Service
from tests.support.waiting import until
from tests.torture import recordings, watch
from tests.torture.followers import Follower, PlainFollower, SocketIOFollower
from tests.torture.sender import Job
from tests.torture.test_malformed import send
from tests.torture.watch import LONG, scaled

pytestmark = pytest.mark.timeout(1200)

ROUNDS = scaled(1, 8)
CALM = 8.0 if LONG else 3.0
"""Seconds of load between two events."""
LIVES = 40
"""Clients at one time beside those that send malformed input."""
MEMORY_SLACK = 80 * 2**20
"""Bytes by which all workers together may have grown; half of it is what Python keeps of a storm."""
_LOST = (OSError, EOFError, TimeoutError, AssertionError, websockets.WebSocketException)
_UNANSWERED = (OSError, TimeoutError, aiohttp.ClientError)
"""What may happen to a client whose worker is killed."""


class Load:
    """Clients of every kind, each with a short life, one after the other."""

    def __init__(self, service: Service, seed: int, job: Path) -> None:
        self.service = service
        self.lived: Counter[str] = Counter()
        self._seed = seed
        self._job = job
        self._stopped = False
        self._tasks = [asyncio.create_task(self._lane(lane)) for lane in range(LIVES)]
        self._tasks.append(asyncio.create_task(self._spoilt()))

    async def stop(self) -> None:
        """Let the clients that are left end."""
        self._stopped = True
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)

    async def _spoilt(self) -> None:
        first = 0
        while not self._stopped:
            # Answers do not count here: a worker that is killed gives none.
            await send(self._job, self._seed, first, 100)
            first += 100
            await asyncio.sleep(0.5)

    async def _lane(self, lane: int) -> None:
        rng = random.Random(f"soak {self._seed} {lane}")
        lives = (self._plain, self._plain, self._socketio, self._socketio, self._slow, self._half)
        while not self._stopped:
            life = rng.choice(lives)
            with contextlib.suppress(*_LOST):
                async with asyncio.timeout(15):
                    await life(rng)
                    self.lived[life.__name__] += 1
            await asyncio.sleep(rng.random() * 0.2)

    @staticmethod
    def _user(rng: random.Random) -> str:
        return f"user{rng.randrange(200)}"

    async def _plain(self, rng: random.Random) -> None:
        url = endpoint(self.service, token=recordings.token(self._user(rng)), types="status,stats")
        async with connect(url, compression=None, close_timeout=1, proxy=None) as client:
            for _ in range(rng.randrange(8)):
                action, payload = rng.choice(
                    (
                        ("subscribe", {"types": ["config", "health"], "history": 20}),
                        ("unsubscribe", {"types": ["stats"]}),
                        ("get_history", {"type": "status", "limit": 100}),
                        ("presence", {"type": "status"}),
                        ("ping", "x" * rng.choice((10, 3000))),
                    )
                )
                await client.send(json.dumps({"action": action, "id": 1, "payload": payload}))
                async with asyncio.timeout(10):
                    while '"replyTo":1' not in str(await client.recv()):
                        pass
            if rng.random() < 0.3:
                client.transport.abort()

    async def _socketio(self, rng: random.Random) -> None:
        url = f"ws://127.0.0.1:{self.service.port}/ws/realtime/?EIO=4&transport=websocket"
        async with connect(url, compression=None, close_timeout=1, proxy=None) as client:
            await client.send("40" + json.dumps({"token": recordings.token(self._user(rng))}))
            for number in range(rng.randrange(1, 8)):
                for part in rng.choice(
                    (
                        ['["enter","room"]'],
                        ['["leave","room"]'],
                        ['["relay",{"text":"to all"}]'],
                        ['["keep",{"mine":[1,2,3]}]'],
                        ['["ask",{"question":1}]'],
                        ['["subscribe",{"types":["stats"],"history":5}]'],
                        ["51-", '["echo",{"_placeholder":true,"num":0}]', os.urandom(3000)],
                        ["51-", '["relay",{"_placeholder":true,"num":0}]', os.urandom(300)],
                    )
                ):
                    if isinstance(part, bytes):
                        await client.send(part)
                    elif part.startswith("["):  # type: ignore[attr-defined]
                        await client.send(f"42{number}{part}")
                await asyncio.sleep(rng.random() * 0.2)
            if rng.random() < 0.5:
                await client.send("41")
            elif rng.random() < 0.5:
                client.transport.abort()

    async def _slow(self, rng: random.Random) -> None:
        path = f"/ws/realtime?token={recordings.token(self._user(rng))}&types=status,stats"
        async with await RawClient.open(self.service, path, receive_buffer=4096) as client:
            await client.ask("subscribe", {"types": ["all"], "history": 100})
            await asyncio.sleep(rng.random() * 4)

    async def _half(self, rng: random.Random) -> None:
        path = f"/ws/realtime?token={recordings.token(self._user(rng))}"
        async with await RawClient.open(self.service, path) as client:
            frame = encode(rng.choice((TEXT, BINARY)), b"x" * rng.choice((200, 70_000, 900_000)))
            await client.write(frame[: rng.randrange(len(frame))])
            await asyncio.sleep(rng.random())


class Publisher:
    """Publishes all the while, and remembers what was stored."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.stored: list[tuple[str, int]] = []
        self.failures = 0
        self._task = asyncio.create_task(self._publish())

    async def stop(self) -> None:
        """Publish no more."""
        assert not self._task.done(), self._task.exception()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _publish(self) -> None:
        number = 0
        while True:
            number += 1
            body = {"type": "status", "event": "tick", "data": {"n": number}, "id": f"tick{number}"}
            while True:
                with contextlib.suppress(*_UNANSWERED):
                    answer = await self.service.post("/ws/broadcast", body)
                    if answer.status == 200:
                        self.stored.append((answer.body["epoch"], answer.body["seq"]))
                        break
                self.failures += 1
                await asyncio.sleep(0.1)
            with contextlib.suppress(*_UNANSWERED):
                bulk = {"type": "stats", "event": "bulk", "data": "x" * 20_000, "priority": "low"}
                await self.service.post("/ws/broadcast", bulk)
            await asyncio.sleep(0.03)


async def serves(service: Service) -> None:
    """Wait until a message can be published."""

    async def works() -> bool:
        with contextlib.suppress(*_UNANSWERED):
            body = {"type": "config", "event": "probe", "data": None}
            return (await service.post("/ws/broadcast", body)).status == 200
        return False

    await until(works, "the service publishes again", 60)


async def test_two_hours_in_minutes(tmp_path: Path) -> None:
    seed = seed_of_day()
    print(f"TORTURE_SEED={seed}")
    async with Service(
        HANDLERS="tests.torture.handlers", AUTH_SECRET=recordings.SECRET, allow_traceback=True
    ) as service:
        job = tmp_path / "job"
        recorded = await recordings.record(service)
        requests = recordings.http_requests(service.port)
        job.write_bytes(pickle.dumps(Job("sockets", service.port, recorded, requests)))
        followers: list[Follower] = [
            PlainFollower(service, {"token": recordings.token("plain")}),
            SocketIOFollower(service, {"token": recordings.token("socketio")}),
        ]
        publisher = Publisher(service)
        await until(lambda: all(follower.last for follower in followers), "followers follow")
        before = await watch.at_rest(service)
        began = time.monotonic()
        load = Load(service, seed, job)
        for _ in range(ROUNDS):
            await asyncio.sleep(CALM)
            await service.hup()
            await asyncio.sleep(CALM)
            await service.replaced(service.kill_worker())
            await asyncio.sleep(CALM)
            service.kill_valkey()
            await serves(service)
            await asyncio.sleep(CALM)
            assert service.process is not None
            assert service.process.poll() is None
        await load.stop()
        took = time.monotonic() - began
        await watch.back_at_rest(service, before)
        assert not [line for line in watch.errors_in(service.log) if "realtime.session" in line]
        await publisher.stop()
        epoch, seq = publisher.stored[-1]
        for follower in followers:
            await until(lambda follower=follower: follower.has(epoch, seq), "followers catch up")
            story = walk(follower.received, "status")
            assert len(story.seqs) > len(publisher.stored) * 0.5
            print(
                f"{type(follower).__name__}: {len(story.seqs)} messages of {len(publisher.stored)},"
                f" gaps {story.gaps}, {follower.connections} connections"
            )
        grown = sum((await asyncio.to_thread(watch.memory, service)).values())
        assert grown < sum(before.memory.values()) + MEMORY_SLACK, (before.memory, grown)
        print(f"{took:.0f} s, {dict(load.lived)}, publishes failed {publisher.failures} times")
        assert len(load.lived) == 4, "every kind of client got through its life"
        assert not [line for line in service.log.splitlines() if " CRITICAL " in line]
        for follower in followers:
            await follower.stop()
