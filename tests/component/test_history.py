"""History: from memory where it reaches, from the stream once for all where it does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.backplane import history as history_module
from app.backplane.history import History
from app.errors import BackplaneUnavailable
from app.types import Gap, Message, Position
from tests.support.backplane import MakeNode, Node, draft
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until


class Recorder:
    """A node whose reader feeds a history, and which counts what is asked of the backplane."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.history = History(node.backplane, node.reader.positions)
        self.asked = 0
        ask = node.backplane.ask

        async def count(commands: Any) -> Any:
            self.asked += 1
            return await ask(commands)

        node.backplane.ask = count  # type: ignore[method-assign]

    @property
    def live(self) -> Position:
        return self.node.reader.positions["status"]

    async def go_live(self, seq: int) -> None:
        while self.live.seq < seq:
            self.history.remember((await self.node.reader.read()).messages)

    async def fill(self, count: int, size: int = 10) -> None:
        body = b"{" + b"x" * (size - 1)
        for start in range(0, count, 100):
            await self.node.publish(*[draft(body) for _ in range(min(100, count - start))])
        await self.go_live(self.live.seq + count)

    async def all_after(self, seq: int) -> list[Message | Gap]:
        items: list[Message | Gap] = []
        while found := await self.history.after("status", self.live.epoch, seq, 30):
            assert len(found) <= 31
            items += found
            last = found[-1]
            seq = last.seq if isinstance(last, Message) else last.last
        return items


@pytest.fixture
async def recorder(make_node: MakeNode) -> Recorder:
    return Recorder(await make_node())


def seqs(items: list[Message | Gap]) -> list[int]:
    return [item.seq for item in items if isinstance(item, Message)]


async def test_the_tail_is_served_from_memory(recorder: Recorder) -> None:
    await recorder.fill(50)
    items = await recorder.all_after(7)
    assert len(items) == 43
    assert seqs(items) == list(range(8, 51))
    assert recorder.asked == 0


async def test_the_tail_is_bounded(recorder: Recorder) -> None:
    await recorder.fill(300)
    tail = recorder.history._tails["status"]
    assert len(tail.messages) == 256
    await recorder.fill(20, size=100_000)
    assert recorder.history.cached_bytes == tail.bytes
    assert tail.bytes == sum(len(m.body) for m in tail.messages) <= 1_000_000


async def test_older_messages_come_from_the_stream(recorder: Recorder) -> None:
    await recorder.fill(700)
    items = await recorder.all_after(0)
    assert len(items) == 700
    assert seqs(items) == list(range(1, 701))
    assert recorder.asked == 5  # chunks of a hundred up to where the tail begins, at 445


async def test_concurrent_readers_share_each_read(make_node: MakeNode) -> None:
    writer = await make_node()
    fresh = Recorder(await make_node())
    for _ in range(3):
        await writer.publish(*[draft() for _ in range(83)])
    fresh.history = History(fresh.node.backplane, fresh.node.reader.positions)
    while fresh.live.seq < 249:
        await fresh.node.reader.read()  # live, but nothing remembered
    found = await asyncio.gather(*(fresh.all_after(n % 100) for n in range(1000)))
    for n, items in enumerate(found):
        assert seqs(items) == list(range(n % 100 + 1, 250))
    assert fresh.asked <= 4
    assert not len(fresh.history._reads)


async def test_never_goes_beyond_live(recorder: Recorder) -> None:
    await recorder.fill(5)
    recorder.history._tails.clear()
    await recorder.node.publish(draft(), draft())
    assert seqs(await recorder.all_after(0)) == [1, 2, 3, 4, 5]
    assert await recorder.all_after(9) == []  # a client that another worker has served
    await recorder.go_live(7)
    recorder.history._tails.clear()
    assert seqs(await recorder.all_after(0)) == [1, 2, 3, 4, 5, 6, 7]  # the cached chunk has grown


async def test_the_cache_of_chunks_is_bounded(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "CACHE_BYTES", 200_000)
    await recorder.fill(900)
    for _ in range(2):
        assert len(await recorder.all_after(0)) == 900
        history = recorder.history
        assert 0 < history._chunk_bytes <= 200_000
        assert history._chunk_bytes == sum(map(history_module._weight, history._chunks.values()))


