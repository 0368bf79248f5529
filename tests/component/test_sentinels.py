"""A backplane behind Sentinels: failovers lose nothing that was confirmed, and are seen at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from typing import Self

import pytest

from app.backplane.server import SentinelServer
from app.config import Settings
from app.errors import BackplaneUnavailable
from app.types import Gap, Message, Position
from tests.support.backplane import Node, draft
from tests.support.sentinels import Sentinels
from tests.support.waiting import until

LONG = 60.0
"""Seconds within which a failover and everything after it must be over."""


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as running:
        yield running


@contextlib.asynccontextmanager
async def joined(sentinels: Sentinels, wait: int = 0) -> AsyncIterator[Node]:
    settings = dataclasses.replace(Settings(), backplane_wait=wait)
    node = Node(sentinels.url, settings, time.time)
    try:
        await node.backplane.connect(asyncio.get_running_loop().time() + 5)
        await node.reader.start()
        yield node
    finally:
        await node.backplane.close()


async def publish_until_stored(node: Node, body: bytes, id: str) -> Position:
    async with asyncio.timeout(LONG):
        while True:
            with contextlib.suppress(BackplaneUnavailable):
                (position,) = await node.publish(draft(body, id=id))
                assert isinstance(position, Position)
                return position


class Stream:
    """Publishes numbered messages one after another, and reads them on another connection."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.stored: list[bytes] = []
        self.seen: list[Message | Gap] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._publish()), asyncio.create_task(self._read())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    async def reaches(self, count: int) -> None:
        """Wait until so many are stored, and read."""
        await until(lambda: len(self.stored) >= count and self.has_read(count), "it goes on", LONG)

    def has_read(self, count: int) -> bool:
        return sum(isinstance(item, Message) for item in self.seen) >= count

    def assert_nothing_lost(self) -> None:
        assert [item for item in self.seen if isinstance(item, Gap)] == []
        bodies = [item.body for item in self.seen if isinstance(item, Message)]
        assert bodies[: len(self.stored)] == self.stored[: len(bodies)]
        assert len(bodies) >= len(self.stored) - 1

    async def _publish(self) -> None:
        number = 0
        while True:
            number += 1
            body = b'{"n":%d' % number
            await publish_until_stored(self._node, body, f"stream-{number}")
            self.stored.append(body)

    async def _read(self) -> None:
        while True:
            self.seen += (await self._node.reader.read()).messages


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_failover_loses_and_repeats_nothing(sentinels: Sentinels, how: str) -> None:
    async with joined(sentinels, wait=1) as node, Stream(node) as stream:
        await stream.reaches(50)
        old = sentinels.primary()
        getattr(old, how)()
        await stream.reaches(len(stream.stored) + 50)
        assert sentinels.primary() is not old
        if how == "stop":
            old.cont()  # it still holds itself for the primary, until a Sentinel says otherwise
            await until(lambda: old.client.role()[0] == "slave", "it is a replica", LONG)
        await stream.reaches(len(stream.stored) + 50)
        stream.assert_nothing_lost()


async def test_each_sentinel_may_be_gone(sentinels: Sentinels) -> None:
    async with joined(sentinels) as node, Stream(node) as stream:
        sentinels.sentinels[0].stop()
        await stream.reaches(10)
        for link in (node.backplane.reading, node.backplane.publishing):
            link.renew()
        await stream.reaches(len(stream.stored) + 10)
        sentinels.primary().kill()
        await stream.reaches(len(stream.stored) + 10)
        sentinels.sentinels[0].cont()


async def test_no_sentinel_is_forgotten_when_all_connections_search_at_once(
    sentinels: Sentinels,
) -> None:
    async with joined(sentinels) as node:
        await node.publish(draft())
        sentinels.sentinels[0].stop()
        links = (node.backplane.reading, node.backplane.publishing)
        for link in links:
            await link.close()
        await asyncio.gather(*(link.call([(b"PING",)], 5) for link in links))
        server = node.backplane._server
        assert isinstance(server, SentinelServer)
        assert len(set(map(id, server._sentinels.sentinels))) == 3
        sentinels.sentinels[0].cont()


async def test_without_any_sentinel_connections_stay(sentinels: Sentinels) -> None:
    async with joined(sentinels) as node:
        await node.publish(draft())
        for one in sentinels.sentinels:
            one.kill()
        (position,) = await node.publish(draft())
        assert position.seq == 2
        node.backplane.publishing.renew()
        with pytest.raises(BackplaneUnavailable) as caught:
            await node.publish(draft(), within=0.3)
        assert caught.value.message
        assert node.publisher.fault is not None
        assert node.publisher.fault.cause == "no_primary"
        assert node.backplane.errors["no_primary"]


async def test_too_few_replicas_are_an_error_and_a_retry_is_safe(sentinels: Sentinels) -> None:
    async with joined(sentinels, wait=1) as node:
        replicas = sentinels.replicas()
        for one in replicas:
            one.stop()
        with pytest.raises(BackplaneUnavailable, match="0 of 1 replicas have confirmed"):
            await node.publish(draft(b'{"n":1', id="one"), within=1.5)
        assert node.backplane.errors["unreplicated"]
        for one in replicas:
            one.cont()
        first = await publish_until_stored(node, b'{"n":1', "one")
        assert first.seq == 1
        assert first.maybe_known
        (second,) = await node.publish(draft(b'{"n":2'))
        assert second.seq == 2


async def test_what_was_not_confirmed_may_be_lost_and_is_announced(sentinels: Sentinels) -> None:
    async with joined(sentinels) as node:
        await node.publish(draft(b'{"n":1'))
        await node.read(1)
        replicas = sentinels.replicas()
        for one in replicas:
            one.stop()
        # What the kernel has taken for them would still reach them.
        sentinels.primary().client.client_kill_filter(_type="replica")
        for number in range(2, 6):
            await node.publish(draft(b'{"n":%d' % number))
        await node.read(4)
        sentinels.primary().kill()
        for one in replicas:
            one.cont()
        epoch = node.reader.positions["status"].epoch
        reading = asyncio.create_task(node.read(2, LONG))
        await publish_until_stored(node, b'{"n":6', "six")
        gap, message = await reading
        assert isinstance(gap, Gap)
        assert gap.reason == "epoch"
        assert isinstance(message, Message)
        assert message.body == b'{"n":6'
        assert message.epoch != epoch
