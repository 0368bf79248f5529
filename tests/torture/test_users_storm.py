"""The death of all workers of two machines whose users are all at their cap.

500 users with three Socket.IO clients each, as many as a user may have, on two services that share
one Valkey. All workers are killed at once; the clients come back as socket.io-client does, to
whichever service a balancer would give them. A client that learns that all places are taken, by a
CONNECT_ERROR or 1008, stays away for good: that must happen to none.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.raw import CLOSE, TEXT, RawClient
from tests.support.service import Service
from tests.support.sioclient import raw_socketio
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until

USERS, EACH = 500, 3
BACK_SECONDS = 90.0
"""In which all must be back; two workers on two shared cores need some twenty."""
FINAL = {1008, 4401, 4409}

pytestmark = pytest.mark.timeout(300)


class Client:
    """A client of a user, with its own reconnecting: 1 s, 2 s, then 5 s, half more or less."""

    def __init__(self, user: str, services: list[Service], got: Counter[str]) -> None:
        self.user = user
        self.services = services
        self.got = got
        self.auth: dict[str, str] = {"user": user}
        self.connected = False
        self.sent_away = ""
        self.tries = 0

    async def live(self) -> None:
        """Connect, and come back after each end, until it is sent away."""
        pause = 1.0
        while not self.sent_away:
            self.tries += 1
            try:
                async with await raw_socketio(random.choice(self.services)) as raw:
                    if raw.status != 101:
                        self.got[f"http {raw.status}"] += 1
                    else:
                        await self._serve(raw)
            except (OSError, EOFError, AssertionError, TimeoutError, ConnectionError):
                self.got["cut"] += 1
            if self.connected:
                self.connected, pause = False, 1.0
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 5.0)

    async def _serve(self, raw: RawClient) -> None:
        await raw.packet("0")
        await raw.send(TEXT, f"40{json.dumps(self.auth)}".encode())
        while True:
            frame = await raw.frame(timeout=120)
            text = frame.payload.decode() if frame.opcode == TEXT else ""
            if frame.opcode == CLOSE:
                self.got[f"close {frame.close_code}"] += 1
                if frame.close_code in FINAL:
                    self.sent_away = f"close {frame.close_code}"
                return
            if text == "2":
                await raw.send(TEXT, b"3")
            elif text.startswith("40"):
                self.auth["pid"] = json.loads(text[2:])["pid"]
                self.connected = True
            elif text.startswith("44"):
                self.sent_away = text
                return


async def test_no_client_is_refused_after_the_death_of_all_workers(tmp_path: Path) -> None:
    valkey = ValkeyProcess(tmp_path)
    await valkey.start()
    try:
        async with (
            Service(BACKPLANE_URL=valkey.url, MAX_CONNECTIONS_PER_USER=EACH) as first,
            Service(BACKPLANE_URL=valkey.url, MAX_CONNECTIONS_PER_USER=EACH) as second,
        ):
            got: Counter[str] = Counter()
            services = [first, second]
            clients = [
                Client(f"user {number}", services, got)
                for number in range(USERS)
                for _ in range(EACH)
            ]
            tasks = [asyncio.create_task(client.live()) for client in clients]
            try:
                await until(
                    lambda: all(client.connected for client in clients), "all in", BACK_SECONDS
                )
                got.clear()
                for service in services:
                    for pid in service.worker_pids():
                        service.kill_worker(pid)
                began = time.monotonic()
                await until(lambda: not any(client.connected for client in clients), "all cut", 20)
                await until(
                    lambda: (
                        all(client.connected for client in clients)
                        or any(client.sent_away for client in clients)
                    ),
                    "all back",
                    BACK_SECONDS,
                )
                print(f"all back after {time.monotonic() - began:.1f} s; {dict(got)}")
                assert [client.sent_away for client in clients if client.sent_away] == []
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        valkey.kill()
