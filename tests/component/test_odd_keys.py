"""What another program may have left under the keys that are no streams."""

from __future__ import annotations

import pytest

from app.backplane.claims import UserClaims
from app.presence import Presence
from app.supervisor import Supervisor
from tests.support.backplane import MakeNode
from tests.support.slots import TableSlots
from tests.support.valkeys import ValkeyProcess


@pytest.mark.parametrize(
    "value", [b"", b"short", b"x" * 33, b"\xff" * 1000], ids=["empty", "short", "long", "huge"]
)
async def test_a_shared_key_that_is_none(
    valkey: ValkeyProcess, make_node: MakeNode, value: bytes
) -> None:
    await valkey.command("SET", "rt:key", value)
    one, two = await make_node(), await make_node()
    key = await one.backplane.shared_key()
    assert len(key) == 32
    assert key != value
    assert await two.backplane.shared_key() == key


async def test_a_shared_key_of_another_type(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    await valkey.command("SADD", "rt:key", "mine")
    one, two = await make_node(), await make_node()
    assert await one.backplane.shared_key() == await two.backplane.shared_key()
    assert await valkey.command("SMEMBERS", "rt:key:foreign") == [b"mine"]


@pytest.mark.parametrize(
    "fields",
    [
        {"state": b"\xff\xfe", "updatedAt": "1"},
        {"state": "working", "updatedAt": "9" * 400},
        {"state": "working", "updatedAt": "9" * 5000},
        {"state": "working", "updatedAt": "-1"},
        {"state": "working", "updatedAt": "noon"},
        {"state": "working", "task": "x" * 100_000, "updatedAt": "1"},
        {"task": "x"},
        {b"\xff": b"\xff"},
    ],
)
async def test_a_presence_that_is_none(
    valkey: ValkeyProcess, make_node: MakeNode, fields: dict[bytes | str, bytes | str]
) -> None:
    node = await make_node()
    await valkey.command("HSET", "rt:presence", *[word for pair in fields.items() for word in pair])
    presence = Presence(node.backplane.get_presence, node.backplane.set_presence)
    state, confirmed = await presence.read()
    assert confirmed
    assert state.to_json() == {"state": "offline", "task": None, "updatedAt": None}


async def test_a_presence_of_another_type(valkey: ValkeyProcess, make_node: MakeNode) -> None:
    await valkey.command("SET", "rt:presence", "mine")
    node = await make_node()
    presence = Presence(node.backplane.get_presence, node.backplane.set_presence)
    state, confirmed = await presence.read()
    assert (state.state, confirmed) == ("offline", True)
    await presence.update("working")
    assert await valkey.command("GET", "rt:presence:foreign") == b"mine"


@pytest.mark.parametrize("value", ["junk", "-5", "nan", "1e300", "9" * 50, b"\xff"])
async def test_junk_in_the_claims_of_another_worker(
    valkey: ValkeyProcess, make_node: MakeNode, value: bytes | str
) -> None:
    node = await make_node()
    await valkey.command("ZADD", "{rt:users}", "9e15", "other", "9e15", "list", "9e15", b"\xff")
    await valkey.command("HSET", "{rt:users}:other", "uann", value)
    await valkey.command("RPUSH", "{rt:users}:list", "x")
    claims = UserClaims(node.backplane, TableSlots(), 2)
    claims.start(Supervisor())
    assert [await claims.claim("ann") for _ in range(3)] == [True, True, False]
    await claims.close()


async def test_junk_in_the_claims_of_this_worker_and_a_list_of_workers_that_is_none(
    valkey: ValkeyProcess, make_node: MakeNode
) -> None:
    node = await make_node()
    await valkey.command("SET", "{rt:users}", "mine")
    claims = UserClaims(node.backplane, TableSlots(), 2)
    claims.start(Supervisor())
    assert await claims.claim("ann")  # on this machine alone
    await claims.close()
    again = UserClaims(node.backplane, TableSlots(), 2)
    mine = "{rt:users}:" + node.backplane.worker_name
    await valkey.command("HSET", mine, "", "junk", "ubob", "junk")
    await again._repair()
    again.start(Supervisor())
    assert [await again.claim("bob") for _ in range(3)] == [True, True, False]
    await again.close()
