"""Exchanges and pushes on one connection to a node, over a transport that a test plays."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import MovedError

from app.backplane.cluster.link import Redirection, redirection
from app.backplane.cluster.pipeline import Pipeline
from app.backplane.cluster.slot_map import Node
from tests.support.transports import Transport

FAR = 1000.0
HERE = Node("10.0.0.1", 7000)


class World:
    def __init__(self) -> None:
        self.transport = Transport()
        self.notices: list[list[Any]] = []
        self.losses = 0
        connection = Connection()  # type: ignore[no-untyped-call]
        connection._writer = SimpleNamespace(transport=self.transport)  # type: ignore[assignment]
        self.pipeline = Pipeline(connection, self.notices.append, self._lose)

    def _lose(self, _: Pipeline) -> None:
        self.losses += 1

    async def ask(self, replies: int = 1, timeout: float = FAR) -> asyncio.Task[list[Any]]:
        task = asyncio.ensure_future(self.pipeline.exchange(b"command", replies, timeout))
        await asyncio.sleep(0)
        return task


@pytest.fixture
async def world() -> World:
    return World()


async def test_replies_of_several_exchanges_may_be_cut_anywhere(world: World) -> None:
    data = b"+OK\r\n>2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n$3\r\na\r\n\r\n:7\r\n"
    for end in range(1, len(data)):
        first, second = await world.ask(2), await world.ask()
        world.pipeline.data_received(data[:end])
        world.pipeline.data_received(data[end:])
        assert await first == [b"OK", b"a\r\n"]
        assert await second == [7]
    assert world.notices == [[b"invalidate", [b"k"]]] * (len(data) - 1)


async def test_an_exchange_that_is_cancelled_leaves_the_others_their_replies(world: World) -> None:
    first, second = await world.ask(), await world.ask()
    first.cancel()
    await asyncio.wait([first])
    world.pipeline.data_received(b":1\r\n:2\r\n")
    assert await second == [2]


async def test_a_lost_connection_fails_all(world: World) -> None:
    tasks = [await world.ask(), await world.ask()]
    world.pipeline.connection_lost(None)
    for task in tasks:
        with pytest.raises(LostConnection):
            await task
    assert world.losses == 1


async def test_a_node_that_is_silent_is_given_up(world: World) -> None:
    short = await world.ask(timeout=0.01)
    with pytest.raises(TimeoutError):
        await short
    assert not world.transport.closed, "the time of a caller was short, not the node slow"


async def test_a_reply_to_nothing_ends_the_connection(world: World) -> None:
    world.pipeline.data_received(b"+OK\r\n")
    assert world.transport.closed
    with pytest.raises(LostConnection):
        await world.pipeline.exchange(b"command", 1, FAR)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (b"-MOVED 1 10.0.0.2:7001\r\n", Redirection(Node("10.0.0.2", 7001), asking=False)),
        (b"-ASK 1 10.0.0.2:7001\r\n", Redirection(Node("10.0.0.2", 7001), asking=True)),
        (b"-MOVED 1 :7001\r\n", Redirection(Node("10.0.0.1", 7001), asking=False)),
        (b"-MOVED 1 fd00::1:7001\r\n", Redirection(Node("fd00::1", 7001), asking=False)),
        (b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n", None),
        (b"+OK\r\n", None),
    ],
)
async def test_redirections(world: World, reply: bytes, found: Redirection | None) -> None:
    task = await world.ask()
    world.pipeline.data_received(reply)
    (answer,) = await task
    assert redirection(answer, HERE) == found
    assert isinstance(answer, MovedError) is (found is not None and not found.asking)
