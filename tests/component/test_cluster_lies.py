"""Nodes of a Cluster that answer what they were not asked: nothing ends, nothing is lost or repeated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from app.backplane.client import FAILURES
from app.errors import BackplaneUnavailable
from tests.component.test_lies import LIES
from tests.support.cluster import Cluster, Side
from tests.support.liar import HALF, Liar, Words
from tests.support.threads import LoopThread
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(300), pytest.mark.no_cover]

TYPES = ("status", "stats", "health", "config", "system")
ASKED = (b"XREAD", b"XRANGE", b"HMGET", b"TIME", b"EVALSHA", b"EVAL", b"CLUSTER", b"CLIENT")
GROUPS = [list(LIES)[start::4] for start in range(4)]


class Liars:
    """One before each node; they share their lies."""

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._liars: list[Liar] = []
        self.left: set[bytes] = set()
        self.count = 0
        self.lie = HALF

    def front(self, target: tuple[str, int]) -> int:
        liar = Liar(target)
        self._thread.run(liar.__aenter__())
        liar.lie = self._answer
        self._liars.append(liar)
        return liar.port

    def close(self) -> None:
        for liar in self._liars:
            self._thread.run(liar.__aexit__())

    def _answer(self, words: Words) -> bytes | None:
        name = words[0].upper()
        if name not in self.left:
            return None
        self.left.discard(name)
        self.count += 1
        return self.lie


@pytest.fixture(scope="module")
def liars() -> Iterator[Liars]:
    with LoopThread() as thread:
        liars = Liars(thread)
        yield liars
        liars.close()


@pytest.fixture(scope="module")
def cluster(liars: Liars) -> Iterator[Cluster]:
    with Cluster(replicas=False, front=liars.front) as cluster:
        yield cluster


@pytest.mark.parametrize("names", GROUPS, ids=["first", "second", "third", "fourth"])
async def test_reading_and_publishing_go_on(
    cluster: Cluster, liars: Liars, names: list[str]
) -> None:
    loop = asyncio.get_running_loop()
    async with Side(cluster.url, "one") as writer, Side(cluster.url, "two") as reader:
        for type in TYPES:
            await writer.publish(type)
        for name in names:
            liars.lie, liars.left, liars.count = LIES[name], set(ASKED), 0
            end = loop.time() + 0.6
            while loop.time() < end:
                for type in TYPES:
                    with contextlib.suppress(BackplaneUnavailable):
                        await writer.publish(type, within=1.0)
                with contextlib.suppress(*FAILURES):
                    await reader.backplane.ask([(b"TIME",)])
                    await reader.backplane._cluster.map.refresh()
            liars.left.clear()
            assert liars.count, name
            task = reader._task
            assert task is not None
            assert not task.done(), (name, task.exception())

        async def works() -> bool:
            done = []
            for type in TYPES:
                with contextlib.suppress(BackplaneUnavailable):
                    await writer.publish(type, within=2.0)
                    done.append(type)
            return len(done) == len(TYPES)

        await until(works, "all types are stored again")
        await until(
            lambda: all(reader.numbers(type)[-1] == writer.stored[type][-1] for type in TYPES),
            "all is read",
        )
        assert reader.gaps() == []
        for type in TYPES:
            numbers = reader.numbers(type)
            # Those whose publishing was not answered well may be stored as well.
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), type
            assert set(writer.stored[type]) <= {1, *numbers} | set(range(1, numbers[0])), type
        await until(lambda: reader.backplane.reading_fault is None, "reading is well")
        await until(lambda: writer.publisher.fault is None, "publishing is well")
