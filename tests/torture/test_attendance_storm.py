"""5 000 users come at once and go at once: at most two messages a second say so."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.plain import PlainClient
from tests.support.raw import RawClient
from tests.support.service import Service
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

USERS = 5000
MOST_A_SECOND = 2


async def test_a_storm_of_users_is_no_storm_of_messages() -> None:
    async with Service(WORKERS=2, JOIN_LEAVE="all", PRESENCE_NAMES="all") as service:
        watch = await PlainClient.open(service, types="system")

        def announced(event: str) -> int:
            return sum(envelope["data"]["total"] for envelope in watch.events(event))

        clients: list[RawClient] = []
        for start in range(0, USERS, 500):
            clients += await asyncio.gather(
                *(
                    RawClient.open(service, f"/ws/realtime?types=status,stats&user=user{number}")
                    for number in range(start, start + 500)
                )
            )
        await until(lambda: announced("join") >= USERS, "all are announced", timeout=60)
        listed = await watch.request("presence", {"type": "status", "limit": 100})
        assert listed["data"]["total"] == USERS
        await asyncio.gather(*(client.abort() for client in clients))
        await until(lambda: announced("leave") >= USERS, "all have left", timeout=60)
        assert (announced("join"), announced("leave")) == (USERS, USERS)
        messages = [*watch.events("join"), *watch.events("leave")]
        times = sorted(message["timestamp"] for message in messages)
        elapsed = (times[-1] - times[0]) / 1000
        assert len(messages) <= MOST_A_SECOND * elapsed + MOST_A_SECOND
        print(f"{len(messages)} messages in {elapsed:.1f} s")
        assert all(len(message["data"]["users"]) <= 200 for message in messages)
        # Each user was named or counted once, in one message.
        named = [row["user"] for m in watch.events("join") for row in m["data"]["users"]]
        assert len(named) == len(set(named))
        await watch.close()
