"""A primary is cut off from most Sentinels, and a worker beside it goes on: what becomes of its messages.

Both sides are real: the far one, with the first primary, one Sentinel and a worker, is a network namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator

import pytest

from app.config import Settings
from app.errors import BackplaneUnavailable
from app.types import Gap, Message
from tests.support.backplane import Node, draft
from tests.support.namespaces import FarLoop, TwoSides
from tests.support.sentinels import Sentinels
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(180)

LONG = 60.0


@pytest.fixture
def sides() -> Iterator[TwoSides]:
    with TwoSides() as made:
        yield made


class Beside:
    """A worker that publishes and reads; every method runs on the loop of its side."""

    def __init__(self, url: str, wait: int) -> None:
        self._node = Node(url, dataclasses.replace(Settings(), backplane_wait=wait), time.time)
        self.seen: list[Message | Gap] = []
        self.acknowledged: list[bytes] = []
        self.refused: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._node.backplane.connect(asyncio.get_running_loop().time() + 5)
        await self._node.reader.start()
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self._node.backplane.close()

    async def publish(self, name: str, within: float = 2.5) -> bool:
        """Publish once; whether it was acknowledged."""
        body = b'{"n":"%b"' % name.encode()
        try:
            await self._node.publish(draft(body, id=name), within=within)
        except BackplaneUnavailable as error:
            self.refused.append(error.message)
            return False
        self.acknowledged.append(body)
        return True

    async def insist(self, name: str) -> None:
        """Publish until it is acknowledged."""
        async with asyncio.timeout(LONG):
            while not await self.publish(name):
                await asyncio.sleep(0.05)

    async def has(self, name: str) -> None:
        body = b'{"n":"%b"' % name.encode()
        await until(lambda: body in self.bodies(), f"it reads {name}", LONG)

    def bodies(self) -> list[bytes]:
        return [item.body for item in self.seen if isinstance(item, Message)]

    def gaps(self) -> list[str]:
        return [
            item.reason for item in self.seen if isinstance(item, Gap) and item.type == "status"
        ]

    async def _read(self) -> None:
        while True:
            self.seen += (await self._node.reader.read()).messages


def stored(sentinels: Sentinels) -> list[bytes]:
    """Bodies in the stream of the primary that most Sentinels name."""
    found = sentinels.primary().client.xrange("{rt:status}:s")
    return [list(fields.values())[-1].encode() for _, fields in found]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wait", "options"),
    [(0, []), (1, []), (0, ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "1"])],
    ids=["none", "BACKPLANE_WAIT", "min-replicas-to-write"],
)
async def test_a_primary_that_is_cut_off(sides: TwoSides, wait: int, options: list[str]) -> None:
    with Sentinels(sides, *options) as sentinels, FarLoop(sides) as there:
        near, far = Beside(sentinels.url, wait), Beside(sentinels.url, wait)
        await near.start()
        await there.run(far.start())
        try:
            await near.insist("before")
            await there.run(far.has("before"))
            old = sentinels.primary()
            sides.cut()
            if options:
                await asyncio.sleep(2.5)  # the servers' own clock has to notice it
            taken = [await there.run(far.publish(f"minority-{n}")) for n in range(3)]
            await near.insist("majority")
            assert sentinels.primary() is not old
            if wait or options:
                # Refused, though perhaps stored for as long as the cut lasts.
                assert taken == [False] * 3
                words = "0 of 1 replicas have confirmed" if wait else "NOREPLICAS"
                assert all(words in message for message in far.refused), far.refused
            else:
                assert taken == [True] * 3
                await there.run(far.has("minority-2"))
            sides.heal()
            await until(lambda: old.client.role()[0] == "slave", "the old one is a replica", LONG)
            await there.run(far.insist("after"))
            await near.has("majority")
            await near.has("after")
            await there.run(far.has("after"))
            kept = stored(sentinels)
            # What was acknowledged on the majority's side is there, and so is what was acknowledged
            # anywhere where that took a replica.
            assert set(near.acknowledged) <= set(kept)
            lost = set(far.acknowledged) - set(kept)
            assert len(lost) == (0 if wait or options else 3)
            assert lost <= set(far.bodies())
            # What a worker had read and is gone, or had not read before it went over, was announced.
            if set(far.bodies()) != set(kept):
                assert "epoch" in far.gaps()
            assert set(near.bodies()) == set(kept)
        finally:
            with contextlib.suppress(Exception):
                sides.heal()
            await there.run(far.close())
            await near.close()
