"""Commands and replies of the backplane, over a transport that a test plays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio.connection import Connection
from redis.exceptions import BusyLoadingError, InvalidResponse, ReadOnlyError
from redis.exceptions import ConnectionError as LostConnection

from app.backplane.wire import Wire
from app.seconds import REST, next_second, seconds_of
from tests.support.clock import elapse, virtual_time
from tests.support.transports import Transport

FAR = 1000.0


class World:
    def __init__(self) -> None:
        self.transport = Transport()
        self.wire = Wire(self.transport, Connection()._parser.parse_error)  # type: ignore[no-untyped-call]

    async def ask(self, replies: int = 1, timeout: float = FAR) -> asyncio.Task[list[Any]]:
        task = asyncio.ensure_future(self.wire.exchange(b"command", replies, timeout))
        await asyncio.sleep(0)
        return task


@pytest.fixture
async def world() -> World:
    return World()


async def test_replies_may_be_cut_anywhere(world: World) -> None:
    data = b"+OK\r\n$3\r\na\r\n\r\n*2\r\n:1\r\n$-1\r\n"
    for end in range(1, len(data)):
        task = await world.ask(3)
        world.wire.data_received(data[:end])
        await asyncio.sleep(0)
        assert not task.done()
        world.wire.data_received(data[end:])
        assert await task == [b"OK", b"a\r\n", [1, None]]
    assert world.transport.written == [b"command"] * (len(data) - 1)
    assert not world.transport.closed


async def test_an_error_reply_is_among_the_others(world: World) -> None:
    task = await world.ask(3)
    world.wire.data_received(b":1\r\n-READONLY no writes\r\n:3\r\n")
    first, error, last = await task
    assert (first, last) == (1, 3)
    assert isinstance(error, ReadOnlyError)


async def test_a_server_that_cannot_serve_fails_the_exchange(world: World) -> None:
    for reply in (b"-LOADING data\r\n", b"*2\r\n-LOADING data\r\n:1\r\n"):
        task = await world.ask(2)
        world.wire.data_received(reply)
        with pytest.raises(BusyLoadingError):
            await task


async def test_what_is_no_reply_fails_the_exchange(world: World) -> None:
    task = await world.ask()
    world.wire.data_received(b"what is this\r\n")
    with pytest.raises(InvalidResponse):
        await task


@pytest.mark.parametrize("error", [None, OSError("broken")])
async def test_a_lost_connection(world: World, error: Exception | None) -> None:
    task = await world.ask()
    world.wire.connection_lost(error)
    with pytest.raises(LostConnection) as caught:
        await task
    assert caught.value.__cause__ is error
    with pytest.raises(LostConnection):
        await world.wire.exchange(b"", 1, FAR)


async def test_a_connection_that_is_being_closed(world: World) -> None:
    world.transport.closed = True
    with pytest.raises(LostConnection):
        await world.wire.exchange(b"", 1, FAR)
    assert not world.transport.written


async def test_what_was_not_asked_for_ends_the_connection(world: World) -> None:
    world.wire.data_received(b"+OK\r\n")
    assert world.transport.closed


async def test_an_exchange_without_replies_in_time(world: World) -> None:
    with pytest.raises(TimeoutError):
        await world.wire.exchange(b"", 1, 0.0)
    task = await world.ask(timeout=FAR)
    assert not task.done(), "the next one has its own time"
    world.wire.data_received(b":1\r\n")
    assert await task == [1]


async def test_one_timer_serves_many_exchanges(world: World) -> None:
    timers = set()
    for timeout in (10.0, 20.0, 30.0):
        task = await world.ask(timeout=timeout)
        timers.add(world.wire._timer)
        world.wire.data_received(b":1\r\n")
        await task
    assert len(timers) == 1
    task = await world.ask(timeout=0.1)
    assert world.wire._timer not in timers, "that one is too late"
    world.wire._due = 0.0
    world.wire._look()
    with pytest.raises(TimeoutError):
        await task


async def test_the_timer_ends_with_the_exchanges(world: World) -> None:
    task = await world.ask(timeout=10.0)
    world.wire._look()
    assert world.wire._timer is not None, "it may go on for longer"
    world.wire.data_received(b":1\r\n")
    await task
    world.wire._look()
    assert world.wire._timer is None
    await world.ask(timeout=10.0)
    world.wire.connection_lost(None)
    assert world.wire._timer is None


async def test_a_cancelled_exchange(world: World) -> None:
    task = await world.ask()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    world.wire.data_received(b":1\r\n")
    assert world.transport.closed


@virtual_time
async def test_a_long_wait_costs_a_worker_that_rests_no_look_of_its_own() -> None:
    world, loop = World(), asyncio.get_running_loop()
    seconds = seconds_of(loop)
    first = await next_second(REST)
    seconds.rest()
    looks: list[float] = []
    wire: Any = world.wire
    look = wire._look
    wire._look = lambda: (looks.append(loop.time()), look())
    task = await world.ask(1, timeout=REST + 2.0)
    await elapse(REST + 2.5)
    assert isinstance(task.exception(), TimeoutError)
    assert looks == pytest.approx([first + REST, first + REST + 1.0, first + REST + 2.0], abs=0.1)


@virtual_time
async def test_an_answer_to_a_worker_that_rests_leaves_no_look_behind() -> None:
    world, loop = World(), asyncio.get_running_loop()
    seconds = seconds_of(loop)
    wire: Any = world.wire
    looks: list[float] = []
    look = wire._look
    wire._look = lambda: (looks.append(loop.time()), look())

    async def ask_and_wait() -> None:
        task = await world.ask(1, timeout=5.0)
        wire.data_received(b":1\r\n")
        assert await task == [1]
        await elapse(REST + 1.5)

    await ask_and_wait()
    assert len(looks) == 1, "one timer for many exchanges"
    seconds.rest()
    await ask_and_wait()
    assert len(looks) == 1
    await ask_and_wait()
    assert len(looks) == 1
