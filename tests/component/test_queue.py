"""The broadcast queue: order, bounds shared by all workers, and an absent backplane."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from app.backplane.publisher import Landed
from app.broadcast import queue as queue_module
from app.broadcast.queue import BroadcastQueue
from app.config import Settings
from app.errors import BackplaneUnavailable, QueueOverflow
from app.supervisor import Supervisor
from app.types import Draft, Message, Position, Priority
from tests.support.backplane import MakeNode, Node, draft
from tests.support.queues import futures_of
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until
from workers.shared.slots import SlotTable
from workers.shared.worker_slots import WorkerSlots

HIGH, NORMAL, LOW = Priority


class Worker:
    """A queue over a real backplane and the slot table of its machine."""

    def __init__(self, node: Node, slots: WorkerSlots) -> None:
        self.node = node
        self.slots = slots
        self.batches = 0
        """Batches stored since the start."""
        self.counted: Counter[str] = Counter()
        """Messages that were counted as stored, by type."""
        self.queue = BroadcastQueue(slots, self, self.count, self.begin)
        self.queue.start(Supervisor())

    def count(self, type: str, number: int) -> None:
        self.counted[type] += number

    def begin(self, drafts: Sequence[Draft], landed: Landed) -> bool:
        def count(outcomes: list[Position | BackplaneUnavailable] | None) -> None:
            self.batches += outcomes is not None
            landed(outcomes)

        return self.node.publisher.begin(drafts, count)

    async def store(
        self, drafts: Sequence[Draft], deadline: float
    ) -> list[Position | BackplaneUnavailable]:
        outcomes = await self.node.publisher.store(drafts, deadline)
        self.batches += 1
        return outcomes

    def send(self, priority: Priority = NORMAL, body: bytes = b"") -> asyncio.Future[Position]:
        return self.queue.submit(draft(body, priority=priority))

    def send_all(
        self, priorities: Sequence[Priority]
    ) -> list[asyncio.Future[Position] | QueueOverflow]:
        """Messages of one call."""
        return futures_of(self.queue, [draft(priority=priority) for priority in priorities])

    async def fly(self) -> asyncio.Future[Position]:
        """Put one message under way, so that those after it wait."""
        future = self.send(HIGH)
        await until(lambda: bool(self.queue._flying))
        return future

    def shown(self) -> bool:
        """Whether the other workers know what waits here."""
        return self.queue._shown == self.queue.per_priority()


MakeWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def make_worker(
    valkey: ValkeyProcess, make_node: MakeNode, tmp_path: Path
) -> AsyncIterator[MakeWorker]:
    """Makes workers of one machine; keyword arguments are settings."""
    workers: list[Worker] = []

    async def make(**settings: int) -> Worker:
        node = await make_node()
        table = SlotTable(tmp_path / "slots")
        slots = WorkerSlots(table, table.claim_row(1), dataclasses.replace(Settings(), **settings))  # type: ignore[arg-type]
        workers.append(Worker(node, slots))
        return workers[-1]

    yield make
    for worker in workers:
        await worker.queue.close(timeout=0)
        assert worker.queue.bytes == 0
        assert worker.queue.length() == 0
    if workers:
        assert workers[0].slots.queue_totals() == (0, 0)


async def outcome(future: asyncio.Future[Position]) -> int | type[BaseException]:
    """The seq that a message got, or the kind of its error."""
    try:
        return (await future).seq
    except (QueueOverflow, BackplaneUnavailable) as error:
        return type(error)


async def test_messages_keep_their_order(make_worker: MakeWorker) -> None:
    worker = await make_worker()
    futures = [worker.send() for _ in range(1000)]
    assert [await outcome(future) for future in futures] == list(range(1, 1001))
    assert worker.batches < 20
    assert worker.queue.length() == 0


async def test_messages_of_one_call_are_queued_together(make_worker: MakeWorker) -> None:
    worker = await make_worker()
    priorities = (LOW, NORMAL, HIGH, LOW)
    queued = worker.send_all(priorities)
    assert worker.slots.queue_totals().messages == 4
    futures = [future for future in queued if isinstance(future, asyncio.Future)]
    assert [await outcome(future) for future in futures] == [3, 2, 1, 4]
    assert worker.batches == 1
    assert worker.send_all([]) == []


async def test_of_a_call_that_is_too_large_as_many_are_queued_as_fit(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    worker = await make_worker(max_queue_size=4)
    valkey.stop()
    flying = await worker.fly()
    queued = worker.send_all([NORMAL] * 5)
    assert [isinstance(result, QueueOverflow) for result in queued] == [False] * 3 + [True] * 2
    assert worker.queue.dropped == [0, 2, 0]
    higher = worker.send_all([HIGH] * 2)
    assert worker.queue.dropped == [0, 4, 0]
    valkey.cont()
    results = [flying, *queued, *higher]
    futures = [future for future in results if isinstance(future, asyncio.Future)]
    assert [await outcome(future) for future in futures] == [1, 4, *[QueueOverflow] * 2, 2, 3]


async def test_what_is_stored_is_counted(
    valkey: ValkeyProcess, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await make_worker()
    await asyncio.gather(*(worker.send() for _ in range(5)))
    await worker.queue.send_control(b"{}")
    assert worker.counted == {"status": 5}
    monkeypatch.setattr(queue_module, "MAX_WAIT", 0.2)
    valkey.stop()
    assert await outcome(worker.send()) is BackplaneUnavailable
    valkey.cont()
    await worker.send()
    assert worker.counted == {"status": 6}, "what was not answered is not counted"


async def test_a_queue_at_rest_has_no_timer(make_worker: MakeWorker) -> None:
    worker = await make_worker()
    await worker.send()
    for _ in range(3):
        future = worker.send()
        assert worker.queue._timer is None, "it has left"
        assert worker.queue.per_priority() == [0, 0, 0]
        await future
        await until(lambda: worker.queue.length() == 0)
        assert worker.queue._timer is None
        assert worker.shown()


async def test_a_bug_in_beginning_with_a_batch_ends_nothing(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await make_worker()
    await worker.send()

    def fail(*_: object) -> bool:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(worker.node.publisher, "begin", fail)
        assert [await outcome(worker.send()) for _ in range(2)] == [2, 3]
    assert "Cannot begin to store a batch" in caplog.text
    assert await outcome(worker.send()) == 4


async def test_high_priority_goes_first(valkey: ValkeyProcess, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    valkey.stop()
    await worker.fly()
    futures = [worker.send(priority) for priority in (LOW, NORMAL, HIGH, LOW, HIGH)]
    assert worker.queue.per_priority() == [2, 1, 2]
    assert worker.queue.length() == 6
    valkey.cont()
    assert [await outcome(future) for future in futures] == [5, 4, 2, 6, 3]


async def test_a_hundred_publishers_at_once(make_worker: MakeWorker) -> None:
    workers = [await make_worker() for _ in range(2)]

    async def publish(n: int) -> list[int]:
        queue = workers[n % 2].queue
        return [(await queue.submit(draft())).seq for _ in range(20)]

    lists = await asyncio.gather(*(publish(n) for n in range(100)))
    assert all(seqs == sorted(seqs) for seqs in lists)
    assert sorted(seq for seqs in lists for seq in seqs) == list(range(1, 2001))


async def test_batches_are_bounded_in_bytes(valkey: ValkeyProcess, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    valkey.stop()
    await worker.fly()
    futures = [worker.send(body=b"{" + b"x" * 400_000) for _ in range(5)]
    valkey.cont()
    assert [await outcome(future) for future in futures] == [2, 3, 4, 5, 6]
    assert worker.batches == 1 + 3


async def test_full_drops_the_lowest_and_newest_first(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    worker = await make_worker(max_queue_size=7)
    valkey.stop()
    flying = await worker.fly()
    low = [worker.send(LOW) for _ in range(3)]
    normal = [worker.send(NORMAL) for _ in range(3)]
    with pytest.raises(QueueOverflow):
        worker.send(LOW)
    high = [worker.send(HIGH) for _ in range(2)]
    assert await outcome(low[2]) is QueueOverflow
    assert await outcome(low[1]) is QueueOverflow
    assert not low[0].done()
    normal.append(worker.send(NORMAL))
    assert await outcome(low[0]) is QueueOverflow
    with pytest.raises(QueueOverflow):
        worker.send(NORMAL)
    high.append(worker.send(HIGH))
    assert await outcome(normal[3]) is QueueOverflow
    assert worker.queue.dropped == [0, 2, 4]
    assert worker.queue.length() == 7
    valkey.cont()
    assert await outcome(flying) == 1
    assert [await outcome(future) for future in high] == [2, 3, 4]
    assert [await outcome(future) for future in normal[:3]] == [5, 6, 7]


async def test_full_of_bytes(valkey: ValkeyProcess, make_worker: MakeWorker) -> None:
    worker = await make_worker(max_queue_bytes=100_000)
    valkey.stop()
    await worker.fly()
    low = [worker.send(LOW, b"{" + b"x" * 20_000) for _ in range(4)]
    high = worker.send(HIGH, b"{" + b"x" * 50_000)
    assert [await outcome(future) for future in low[2:]] == [QueueOverflow, QueueOverflow]
    assert worker.queue.bytes < 100_000
    valkey.cont()
    assert await outcome(high) == 2
    assert [await outcome(future) for future in low[:2]] == [3, 4]


async def test_another_worker_drops_its_lesser_message(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    first, second = await make_worker(max_queue_size=8), await make_worker(max_queue_size=8)
    valkey.stop()
    await first.fly()
    await second.fly()
    normal = [second.send(NORMAL) for _ in range(2)]
    low = [first.send(LOW) for _ in range(2)]
    middle = [first.send(NORMAL) for _ in range(2)]
    await until(lambda: first.shown() and second.shown())
    high = [second.send(HIGH) for _ in range(2)]
    assert [await outcome(future) for future in low] == [QueueOverflow] * 2
    await until(lambda: second.queue.per_priority() == [2, 2, 0])
    assert first.queue.dropped == [0, 0, 2]
    assert second.queue.dropped == [0, 0, 0]
    valkey.cont()
    assert all([isinstance(await outcome(f), int) for f in (*normal, *middle, *high)])


async def test_room_that_others_took_is_asked_for_again(
    valkey: ValkeyProcess, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of one rank may come to the worker that makes room, before those that asked for it."""
    first, second = await make_worker(max_queue_size=8), await make_worker(max_queue_size=8)
    valkey.stop()
    await first.fly()
    await second.fly()
    low = [first.send(LOW) for _ in range(6)]
    await until(first.shown)
    taken: list[asyncio.Future[Position]] = []
    make_room = first.queue._evict

    def make_room_and_fill_it(count: int) -> None:
        make_room(count)
        taken.extend(first.send(HIGH) for _ in range(count if not taken else 0))

    monkeypatch.setattr(first.queue, "_evict", make_room_and_fill_it)
    high = [second.send(HIGH) for _ in range(3)]
    assert [await outcome(future) for future in low] == [QueueOverflow] * 6
    await until(lambda: second.queue.per_priority() == [3, 0, 0])
    assert (first.queue.dropped, second.queue.dropped) == ([0, 0, 6], [0, 0, 0])
    valkey.cont()
    assert all([isinstance(await outcome(future), int) for future in (*taken, *high)])


