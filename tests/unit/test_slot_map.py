"""Which node of a Cluster serves which slot, as answers of its nodes say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as LostConnection

from app.backplane.cluster import slot_map
from app.backplane.cluster.slot_map import Node, Shard, SlotMap, parse_slots
from app.backplane.faults import explain

A, B, C, D = (Node("10.0.0.1", port) for port in (1, 2, 3, 4))
SEED = Node("seed", 7000)


def row(first: int, last: int, *nodes: Node) -> list[Any]:
    return [first, last, *([node.host.encode(), node.port, b"id", []] for node in nodes)]


class World:
    """A map, and what the nodes answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slot_map, "REFRESH_INTERVAL", 0.0)
        self.now = 0.0
        self.answers: dict[Node, Any] = {SEED: [row(0, 99, A, C), row(100, 199, B)]}
        self.asked: list[Node] = []
        self.map = SlotMap([SEED], self.ask, lambda: self.now)

    async def ask(self, node: Node) -> Any:
        self.asked.append(node)
        answer = self.answers.get(node)
        if answer is None:
            raise LostConnection("refused")
        return answer


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_an_answer_is_read_in_any_order() -> None:
    reply = [row(100, 199, B), row(0, 99, A, C, D)]
    assert parse_slots(reply, SEED) == [Shard(0, 99, A, (C, D)), Shard(100, 199, B, ())]


@pytest.mark.parametrize("host", [None, b"", b"?"])
def test_a_node_without_a_name_has_that_of_the_one_that_answers(host: bytes | None) -> None:
    assert parse_slots([[0, 1, [host, 5]]], SEED) == [Shard(0, 1, Node("seed", 5), ())]


@pytest.mark.parametrize("reply", [None, 3, [[1]], [[0, 1, [b"h"]]], [[0, b"x", [b"h", 1]]]])
def test_what_is_no_answer_is_an_error(reply: Any) -> None:
    with pytest.raises(RedisError, match="CLUSTER SLOTS"):
        parse_slots(reply, SEED)


async def test_slots_at_the_edges(world: World) -> None:
    await world.map.refresh()
    found = [world.map.node_of(slot) for slot in (0, 99, 100, 199, 200)]
    assert found == [A, A, B, B, None]
    assert world.map.primaries() == [A, B]
    assert world.map.has_replica(50)
    assert not world.map.has_replica(150)


async def test_a_slot_that_moved_is_known_until_the_next_answer(world: World) -> None:
    await world.map.refresh()
    world.map.move(7, B)
    assert (world.map.node_of(7), world.map.node_of(8)) == (B, A)
    assert world.map.has_replica(7)  # not known
    world.answers[A] = [row(0, 199, A)]
    await world.map.refresh()
    assert world.map.node_of(7) == A


async def test_a_node_that_failed_is_asked_last(world: World) -> None:
    await world.map.refresh()
    world.answers |= {C: [row(0, 199, C)]}
    world.now = 1.0
    world.map.suspect(A)
    await world.map.refresh()
    assert world.asked == [SEED, C]
    assert world.map.node_of(0) == C


async def test_concurrent_callers_share_one_question(world: World) -> None:
    await asyncio.gather(*(world.map.refresh() for _ in range(9)))
    assert world.asked == [SEED]


async def test_no_map_is_an_error_and_the_old_one_stays(world: World) -> None:
    await world.map.refresh()
    world.answers.clear()
    with pytest.raises(RedisError, match="no node of the Cluster"):
        await world.map.refresh()
    assert world.map.node_of(0) == A


async def test_what_the_nodes_say_instead_is_the_cause(world: World) -> None:
    async def refuse(_: Node) -> Any:
        raise AuthenticationError("Authentication required.", status_code="NOAUTH")

    with pytest.raises(RedisError) as caught:
        await SlotMap([SEED], refuse).refresh()
    assert explain(caught.value).cause == "auth"
