"""Catching up from a history in memory whose answers come when the test lets them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from app.broadcast import catchup as catchup_module
from app.broadcast.catchup import CHUNK, CatchUp
from app.errors import BackplaneUnavailable
from app.protocol.frames import TEXT, build_frame
from app.transport.connection import CLOSED, CLOSING, HIGH_WATER, OPEN
from app.turns import AT_ONCE, SLICE, Turns
from app.types import Gap, Message, Position
from tests.support.delivery import Bench, Sub, message, messages, turn, words
from tests.support.waiting import until


class MemoryHistory:
    """Streams in memory; `tail` says from which place on they are at hand without waiting."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Message]] = {"status": [], "stats": []}
        self.epochs = {"status": "e1", "stats": "e1"}
        self.trimmed = 0
        self.tail: int | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[tuple[str, str, int]] = []
        self.failures: list[Exception] = []

    def recent(self, type: str, epoch: str, seq: int) -> Sequence[Message] | None:
        stream = self.streams[type]
        if self.tail is None or seq < self.tail or not stream or stream[0].epoch != epoch:
            return None
        return [item for item in stream if item.seq > seq]

    async def after(self, type: str, epoch: str, seq: int, limit: int) -> Sequence[Message | Gap]:
        self.asked.append((type, epoch, seq))
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        stream = self.streams[type]
        if epoch != self.epochs[type]:
            last = self.trimmed
            return [Gap(type, self.epochs[type], 1, last, "epoch")]
        found: list[Message | Gap] = []
        if seq < self.trimmed:
            found.append(Gap(type, epoch, seq + 1, self.trimmed, "history"))
        found += [item for item in stream if item.seq > max(seq, self.trimmed)]
        return found[:limit]


class CatchUpBench(Bench):
    def __init__(self, latest_only: frozenset[str] = frozenset(), turns: Turns = AT_ONCE) -> None:
        super().__init__()
        self.history = MemoryHistory()
        self.up = self.catchup = CatchUp(self.fanout, self.history, latest_only, turns=turns)

    async def deliver(self, *items: Message | Gap) -> None:
        """What the worker does with what it has read."""
        for item in items:
            if isinstance(item, Message):
                self.history.streams[item.type].append(item)
        await self.fanout.deliver(items)
        for sub in self.fanout.take_awaiting():
            self.up.start(sub)

    async def caught_up(self, sub: Sub) -> list[object]:
        def caught_up() -> bool:
            sub.received()
            return sub.state != OPEN or (sub.track is None and sub.pending is None)

        await until(caught_up)
        return sub.received()


async def assert_no_task(bench: CatchUpBench) -> None:
    await turn()
    assert bench.up._tasks == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup_module, "RETRY_SECONDS", 0)


@pytest.fixture
async def bench() -> AsyncIterator[CatchUpBench]:
    bench = CatchUpBench()
    yield bench
    bench.close()
    await assert_no_task(bench)


@pytest.fixture
async def latest() -> AsyncIterator[CatchUpBench]:
    """Of `stats` only the newest matters."""
    bench = CatchUpBench(frozenset({"stats"}))
    yield bench
    bench.close()
    await assert_no_task(bench)


# From memory.


async def test_a_client_that_misses_nothing_is_live_at_once(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 3))
    sub = bench.behind(at=3)
    bench.up.start(sub)
    assert sub.track is None
    await bench.deliver(*messages(4, 4))
    assert sub.received() == ["status 4"]
    assert bench.history.asked == []


async def test_a_little_comes_from_memory_in_one_write(bench: CatchUpBench) -> None:
    bench.history.tail = 0
    await bench.deliver(*messages(1, 5), *messages(1, 2, "stats"))
    sub = bench.behind("status", "stats", at=1, kind=socket.SOCK_SEQPACKET)
    sub.send(build_frame(TEXT, b'{"type":"config","event":"x","seq":9,"data":0}'))
    bench.up.start(sub)
    assert sub.track is None
    sub.parser.receive_data(sub.client.recv(100_000))
    reply, *got = sub.received()
    assert reply == "config 9"
    assert sorted(got) == ["stats 2", *words(2, 5)]
    assert [word for word in got if word != "stats 2"] == words(2, 5)
    await turn()
    with pytest.raises(BlockingIOError):
        sub.client.recv(100_000)
    assert bench.history.asked == []
    assert bench.up._tasks == {}
    assert bench.up.replayed == 5


