"""A server that answers what it was not asked: nothing ends, nothing is lost or repeated, and it is said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from app.backplane.attendance import AttendanceStore
from app.backplane.claims import UserClaims
from app.backplane.client import FAILURES
from app.backplane.history import History
from app.backplane.series import FINE, Sample, Series
from app.config import Settings
from app.errors import BackplaneUnavailable
from app.supervisor import Supervisor
from app.types import Gap, Message, Position
from tests.support.backplane import Node, draft
from tests.support.liar import HALF, Liar, Words
from tests.support.slots import TableSlots
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

Call = Callable[[], Coroutine[Any, Any, object]]

LIES: dict[str, bytes] = {
    "a status": b"+OK\r\n",
    "a number": b":5\r\n",
    "a huge number": b":1000000000000\r\n",
    "text": b"$3\r\nabc\r\n",
    "nothing": b"$-1\r\n",
    "no list": b"*-1\r\n",
    "an empty list": b"*0\r\n",
    "a list of numbers": b"*4\r\n:1\r\n:2\r\n:3\r\n:4\r\n",
    "a list of text": b"*2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "a list of nothing": b"*3\r\n*-1\r\n$-1\r\n*-1\r\n",
    "lists in lists": b"*1\r\n" * 9 + b":1\r\n",
    "too many lists in lists": b"*1\r\n" * 3000 + b":1\r\n",
    "a stream of numbers": b"*1\r\n*2\r\n$13\r\n{rt:status}:s\r\n*1\r\n*2\r\n:1\r\n:2\r\n",
    "a stream that is none": b"*1\r\n*2\r\n$1\r\nx\r\n*1\r\n*2\r\n$3\r\n0-1\r\n*0\r\n",
    "an empty map": b"%0\r\n",
    "a map with a list as key": b"%1\r\n*1\r\n:1\r\n:1\r\n",
    "a truth": b"#t\r\n",
    "a fraction": b",1.5\r\n",
    "no redirection": b"-MOVED\r\n",
    "a redirection to nowhere": b"-MOVED 1 127.0.0.1:99999\r\n",
    "a redirection to no name": b"-ASK 1 ..:1\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "bytes": b"\x00\xff\xfe\r\n",
    "a million numbers": b"*1000000\r\n" + b":1\r\n" * 1_000_000,
    "half an answer": HALF,
    "an error": b"-ERR something\r\n",
    "an error without a word": b"-\r\n",
    "an error that is no text": b"-\xff\xfe \xff\r\n",
    "a fault of types": b"-WRONGTYPE Operation against a key\r\n",
} | {
    code: f"-{code} said the server\r\n".encode()
    for code in (
        *("READONLY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "LOADING", "BUSY", "OOM", "CLUSTERDOWN"),
        *("CROSSSLOT", "TRYAGAIN", "NOAUTH", "WRONGPASS", "NOPERM", "UNBLOCKED", "NOSCRIPT", "EXECABORT"),
    )
}  # fmt: skip

ASKED = (b"XREAD", b"XRANGE", b"HMGET", b"TIME", b"EVALSHA", b"EVAL", b"SCRIPT")
"""Commands that the reader and the publisher send."""


@pytest.fixture
async def liar(valkey: ValkeyProcess) -> AsyncIterator[Liar]:
    async with Liar(str(valkey.socket)) as liar:
        yield liar


class Worker:
    """Publishes and reads at once."""

    def __init__(self, url: str) -> None:
        self.node = Node(url, Settings(), None)  # type: ignore[arg-type]
        self.seen: list[Message | Gap] = []
        self.stored: list[int] = []

    async def start(self) -> None:
        await self.node.backplane.connect(asyncio.get_running_loop().time() + 5)
        await self.node.reader.start()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            self.seen += (await self.node.reader.read()).messages

    async def publish(self, number: int) -> None:
        """Publish one message, however often that takes."""
        body = b'{"n":%d' % number
        while True:
            with contextlib.suppress(BackplaneUnavailable):
                (position,) = await self.node.publish(draft(body, id=f"one-{number}"), within=2)
                assert isinstance(position, Position)
                self.stored.append(position.seq)
                return

    async def check(self) -> None:
        """All that was stored is read, once, and nothing is missing."""
        await until(lambda: self.reading.done() or self._numbers()[-1:] == self.stored[-1:], "read")
        assert not self.reading.done(), self.reading.exception()
        assert self._numbers() == self.stored == list(range(1, len(self.stored) + 1))
        assert not [item for item in self.seen if isinstance(item, Gap)]

    def _numbers(self) -> list[int]:
        return [item.seq for item in self.seen if isinstance(item, Message)]

    async def close(self) -> None:
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
        await self.node.backplane.close()


@pytest.mark.parametrize("name", LIES)
async def test_reading_and_publishing_go_on(liar: Liar, name: str) -> None:
    worker = Worker(liar.url)
    await worker.start()
    loop = asyncio.get_running_loop()
    left = set(ASKED)

    def lie_once(words: Words) -> bytes | None:
        if words[0] not in left:
            return None
        left.remove(words[0])
        return LIES[name]

    try:
        await worker.publish(1)
        liar.lie = lie_once
        number, until_time = 1, loop.time() + 1.2
        while left and loop.time() < until_time:
            number += 1
            await worker.publish(number)
            await asyncio.sleep(0.05)
        liar.be_honest()
        await worker.publish(number + 1)
        await worker.check()
        assert liar.lies > 1
        assert worker.node.publisher.fault is None
        await until(lambda: worker.node.backplane.reading_fault is None, "all is well")
    finally:
        await worker.close()


async def test_what_is_wrong_is_said(liar: Liar) -> None:
    worker = Worker(liar.url)
    await worker.start()
    try:
        await worker.publish(1)
        liar.lie = lambda words: b":5\r\n" if words[0] in (b"XREAD", b"EVALSHA") else None
        with pytest.raises(BackplaneUnavailable, match="its answer is none to what was asked"):
            await worker.node.publish(draft(), within=0.5)
        fault = worker.node.publisher.fault
        assert fault is not None
        assert "its answer is none to what was asked" in fault.words
        await until(lambda: worker.node.backplane.reading_fault is not None, "reading says it")
    finally:
        await worker.close()


@pytest.mark.parametrize("name", LIES)
async def test_all_else_fails_as_without_an_answer(liar: Liar, name: str) -> None:
    node = Node(liar.url, Settings(), None)  # type: ignore[arg-type]
    backplane = node.backplane
    loop = asyncio.get_running_loop()
    await backplane.connect(loop.time() + 5)
    await node.reader.start()
    settings = Settings()
    claims = UserClaims(backplane, TableSlots(settings), 3)
    store = AttendanceStore(backplane, ["status"], ["status"])
    history = History(backplane, node.reader.positions)
    series = Series(backplane)
    lie = LIES[name]
    liar.lie = lambda _: lie
    try:
        lost: tuple[Call, ...] = (
            backplane.shared_key,
            backplane.get_presence,
            lambda: backplane.set_presence({"state": "busy", "task": "", "updatedAt": "1"}),
            lambda: history.newest("status", 10),
            lambda: series.add("host", FINE, Sample(1, 2, 3, 4)),
            lambda: series.read("15m"),
            lambda: store.page("status", "", 10),
        )
        for call in lost:
            with contextlib.suppress(BackplaneUnavailable):
                await call()
        failing: tuple[Call, ...] = (
            lambda: store.show([("ann", "status:1")], renew=True),
            store.shown,
            store.workers,
            store.take_turn,
            store.end_own,
            node.reader.start,
        )
        for call in failing:
            with contextlib.suppress(*FAILURES):
                await call()
        other = Node(liar.url, settings, None).backplane  # type: ignore[arg-type]
        with contextlib.suppress(BackplaneUnavailable):
            await other.connect(loop.time() + 0.2)
        await other.close()
        claims.start(Supervisor())
        assert await claims.claim("ann")
        liar.be_honest()
        await until(lambda: not claims._away, "users are counted on the server again")
    finally:
        await claims.close()
        await backplane.close()
