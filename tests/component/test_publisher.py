"""Storing: order, retries, chosen ids, epochs, bounds, and what survives a kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import Any

import pytest
from redis.exceptions import ResponseError

from app.backplane import client as client_module
from app.backplane import publisher as publisher_module
from app.backplane.client import FAILURES, FailedCalls, Link
from app.backplane.entries import body_name
from app.backplane.publisher import StreamPublisher, parse_result
from app.backplane.scripts import ONCE_WINDOW, PUBLISH, Script
from app.errors import BackplaneFull, BackplaneUnavailable
from app.types import Draft, Position
from tests.support.backplane import MakeNode, Node, draft
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until


async def bodies(valkey: ValkeyProcess, type: str = "status") -> list[bytes]:
    entries = await valkey.command("XRANGE", f"{{rt:{type}}}:s", "-", "+")
    return [fields[7] for _, fields in entries]


async def test_seq_is_gap_free_from_one_in_each_type(make_node: MakeNode) -> None:
    first, second = await make_node(), await make_node()
    positions = []
    for node in (first, second, first):
        positions += await node.publish(draft(), draft(type="stats"), draft())
    status = [p for n, p in enumerate(positions) if n % 3 != 1]
    assert [p.seq for p in status] == [1, 2, 3, 4, 5, 6]
    assert [p.seq for p in positions[1::3]] == [1, 2, 3]
    assert len({p.epoch for p in status}) == 1
    assert status[0].epoch == first.reader.positions["status"].epoch


async def test_position_is_where_the_message_is(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    node = await make_node()
    (position,) = await node.publish(draft(b'{"a":1', accepted=1700000000.25))
    entries = await valkey.command("XRANGE", "{rt:status}:s", "-", "+")
    epoch = position.epoch.encode()
    fields = [b"p", epoch, b"e", b"status_update", b"t", b"1700000000250000"]
    assert entries == [[b"0-1", [*fields, body_name(b'{"a":1'), b'{"a":1']]]


async def test_a_batch_whose_answer_was_lost_is_stored_once(
    valkey: ValkeyProcess, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await make_node()
    lost = 0
    run = Link.run

    async def lose_answers(self: Link, *args: Any) -> Any:
        nonlocal lost
        result = await run(self, *args)
        if self is node.backplane.publishing and lost < 3:
            lost += 1
            await self.close()
            raise ConnectionResetError
        return result

    monkeypatch.setattr(Link, "run", lose_answers)
    positions = await node.publish(draft(b"{1"), draft(b"{2", type="stats"), draft(b"{3"))
    assert lost == 3
    assert [p.seq for p in positions] == [1, 1, 2]
    assert await bodies(valkey) == [b"{1", b"{3"]
    assert await bodies(valkey, "stats") == [b"{2"]


class Landed:
    """Begins batches, and notes what comes of them."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.publisher
        self.outcomes: list[list[Any] | None] = []

    def begin(self, *drafts: Draft) -> bool:
        return self._publisher.begin(drafts, self.outcomes.append)

    async def outcome(self) -> list[Any] | None:
        await until(lambda: bool(self.outcomes))
        return self.outcomes.pop()


