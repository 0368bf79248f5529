"""A backplane behind Sentinels: failovers lose nothing that was confirmed, and are seen at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from typing import Self

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import MasterNotFoundError

from app.backplane.server import SentinelServer
from app.config import Settings
from app.errors import BackplaneUnavailable
from app.setting_values import sentinel_address
from app.types import Gap, Message, Position
from tests.support.backplane import Node, draft
from tests.support.sentinels import NAME, Sentinels
from tests.support.tls import TlsFront
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
        self.pause = 0.0
        """Seconds between two messages, where nothing happens in between."""
        self._read_messages = 0
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
        return self._read_messages >= count

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
            await asyncio.sleep(self.pause)

    async def _read(self) -> None:
        while True:
            messages = (await self._node.reader.read()).messages
            self._read_messages += sum(isinstance(item, Message) for item in messages)
            self.seen += messages


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_failover_loses_and_repeats_nothing(sentinels: Sentinels, how: str) -> None:
    async with joined(sentinels, wait=1) as node, Stream(node) as stream:
        await stream.reaches(50)
        old = sentinels.primary()
        getattr(old, how)()
        await asyncio.to_thread(sentinels.fail_over_once)
        await stream.reaches(len(stream.stored) + 50)
        assert sentinels.primary() is not old
        stream.pause = 0.005  # the Sentinels take some ten seconds from here on
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


async def test_a_sentinel_that_talks_nonsense_keeps_no_other_from_being_asked(
    sentinels: Sentinels,
) -> None:
    answers = {
        "an error": b"-ERR unknown command\r\n",
        "no right": b"-NOPERM User default has no permissions\r\n",
        "a status": b"+OK\r\n",
        "numbers": b"*2\r\n:1\r\n:2\r\n",
        "bytes": b"*1\r\n*2\r\n$2\r\n\xff\xfe\r\n$1\r\n\xff\r\n",
        "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "a redirection to nowhere": b"-MOVED\r\n",
    }
    said = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                writer.write(said)
        writer.close()

    liar = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = liar.sockets[0].getsockname()[1]
    address = sentinel_address(sentinels.url.replace("://", f"://127.0.0.1:{port},"))
    assert address is not None
    for said in answers.values():
        server = SentinelServer(address)
        listening = server.listen(lambda: None)
        assert listening is not None
        kept: list[AbstractConnection] = []
        await server.open("test", kept.append)
        await kept[0].disconnect()
        await asyncio.sleep(0.05)
        assert not listening.done(), said
        listening.cancel()
        await asyncio.wait([listening])
        await server.close()
    alone = sentinel_address(f"redis+sentinel://127.0.0.1:{port}/{NAME}")
    assert alone is not None
    said = answers["no right"]
    server = SentinelServer(alone)
    with pytest.raises(MasterNotFoundError, match=r"no Sentinel names a primary.*NOPERM"):
        await server.open("test", kept.append)
    await server.close()
    liar.close()


async def test_by_tls() -> None:
    with (
        TlsFront() as front,
        Sentinels(front=front.relay) as sentinels,
    ):
        url = f"{sentinels.url.replace('redis+', 'rediss+')}?{front.options}"
        node = Node(url, dataclasses.replace(Settings(), backplane_wait=1), time.time)
        try:
            await node.backplane.connect(asyncio.get_running_loop().time() + 5)
            await node.reader.start()
            async with Stream(node) as stream:
                await stream.reaches(20)
                assert front.encrypted >= 6  # three connections, and one to each Sentinel
                await asyncio.to_thread(sentinels.primary().kill)
                await asyncio.to_thread(sentinels.fail_over_once)
                await stream.reaches(len(stream.stored) + 20)
            assert not [item for item in stream.seen if isinstance(item, Gap)]
        finally:
            await node.backplane.close()
