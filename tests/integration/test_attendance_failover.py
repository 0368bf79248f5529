"""The list of users over a Cluster and behind Sentinels: it outlives the server that holds it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.plain import PlainClient, spread
from tests.support.sentinels import Sentinels
from tests.support.service import Service
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(150), pytest.mark.no_cover]

Kill = Callable[[], None]
"""Ends the server that holds the list, and waits until another has taken its place."""


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, Kill]]:
    with Cluster() as running:

        def kill() -> None:
            old, new = running.primary_of("attendance"), running.replica_of("attendance")
            old.kill()
            running.wait_for_primary("attendance", new)

        yield running.url, kill


@contextlib.contextmanager
def sentinels() -> Iterator[tuple[str, Kill]]:
    with Sentinels() as running:

        def kill() -> None:
            running.primary().kill()

        yield running.url, kill


async def listed(client: PlainClient) -> dict[str, int]:
    """The users that are listed, with their connections; none while they cannot be read."""
    answer = await client.request("presence", {"type": "status", "limit": 100})
    rows = answer["data"].get("names", [])
    return {row["user"]: row["connections"] for row in rows}


async def until_listed(client: PlainClient, expected: dict[str, int]) -> None:
    async def is_so() -> bool:
        return await listed(client) == expected

    await until(is_so, f"{expected} are listed", 40)


def announced(client: PlainClient) -> list[tuple[str, str]]:
    return [
        (envelope["event"], row["user"])
        for envelope in client.received
        if envelope["event"] in {"join", "leave"}
        for row in envelope["data"]["users"]
    ]


@pytest.mark.parametrize("kind", [cluster, sentinels])
async def test_users_are_listed_and_announced_over_a_failover(
    kind: Callable[[], contextlib.AbstractContextManager[tuple[str, Kill]]],
) -> None:
    with kind() as (url, kill):
        async with Service(
            WORKERS=2, JOIN_LEAVE="status", PRESENCE_NAMES="all", BACKPLANE_URL=url
        ) as service:
            watch = await PlainClient.open(service, types="system")
            ann = await spread(service, 2, user="ann", types="status")
            bob = await PlainClient.open(service, user="bob", types="status")
            await until_listed(watch, {"ann": 2, "bob": 1})
            await until(lambda: len(announced(watch)) == 2, "both are announced")
            await asyncio.to_thread(kill)
            carl = await PlainClient.open(service, user="carl", types="status")
            await until_listed(watch, {"ann": 2, "bob": 1, "carl": 1})
            await bob.close()
            await until_listed(watch, {"ann": 2, "carl": 1})
            await until(lambda: ("leave", "bob") in announced(watch), "bob is announced", 40)
            assert sorted(announced(watch)) == [
                ("join", "ann"),
                ("join", "bob"),
                ("join", "carl"),
                ("leave", "bob"),
            ]
            assert watch.events("gap") == []
            for client in (*ann, carl, watch):
                await client.close()
