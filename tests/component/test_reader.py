"""Reading: nothing skipped, nothing twice, and a gap wherever that cannot be kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.backplane.publisher import StreamPublisher
from app.backplane.reader import READ_BYTES
from app.types import Gap, Message, Position
from tests.support.backplane import MakeNode, Node, draft
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until


def seqs(items: list[Message | Gap]) -> list[int]:
    assert all(isinstance(item, Message) for item in items), items
    return [item.seq for item in items if isinstance(item, Message)]


def log_size(valkey: ValkeyProcess) -> int:
    return sum(file.stat().st_size for file in valkey.data.glob("appendonlydir/*.incr.aof"))


async def test_reads_all_types_from_the_end_at_start(make_node: MakeNode) -> None:
    writer = await make_node()
    await writer.publish(draft(), draft(type="stats"))
    node = await make_node()
    assert node.reader.positions["status"].seq == 1
    await writer.publish(draft(b'{"a":1', accepted=12.5), draft(type="stats"), draft())
    items = await node.read(3)
    status = [item for item in items if item.type == "status"]
    assert seqs(status) == [2, 3]
    first = status[0]
    assert isinstance(first, Message)
    assert (first.event, first.accepted) == ("status_update", 12.5)
    epoch = node.reader.positions["status"].epoch
    assert first.envelope == b'{"a":1,"seq":2,"epoch":"%b"}' % epoch.encode()
    assert node.reader.positions["stats"] == Position(node.reader.positions["stats"].epoch, 2)


async def test_a_batch_is_bounded_and_positions_follow_what_was_returned(
    make_node: MakeNode,
) -> None:
    node = await make_node(broadcast_batch_size=10)
    await node.publish(*[draft() for _ in range(25)], *[draft(type="stats") for _ in range(5)])
    got: dict[str, int] = {"status": 0, "stats": 0}
    total = 0
    while total < 30:
        batch = await node.reader.read()
        assert 0 < len(batch.messages) <= 10
        total += len(batch.messages)
        for item in batch.messages:
            assert isinstance(item, Message)
            got[item.type] += 1
            assert item.seq == got[item.type]
        assert {type: node.reader.positions[type].seq for type in got} == got


async def test_control_comes_apart(make_node: MakeNode) -> None:
    node = await make_node()
    await node.publish(draft(b"one", type="control"), draft(), draft(b"two", type="control"))
    batch = await node.read_control(2)
    assert [message.body for message in batch.control] == [b"one", b"two"]
    assert not batch.control_lost


async def test_a_cancelled_read_loses_nothing(make_node: MakeNode) -> None:
    node = await make_node()
    for n in range(3):
        task = asyncio.create_task(node.reader.read())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await node.publish(draft())
        assert seqs(await node.read(1)) == [n + 1]


async def test_outages_skip_and_repeat_nothing(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    writer, node = await make_node(), await make_node()

    async def write() -> None:
        for _ in range(200):
            await writer.publish(draft(), draft())

    task = asyncio.create_task(write())
    reading = asyncio.create_task(node.read(400, within=30))
    for count in (50, 150, 250):
        await until(lambda count=count: node.reader.positions["status"].seq > count)  # type: ignore[misc]
        await valkey.restart()
    await task
    assert seqs(await reading) == list(range(1, 401))
    assert node.reader.reconnects == 3


async def test_a_stopped_backplane_is_waited_out(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    writer, node = await make_node(), await make_node()
    await writer.publish(draft())
    assert seqs(await node.read(1)) == [1]
    reading = asyncio.create_task(node.read(2))
    valkey.stop()
    await until(lambda: node.reader.lag() > 2.5)
    assert not node.backplane.available
    valkey.cont()
    await writer.publish(draft(), draft())
    assert seqs(await reading) == [2, 3]
    assert node.backplane.available
    assert node.reader.lag() == 0


async def read_epoch_gap(node: Node, type: str = "status") -> tuple[Gap, list[Message | Gap]]:
    """Read up to the gap of a type, and one message further."""
    items: list[Message | Gap] = []
    async with asyncio.timeout(5):
        while not items or isinstance(items[-1], Gap):
            batch = await node.reader.read()
            items += [item for item in batch.messages if item.type == type]
    gap = items[0]
    assert isinstance(gap, Gap)
    assert gap.reason == "epoch"
    return gap, items[1:]


async def test_flushall_while_connected(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    writer, node = await make_node(), await make_node()
    await writer.publish(*[draft() for _ in range(50)])
    await node.read(50)
    old = node.reader.positions["status"]
    await valkey.command("FLUSHALL")
    await writer.publish(draft(), draft())
    gap, items = await read_epoch_gap(node)
    assert (gap.first, gap.last) == (1, 0)
    assert gap.epoch != old.epoch
    assert seqs(items) == [1, 2]
    assert node.reader.positions["status"] == Position(gap.epoch, 2)


async def test_flushall_and_a_stream_that_has_overtaken(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    writer, node = await make_node(), await make_node()
    await writer.publish(draft(), draft())
    await node.read(2)
    await valkey.command("FLUSHALL")
    await writer.publish(*[draft() for _ in range(5)])
    gap, items = await read_epoch_gap(node)
    assert (gap.first, gap.last) == (1, 0)
    assert seqs(items) == [1, 2, 3, 4, 5]


async def test_a_restart_with_nothing_left(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    writer, node = await make_node(), await make_node()
    await writer.publish(*[draft() for _ in range(5)])
    await node.read(5)
    await valkey.restart(emptied=True)
    await writer.publish(draft(), draft())
    gap, items = await read_epoch_gap(node)
    assert (gap.first, gap.last) == (1, 0)
    assert seqs(items) == [1, 2]


@pytest.mark.parametrize("added", [1, 5, 20], ids=["fewer", "as many", "more"])
async def test_a_stream_that_fell_back(
    valkey: ValkeyProcess, make_node: MakeNode, added: int
) -> None:
    """Another worker, which knows nothing of what was lost, publishes before this one is back."""
    writer, node = await make_node(), await make_node()
    await writer.publish(*[draft() for _ in range(10)])
    size = log_size(valkey)
    await writer.publish(*[draft() for _ in range(5)])
    await node.read(15)
    old = node.reader.positions["status"]
    await node.backplane.reading.close()
    await valkey.restart(cut=log_size(valkey) - size)
    stranger = await make_node()
    await stranger.publish(*[draft() for _ in range(added)])

    reading = asyncio.create_task(read_epoch_gap(node))
    await until(lambda: node.reader.reconnects == 1)
    (position,) = await stranger.publish(draft())
    gap, items = await reading
    assert gap.epoch == position.epoch != old.epoch
    assert (gap.first, gap.last) == (1, 10 + added)
    assert seqs(items) == [11 + added]

    following = await stranger.read(1 + added + 1)  # those that saw the change as it came
    assert [type(item) for item in following] == [Message] * added + [Gap, Message]


async def test_workers_agree_on_the_new_epoch(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    nodes = [await make_node() for _ in range(3)]
    await nodes[0].publish(*[draft() for _ in range(5)])
    for node in nodes:
        await node.read(5)
    await valkey.restart(emptied=True)
    found = await asyncio.gather(*(node.read(5) for node in nodes))  # one gap per type
    assert all(isinstance(item, Gap) for items in found for item in items)
    assert len({item.epoch for items in found for item in items}) == 5
    positions = await nodes[1].publish(draft())
    assert positions[0].epoch == nodes[2].reader.positions["status"].epoch


async def test_a_new_epoch_whose_beginning_was_trimmed(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    writer = await make_node(history_size=3, recovery_window=0.0)
    node = await make_node()
    await valkey.restart(emptied=True)
    for _ in range(10):
        await writer.publish(draft())
    gap, items = await read_epoch_gap(node)
    assert (gap.first, gap.last) == (1, 7)
    assert seqs(items) == [8, 9, 10]


async def test_trimmed_below_the_position(make_node: MakeNode) -> None:
    writer = await make_node(history_size=10, recovery_window=0.0)
    node = await make_node()
    await writer.publish(draft())
    await node.read(1)
    for _ in range(50):
        await writer.publish(draft())
    gap, *messages = await node.read(11)
    epoch = node.reader.positions["status"].epoch
    assert gap == Gap("status", epoch, 2, 41, "history")
    assert seqs(messages) == list(range(42, 52))


async def test_control_that_was_trimmed_is_reported(make_node: MakeNode) -> None:
    writer = await make_node(history_size=2, recovery_window=0.0)
    node = await make_node()
    for n in range(5):
        await writer.publish(draft(b"%d" % n, type="control"))
    batch = await node.read_control(2)
    assert [message.body for message in batch.control] == [b"3", b"4"]
    assert batch.control_lost


async def test_an_entry_of_another_program_is_a_gap(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    await node.publish(draft())
    await valkey.command("XADD", "{rt:status}:s", "0-*", "x", "y")
    await node.publish(draft())
    items = await node.read(3)
    epoch = node.reader.positions["status"].epoch
    assert items[1] == Gap("status", epoch, 2, 2, "history")
    assert [item.seq for item in items if isinstance(item, Message)] == [1, 3]


JUNK = [
    ("x", "y"),
    ("p", "other", "e", "tick", "t", "1", "d", '{"a":1'),
    ("p", "EPOCH", "e", "tick", "t", "1", "d", "junk"),
    ("p", "EPOCH", "e", b"\xff", "t", "1", "d", '{"a":1'),
    ("p", "EPOCH", "e", "tick", "t", "noon", "d", '{"a":1'),
    ("p", "EPOCH", "e", "tick", "t", "9" * 5000, "d", '{"a":1'),
    ("p", b"\xff", "e", "tick", "t", "1", "d", '{"a":1'),
]


async def test_entries_that_cannot_be_read_are_a_gap_and_change_no_epoch(
    valkey: ValkeyProcess, make_node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    node = await make_node()
    await node.publish(draft())
    (first,) = await node.read(1)
    for words in JUNK:
        real = [first.epoch if word == "EPOCH" else word for word in words]
        await valkey.command("XADD", "{rt:status}:s", "0-*", *real)
    gaps: list[Message | Gap] = []
    while sum(gap.last - gap.first + 1 for gap in gaps if isinstance(gap, Gap)) < len(JUNK):
        gaps += await node.read(1)
    assert all(isinstance(gap, Gap) and gap.reason == "history" for gap in gaps)
    # Long enough for two looks at the epochs.
    with pytest.raises(TimeoutError):
        await node.read(1, within=2.5)
    await node.publish(draft())
    (last,) = await node.read(1)
    assert isinstance(last, Message)
    assert (last.epoch, last.seq) == (first.epoch, len(JUNK) + 2)
    assert node.reader.unreadable == {"status": len(JUNK)}
    assert sum("not a message of this service" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    "id", ["5-1", "18446744073709551615-1", "0-18446744073709551615", "0-9007199254740992"]
)
async def test_an_entry_after_which_a_stream_cannot_go_on(
    valkey: ValkeyProcess, make_node: MakeNode, id: str
) -> None:
    writer, node = await make_node(), await make_node()
    await writer.publish(draft())
    (first,) = await node.read(1)
    await valkey.command("XADD", "{rt:status}:s", id, "x", "y")
    await writer.publish(draft(type="stats"))
    await node.read(1)  # nothing else waits for it
    async with asyncio.timeout(5):
        while (await valkey.command("XLEN", "{rt:status}:s")) != 1:
            with contextlib.suppress(TimeoutError):
                await node.read(1, within=0.2)
    await writer.publish(draft())
    (last,) = await node.read(1)
    assert isinstance(last, Message)
    assert (last.epoch, last.seq) == (first.epoch, 2)


async def test_the_last_number_that_clients_can_hold(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    """There is none after it, so the stream goes on behind what is sound, with a new epoch."""
    writer, node = await make_node(), await make_node()
    await writer.publish(draft())
    (first,) = await node.read(1)
    await valkey.command("XADD", "{rt:status}:s", f"0-{2**53 - 2}", "x", "y")
    (gap,) = await node.read(1)
    assert gap == Gap("status", first.epoch, 2, 2**53 - 2, "history")
    await valkey.command("XADD", "{rt:status}:s", f"0-{2**53 - 1}", "x", "y")
    await read_epoch_gap_alone(node)
    await writer.publish(draft())
    (last,) = await node.read(1)
    assert isinstance(last, Message)
    assert last.seq == 2
    assert last.epoch != first.epoch


async def read_epoch_gap_alone(node: Node) -> None:
    (gap,) = await node.read(1)
    assert isinstance(gap, Gap)
    assert gap.reason == "epoch"


@pytest.mark.parametrize("key", ["s", "m"])
@pytest.mark.parametrize("type", ["status", "control"])
async def test_a_key_of_another_type_is_moved_aside(
    valkey: ValkeyProcess, make_node: MakeNode, key: str, type: str
) -> None:
    writer, node = await make_node(), await make_node()
    await writer.publish(draft(), draft(type=type, body=b"{}"))
    await node.read(1 if type == "control" else 2)
    await valkey.command("SET", f"{{rt:{type}}}:{key}", "mine")
    reading = asyncio.create_task(node.read(1))
    async with asyncio.timeout(5):
        while (await valkey.command("GET", f"{{rt:{type}}}:{key}:foreign")) != b"mine":
            await asyncio.sleep(0.02)
    await writer.publish(draft(type="stats"))
    await reading
    # A worker that starts meets the same.
    await valkey.command("DEL", f"{{rt:{type}}}:{key}")
    await valkey.command("SADD", f"{{rt:{type}}}:{key}", "mine")
    late = await make_node()
    await writer.publish(draft(type="stats"))
    await late.read(1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("p", 'a"b'),
        ("p", b"\xff"),
        ("p", ""),
        ("p", "a" * 1000),
        ("n", "junk"),
        ("n", "-5"),
        ("n", "1e300"),
        ("n", "nan"),
        ("n", "9" * 400),
        ("b", "junk"),
        ("z", "junk"),
        ("h", "inf"),
        ("o", b"\xff"),
    ],
)
async def test_junk_in_the_meta_hash(
    valkey: ValkeyProcess, make_node: MakeNode, field: str, value: bytes | str
) -> None:
    writer, node = await make_node(), await make_node()
    await writer.publish(draft())
    (first,) = await node.read(1)
    await valkey.command("HSET", "{rt:status}:m", field, value)
    await writer.publish(draft())
    items = await node.read(1)
    if isinstance(items[0], Gap):  # a new epoch, which begins behind what was stored under it
        items = items[1:]
        await writer.publish(draft())
        items += await node.read(1)
    message = items[-1]
    assert isinstance(message, Message)
    assert message.seq in (2, 3)
    assert (message.epoch == first.epoch) == (field in "zho")
    late = await make_node()
    assert late.reader.positions["status"].epoch == message.epoch


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
async def test_clocks_that_differ_make_no_message_late(make_node: MakeNode, ahead: float) -> None:
    """The server's clock is an hour from this machine's: `accepted` is the time of this machine."""
    node = await make_node()
    publisher = StreamPublisher(node.backplane, node.reader.positions)

    def now() -> float:
        return time.time() - ahead

    node.reader._clock = now
    await node.reader._check()
    deadline = asyncio.get_running_loop().time() + 10
    await publisher.store([draft(accepted=time.time())], deadline)
    (message,) = await node.read(1)
    assert isinstance(message, Message)
    assert abs(now() - message.accepted) < 60
    assert node.reader.lag() < 60


async def test_large_messages_are_read_a_few_at_a_time(make_node: MakeNode) -> None:
    writer, behind = await make_node(), await make_node()
    body = b"{" + b"x" * 900_000
    for _ in range(12):
        await writer.publish(draft(body))
    found = 0
    while found < 12:
        found += len((await behind.reader.read()).messages)
    assert behind.reader._count < 16
    for _ in range(20):
        await writer.publish(draft())
        await behind.reader.read()
    assert behind.reader._count > 16


@pytest.mark.parametrize("is_behind", [True, False])
async def test_what_has_waited_is_read_one_stream_at_a_time(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, is_behind: bool
) -> None:
    """The server builds each answer in memory, with one entry of each stream at least."""
    types = tuple(f"large_{number}" for number in range(16))
    settings = {"message_types": types, "history_bytes": 16 * 2**20}
    writer = await make_node(**settings)
    behind = await make_node(**settings, broadcast_batch_size=100 if is_behind else 1)
    if is_behind:
        behind.reader._filled -= 60
    body = b"{" + b"x" * 900_000
    for _ in range(3):
        for type in types:
            await writer.publish(draft(body, type))
    answers: list[int] = []
    take_in = behind.reader._take_in

    async def measure(reply: Sequence[Any]) -> None:
        answers.append(sum(len(fields[-1]) for _, found in reply for _, fields in found))
        await take_in(reply)

    monkeypatch.setattr(behind.reader, "_take_in", measure)
    items = await behind.read(3 * len(types))
    for type in types:
        assert seqs([item for item in items if item.type == type]) == [1, 2, 3]
    assert max(answers[not is_behind :]) < 2 * READ_BYTES
    for _ in range(2):
        await writer.publish(draft(type="large_3"))
        assert len(await behind.read(1)) == 1
    assert not behind.reader._apart, "all streams are read at once again"


async def test_what_has_waited_during_a_long_flush_is_delivered_together(
    make_node: MakeNode,
) -> None:
    """A write to many connections costs the same for one message as for many."""
    settings = {"message_types": ("status", "stats"), "broadcast_batch_size": 100}
    writer, behind = await make_node(**settings), await make_node(**settings)
    usual = behind.reader._count
    for number in range(3):
        drafts = [draft(type=type) for type in ("status", "stats") for _ in range(20)]
        await writer.publish(*drafts)
        behind.reader._filled -= 60
        items = (await behind.reader.read()).messages
        assert len(items) == 40
        for type in ("status", "stats"):
            first = number * 20 + 1
            assert seqs([item for item in items if item.type == type]) == [
                *range(first, first + 20)
            ]
    await writer.publish(draft())
    await behind.read(1)
    assert behind.reader._count >= usual, "the next call is read at once as well"


async def test_a_stream_that_never_ends_keeps_no_other_from_its_turn(make_node: MakeNode) -> None:
    settings = {"message_types": ("status", "stats"), "broadcast_batch_size": 30}
    writer, behind = await make_node(**settings), await make_node(**settings)
    for type in ("status", "stats"):
        for _ in range(3):
            await writer.publish(*(draft(type=type) for _ in range(30)))
    seen: list[set[str]] = []
    count = 0
    while count < 180:
        behind.reader._filled -= 60
        items = (await behind.reader.read()).messages
        assert len(items) <= 30
        count += len(items)
        seen.append({item.type for item in items})
    assert set().union(*seen[:2]) == {"status", "stats"}


async def test_what_was_read_is_delivered_before_an_outage_is_waited_out(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"message_types": ("status", "stats"), "broadcast_batch_size": 100}
    writer, behind = await make_node(**settings), await make_node(**settings)
    await writer.publish(*(draft(type="stats") for _ in range(2)))
    await writer.publish(*(draft(type="status") for _ in range(2)))
    take_in, answers = behind.reader._take_in, 0

    async def fail_later(reply: Sequence[Any]) -> None:
        nonlocal answers
        answers += bool(reply)
        if answers == 2:
            answers += 1
            raise ConnectionError("cut on purpose")
        await take_in(reply)

    monkeypatch.setattr(behind.reader, "_take_in", fail_later)
    behind.reader._filled -= 60
    assert len((await behind.reader.read()).messages) == 2
    assert len(await behind.read(2)) == 2
