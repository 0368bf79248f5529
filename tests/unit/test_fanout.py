"""Flushes: every client gets each message once and in order, whatever happens between slices."""

from __future__ import annotations

import asyncio
import socket
import sys
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.broadcast import fanout as fanout_module
from app.protocol.codecs import PLAIN, Codec
from app.protocol.frames import TEXT, build_frame
from app.transport.connection import CLOSED, HIGH_WATER
from app.types import Gap, Message, Position
from tests.support.delivery import Bench, Sub, message, messages, turn, words


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
async def sliced(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """One connection a slice, two messages a flush."""
    monkeypatch.setattr(fanout_module, "SLICE", 1)
    bench = Bench(batch_size=2)
    yield bench
    bench.close()


async def test_every_client_gets_its_types_in_order(bench: Bench) -> None:
    status, stats, both, none = (
        bench.live("status"),
        bench.live("stats"),
        bench.live("status", "stats"),
        Sub(bench, ()),
    )
    bench.fanout.join(none)
    items = [message(1), message(1, "stats"), message(2), Gap("stats", "e1", 2, 4, "history")]
    await bench.fanout.deliver(items)  # type: ignore[arg-type]
    gap = "gap stats 2-4 e1 history"
    assert status.received() == ["status 1", "status 2"]
    assert stats.received() == ["stats 1", gap]
    assert both.received() == ["status 1", "stats 1", "status 2", gap]
    assert none.received() == []
    assert bench.fanout.positions == {"status": Position("e1", 2), "stats": Position("e1", 4)}
    assert bench.flushes == [(items, {"status": 2, "stats": 2})]


async def test_clients_that_asked_get_batches(bench: Bench) -> None:
    single, batched = bench.live(), bench.live(batch=True)
    await bench.fanout.deliver(messages(1, 3))
    await bench.fanout.deliver(messages(4, 4))
    assert single.received() == words(1, 4)
    assert batched.received() == [words(1, 3), "status 4"]


async def test_one_write_per_flush_with_what_was_queued_first(bench: Bench) -> None:
    sub = bench.live(kind=socket.SOCK_SEQPACKET)
    reply = build_frame(TEXT, b'{"type":"config","event":"x","seq":9,"data":0}')
    sub.send(reply)
    sent = messages(1, 3)
    await bench.fanout.deliver(sent)
    await turn()
    assert sub.client.recv(10_000) == reply + b"".join(map(PLAIN.message, sent))
    with pytest.raises(BlockingIOError):
        sub.client.recv(10_000)


async def test_a_delivery_costs_a_write_and_little_memory(bench: Bench) -> None:
    """Calls and bytes for each receiver, whatever the machine does: the slope between two flushes."""
    made: list[tuple[int, int]] = []
    (warm, *sent) = messages(1, 3)
    for receivers, flushed in ((0, warm), (100, sent[0]), (200, sent[1])):
        subs = [bench.live() for _ in range(receivers)]
        calls = 0

        def count(_frame: object, event: str, _arg: object) -> None:
            nonlocal calls
            calls += event in {"call", "c_call"}

        tracemalloc.start()
        sys.setprofile(count)
        try:
            await bench.fanout.deliver([flushed])
        finally:
            sys.setprofile(None)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        made.append((calls, peak))
        assert all(sub.received() for sub in subs)
    (_, _), (calls_of_100, peak_of_100), (calls_of_300, peak_of_300) = made
    assert calls_of_300 - calls_of_100 <= 200 * 2.25, (
        "to take it, to write to it, and a part of a slice"
    )
    assert peak_of_300 - peak_of_100 <= 200 * 120, "a copy of the group's members"


async def test_a_ping_that_is_nearly_due_rides_on_a_flush(bench: Bench) -> None:
    sub = bench.live(kind=socket.SOCK_SEQPACKET)
    for _ in range(29):
        bench.hub.wheel.advance()
    (sent,) = messages(1, 1)
    await bench.fanout.deliver([sent])
    assert sub.client.recv(10_000) == b"\x89\x00" + PLAIN.message(sent)
    bench.hub.wheel.advance()
    await turn()
    with pytest.raises(BlockingIOError):
        sub.client.recv(10_000)


async def test_flushes_are_bounded_in_messages_and_bytes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.fanout.deliver(messages(1, 250))
    assert [len(items) for items, _ in bench.flushes] == [100, 100, 50]
    monkeypatch.setattr(fanout_module, "FLUSH_BYTES", 3000)
    bench.flushes.clear()
    await bench.fanout.deliver([message(seq, size=1000) for seq in range(251, 257)])
    assert [len(items) for items, _ in bench.flushes] == [3, 3]
    assert bench.fanout.positions["status"].seq == 256


async def test_a_group_beyond_one_slice_lets_the_loop_turn(sliced: Bench) -> None:
    subs = [sliced.live() for _ in range(3)]
    done = asyncio.ensure_future(sliced.fanout.deliver(messages(1, 1)))
    seen = []
    while not done.done():
        await asyncio.sleep(0)
        seen.append(sum(len(sub.received()) for sub in subs))
    assert seen[:3] == [1, 2, 3]


STEPS = range(12)


async def steps(bench: Bench, last: int, step: int) -> asyncio.Task[None]:
    """Begin to deliver messages 1 to `last`, and stop between two slices."""
    task = asyncio.ensure_future(bench.fanout.deliver(messages(1, last)))
    await turn(step)
    return task


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", [0, 2])
async def test_a_client_that_leaves_between_slices_has_all_up_to_its_position(
    sliced: Bench, step: int, victim: int
) -> None:
    subs = [sliced.live() for _ in range(3)]
    task = await steps(sliced, 6, step)
    leaver = subs.pop(victim)
    track = sliced.fanout.leave(leaver)
    assert track == {"status": sliced.fanout.positions["status"]}
    await task
    assert leaver.received() == words(1, track["status"].seq)
    assert all(sub.received() == words(1, 6) for sub in subs)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("types", [["status"], ["status", "stats"]])
async def test_a_client_that_changes_its_subscriptions_between_slices_misses_nothing(
    sliced: Bench, step: int, types: list[str]
) -> None:
    subs = [sliced.live() for _ in range(3)]
    task = await steps(sliced, 6, step)
    for sub in subs:
        sub.move(types)
        sliced.fanout.join(sub)
        await asyncio.sleep(0)
    await task
    assert [sub.received() for sub in subs] == [words(1, 6)] * 3
    await sliced.fanout.deliver([message(1, "stats")])
    assert len(subs[0].received()) == 6 + len(types) - 1


@pytest.mark.parametrize("step", STEPS)
async def test_a_client_that_joins_between_slices_gets_what_comes_after(
    sliced: Bench, step: int
) -> None:
    subs = [sliced.live() for _ in range(3)]
    task = await steps(sliced, 6, step)
    start = sliced.fanout.positions["status"].seq
    late = sliced.live()
    await task
    assert late.received() == words(start + 1, 6)
    assert [sub.received() for sub in subs] == [words(1, 6)] * 3


@pytest.mark.parametrize("step", STEPS)
async def test_a_client_that_closes_between_slices_costs_no_other_anything(
    sliced: Bench, step: int
) -> None:
    subs = [sliced.live() for _ in range(4)]
    task = await steps(sliced, 6, step)
    subs.pop(1).drop("gone")
    subs.pop(2).close(1000)
    await task
    assert [sub.received() for sub in subs] == [words(1, 6)] * 2
    assert list(subs[0].group.members) == subs


async def test_a_peer_that_has_gone_costs_no_other_anything(sliced: Bench) -> None:
    subs = [sliced.live() for _ in range(3)]
    subs[1].client.close()
    await sliced.fanout.deliver(messages(1, 4))
    assert subs[1].state == CLOSED
    assert subs[0].received() == subs[2].received() == words(1, 4)


def clog(sub: Sub, size: int) -> None:
    """Leave `size` unsent bytes at least."""
    while sub.pending is None or sub.pending.size < size:
        sub.write(
            build_frame(TEXT, b'{"type":"config","event":"x","seq":0,"data":"%b"}' % (b"x" * 5000))
        )


async def test_slow_ones_fall_behind_with_the_right_track(sliced: Bench) -> None:
    await sliced.fanout.deliver(messages(1, 2))
    fast = sliced.live("status", "stats")
    slow = sliced.live("status", "stats", small=True)
    await sliced.fanout.deliver(messages(3, 3))
    clog(slow, HIGH_WATER + 1)
    await sliced.fanout.deliver(messages(4, 7))
    assert list(sliced.fanout.slow) == [slow]
    assert slow.track == {"status": Position("e1", 3), "stats": Position("e1", 0)}
    assert list(fast.group.members) == [fast]
    await turn()
    while slow.pending is not None:
        slow.received()
        await asyncio.sleep(0)
    assert [got for got in slow.received() if got != "config 0"] == ["status 3"]
    assert fast.received() == words(3, 7)
    await sliced.fanout.deliver(messages(8, 8))
    assert slow.received()[-1] == "config 0"


async def test_up_to_the_high_water_mark_a_subscriber_stays_live(bench: Bench) -> None:
    sub = bench.live(small=True)
    clog(sub, 1000)
    assert sub.pending is not None
    assert sub.pending.size <= HIGH_WATER
    await bench.fanout.deliver(messages(1, 2))
    assert sub.track is None
    while sub.pending is not None:
        sub.received()
        await asyncio.sleep(0)
    assert sub.received()[-2:] == ["status 1", "status 2"]


async def test_a_gap_moves_the_position_into_its_epoch(bench: Bench) -> None:
    sub = bench.live()
    await bench.fanout.deliver(messages(1, 2))
    gap = Gap("status", "e2", 1, 5, "epoch")
    await bench.fanout.deliver([gap, message(6, epoch="e2")])
    assert bench.fanout.positions["status"] == Position("e2", 6)
    assert sub.received() == ["status 1", "status 2", "gap status 1-5 e2 epoch", "status 6"]


async def test_one_group_for_the_same_properties(bench: Bench) -> None:
    group = bench.fanout.group
    first = group(PLAIN, frozenset({"status", "stats"}), False)
    assert group(PLAIN, frozenset({"stats", "status"}), False) is first
    others = {
        first,
        group(PLAIN, frozenset({"stats", "status"}), True),
        group(PLAIN, frozenset({"stats"}), False),
    }
    assert len(others) == 3
    assert set(bench.fanout.groups()) == others


async def test_groups_are_dropped_and_made_anew(bench: Bench) -> None:
    early = bench.behind(at=0)
    old = early.group
    assert bench.fanout.groups() == [old]
    await bench.fanout.deliver([message(1, "stats")])
    assert bench.fanout.groups() == []
    # Another client needs the same group meanwhile.
    other = bench.live()
    assert other.group is not old
    bench.fanout.join(early)
    assert early.group is other.group
    await bench.fanout.deliver(messages(1, 1))
    assert early.received() == other.received() == ["status 1"]
    assert bench.flushes[-1][1] == {"status": 2}


async def test_a_dropped_group_without_a_successor_comes_back(bench: Bench) -> None:
    early = bench.behind(at=0)
    await bench.fanout.deliver([message(1, "stats")])
    bench.fanout.join(early)
    late = bench.live()
    assert late.group is early.group
    await bench.fanout.deliver(messages(1, 1))
    assert early.received() == late.received() == ["status 1"]


async def test_discard_leaves_nothing(sliced: Bench) -> None:
    subs = [sliced.live() for _ in range(3)]
    task = await steps(sliced, 2, 1)
    for sub in subs:
        sliced.fanout.discard(sub)
        sliced.fanout.discard(sub)
    await task
    await sliced.fanout.deliver(messages(3, 3))
    assert sliced.fanout.groups() == []
    assert sum(len(sub.received()) for sub in subs) == 2


SETS = [frozenset(f"t{n}" for n in range(12) if number >> n & 1) for number in range(1, 4096)]


async def test_a_group_ends_with_its_last_member(bench: Bench) -> None:
    bench.fanout.positions |= {f"t{n}": Position("e1", 0) for n in range(12)}
    witness = bench.live("status")
    client = bench.live("stats")
    for types in SETS:
        client.move(types)
        bench.fanout.join(client)
        assert set(bench.fanout.groups()) == {witness.group, client.group}
    client.drop("gone")
    assert bench.fanout.groups() == [witness.group]


async def test_groups_that_got_no_member_are_bounded(bench: Bench) -> None:
    """Nothing is published, and each client asks for subscriptions and goes, or never joins."""
    witness, early = bench.live("status"), bench.behind("stats")
    for types in SETS:
        bench.fanout.group(PLAIN, types, False)
        assert len(bench.fanout.groups()) <= fanout_module.UNUSED_GROUPS + 2
    late = bench.live("stats")
    bench.fanout.join(early)
    assert early.group is late.group
    await bench.fanout.deliver([message(1), message(1, "stats")])
    assert [sub.received() for sub in (witness, early, late)] == [
        ["status 1"],
        ["stats 1"],
        ["stats 1"],
    ]


async def test_small_groups_do_not_delay_large_ones(bench: Bench) -> None:
    bench.fanout.positions |= {f"t{n}": Position("e1", 0) for n in range(12)}
    small = [bench.live("status", *types) for types in SETS[:200]]
    large = [bench.live() for _ in range(20)]
    task = asyncio.ensure_future(bench.fanout.deliver(messages(1, 1)))
    await asyncio.sleep(0)
    assert all(sub.received() == ["status 1"] for sub in large)
    assert small[-1].received() == []
    await task
    assert all(sub.received() == ["status 1"] for sub in small)


class Poison(Codec):
    """A codec that cannot encode some messages, nor a flush that holds one."""

    def __init__(self, *seqs: int) -> None:
        self.seqs = seqs

    def message(self, message: Message) -> bytes:
        if message.seq in self.seqs:
            raise RuntimeError("poison")
        return super().message(message)


async def test_a_message_that_cannot_be_encoded_is_a_gap_and_takes_no_other(bench: Bench) -> None:
    errors: list[Exception] = []
    bench.fanout.failed = errors.append
    poisoned, other = bench.live("status"), bench.live("status", "stats")
    poisoned.group.codec = Poison(2)
    await bench.fanout.deliver(messages(1, 4))
    assert poisoned.received() == ["status 1", "gap status 2-2 e1 history", "status 3", "status 4"]
    assert other.received() == words(1, 4)
    assert len(errors) == 1
    assert poisoned.track is None


async def test_a_client_that_is_not_written_for_a_bug_catches_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []
    bench.fanout.failed = errors.append
    subs = [bench.live() for _ in range(4)]
    await bench.fanout.deliver(messages(1, 1))
    broadcast = bench.hub.broadcast

    def fail_after_one(connections: dict[Any, int], data: bytes, most: int) -> Any:
        broadcast(connections, data, 1)
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.hub, "broadcast", fail_after_one)
    await bench.fanout.deliver(messages(2, 2))
    monkeypatch.undo()
    assert len(errors) == 1
    missed = bench.fanout.take_awaiting()
    assert len(missed) == 3
    assert bench.fanout.take_awaiting() == []
    for sub in subs:
        if sub in missed:
            assert sub.track == {"status": Position("e1", 1)}
            assert sub.received() == words(1, 1)
        else:
            assert sub.received() == words(1, 2)
    await bench.fanout.deliver(messages(3, 3))
    for sub in subs:  # history brings the others what they lack, this one too
        assert sub.received() == (words(1, 1) if sub in missed else words(1, 3))