async def test_a_batch_of_one_type_is_stored_without_a_task(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    landed = Landed(node)
    assert not landed.begin(draft(b"{0")), "no connection is open"
    await node.publish(draft(b"{0"))
    assert not landed.begin(draft(), draft(type="stats"))
    tasks = asyncio.all_tasks()
    for number in (1, 3):
        assert landed.begin(draft(b"{%d" % number), draft(b"{%d" % (number + 1)))
        assert asyncio.all_tasks() == tasks
        found = await landed.outcome()
        assert found is not None
        assert [p.seq for p in found] == [number + 1, number + 2]
    assert await bodies(valkey) == [b"{0", b"{1", b"{2", b"{3", b"{4"]
    assert node.backplane.errors.total() == 0


@pytest.mark.parametrize("fault", [ConnectionResetError(), TimeoutError(), "forgotten", "garbled"])
async def test_a_batch_that_was_begun_is_stored_once(
    valkey: ValkeyProcess,
    make_node: MakeNode,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception | str,
) -> None:
    """Whether its answer is lost, or the server has to be asked again."""
    node = await make_node()
    await node.publish(draft(b"{1"))
    landed, batch = Landed(node), (draft(b"{2"), draft(b"{3"))
    end = Link._end

    def lose(self: Link, done: Any, outcome: Any) -> None:
        end(self, done, fault if isinstance(fault, Exception) else [b"what?"])

    if fault == "forgotten":
        await valkey.command("SCRIPT", "FLUSH")
    else:
        monkeypatch.setattr(Link, "_end", lose)
    assert landed.begin(*batch)
    assert await landed.outcome() is None
    monkeypatch.setattr(Link, "_end", end)
    assert [p.seq for p in await node.publish(*batch)] == [2, 3]
    assert await bodies(valkey) == [b"{1", b"{2", b"{3"]
    assert node.backplane.errors.total() == isinstance(fault, Exception)
    assert node.publisher.fault is None
    assert landed.begin(draft(b"{4"))
    assert await landed.outcome() is not None
    assert await bodies(valkey) == [b"{1", b"{2", b"{3", b"{4"]


async def test_a_batch_that_was_begun_and_is_refused(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    await node.publish(draft(b"{1"))
    landed = Landed(node)
    await valkey.command("CONFIG", "SET", "maxmemory", "1")
    assert landed.begin(draft(b"{2"))
    assert await landed.outcome() is None
    with pytest.raises(BackplaneFull):
        await node.publish(draft(b"{2"), within=0.5)
    assert not landed.begin(draft(b"{3")), "something is wrong"
    await valkey.command("CONFIG", "SET", "maxmemory", "0")
    await node.publish(draft(b"{3"))
    assert landed.begin(draft(b"{4"))
    assert await landed.outcome() is not None
    assert await bodies(valkey) == [b"{1", b"{3", b"{4"]


async def test_a_late_copy_of_an_old_batch_is_refused(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    await node.publish(draft(b"{1"))
    call = node.publisher._call("status", [draft(b"{1")])  # batch 1 as it was sent before
    await node.publish(draft(b"{2"))
    with pytest.raises(FAILURES, match="STALE"):
        await node.backplane.publishing.run([call], 5)
    assert await bodies(valkey) == [b"{1", b"{2"]


async def test_one_type_that_fails_does_not_take_the_others_with_it(
    valkey: ValkeyProcess, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch over two types one is refused: the other is stored, once, and answered."""
    monkeypatch.setattr(publisher_module, "is_damage", lambda _error: False)
    node = await make_node()
    await valkey.command("SET", "{rt:stats}:s", "not a stream")
    first, second, third = await node.publish(
        draft(b"{1"), draft(b"{2", type="stats"), draft(b"{3")
    )
    assert (first.seq, third.seq) == (1, 2)
    assert isinstance(second, BackplaneUnavailable)
    assert "WRONGTYPE" in second.message
    assert await bodies(valkey) == [b"{1", b"{3"]
    assert node.publisher.fault is not None
    assert [p.seq for p in await node.publish(draft(b"{4"))] == [3]
    assert node.publisher.fault is not None  # of another type
    with pytest.raises(BackplaneUnavailable, match="WRONGTYPE"):
        await node.publish(draft(type="stats"), within=60)
    await valkey.command("DEL", "{rt:stats}:s")
    assert [p.seq for p in await node.publish(draft(b"{2", type="stats"))] == [1]
    assert node.publisher.fault is None


async def test_a_type_that_must_be_tried_again_does_not_repeat_the_others(
    valkey: ValkeyProcess, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await make_node()
    run = Link.run
    runs: list[int] = []

    async def fail_one(self: Link, calls: Any, *args: Any) -> Any:
        if self is not node.backplane.publishing:
            return await run(self, calls, *args)
        runs.append(len(calls))
        if len(runs) > 2:
            return await run(self, calls, *args)
        answers = await run(self, calls[:-1], *args) if calls[:-1] else []
        raise FailedCalls([*answers, ResponseError("TRYAGAIN later")])

    monkeypatch.setattr(Link, "run", fail_one)
    positions = await node.publish(draft(b"{1"), draft(b"{2", type="stats"), draft(b"{3"))
    assert runs == [2, 1, 1]
    assert [p.seq for p in positions] == [1, 1, 2]
    assert await bodies(valkey) == [b"{1", b"{3"]
    assert await bodies(valkey, "stats") == [b"{2"]


@pytest.mark.parametrize(
    ("hurt", "repair", "words", "error"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "READONLY", BackplaneUnavailable),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OOM", BackplaneFull),
    ],
)  # fmt: skip
async def test_a_refusal_is_answered_long_before_the_deadline(
    valkey: ValkeyProcess,
    make_node: MakeNode,
    hurt: tuple[str, ...],
    repair: tuple[str, ...],
    words: str,
    error: type[BackplaneUnavailable],
) -> None:
    """The deadline is longer than the time limit of this test."""
    node = await make_node()
    await node.publish(draft())
    await valkey.command(*hurt)
    for _ in range(5):
        with pytest.raises(error, match=words):
            await node.publish(draft(), within=600)
    assert node.publisher.fault is not None
    await valkey.command(*repair)
    assert [p.seq for p in await node.publish(draft(), within=600)] == [2]
    assert node.publisher.fault is None


async def test_a_replica_is_left_for_a_new_connection(
    valkey: ValkeyProcess, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the failed call being given up; every connection of the worker is made anew."""
    monkeypatch.setattr(client_module, "RECHECK", 0.0)
    node = await make_node()
    await node.publish(draft())
    opened = 0
    connect = Link._connect

    async def connect_elsewhere(self: Link) -> Any:
        nonlocal opened
        if self is node.backplane.publishing:
            opened += 1
            await valkey.command("REPLICAOF", "NO", "ONE")  # as another server would be
        return await connect(self)

    monkeypatch.setattr(Link, "_connect", connect_elsewhere)
    await valkey.command("REPLICAOF", "127.0.0.1", "1")
    assert [p.seq for p in await node.publish(draft(), within=600)] == [2]
    assert opened == 1
    assert not node.backplane.reading.connected


async def test_a_chosen_id_is_stored_once_in_five_minutes(make_node: MakeNode) -> None:
    now = 1_000_000.0
    node = await make_node(clock=lambda: now)
    other = await make_node(clock=lambda: now)
    first = await node.publish(draft(id="a"), draft(id="a"), draft(id="b"))
    assert [p.seq for p in first] == [1, 1, 2]
    now += ONCE_WINDOW - 1
    assert await other.publish(draft(id="b"), draft()) == [
        first[2],
        Position(first[0].epoch, 3),
    ]
    now += 2
    assert [p.seq for p in await node.publish(draft(id="a"))] == [4]
    assert [p.seq for p in await node.publish(draft(id="a"))] == [4]
    assert [p.seq for p in await node.publish(draft(id="a", type="stats"))] == [1]


async def test_known_ids_are_bounded(
    valkey: ValkeyProcess, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "ONCE_MAX", 10)
    node = await make_node()
    for n in range(45):
        await node.publish(draft(id=f"id{n}"))
    held = [await valkey.command("HLEN", f"{{rt:status}}:{name}") for name in "oq"]
    assert 10 <= sum(held) <= 20
    assert [p.seq for p in await node.publish(*[draft(id=f"id{n}") for n in range(35, 45)])] == [
        *range(36, 46)
    ]
    assert [p.seq for p in await node.publish(draft(id="id3"))] == [46]


async def test_an_acknowledged_message_survives_kill_9(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    sent: list[bytes] = []
    for n in range(50):
        batch = [draft(b"{%d.%d" % (n, m)) for m in range(20)]
        await node.publish(*batch)
        sent += [d.body for d in batch]
    await valkey.restart()
    assert await bodies(valkey) == sent
    (position,) = await node.publish(draft())
    assert position.seq == len(sent) + 1


async def test_kills_under_load_lose_and_repeat_nothing(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    acknowledged: dict[int, bytes] = {}

    async def publish() -> None:
        for n in range(300):
            batch = [draft(b"{%d.%d" % (n, m)) for m in range(5)]
            for item, position in zip(batch, await node.publish(*batch), strict=True):
                assert position.seq not in acknowledged
                acknowledged[position.seq] = item.body

    task = asyncio.create_task(publish())
    for _ in range(3):
        before = len(acknowledged)
        while len(acknowledged) < before + 200 and not task.done():
            await asyncio.sleep(0.001)
        await valkey.restart()
    await task
    assert await bodies(valkey) == [acknowledged[seq] for seq in range(1, 1501)]


async def test_an_emptied_backplane_begins_a_new_epoch(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    (old,) = await node.publish(draft())
    await valkey.restart(emptied=True)
    new = await node.publish(draft(), draft())
    assert [p.seq for p in new] == [1, 2]
    assert {p.epoch for p in new} != {old.epoch}


async def test_a_stream_that_fell_back_gets_its_epoch_before_anything_is_added(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    *_, kept = await node.publish(*[draft() for _ in range(10)])
    size = sum(file.stat().st_size for file in valkey.data.glob("appendonlydir/*.incr.aof"))
    await node.publish(*[draft() for _ in range(5)])
    grown = sum(file.stat().st_size for file in valkey.data.glob("appendonlydir/*.incr.aof"))
    await valkey.restart(cut=grown - size)
    (position,) = await node.publish(draft())
    assert position.seq == kept.seq + 1
    assert position.epoch != kept.epoch


async def test_a_vanished_stream_begins_a_new_epoch(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    (old,) = await node.publish(draft())
    await valkey.command("DEL", "{rt:status}:s")
    (new,) = await node.publish(draft())
    assert new.seq == 1
    assert new.epoch != old.epoch


async def fill(node: Node, count: int, accepted: float, size: int = 10) -> None:
    for _ in range(count):
        await node.publish(draft(b"{" + b"x" * (size - 1), accepted=accepted))


async def held(valkey: ValkeyProcess) -> int:
    return int(await valkey.command("XLEN", "{rt:status}:s"))


async def test_history_keeps_the_newest_and_what_is_younger_than_the_window(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    now = 1_000_000.0
    node = await make_node(clock=lambda: now, history_size=20, recovery_window=60.0)
    await fill(node, 50, now)
    assert await held(valkey) == 50
    now += 59
    await fill(node, 1, now)
    assert await held(valkey) == 51
    now += 2
    await fill(node, 1, now)
    assert await held(valkey) == 20
    now += 1000
    await fill(node, 5, now)
    assert await held(valkey) == 20
    (first, *_) = await valkey.command("XRANGE", "{rt:status}:s", "-", "+")
    assert first[0] == b"0-38"


async def test_a_long_burst_is_trimmed_a_little_at_a_time(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    now = 1_000_000.0
    node = await make_node(clock=lambda: now, history_size=10, recovery_window=60.0)
    await node.publish(*[draft(accepted=now) for _ in range(300)])
    now += 100
    await fill(node, 1, now)
    assert 200 < await held(valkey) < 300
    await fill(node, 5, now)
    assert await held(valkey) == 10


async def test_history_never_exceeds_its_bytes(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    node = await make_node(history_bytes=100_000)
    for n in range(300):
        await fill(node, 1, time.time(), size=100 + 37 * n % 2000)
        if n % 10 == 0:
            assert sum(len(body) for body in await bodies(valkey)) <= 100_000
    assert await held(valkey) > 40
    await fill(node, 1, time.time(), size=200_000)  # the newest stays whatever its size
    assert await held(valkey) == 1
    await fill(node, 10, time.time(), size=1000)
    assert await held(valkey) == 10


async def test_gives_up_at_the_deadline(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    node = await make_node()
    valkey.kill()
    publishing = asyncio.create_task(node.publish(draft(), within=0.5))
    await asyncio.sleep(0.1)
    assert not publishing.done(), "it tries until then"
    with pytest.raises(BackplaneUnavailable):
        await publishing


async def test_a_stopped_backplane_delays_and_repeats_nothing(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    await node.publish(draft(b"{0"))
    os.kill(valkey.pid, signal.SIGSTOP)
    task = asyncio.create_task(node.publish(draft(b"{1"), draft(b"{2")))
    await asyncio.sleep(3)  # longer than one attempt: a second copy is on its way
    assert not task.done()
    valkey.cont()
    assert [p.seq for p in await task] == [2, 3]
    assert [p.seq for p in await node.publish(draft(b"{3"))] == [4]
    assert await bodies(valkey) == [b"{0", b"{1", b"{2", b"{3"]


def test_results_are_parsed() -> None:
    assert parse_result(b"E 5 3") == [Position("E", 5), Position("E", 6), Position("E", 7)]
    assert parse_result(b"E 5,3:D") == [Position("E", 5), Position("D", 3)]
    assert parse_result(b"E 7") == [Position("E", 7)]


@pytest.mark.parametrize("key", ["s", "m", "o", "q", "w:WORKER"])
async def test_keys_of_another_type_are_moved_aside(
    valkey: ValkeyProcess, make_node: MakeNode, key: str
) -> None:
    node = await make_node()
    await node.publish(draft(id="first"))
    name = "{rt:status}:" + key.replace("WORKER", node.backplane.worker_name)
    await valkey.command("DEL", name)
    await valkey.command("SADD", name, "mine")
    positions = await node.publish(draft(id="second"), draft(type="stats"))
    assert all(isinstance(position, Position) for position in positions)
    assert await valkey.command("SMEMBERS", f"{name}:foreign") == [b"mine"]


@pytest.mark.parametrize("id", ["5-1", "0-18446744073709551615", f"0-{2**53 - 2}"])
async def test_a_stream_that_cannot_go_on_is_repaired(
    valkey: ValkeyProcess, make_node: MakeNode, id: str
) -> None:
    node = await make_node()
    (first,) = await node.publish(draft())
    await valkey.command("XADD", "{rt:status}:s", id, "x", "y")
    (second,) = await node.publish(draft(b'{"a":2'))
    (third,) = await node.publish(draft(b'{"a":3'))
    assert (second.epoch, second.seq) == (third.epoch, third.seq - 1) == (second.epoch, 2)
    # Workers may have read up to the very last number: they cannot go on in its epoch.
    assert (second.epoch == first.epoch) == (id != f"0-{2**53 - 2}")
    assert (await bodies(valkey))[1:] == [b'{"a":2', b'{"a":3']


@pytest.mark.parametrize(
    "value", ["junk", "", b"\xff", "9999 9 other", "1 2", "x y z", "1e9 1 a b,c"]
)
async def test_junk_in_the_tables_of_known_ids(
    valkey: ValkeyProcess, make_node: MakeNode, value: bytes | str
) -> None:
    node = await make_node()
    await node.publish(draft(id="known"))
    for table in ("o", "q"):
        await valkey.command("HSET", f"{{rt:status}}:{table}", "known", value)
    (position,) = await node.publish(draft(id="known"))
    assert position.seq == 2


@pytest.mark.parametrize("value", ["junk", "", b"\xff 1", "99 junk", "nan x 1 1"])
async def test_junk_in_the_record_of_the_last_batch(
    valkey: ValkeyProcess, make_node: MakeNode, value: bytes | str
) -> None:
    node = await make_node()
    await node.publish(draft())
    await valkey.command("SET", f"{{rt:status}}:w:{node.backplane.worker_name}", value)
    with contextlib.suppress(BackplaneUnavailable):  # a record of a later batch stands
        await node.publish(draft(), within=0.5)
    await valkey.command("DEL", f"{{rt:status}}:w:{node.backplane.worker_name}")
    (position,) = await node.publish(draft())
    assert position.seq in (2, 3)


async def test_a_full_backplane_lets_go_of_what_is_beyond_lowered_limits(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    """The memory is full, and HISTORY_BYTES was lowered for that: publishing gets going again."""
    before = await make_node(history_bytes=16_000_000)
    for _ in range(12):
        await fill(before, 1, time.time(), size=1_000_000)
    await valkey.command("CONFIG", "SET", "maxmemory", await used_memory(valkey) - 1_000_000)
    with pytest.raises(BackplaneFull, match="OOM"):
        await before.publish(draft(), within=600)
    assert await held(valkey) == 12
    after = await make_node(history_bytes=4_000_000)
    with pytest.raises(BackplaneFull):
        await after.publish(draft(), within=600)
    assert await held(valkey) == 3
    assert [p.seq for p in await after.publish(draft(), within=600)] == [13]


async def test_a_full_backplane_lets_go_of_ids_that_are_known_for_too_long(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    """Many messages had ids and later ones have none, so nothing else forgets those ids for hours."""
    now = 1_000_000.0
    node = await make_node(clock=lambda: now)
    await node.publish(draft(id="first"))
    ids = [word for n in range(20_000) for word in (f"{n:0128}", "1 1 x")]
    await valkey.command("HSET", "{rt:status}:o", *ids)
    limit = await used_memory(valkey) - 1_000_000
    await valkey.command("CONFIG", "SET", "maxmemory", limit)
    for _ in range(2):  # one of the two tables each time
        now += ONCE_WINDOW
        with pytest.raises(BackplaneFull, match="OOM"):
            await node.publish(draft(), within=600)

    async def has_room() -> bool:  # another thread of the server frees it
        return await used_memory(valkey) < limit

    await until(has_room)
    assert [p.seq for p in await node.publish(draft(), within=600)] == [2]


async def used_memory(valkey: ValkeyProcess) -> int:
    lines = (await valkey.command("INFO", "memory")).decode().split()
    return int(dict(line.split(":") for line in lines if ":" in line)["used_memory"])


# Clocks


class Clocks:
    """A server whose clock a test sets, and publishers that go by it; all in seconds."""

    def __init__(self, valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        self._valkey = valkey
        self.server = 1_700_000_000.0
        self.running = 500.0
        source = PUBLISH.source.replace(
            b"redis.call('TIME')",
            b"{redis.call('HGET', 'test', 's'), redis.call('HGET', 'test', 'u')}",
        )
        assert source != PUBLISH.source
        monkeypatch.setattr(publisher_module, "PUBLISH", Script(source))

    def publisher(self, node: Node) -> StreamPublisher:
        return StreamPublisher(node.backplane, node.reader.positions, running=lambda: self.running)

    async def publish(self, publisher: StreamPublisher, *drafts: Draft) -> list[Any]:
        seconds = int(self.server)
        micro = round((self.server - seconds) * 1e6)
        await self._valkey.command("HSET", "test", "s", seconds, "u", micro)
        return await publisher.store(drafts, asyncio.get_running_loop().time() + 60)

    def pass_time(self, seconds: float) -> None:
        self.server += seconds
        self.running += seconds


@pytest.fixture
def clocks(valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(valkey, monkeypatch)


HOUR = 3600.0


@pytest.mark.parametrize("wrong_by", [-HOUR, 0.0, HOUR])
async def test_the_clock_of_a_worker_decides_nothing(
    valkey: ValkeyProcess, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, wrong_by: float
) -> None:
    """Neither what is kept of the others' messages, nor which ids are known."""
    right, wrong = await make_node(history_size=3), await make_node(history_size=3)
    one = StreamPublisher(right.backplane, right.reader.positions)
    other = StreamPublisher(wrong.backplane, wrong.reader.positions)

    async def store(publisher: StreamPublisher, *drafts: Draft) -> list[Any]:
        return await publisher.store(drafts, asyncio.get_running_loop().time() + 60)

    await store(one, draft(id="a"), *[draft() for _ in range(9)])
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda now=time.time: now() + wrong_by)
        assert [p.seq for p in await store(other, draft(id="b"))] == [11]
        assert [p.seq for p in await store(other, draft(id="a"))] == [1]
    assert [p.seq for p in await store(one, draft(id="b"), draft())] == [11, 12]
    assert await held(valkey) == 12  # all are younger than the window
    entries = await valkey.command("XRANGE", "{rt:status}:s", "-", "+")
    times = [int(fields[5]) / 1e6 for _, fields in entries]
    assert max(times) - min(times) < 61
    seconds, _ = await valkey.command("TIME")
    assert abs(times[0] - int(seconds)) < 61


@pytest.mark.parametrize("step", [-HOUR, HOUR])
async def test_a_step_of_the_servers_clock_changes_nothing(
    valkey: ValkeyProcess, make_node: MakeNode, clocks: Clocks, step: float
) -> None:
    """Seen by what the publishers expect: ids stay known for their window, and no longer."""
    node = await make_node(history_size=3, recovery_window=60.0)
    one, other = clocks.publisher(node), clocks.publisher(await make_node())
    await clocks.publish(one, draft(id="a"), *[draft() for _ in range(9)])
    clocks.pass_time(200)
    assert [p.seq for p in await clocks.publish(other, draft(id="b"))] == [11]
    clocks.server += step
    clocks.pass_time(20)
    assert [p.seq for p in await clocks.publish(one, draft(id="a"))] == [1]
    assert [p.seq for p in await clocks.publish(other, draft(id="b"), draft())] == [11, 12]
    clocks.pass_time(90)  # 310 s after the first
    assert [p.seq for p in await clocks.publish(other, draft(id="a"))] == [13]
    assert [p.seq for p in await clocks.publish(one, draft(id="b"))] == [11]
    # Trimming goes on by the window.
    for _ in range(3):
        clocks.pass_time(61)
        await clocks.publish(one, draft())
    assert await held(valkey) == 3


async def test_a_publisher_that_was_stopped_moves_no_clock(
    valkey: ValkeyProcess, make_node: MakeNode, clocks: Clocks
) -> None:
    stopped, running = clocks.publisher(await make_node()), clocks.publisher(await make_node())
    stopped._running = lambda: 500.0  # its own clock stands still as well
    await clocks.publish(stopped, draft(id="a"))
    for _ in range(7):
        clocks.pass_time(50)
        await clocks.publish(running, draft())
    assert [p.seq for p in await clocks.publish(stopped, draft(id="a"))] == [9]
    assert [p.seq for p in await clocks.publish(running, draft(id="a"))] == [9]
    assert await valkey.command("HGET", "{rt:status}:m", "k") is None


@pytest.mark.parametrize("step", [-HOUR, HOUR])
async def test_without_any_memory_of_it_a_step_hides_nothing_for_an_hour(
    valkey: ValkeyProcess, make_node: MakeNode, clocks: Clocks, step: float
) -> None:
    """All workers were started anew: after the window an id is new again, and trimming goes on."""
    node = await make_node(history_size=3, recovery_window=60.0)
    await clocks.publish(clocks.publisher(node), draft(id="a"), *[draft() for _ in range(9)])
    clocks.server += step
    fresh = clocks.publisher(await make_node(history_size=3, recovery_window=60.0))
    await clocks.publish(fresh, draft())
    clocks.pass_time(301)
    assert [p.seq for p in await clocks.publish(fresh, draft(id="a"))] == [12]
    clocks.pass_time(61)
    await clocks.publish(fresh, draft())
    assert await held(valkey) == 3


async def test_ids_and_times_from_the_future_are_not_known(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    """As a version whose clock was an hour ahead has left them."""
    now = time.time()
    node = await make_node(clock=lambda: now, history_size=3, recovery_window=60.0)
    await node.publish(draft(accepted=now + HOUR))
    epoch = (await valkey.command("HGET", "{rt:status}:m", "p")).decode()
    ahead = int((now + HOUR) * 1e6)
    await valkey.command("HSET", "{rt:status}:o", "a", f"{ahead} 1 {epoch}")
    await valkey.command("HSET", "{rt:status}:m", "h", ahead, "o", ahead)
    assert [p.seq for p in await node.publish(draft(id="a", accepted=now + HOUR))] == [2]
    assert [p.seq for p in await node.publish(draft(id="a", accepted=now + HOUR))] == [2]
    for _ in range(5):
        await node.publish(draft(accepted=now + HOUR))
    assert await held(valkey) == 3