async def test_memory_may_be_ahead_of_what_is_delivered(bench: CatchUpBench) -> None:
    bench.history.tail = 0
    await bench.deliver(*messages(1, 3))
    ahead = message(4)
    bench.history.streams["status"].append(ahead)
    sub = bench.behind(at=1)
    bench.up.start(sub)
    assert sub.received() == ["status 2", "status 3"]
    await bench.fanout.deliver([ahead])
    assert sub.received() == words(2, 4)


async def test_what_memory_lacks_is_read(bench: CatchUpBench) -> None:
    bench.history.tail = 3
    await bench.deliver(*messages(1, 5))
    sub = bench.behind(at=2)
    bench.up.start(sub)
    assert sub.track is not None
    assert await bench.caught_up(sub) == words(3, 5)
    assert bench.history.asked == [("status", "e1", 2)]


async def test_much_is_written_in_stretches(bench: CatchUpBench) -> None:
    bench.history.tail = 0
    await bench.deliver(*(message(seq, size=1000) for seq in range(1, 200)))
    sub = bench.behind(at=0)
    bench.up.start(sub)
    assert sub.track is not None
    assert await bench.caught_up(sub) == words(1, 199)


# From history.


async def test_everything_comes_in_order_and_once(bench: CatchUpBench) -> None:
    last = 2 * CHUNK + 50
    await bench.deliver(*messages(1, last), *messages(1, 30, "stats"))
    sub = bench.behind("status", "stats")
    bench.up.start(sub)
    bench.up.start(sub)
    got = await bench.caught_up(sub)
    assert [word for word in got if str(word).startswith("status")] == words(1, last)
    assert [word for word in got if str(word).startswith("stats")] == words(1, 30, "stats")
    assert len(bench.history.asked) == 4
    await bench.deliver(*messages(last + 1, last + 1))
    assert sub.received()[-1] == f"status {last + 1}"
    assert len(sub.received()) == last + 31


@pytest.mark.parametrize("step", range(0, 30, 3))
async def test_what_is_delivered_meanwhile_comes_once(bench: CatchUpBench, step: int) -> None:
    await bench.deliver(*messages(1, 150))
    sub = bench.behind()
    bench.history.open.clear()
    bench.up.start(sub)
    await turn()
    await bench.deliver(*messages(151, 260))
    bench.history.open.set()
    await turn(step)
    await bench.deliver(*messages(261, 270))
    assert await bench.caught_up(sub) == words(1, 270)
    await bench.deliver(*messages(271, 272))
    assert sub.received() == words(1, 272)


async def test_a_batch_subscriber_catches_up_in_batches(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, CHUNK + 1))
    sub = bench.behind(batch=True)
    bench.up.start(sub)
    assert await bench.caught_up(sub) == [words(1, CHUNK), f"status {CHUNK + 1}"]


async def test_lost_messages_are_announced(bench: CatchUpBench) -> None:
    bench.history.trimmed = 7
    await bench.deliver(*messages(1, 10))
    sub = bench.behind(at=2)
    bench.up.start(sub)
    assert await bench.caught_up(sub) == ["gap status 3-7 e1 history", *words(8, 10)]