async def test_room_that_does_not_come(
    valkey: ValkeyProcess, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await make_worker(max_queue_size=4), await make_worker(max_queue_size=4)
    valkey.stop()
    await second.fly()
    await first.fly()
    for _ in range(2):
        first.send(LOW)
    await until(first.shown)
    monkeypatch.setattr(first.slots, "evictions_asked", lambda: 0)  # a worker that hangs
    sent = second.send(NORMAL)
    await asyncio.sleep(queue_module.POLL_INTERVAL)
    assert not sent.done(), "the other worker has a moment to make room"
    assert await outcome(sent) is QueueOverflow
    assert second.queue.dropped == [0, 1, 0]
    valkey.cont()


async def test_no_request_is_left_for_later_messages(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    first, second = await make_worker(), await make_worker()
    valkey.stop()
    await first.fly()
    first.send(LOW)
    await until(first.shown)
    valkey.cont()
    assert second.slots.ask_to_evict(NORMAL)
    await until(lambda: first.queue._timer is None)
    valkey.stop()
    await first.fly()
    late = first.send(LOW)
    await asyncio.sleep(4 * queue_module.POLL_INTERVAL)
    assert not late.done()
    valkey.cont()
    assert isinstance(await outcome(late), int)


async def test_publishers_that_have_gone_break_nothing(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    worker = await make_worker(max_queue_size=4)
    valkey.stop()
    flying = await worker.fly()
    flying.cancel()
    waiting = worker.send()
    waiting.cancel()
    dropped = worker.send(LOW)
    dropped.cancel()
    worker.send()
    last = worker.send()
    valkey.cont()
    assert await outcome(last) == 4
    assert worker.queue.dropped == [0, 0, 1]
    assert await outcome(worker.send()) == 5


async def read_all(node: Node, last: int) -> list[int]:
    seqs: list[int] = []
    async with asyncio.timeout(20):
        while not seqs or seqs[-1] < last:
            batch = await node.reader.read()
            seqs += [item.seq for item in batch.messages if isinstance(item, Message)]
    return seqs


async def test_ten_thousand_while_the_backplane_is_stopped_for_three_seconds(
    valkey: ValkeyProcess, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the five seconds that they may wait two would be left, whatever else the machine does.
    monkeypatch.setattr(queue_module, "MAX_WAIT", 60.0)
    worker = await make_worker()
    valkey.stop()
    futures = [worker.send() for _ in range(10_000)]
    with pytest.raises(QueueOverflow):
        worker.send()
    await asyncio.sleep(3)
    valkey.cont()
    assert [await outcome(future) for future in futures] == list(range(1, 10_001))
    assert await read_all(worker.node, 10_000) == list(range(1, 10_001))
    assert await valkey.command("XLEN", "{rt:status}:s") == 10_000


async def test_a_backplane_that_is_stopped_for_ten_seconds(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    reading = asyncio.create_task(read_all(worker.node, 10**9))
    valkey.stop()
    flying = [worker.send(body=b"{flying %d" % n) for n in range(200)]
    await until(lambda: bool(worker.queue._flying))
    waiting = [worker.send(body=b"{waiting %d" % n) for n in range(200)]
    await asyncio.sleep(queue_module.MAX_WAIT / 2)
    assert not any(future.done() for future in flying + waiting)
    assert {await outcome(future) for future in flying + waiting} == {BackplaneUnavailable}
    await asyncio.sleep(3)
    late = [worker.send(body=b"{late %d" % n) for n in range(200)]
    await asyncio.sleep(2)
    valkey.cont()
    positions = await asyncio.gather(*late)
    await until(lambda: worker.node.reader.positions["status"] == positions[-1])
    reading.cancel()
    entries = await valkey.command("XRANGE", "{rt:status}:s", "-", "+")
    bodies = [fields[7] for _, fields in entries]
    assert len(bodies) == len(set(bodies))
    assert [bodies[position.seq - 1] for position in positions] == [
        b"{late %d" % n for n in range(200)
    ]
    assert not any(body.startswith(b"{waiting") for body in bodies)


async def test_each_message_has_its_own_time(
    valkey: ValkeyProcess, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that shares its batch with younger ones is not kept waiting for theirs."""
    monkeypatch.setattr(queue_module, "MAX_WAIT", 0.6)
    worker = await make_worker()
    valkey.stop()
    await worker.fly()
    elder = worker.send()
    await asyncio.sleep(0.4)
    assert not elder.done()
    younger = worker.send()
    assert await outcome(elder) is BackplaneUnavailable
    assert not younger.done()
    assert await outcome(younger) is BackplaneUnavailable
    await until(lambda: worker.queue.length() == 0)  # dropped, not tried for ever
    valkey.cont()
    assert isinstance(await outcome(worker.send()), int)


async def test_killed_backplane_loses_and_repeats_nothing(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    workers = [await make_worker() for _ in range(2)]
    acknowledged: dict[int, bytes] = {}
    reading = [asyncio.create_task(read_all(worker.node, 2000)) for worker in workers]

    async def publish(worker: Worker, name: int) -> None:
        for n in range(100):
            item = draft(b"{%d.%d" % (name, n))
            position = await worker.queue.submit(item)
            assert position.seq not in acknowledged
            acknowledged[position.seq] = item.body

    tasks = [asyncio.create_task(publish(workers[n % 2], n)) for n in range(20)]
    for count in (300, 900, 1500):
        await until(lambda count=count: len(acknowledged) >= count)  # type: ignore[misc]
        await valkey.restart()
    await asyncio.gather(*tasks)
    entries = await valkey.command("XRANGE", "{rt:status}:s", "-", "+")
    assert [fields[7] for _, fields in entries] == [acknowledged[n] for n in range(1, 2001)]
    for task in reading:
        assert await task == list(range(1, 2001))


async def test_close_stores_what_waits(valkey: ValkeyProcess, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    futures = [worker.send() for _ in range(500)]
    await worker.queue.close()
    assert [await outcome(future) for future in futures] == list(range(1, 501))


async def test_close_fails_what_cannot_be_stored(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    valkey.kill()
    futures = [await worker.fly(), worker.send(), worker.send(LOW)]
    await worker.queue.close(timeout=0.1)
    assert [await outcome(future) for future in futures] == [BackplaneUnavailable] * 3


async def test_close_leaves_nothing_of_what_is_under_way(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    assert await outcome(worker.send()) == 1  # so that the next one goes without a task
    valkey.stop()
    futures = [await worker.fly(), worker.send(), worker.send(LOW)]
    queue = worker.queue
    await until(lambda: worker.shown() and queue.per_priority() == [0, 1, 1])
    await queue.close(timeout=0.1)
    assert [await outcome(future) for future in futures] == [BackplaneUnavailable] * 3
    assert (queue.length(), queue.bytes, queue.per_priority()) == (0, 0, [0, 0, 0])
    assert worker.shown()
    assert (queue._flying, queue._timer) == ([], None)
    assert worker.slots.queue_totals() == (0, 0)
    valkey.cont()


async def test_a_probe_displaces_nothing_of_a_full_queue(
    valkey: ValkeyProcess, make_worker: MakeWorker
) -> None:
    worker = await make_worker(max_queue_size=3)
    valkey.stop()
    flying = await worker.fly()
    low = [worker.send(LOW) for _ in range(2)]
    probe = worker.queue.send_probe(b"probe")
    assert worker.slots.queue_totals()[0] == 3
    with pytest.raises(QueueOverflow):
        worker.send(LOW)
    valkey.cont()
    assert await outcome(probe) == 1
    assert [await outcome(future) for future in (flying, *low)] == [1, 2, 3]
    assert worker.queue.dropped == [0, 0, 1]


async def test_control_reaches_every_worker(make_worker: MakeWorker) -> None:
    first, second = await make_worker(), await make_worker()
    futures = [first.queue.send_control(b"%d" % n) for n in range(5)]
    for worker in (first, second):
        batch = await worker.node.read_control(5)
        assert [m.body for m in batch.control] == [b"0", b"1", b"2", b"3", b"4"]
    assert [(await future).seq for future in futures] == [1, 2, 3, 4, 5]