async def test_trimmed_messages_are_a_gap(make_node: MakeNode) -> None:
    recorder = Recorder(await make_node(history_size=300, recovery_window=0.0))
    for _ in range(20):
        await recorder.fill(40)
    items = await recorder.all_after(3)
    assert items[0] == Gap("status", recorder.live.epoch, 4, 500, "history")
    assert seqs(items[1:]) == list(range(501, 801))
    asked = recorder.asked
    again = await asyncio.gather(*(recorder.all_after(3) for _ in range(100)))
    assert all(len(items) == 301 for items in again)
    assert recorder.asked - asked <= 4


async def test_a_stream_that_lost_everything_is_a_gap(
    valkey: ValkeyProcess, recorder: Recorder
) -> None:
    await recorder.fill(10)
    recorder.history._tails.clear()
    await valkey.command("FLUSHALL")
    epoch = recorder.live.epoch
    assert await recorder.all_after(2) == [Gap("status", epoch, 3, 10, "history")]


async def test_another_epoch(valkey: ValkeyProcess, recorder: Recorder) -> None:
    await recorder.fill(10)
    old = recorder.live
    await valkey.command("FLUSHALL")
    while recorder.live.epoch == old.epoch:
        recorder.history.remember((await recorder.node.reader.read()).messages)
    await recorder.fill(3)
    new = recorder.live.epoch
    # A client that was live and fell behind goes on as the others did.
    assert await recorder.history.after("status", old.epoch, 7, 100) == [
        Gap("status", new, 1, 0, "epoch")
    ]
    assert seqs(await recorder.all_after(0)) == [1, 2, 3]
    # Any other goes on at live.
    assert await recorder.history.after("status", "elsewhere", 7, 100) == [
        Gap("status", new, 1, 3, "epoch")
    ]


async def test_newest(recorder: Recorder) -> None:
    assert await recorder.history.newest("status", 10) == ([], False)
    assert await recorder.history.latest("status") is None
    await recorder.fill(10)

    async def newest(limit: int, before: int | None = None) -> tuple[list[int], bool]:
        messages, more = await recorder.history.newest("status", limit, before)
        return [message.seq for message in messages], more

    assert await newest(3) == ([8, 9, 10], True)
    assert await newest(10) == (list(range(1, 11)), False)
    assert await newest(3, before=4) == ([1, 2, 3], False)
    assert await newest(2, before=4) == ([2, 3], True)
    assert await newest(5, before=1) == ([], False)


async def test_newest_shows_what_was_just_published(recorder: Recorder) -> None:
    """Even when an older read is still under way."""
    await recorder.fill(1)
    answer = asyncio.Event()
    ask = recorder.node.backplane.ask

    async def late(commands: Any) -> Any:
        replies = await ask(commands)
        await answer.wait()
        return replies

    recorder.node.backplane.ask = late  # type: ignore[method-assign]
    early = asyncio.create_task(recorder.history.newest("status", 1))
    await until(lambda: recorder.asked == 1)
    await recorder.fill(1)
    question = asyncio.create_task(recorder.history.newest("status", 1))
    await asyncio.sleep(0)
    answer.set()
    assert [message.seq for message in (await early)[0]] == [1]
    assert [message.seq for message in (await question)[0]] == [2]


async def test_latest_is_the_live_one(recorder: Recorder) -> None:
    await recorder.fill(3)
    asked = recorder.asked
    message = await recorder.history.latest("status")
    assert message is not None
    assert message.seq == 3
    assert recorder.asked == asked


async def test_without_backplane(valkey: ValkeyProcess, recorder: Recorder) -> None:
    await recorder.fill(300)
    valkey.kill()
    assert len(await recorder.all_after(200)) == 100  # from memory
    with pytest.raises(BackplaneUnavailable):
        await recorder.all_after(0)
    with pytest.raises(BackplaneUnavailable):
        await recorder.history.newest("status", 5)
    await valkey.restart()
    assert len(await recorder.all_after(0)) == 300
