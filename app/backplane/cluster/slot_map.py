"""Which node of a Cluster serves which slot, as its nodes say."""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError

from app.backplane.faults import MISREAD, UnexpectedAnswer
from app.shared_calls import SharedCalls

logger = logging.getLogger(__name__)

REFRESH_INTERVAL = 0.2
"""Seconds between two questions for the map, at least."""
ANSWER_TIMEOUT = 0.5
"""Seconds for which one node is waited for before the next one is asked."""

_MAP = "map"


class Node(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Shard:
    """Slots with the nodes that hold them."""

    first: int
    last: int
    primary: Node
    replicas: tuple[Node, ...]


def parse_slots(reply: Any, asked: Node) -> list[Shard]:
    """The answer to CLUSTER SLOTS, in the order of the slots.

    Args:
        reply: rows of first slot, last slot, primary and replicas, each `[host, port, ...]`.
        asked: the node that answers; one that gives no host means the same host.

    Raises:
        RedisError: it is no such answer.
    """
    try:
        shards = []
        for first, last, *nodes in reply:
            primary, *replicas = [_node(host, port, asked) for host, port, *_ in nodes]
            shards.append(Shard(int(first), int(last), primary, tuple(replicas)))
    except MISREAD as error:
        raise UnexpectedAnswer(f"to CLUSTER SLOTS: {error}") from error
    return sorted(shards, key=lambda shard: shard.first)


def _node(host: bytes | None, port: int, asked: Node) -> Node:
    return Node(host.decode() if host and host != b"?" else asked.host, int(port))


class SlotMap:
    """The map of one worker, for all its connections.

    Args:
        seeds: nodes to ask first.
        ask: the answer of a node to CLUSTER SLOTS; raises `RedisError` or `OSError`.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        seeds: Sequence[Node],
        ask: Callable[[Node], Awaitable[Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seeds = tuple(seeds)
        self._ask = ask
        self._clock = clock
        self._shards: list[Shard] = []
        self._starts: list[int] = []
        self._moved: dict[int, Node] = {}  # newer than `_shards`
        self._failed: dict[Node, float] = {}  # when a node last did not answer
        self._asked_at = -REFRESH_INTERVAL
        self._questions = SharedCalls()

    def node_of(self, slot: int) -> Node | None:
        """The node that serves a slot; None: none is known."""
        moved = self._moved.get(slot)
        if moved is not None:
            return moved
        shard = self._shard_of(slot)
        return None if shard is None else shard.primary

    def has_replica(self, slot: int) -> bool:
        """Whether another node could take the place of the one that serves a slot."""
        shard = self._shard_of(slot)
        return shard is None or slot in self._moved or bool(shard.replicas)

    def primaries(self) -> list[Node]:
        """All nodes that serve slots."""
        return list(dict.fromkeys(shard.primary for shard in self._shards))

    def move(self, slot: int, node: Node) -> None:
        """Take what a node has said of one slot."""
        if self.node_of(slot) != node:
            self._moved[slot] = node

    def suspect(self, node: Node) -> None:
        """A node does not answer: it is the last to be asked, and the others are asked soon."""
        self._failed[node] = self._clock()
        self.refresh_soon()

    def refresh_soon(self) -> None:
        """Ask for the entire map; all that want it meanwhile share one question."""
        self._questions.begin(_MAP, self._refresh)

    async def refresh(self) -> None:
        """As `refresh_soon`, and wait for it.

        Raises:
            RedisError: no node has a map.
        """
        await self._questions.share(_MAP, self._refresh)

    async def close(self) -> None:
        """Ask no more."""
        await self._questions.close()

    def _shard_of(self, slot: int) -> Shard | None:
        place = bisect.bisect_right(self._starts, slot) - 1
        if place < 0 or slot > self._shards[place].last:
            return None
        return self._shards[place]

    async def _refresh(self) -> None:
        await asyncio.sleep(max(0.0, self._asked_at + REFRESH_INTERVAL - self._clock()))
        self._asked_at = self._clock()
        last: Exception | None = None
        for node in self._candidates():
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    shards = parse_slots(await self._ask(node), node)
            except (RedisError, OSError) as error:
                self._failed[node], last = self._clock(), error
                continue
            if shards:
                self._failed.pop(node, None)
                self._take(shards)
                return
        raise LostConnection("no node of the Cluster says which one serves what") from last

    def _candidates(self) -> list[Node]:
        """All known nodes: those that have failed last come last."""
        known = [node for shard in self._shards for node in (shard.primary, *shard.replicas)]
        nodes = dict.fromkeys([*known, *self._seeds])
        return sorted(nodes, key=lambda node: self._failed.get(node, -1.0))

    def _take(self, shards: list[Shard]) -> None:
        self._moved.clear()
        self._shards = shards
        self._starts = [shard.first for shard in shards]
        known = {node for shard in shards for node in (shard.primary, *shard.replicas)}
        for node in self._failed.keys() - known - set(self._seeds):
            del self._failed[node]
