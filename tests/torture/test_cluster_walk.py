"""A long walk over a Cluster: slots move, primaries are killed, stopped and replaced under a stream."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable

import pytest

from app.backplane.scripts import CONTROL
from tests.support.cluster import Cluster, Side
from tests.support.sentinels import ServerProcess
from tests.support.waiting import until
from tests.torture.watch import scaled

pytestmark = [pytest.mark.no_cover, pytest.mark.timeout(600)]

ALL = ("status", "stats", "health", "config", "system", CONTROL)
STEPS = scaled(4, 40)


async def move(cluster: Cluster, type: str) -> None:
    """The slot of a type goes to another node."""
    to = random.choice(cluster.others(type))
    await asyncio.to_thread(cluster.migrate, type, to)
    await asyncio.to_thread(cluster.wait_for_primary, type, to)


async def promote(cluster: Cluster, type: str) -> None:
    """An operator has the replica take over."""
    replica = cluster.replica_of(type)
    cluster.command(replica, "CLUSTER", "FAILOVER")
    await asyncio.to_thread(cluster.wait_for_primary, type, replica)


async def kill(cluster: Cluster, type: str) -> None:
    """The primary dies, and comes back as a replica."""
    await replace(cluster, type, ServerProcess.kill, ServerProcess.start_again)


async def freeze(cluster: Cluster, type: str) -> None:
    """The primary stops with its connections open, and goes on as a replica."""
    await replace(cluster, type, ServerProcess.stop, ServerProcess.cont)


async def replace(
    cluster: Cluster,
    type: str,
    end: Callable[[ServerProcess], None],
    begin: Callable[[ServerProcess], None],
) -> None:
    primary, replica = cluster.primary_of(type), cluster.replica_of(type)
    end(primary)
    await asyncio.to_thread(cluster.wait_for_primary, type, replica)
    await asyncio.to_thread(begin, primary)
    await until(lambda: cluster.replica_of(type) is primary, "it is a replica", 30)


def has_more(writer: Side, known: dict[str, int]) -> bool:
    return all(len(writer.stored[type]) > count for type, count in known.items())


async def test_nothing_that_was_confirmed_is_lost_or_repeated() -> None:
    with Cluster() as cluster:
        async with Side(cluster.url, backplane_wait=1) as writer, Side(cluster.url) as reader:
            async with writer.streaming(ALL, may_fail=True):
                for number in range(STEPS):
                    step = (freeze, move, kill, promote)[number % 4]
                    type = random.choice(ALL)
                    await step(cluster, type)
                    known = {one: len(stored) + 3 for one, stored in writer.stored.items()}
                    await until(
                        functools.partial(has_more, writer, known), f"{step.__name__} of {type}", 60
                    )
            await until(
                lambda: all(writer.stored[type][-1] in reader.numbers(type) for type in ALL),
                "it reads",
                30,
            )
            assert reader.gaps() == []
            for type in ALL:
                numbers = reader.numbers(type)
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
                assert set(writer.stored[type]) <= set(numbers)
