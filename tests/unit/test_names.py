"""Pages of users for clients: which clients may read them, and what many readers cost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from app.errors import BackplaneUnavailable, ClientError, ErrorCode
from app.sessions.names import MOST_KEPT, Names
from tests.support.clock import Clock


class Store:
    """Answers when it is let, and counts the reads."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.reads: list[tuple[str, str, int]] = []
        self.at_once = self.most_at_once = 0
        self.fails = False

    async def read(self, type: str, after: str, limit: int) -> tuple[int, Mapping[str, int]]:
        self.reads.append((type, after, limit))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.open.wait()
        self.at_once -= 1
        if self.fails:
            raise BackplaneUnavailable
        return 1, {"ann": 1}


def names(store: Store, clock: Clock | None = None, *, needs_claim: bool = False) -> Names:
    return Names(
        frozenset({"status", "health"}),
        needs_claim=needs_claim,
        read=store.read,
        clock=clock or Clock(),
    )


def session(*listed: str, all: bool = False) -> Any:
    return SimpleNamespace(extra=SimpleNamespace(listed=None if all else frozenset(listed)))


NO_EXTRA: Any = SimpleNamespace(extra=None)


@pytest.mark.parametrize(
    ("claims", "needs_claim", "type", "is_allowed"),
    [
        (NO_EXTRA, False, "status", True),
        (NO_EXTRA, False, "stats", False),
        (NO_EXTRA, True, "status", False),
        (session(), True, "status", False),
        (session("status"), True, "status", True),
        (session("status"), True, "health", False),
        (session("stats"), True, "stats", False),
        (session(all=True), True, "health", True),
        (session(all=True), True, "stats", False),
        (session(), False, "status", True),
    ],
)
async def test_which_clients_may_list(
    claims: Any, needs_claim: bool, type: str, is_allowed: bool
) -> None:
    listed = names(Store(), needs_claim=needs_claim)
    if is_allowed:
        listed.check(claims, type)
        return
    with pytest.raises(ClientError) as caught:
        listed.check(claims, type)
    assert caught.value.code is ErrorCode.FORBIDDEN


async def test_readers_of_a_page_share_one_read_for_a_second() -> None:
    store, clock = Store(), Clock()
    listed = names(store, clock)
    store.open.clear()
    readers = [asyncio.create_task(listed.page("status", "", 10)) for _ in range(50)]
    await asyncio.sleep(0)
    readers[0].cancel()  # the read goes on for the others
    store.open.set()
    await asyncio.gather(*readers, return_exceptions=True)
    assert [reader.result() for reader in readers[1:]] == [(1, {"ann": 1})] * 49
    assert len(store.reads) == 1
    clock.now += 0.9
    await listed.page("status", "", 10)
    assert len(store.reads) == 1
    clock.now += 0.2
    await listed.page("status", "", 10)
    assert len(store.reads) == 2


async def test_one_read_is_under_way_at_a_time() -> None:
    store = Store()
    listed = names(store)
    await asyncio.gather(*(listed.page("status", f"user{n}", 10) for n in range(200)))
    assert (len(store.reads), store.most_at_once) == (200, 1)
    assert len(listed._kept) <= MOST_KEPT
    assert len(listed._reads) == 0


async def test_a_failure_is_not_kept() -> None:
    store = Store()
    listed = names(store)
    store.fails = True
    for _ in range(2):
        with pytest.raises(BackplaneUnavailable):
            await listed.page("status", "", 10)
    store.fails = False
    assert await listed.page("status", "", 10) == (1, {"ann": 1})