async def test_a_gap_never_reaches_beyond_live(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    # Trimmed further than this worker has read.
    bench.history.trimmed = 9
    sub = bench.behind(at=2)
    bench.up.start(sub)
    assert await bench.caught_up(sub) == ["gap status 3-5 e1 history"]
    await bench.deliver(Gap("status", "e1", 6, 9, "history"), *messages(10, 10))
    assert sub.received()[1:] == ["gap status 6-9 e1 history", "status 10"]


# A new epoch.


async def change_epoch(bench: CatchUpBench, live: int) -> None:
    """The stream begins anew and stands at `live` when this worker finds out."""
    bench.history.epochs["status"] = "e2"
    bench.history.trimmed = live
    await bench.deliver(Gap("status", "e2", 1, live, "epoch"))


@pytest.mark.parametrize("live", [0, 3, 12])
@pytest.mark.parametrize("tail", [None, 0])
async def test_a_new_epoch_is_announced(bench: CatchUpBench, live: int, tail: int | None) -> None:
    # With `tail` the memory still holds the old stream, of which nothing is missing.
    bench.history.tail = tail
    await bench.deliver(*messages(1, 5))
    sub = bench.behind(at=5)
    await change_epoch(bench, live)
    bench.up.start(sub)
    assert await bench.caught_up(sub) == [f"gap status 1-{live} e2 epoch"]
    await bench.deliver(message(live + 1, epoch="e2"))
    assert sub.received()[1:] == [f"status {live + 1}"]


async def test_an_epoch_that_changes_while_catching_up(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    sub = bench.behind(at=2)
    bench.history.open.clear()
    bench.up.start(sub)
    await turn()
    await change_epoch(bench, 3)
    bench.history.streams["status"] = []
    await bench.deliver(message(4, epoch="e2"), message(5, epoch="e2"))
    bench.history.open.set()
    assert await bench.caught_up(sub) == ["gap status 1-3 e2 epoch", "status 4", "status 5"]


async def test_a_history_that_knows_the_new_epoch_first_is_waited_for(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    sub = bench.behind(at=2)
    bench.history.epochs["status"] = "e2"
    bench.up.start(sub)
    await until(lambda: len(bench.history.asked) > 3)
    assert sub.received() == []
    await change_epoch(bench, 3)
    assert await bench.caught_up(sub) == ["gap status 1-3 e2 epoch"]


# Only the newest.


async def test_latest_only_skips_to_the_newest(latest: CatchUpBench) -> None:
    await latest.deliver(*messages(1, 150, "stats"), *messages(1, 3))
    sub = latest.behind("stats", "status")
    latest.up.start(sub)
    got = await latest.caught_up(sub)
    assert [word for word in got if "stats" in str(word)] == [
        "gap stats 1-149 e1 latest",
        "stats 150",
    ]
    assert [word for word in got if "status" in str(word)] == words(1, 3)
    assert [seq for type, _, seq in latest.history.asked if type == "stats"] == [149]


@pytest.mark.parametrize("tail", [None, 0])
async def test_latest_only_with_one_message_missing_has_no_gap(
    latest: CatchUpBench, tail: int | None
) -> None:
    latest.history.tail = tail
    await latest.deliver(*messages(1, 5, "stats"))
    sub, other = latest.behind("stats", at=4), latest.behind("stats", at=3)
    latest.up.start(sub)
    latest.up.start(other)
    assert await latest.caught_up(sub) == ["stats 5"]
    assert await latest.caught_up(other) == ["gap stats 4-4 e1 latest", "stats 5"]


async def test_latest_only_in_a_new_epoch(latest: CatchUpBench) -> None:
    await latest.deliver(*messages(1, 5, "stats"))
    sub = latest.behind("stats", at=2, epoch="e0")
    latest.up.start(sub)
    assert await latest.caught_up(sub) == [
        "gap stats 1-0 e1 epoch",
        "gap stats 1-4 e1 latest",
        "stats 5",
    ]


# Meanwhile.


async def test_a_client_that_is_closed_while_history_is_read_gets_nothing(
    bench: CatchUpBench,
) -> None:
    await bench.deliver(*messages(1, 5))
    dropped, closing = bench.behind(), bench.behind()
    bench.history.open.clear()
    for sub in (dropped, closing):
        bench.up.start(sub)
    await turn()
    dropped.drop("gone")
    closing.close(1001)
    bench.history.open.set()
    await turn()
    assert dropped.received() == []
    assert closing.received() == ["close"]
    assert (dropped.state, closing.state) == (CLOSED, CLOSING)
    assert bench.fanout.groups()[0].members == {}
    await assert_no_task(bench)


@pytest.mark.parametrize("tail", [None, 0])
async def test_a_client_that_is_closed_before_gets_nothing(
    bench: CatchUpBench, tail: int | None
) -> None:
    bench.history.tail = tail
    await bench.deliver(*messages(1, 5))
    dropped, closing = bench.behind(), bench.behind()
    dropped.drop("gone")
    closing.close(1001)
    for sub in (dropped, closing):
        bench.up.start(sub)
    await turn()
    assert dropped.received() == []
    assert closing.received() == ["close"]
    assert closing.state == CLOSING
    assert bench.up._tasks == {}


async def test_history_is_read_by_one_task_at_a_time(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    sub = bench.behind()
    bench.history.open.clear()
    for _ in range(3):
        bench.up.start(sub)
        await turn()
    assert len(bench.history.asked) == 1
    bench.history.open.set()
    assert await bench.caught_up(sub) == words(1, 5)


async def test_a_read_without_a_waiter_is_given_up(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    sub = bench.behind()
    bench.history.open.clear()
    bench.up.start(sub)
    await turn()
    sub.drop("gone")
    await assert_no_task(bench)


async def test_a_type_that_is_given_up_while_it_is_read(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5), *messages(1, 5, "stats"))
    sub = bench.behind("stats", "status")
    bench.history.open.clear()
    bench.up.start(sub)
    await until(lambda: bench.history.asked)
    given_up = bench.history.asked[0][0]
    (kept,) = {"stats", "status"} - {given_up}
    sub.move([kept])
    bench.up.start(sub)
    bench.history.open.set()
    assert await bench.caught_up(sub) == words(1, 5, kept)
    assert sub.group.types == {kept}


async def test_a_type_that_begins_elsewhere_while_it_is_read(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    sub = bench.behind()
    bench.history.open.clear()
    bench.up.start(sub)
    await turn()
    sub.track = {"status": Position("e1", 3)}
    bench.history.open.set()
    assert await bench.caught_up(sub) == words(4, 5)


async def test_a_client_that_unsubscribes_from_everything_is_live(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    sub = bench.behind()
    bench.history.open.clear()
    bench.up.start(sub)
    await turn()
    sub.move([])
    bench.history.open.set()
    assert await bench.caught_up(sub) == []
    assert sub.group.types == frozenset()


async def test_positions_that_are_shared_stay_as_they_are(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    sub = Sub(bench, ["status"])
    shared = sub.track = {"status": Position("e1", 2), "stats": Position("e1", 0)}
    bench.up.start(sub)
    await bench.caught_up(sub)
    assert shared["status"] == Position("e1", 2)


async def test_a_client_that_is_held_back_waits(bench: CatchUpBench) -> None:
    bench.history.tail = 0
    await bench.deliver(*messages(1, 2))
    sub = bench.behind()
    sub.held = True
    bench.up.start(sub)
    assert sub.received() == []
    sub.held = False
    bench.up.start(sub)
    assert sub.received() == words(1, 2)


# Clients that read slowly.


async def test_a_slow_one_waits_until_it_has_drained(bench: CatchUpBench) -> None:
    sub = bench.live(small=True)
    await bench.deliver(*(message(seq, size=2000) for seq in range(1, 101)))
    await bench.deliver(*(message(seq, size=2000) for seq in range(101, 301)))
    assert bench.fanout.slow == {sub: None}
    assert bench.up._tasks == {}
    # It reads a little: not enough to go on.
    assert sub.pending is not None
    await turn()
    assert bench.history.asked == []
    assert await bench.caught_up(sub) == words(1, 300)
    assert bench.fanout.slow == {}
    assert sub.pending is None or sub.pending.size <= HIGH_WATER + 4000
    await until(lambda: sub.received() and sub.pending is None)
    await bench.deliver(*messages(301, 301))
    assert sub.received() == words(1, 301)


async def test_no_more_than_the_high_water_mark_is_written_ahead(bench: CatchUpBench) -> None:
    await bench.deliver(*(message(seq, size=3000) for seq in range(1, 301)))
    sub = bench.behind(small=True)
    bench.up.start(sub)
    await turn(200)
    assert bench.up._tasks == {}
    assert sub.track is not None
    assert sub.pending is not None
    assert HIGH_WATER < sub.pending.size < 2 * HIGH_WATER + 4000
    assert await bench.caught_up(sub) == words(1, 300)


async def test_a_slow_one_that_goes_away_is_forgotten(bench: CatchUpBench) -> None:
    sub = bench.live(small=True)
    for start in range(1, 302, 100):
        await bench.deliver(*(message(seq, size=2000) for seq in range(start, start + 100)))
    assert bench.fanout.slow
    sub.drop("gone")
    assert bench.fanout.slow == {}
    await assert_no_task(bench)


# Failures.


async def test_an_absent_backplane_is_asked_again(bench: CatchUpBench) -> None:
    await bench.deliver(*messages(1, 5))
    bench.history.failures = [BackplaneUnavailable() for _ in range(3)]
    sub = bench.behind()
    bench.up.start(sub)
    assert await bench.caught_up(sub) == words(1, 5)
    assert len(bench.history.asked) == 4


async def test_a_client_that_cannot_be_caught_up_is_dropped(
    bench: CatchUpBench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.deliver(*messages(1, 5))
    bench.history.failures = [RuntimeError("on purpose")]
    sub, other = bench.behind(), bench.behind()
    bench.up.start(sub)
    assert await bench.caught_up(sub) == []
    assert sub.state == CLOSED
    assert "on purpose" in caplog.text
    bench.up.start(other)
    assert await bench.caught_up(other) == words(1, 5)


async def test_one_that_memory_cannot_bring_up_to_date_is_dropped_and_its_caller_goes_on(
    bench: CatchUpBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.deliver(*messages(1, 5))
    sub, other = bench.behind(), bench.behind()
    with monkeypatch.context() as patched:
        patched.setattr(bench.history, "recent", lambda *_: 1 // 0)
        bench.up.start(sub)
    assert sub.state == CLOSED
    assert "ZeroDivisionError" in caplog.text
    bench.up.start(other)
    assert await bench.caught_up(other) == words(1, 5)
    assert bench.up.replayed == 5


# Those that were held back.


class Late(CatchUpBench):
    """Its clock and the time in a pass are the test's; every step takes a tenth of a slice."""

    now = 1000.0
    slice = 0.1
    passes = 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.history.tail = 0
        self.up = self.catchup = CatchUp(
            self.fanout, self.history, frozenset(), slice=self.take_slice
        )

        class Time:
            monotonic = staticmethod(self.tell)

        monkeypatch.setattr("app.broadcast.catchup.time", Time)
        monkeypatch.setattr("app.broadcast.fanout.time", Time)
        monkeypatch.setattr(catchup_module, "ROUND_SECONDS", 3600.0)

    def tell(self) -> float:
        self.now += 0.01
        return self.now

    def take_slice(self) -> float:
        self.passes += 1
        return self.slice

    async def round(self) -> None:
        self.up._begin_round()
        await until(lambda: not self.up._round)


@pytest.fixture
async def late(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Late]:
    bench = Late(monkeypatch)
    yield bench
    bench.close()


async def test_one_that_was_held_back_gets_what_has_come_together(late: Late) -> None:
    honest, greedy = late.live(), late.live(kind=socket.SOCK_SEQPACKET)
    late.up.put_late(greedy)
    for seq in range(1, 6):
        await late.deliver(message(seq))
    assert honest.received() == words(1, 5)
    assert greedy.received() == []
    await late.round()
    greedy.parser.receive_data(greedy.client.recv(100_000))
    assert greedy.received() == words(1, 5), "one write"
    assert greedy.track == late.fanout.positions, "it is no part of the next flush"
    late.now += catchup_module.LATE_SECONDS
    await late.deliver(message(6))
    await late.round()
    assert (late.fanout.late, greedy.track) == ({}, None)
    await late.deliver(message(7))
    assert greedy.received() == words(1, 7)


async def test_a_round_takes_no_more_of_a_pass_than_its_slice(late: Late) -> None:
    subs = [late.live() for _ in range(50)]
    for sub in subs:
        late.up.put_late(sub)
    await late.deliver(message(1))
    late.passes = 0
    await late.round()
    assert 5 <= late.passes <= 6
    assert all(sub.received() == words(1, 1) for sub in subs)
    late.slice = 0.0  # a message is on its way
    await late.deliver(message(2))
    late.up._begin_round()
    await turn()
    assert not any(len(sub.received()) > 1 for sub in subs)
    late.slice = 0.1
    await until(lambda: not late.up._round)
    assert all(sub.received() == words(1, 2) for sub in subs)


async def test_one_that_is_late_may_go_or_change_its_types(late: Late) -> None:
    gone, changed = late.live(), late.live()
    for sub in (gone, changed):
        late.up.put_late(sub)
    await late.deliver(message(1), message(1, "stats"))
    changed.move(["stats", "status"])
    gone.client.close()
    await late.round()
    assert gone.state == CLOSED
    assert list(late.fanout.late) == [changed]
    await late.deliver(message(2), message(2, "stats"))
    await late.round()
    assert sorted(changed.received()) == ["stats 2", "status 1", "status 2"]


async def test_rounds_follow_each_other_while_one_is_late_and_begin_anew(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda _delay, call: planned.append(call))

    async def round() -> None:
        (begin,) = planned
        planned.clear()
        begin()
        for _ in range(10):
            await turn()

    subs = [late.live() for _ in range(3)]
    for seq in (1, 2):
        for sub in subs:
            late.up.put_late(sub, 1000.0)
        await late.deliver(message(seq))
        await round()
        assert all(sub.received() == words(1, seq) for sub in subs)
    late.now += 2000.0
    await round()
    assert (planned, late.fanout.late) == ([], {})
    late.up.put_late(subs[0])
    assert len(planned) == 1


# In turn.


async def test_what_the_writing_takes_counts_for_the_turn_of_others() -> None:
    spent: list[float] = []

    class Noted(Turns):
        def spend(self, seconds: float) -> None:
            spent.append(seconds)
            super().spend(seconds)

    bench = CatchUpBench(turns=Noted(lambda: SLICE))
    await bench.deliver(*messages(1, 3))
    sub = bench.behind(at=0)
    bench.up.start(sub)
    assert await bench.caught_up(sub) == words(1, 3)
    assert len(spent) == 2  # the writing, and the step to live
    bench.close()
    await assert_no_task(bench)


async def test_those_that_read_history_wait_while_there_is_no_time_for_them() -> None:
    has_time = True
    bench = CatchUpBench(turns=Turns(lambda: SLICE if has_time else 0.0))
    await bench.deliver(*messages(1, 3))
    has_time = False
    sub = bench.behind(at=0)
    bench.up.start(sub)
    for _ in range(10):
        await turn()
    assert bench.history.asked == []
    has_time = True
    assert await bench.caught_up(sub) == words(1, 3)
    bench.close()
    await assert_no_task(bench)


async def test_one_turn_is_enough_for_what_is_in_memory_by_then() -> None:
    """New messages come before the next turn, so it would be behind again and again."""
    left = 0

    def slice() -> float:
        nonlocal left
        left, had = 0, left
        return had * SLICE

    bench = CatchUpBench(turns=Turns(slice))
    await bench.deliver(*messages(1, 3))
    sub = bench.behind(at=0)
    bench.up.start(sub)
    await bench.deliver(*messages(4, 5))
    bench.history.tail = 0
    left = 1
    assert await bench.caught_up(sub) == words(1, 5)
    assert bench.history.asked == []
    bench.close()
    await assert_no_task(bench)


async def test_one_that_is_ahead_awaits_the_flush_that_reaches_it(bench: CatchUpBench) -> None:
    """It comes from a faster worker: it reads nothing, and takes no turn from others."""
    bench.history.tail = 0
    await bench.deliver(*messages(1, 3), message(1, "stats"))
    sub, gone = bench.behind("status", "stats", at=5), bench.behind(at=5)
    sub.track = {"status": Position("e1", 5), "stats": Position("e1", 0)}
    for one in (sub, gone):
        bench.up.start(one)
        bench.up.start(one)
    assert bench.up._tasks == {}
    gone.drop("test")
    await bench.deliver(message(4))
    assert sub.received() == []
    await bench.deliver(*messages(5, 6))
    assert sub.track is None
    await bench.deliver(message(7))
    assert sorted(map(str, sub.received())) == ["stats 1", *words(6, 7)]
    assert bench.fanout.take_awaiting() == []
    assert bench.history.asked == []


async def test_one_that_leaves_while_it_waits_for_its_turn_gets_nothing() -> None:
    has_time = False
    bench = CatchUpBench(turns=Turns(lambda: SLICE if has_time else 0.0))
    await bench.deliver(*messages(1, 3))
    gone, stays = bench.behind(at=0), bench.behind(at=1)
    for sub in (gone, stays):
        bench.up.start(sub)
    await turn()
    gone.drop("test")
    has_time = True
    assert await bench.caught_up(stays) == words(2, 3)
    assert {seq for _, _, seq in bench.history.asked} == {1}
    bench.close()
    await assert_no_task(bench)
