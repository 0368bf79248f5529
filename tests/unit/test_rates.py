"""What connections may use, with a clock that a test turns."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest

from app.sessions import rates as module
from app.sessions.rates import Limits, Rates, Verdict, metered
from app.transport.connection import CLOSING, OPEN
from app.transport.hub import FLOOD
from tests.support.clock import Clock

TAKE, REFUSE, CLOSE = Verdict.TAKE, Verdict.REFUSE, Verdict.CLOSE


class World:
    def __init__(self, **limits: float) -> None:
        self.now = 100.0
        given: dict[str, Any] = {"messages": 5, "flood": 50, "bytes": 1000, "seconds": 0.1}
        self.drawn = 1.0
        """What lies between the shortest wait, 0, and the longest, 1."""
        self.rates = Rates(Limits(**(given | limits)), self.clock, self.draw)

    def draw(self, least: float, most: float) -> float:
        return least + self.drawn * (most - least)

    def clock(self) -> float:
        return self.now

    def spend(self, peer: object, seconds: float = 0.0, size: int = 0, extras: int = 0) -> float:
        connection: Any = peer
        return self.rates.spend(connection, seconds, size, extras, self.now)

    def message(self, peer: object) -> Verdict:
        connection: Any = peer
        return self.rates.message(connection)

    def second(self) -> None:
        self.now += 1.0
        self.rates.start_second()


@pytest.fixture
def world() -> World:
    return World()


def test_messages_are_counted_by_the_second(world: World) -> None:
    assert [world.message("a") for _ in range(7)] == [TAKE] * 5 + [REFUSE] * 2
    assert world.message("b") is TAKE
    world.second()
    assert world.message("a") is TAKE
    assert [world.message("a") for _ in range(50)][-2:] == [REFUSE, CLOSE]


def test_a_client_that_is_refused_for_long_is_closed(world: World) -> None:
    for _ in range(int(module.CLOSE_SECONDS)):
        assert [world.message("a") for _ in range(6)][-1] is REFUSE
        world.second()
    assert [world.message("a") for _ in range(6)][-1] is CLOSE


def test_a_quiet_second_forgives_refusals(world: World) -> None:
    for _ in range(10):
        for _ in range(6):
            world.message("a")
        world.second()
    world.second()
    for _ in range(int(module.CLOSE_SECONDS)):
        assert [world.message("a") for _ in range(6)][-1] is REFUSE
        world.second()


def test_bytes_past_the_share_wait_until_it_has_grown(world: World) -> None:
    assert world.spend("a", size=1000) == 0.0
    assert world.spend("a", size=500) == pytest.approx(1.5)
    assert world.spend("b", size=1000) == 0.0
    world.now += 0.5
    assert world.spend("a", size=100) == pytest.approx(1.1)
    assert world.spend("a", size=100_000) == module.MAX_PAUSE
    world.second()
    assert world.spend("a", size=1000) == 0.0


def test_time_past_the_share_waits(world: World) -> None:
    world.now += 0.5
    assert world.spend("a", 0.1) == 0.0
    assert world.spend("a", 0.05) == pytest.approx(1.0)


def test_what_is_charged_holds_back_a_connection_that_is_open() -> None:
    world = World(seconds=0.01)
    world.now += 0.5
    held: list[float] = []

    class Peer:
        state = OPEN
        hub: Any = None

        def hold(self, _connection: object, pause: float) -> None:
            held.append(pause)

    peer: Any = Peer()
    peer.hub = peer
    world.rates.charge(peer, 0.01)
    assert held == [], "its share"
    world.rates.charge(peer, 0.01)
    assert held == [min(1.5, module.MAX_PAUSE)]
    peer.state = CLOSING
    world.rates.charge(peer, 0.01)
    assert len(held) == 1


def test_waiting_for_long_means_refusals_and_then_the_end(world: World) -> None:
    verdicts, pauses = [], []
    for _ in range(40):
        pauses.append(world.spend("a", size=1500))
        verdicts.append(world.message("a"))
        if pauses[-1] == FLOOD:
            break
        world.now += 0.5
        world.second()
    began = verdicts.index(REFUSE)
    assert verdicts[:began] == [TAKE] * began
    assert began * 1.5 == pytest.approx(module.REFUSE_SECONDS, abs=1.6)
    assert len(pauses) * 1.5 == pytest.approx(module.CLOSE_SECONDS, abs=1.6)


def test_a_wait_now_and_then_has_no_consequence(world: World) -> None:
    for _ in range(20):
        assert world.spend("a", size=1200) == pytest.approx(1.2)
        assert world.message("a") is TAKE
        world.now += 2.0
        world.second()


def test_frames_without_a_message_close(world: World) -> None:
    assert world.spend("a", extras=module.MAX_EXTRA_FRAMES) == 0.0
    assert world.spend("b", extras=1) == 0.0
    assert world.spend("a", extras=1) == FLOOD


@pytest.mark.parametrize("count", [1, 10, 100])
def test_all_together_leave_time_for_deliveries(count: int) -> None:
    """Those that used more than an even part wait, in proportion; others do not."""
    world = World(seconds=0, bytes=0, messages=0)
    step = 0.001
    held: dict[object, float] = {}
    used = 0.0
    for _ in range(4000):
        for peer in range(count):
            if held.get(peer, 0.0) <= world.now:
                used += step
                held[peer] = world.now + world.spend(peer, step)
                world.now += step
        assert world.spend("modest", 0.00001) == 0.0
        world.now += 0.0001
        if world.now >= 101:
            break
        world.now = max(world.now, min(held.values()))
    assert used < module.INPUT_SHARE * 1.5 + count * step
    assert world.rates.held_back > 0


def test_those_that_are_held_back_in_one_moment_come_back_in_turn() -> None:
    world = World(seconds=0, bytes=0, messages=0)
    pauses = []
    for number in range(101):
        world.drawn = number / 100
        pauses.append(world.spend(number, 0.005))
    last = pauses[-20:]
    assert all(0 < before < after for before, after in pairwise(last))
    assert max(pauses) <= module.MAX_PAUSE
    world.drawn = 0.0
    shortest = world.spend("a", 0.005)
    world.drawn = 1.0
    assert world.spend("b", 0.005) == pytest.approx(shortest * module.SPREAD, rel=0.02)


def use(world: World, crowd: int, seconds: float) -> float:
    """The part of a second that a crowd uses, each of which goes on as soon as it may."""
    used, free = 0.0, dict.fromkeys(range(crowd), world.now)
    began = world.now
    while world.now < began + 1.0:
        for peer, since in free.items():
            if since <= world.now and world.now < began + 1.0:
                world.now += seconds
                used += seconds
                free[peer] = world.now + world.spend(peer, seconds)
        world.now += 0.001
    world.rates.start_second()
    return used


@pytest.mark.no_cover
def test_a_crowd_that_stays_gets_no_more_than_its_share_however_large_it_is() -> None:
    world = World(messages=0, flood=0, bytes=0, seconds=0)
    crowd, cost = 900, 0.00005
    first = [use(world, crowd, cost) for _ in range(module.STORM_SECONDS)]
    later = [use(world, crowd, cost) for _ in range(10)][module.STORM_SECONDS :]
    assert min(first) > 0.4, "those that come back after a failure need not wait"
    assert max(later) < module.INPUT_SHARE * 1.3, later
    for _ in range(2 * module.STORM_SECONDS):
        world.second()
    assert use(world, crowd, cost) > 0.4


@pytest.mark.parametrize(("messages", "extras", "size"), [(11, 0, 0), (0, 11, 0), (0, 0, 9000)])
def test_the_grace_of_those_that_come_back_is_for_what_that_takes(
    messages: int, extras: int, size: int
) -> None:
    """A crowd that sends more has no more than its share of the first second either."""
    world = World(messages=0, flood=0, bytes=0, seconds=0)
    for peer in range(900):
        for _ in range(messages):
            world.message(peer)
        world.spend(peer, 0.0, size, extras)
    assert use(world, 900, 0.00005) < module.INPUT_SHARE * 1.4


@pytest.mark.parametrize("shared", [0.5, 1e20])
def test_a_second_in_which_only_answers_were_written_holds_back_no_connection(
    shared: float,
) -> None:
    """A connection may have used nothing at all, or less than the sum of floats can show."""
    world = World(seconds=10.0, bytes=1e9)
    world.rates.spend_shared(shared)
    assert world.spend("a", 0.0, 10_000) == 0.0
    assert world.spend("a", 0.001 if shared > 1e9 else 0.0, 10_000) == 0.0
    if shared < 1e9:  # else what it uses is lost in the sum
        assert world.spend("b", 0.1) > 0.0, "all together have not used their share"


def test_no_limits() -> None:
    world = World(seconds=0, bytes=0, messages=0)
    assert {world.message("a") for _ in range(10_000)} == {TAKE}
    assert world.spend("a", 0.005, 10**9) == 0.0


def test_nothing_is_kept_of_those_that_were_quiet(world: World) -> None:
    for peer in range(100):
        world.message(peer)
        world.spend(peer, 0.05, 2000)
        for _ in range(9):
            world.message(peer)
    for _ in range(5):
        world.second()
    untyped: Any = world.rates
    assert [len(held) for held in (untyped._used, untyped._waits, untyped._refused)] == [0, 0, 0]


def test_one_short_message_takes_no_memory_of_its_own(world: World) -> None:
    """After a failure all clients send one in the same second: it must not show in the memory."""
    clients = [object() for _ in range(5000)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n, client in enumerate(clients):
            world.now += 0.001
            assert world.message(client) is TAKE
            assert world.spend(client, n * 1e-8, n % 60) == 0.0
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (now - before) / len(clients) < sys.getsizeof(dict.fromkeys(clients)) / len(clients) + 8


def test_what_follows_a_short_message_counts_with_it(world: World) -> None:
    for client, last in (("a", REFUSE), ("b", TAKE)):
        assert world.message(client) is TAKE
        assert world.spend(client, 0.003, 50) == 0.0
        found = [world.message(client) for _ in range(5 if last is REFUSE else 4)]
        assert found[-1] is last
    world.second()
    world.now += 0.5
    assert world.message("a") is TAKE
    assert world.spend("a", 0.003, 60) == 0.0
    assert world.spend("a", size=990) == pytest.approx(0.55, abs=0.01)
    world.second()
    world.now += 0.5
    assert world.message("a") is TAKE
    assert world.spend("a", 0.003) == 0.0
    assert world.spend("a", 0.1) == pytest.approx(0.53, abs=0.001)


async def test_work_is_metered_without_its_waiting() -> None:
    clock, spent = Clock(), []
    gate = asyncio.Event()

    async def work() -> None:
        clock.now += 1
        await asyncio.sleep(0)
        clock.now += 2
        await gate.wait()
        clock.now += 4

    task = asyncio.ensure_future(_run(work(), spent.append, clock))
    for _ in range(5):
        await asyncio.sleep(0)
    clock.now += 100
    gate.set()
    await task
    assert spent == [1, 2, 4]


async def _run(work: Any, spent: Any, clock: Any) -> None:
    await metered(work, spent, clock)


async def test_metered_work_fails_and_is_cancelled_as_it_would_alone() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        await metered(fails(), lambda _: None)
    seen = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.ensure_future(_run(waits(), lambda _: None, Clock()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]

    async def slow() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await metered(slow(), lambda _: None)