async def test_a_connection_that_fails_takes_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []
    bench.fanout.failed = errors.append
    bad, good = bench.live(), bench.live()
    for sub in (bad, good):
        bench.hub.send_soon(sub, build_frame(TEXT, b'{"type":"a","event":"b","data":1,"seq":0}'))

    def fail(self: Sub, data: bytes) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Sub, "write", lambda self, data: fail(self, data) if self is bad else None)
    await bench.fanout.deliver(messages(1, 1))
    assert len(errors) == 1
    assert bad.state == CLOSED
    assert good.state != CLOSED
    assert good in good.group.members


async def test_those_that_were_held_back_are_no_part_of_a_flush(sliced: Bench) -> None:
    first, greedy = sliced.live(), sliced.live()
    await sliced.fanout.deliver(messages(1, 1))
    sliced.fanout.put_late(greedy)
    await sliced.fanout.deliver(messages(2, 2))
    assert (first.received(), greedy.received()) == (words(1, 2), words(1, 1))
    assert sliced.flushes[-1][1] == {"status": 1}
    assert greedy.track == {"status": Position("e1", 1)}
    sliced.fanout.put_late(greedy)
    assert greedy.track == {"status": Position("e1", 1)}, "it stands where it stood"
    sliced.fanout.join(greedy)
    assert greedy.track == sliced.fanout.positions, "it stays late"
    del sliced.fanout.late[greedy]
    sliced.fanout.join(greedy)
    await sliced.fanout.deliver(messages(3, 3))
    assert greedy.received() == ["status 1", "status 3"], "what was between is CatchUp's"


async def test_one_that_is_held_back_during_a_flush_gets_it_once(sliced: Bench) -> None:
    subs = [sliced.live() for _ in range(3)]
    flush = asyncio.create_task(sliced.fanout.deliver(messages(1, 2)))
    await asyncio.sleep(0)
    for sub in subs:
        sliced.fanout.put_late(sub)
    await flush
    assert [sub.received() for sub in subs] == [words(1, 2)] * 3
    assert [sub.track for sub in subs] == [{"status": Position("e1", 2)}] * 3
    subs[0].drop("gone")
    assert list(sliced.fanout.late) == subs[1:]
    assert sliced.fanout.groups() == []
