"""The backplane side of workers over a Cluster of real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import ResponseError

from app.backplane.cluster import publisher
from app.backplane.cluster.link import Cluster as Nodes
from app.backplane.cluster.link import Connections
from app.backplane.cluster.publisher import PATIENCE_ALONE
from app.backplane.cluster.slot_map import Node
from app.backplane.history import History
from app.backplane.scripts import CONTROL, stream_key
from app.errors import BackplaneUnavailable
from app.setting_values import ClusterAddress
from tests.support.cluster import Cluster, Side
from tests.support.delivery import turn
from tests.support.descriptors import open_files
from tests.support.valkeys import Starter, port_of
from tests.support.waiting import until

ALL = ("status", "stats", "health", "config", "system", CONTROL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


def assert_all_read(writer: Side, reader: Side) -> None:
    assert reader.gaps() == []
    for type, stored in writer.stored.items():
        assert reader.numbers(type) == stored, type


async def read_all(writer: Side, reader: Side) -> None:
    """Wait until the reader has what the writer has stored, and see that it has it once."""
    await until(
        lambda: all(
            reader.numbers(type)[-1:] == stored[-1:] for type, stored in writer.stored.items()
        ),
        "all is read",
    )
    assert_all_read(writer, reader)


async def test_types_of_all_nodes_are_published_and_read(cluster: Cluster) -> None:
    async with Side(cluster.url) as writer, Side(cluster.url) as reader:
        for _ in range(3):
            for type in ALL:
                await writer.publish(type)
        await read_all(writer, reader)
        assert len({cluster.primary_of(type).port for type in ALL}) == 3
        history = History(reader.backplane, reader.reader.positions)
        for type in ALL:
            found, _ = await history.newest(type, 3)
            assert [message.seq for message in found] == writer.stored[type]
        assert await writer.backplane.shared_key() == await reader.backplane.shared_key()
        await writer.backplane.set_presence({"state": "busy", "updatedAt": "1"})
        assert (await reader.backplane.get_presence())["state"] == "busy"


async def test_a_reader_has_one_connection_to_each_node(cluster: Cluster) -> None:
    async with Side(cluster.url, "one") as side, side.streaming(ALL):
        await until(lambda: all(map(len, side.got.values())), "all types are read")
        for node in cluster.nodes[:3]:
            clients: Any = node.client.client_list()
            names = [client["name"] for client in clients]
            assert names.count("yujian-read-one") == 1
            assert names.count("yujian-publish-one") == 1


async def test_a_connection_whose_first_command_is_refused_is_closed(start_valkey: Starter) -> None:
    """As that of an account that may not use CLIENT TRACKING."""
    node = Node("127.0.0.1", port_of(start_valkey()))
    nodes = Nodes(ClusterAddress(((node.host, node.port),), "redis://127.0.0.1/"))
    connections = Connections(nodes, "test", first=(b"NOSUCH",))
    before = open_files()
    for _ in range(3):
        with pytest.raises(ResponseError):
            await connections.to(node)
    await turn()
    assert open_files() == before


async def test_a_slot_moves_under_a_stream(cluster: Cluster) -> None:
    to = cluster.others("status")[0]
    async with Side(cluster.url) as writer, Side(cluster.url) as reader:
        async with writer.streaming(ALL):
            await until(lambda: len(reader.got["status"]) > 5, "messages come")
            await asyncio.to_thread(cluster.migrate, "status", to)
            await asyncio.to_thread(cluster.wait_for_primary, "status", to)
            before = len(reader.got["status"])
            await until(lambda: len(reader.got["status"]) > before + 5, "messages go on")
        await read_all(writer, reader)


async def test_a_slot_moves_key_by_key_under_a_stream(cluster: Cluster) -> None:
    """While some keys are here and some there, messages wait: TRYAGAIN, ASK."""
    source, to = cluster.primary_of("config"), cluster.others("config")[0]
    slot, stream = key_slot(stream_key("config")), stream_key("config").decode()
    async with Side(cluster.url) as writer, Side(cluster.url) as reader:
        async with writer.streaming(ALL):
            await until(lambda: len(reader.got["config"]) > 5, "messages come")
            cluster.command(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
            cluster.command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(to))
            move = ("MIGRATE", "127.0.0.1", to.port, "", 0, 1000, "KEYS")
            cluster.command(source, *move, stream)
            await asyncio.sleep(0.5)  # the stream is read there, with ASK
            while keys := cluster.command(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
                cluster.command(source, *move, *keys)
            for node in (to, source):
                cluster.command(node, "CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(to))
            before = len(reader.got["config"])
            await until(lambda: len(reader.got["config"]) > before + 5, "messages go on")
        await read_all(writer, reader)


async def test_a_replica_takes_over_at_an_operators_word(cluster: Cluster) -> None:
    replica = cluster.replica_of("health")
    async with Side(cluster.url) as writer, Side(cluster.url) as reader:
        async with writer.streaming(ALL):
            await until(lambda: len(reader.got["health"]) > 5, "messages come")
            cluster.command(replica, "CLUSTER", "FAILOVER")
            await asyncio.to_thread(cluster.wait_for_primary, "health", replica)
            before = len(reader.got["health"])
            await until(lambda: len(reader.got["health"]) > before + 5, "messages go on")
        await read_all(writer, reader)


async def test_a_killed_primary_loses_nothing_that_was_confirmed(cluster: Cluster) -> None:
    killed, replica = cluster.primary_of("stats"), cluster.replica_of("stats")
    async with Side(cluster.url, backplane_wait=1) as writer, Side(cluster.url) as reader:
        async with writer.streaming(ALL, may_fail=True):
            await until(lambda: len(reader.got["stats"]) > 5, "messages come")
            killed.kill()
            await asyncio.to_thread(cluster.wait_for_primary, "stats", replica)
            killed.start_again()  # as the replica of what was its own: WAIT needs one
            known = len(writer.stored["stats"])
            await until(lambda: len(writer.stored["stats"]) > known + 5, "messages go on")
        await until(
            lambda: all(writer.stored[type][-1] in reader.numbers(type) for type in ALL), "it reads"
        )
        assert reader.gaps() == []
        for type in ALL:
            numbers = reader.numbers(type)
            # What was not confirmed may be stored all the same.
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert set(writer.stored[type]) <= set(numbers)


async def test_too_few_replicas_are_a_fault_until_there_are_enough(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "PATIENCE", 1.5)
    monkeypatch.setattr(publisher, "PROBE_INTERVAL", 0.0)
    async with Side(cluster.url, backplane_wait=2) as side:
        with pytest.raises(BackplaneUnavailable, match="1 of 2 replicas"):
            await side.publish("health")
        asked = side.backplane.errors["unreplicated"]
        await until(lambda: side.backplane.errors["unreplicated"] > asked + 1, "it is tried again")
        assert side.publisher.faults().keys() == {"health"}


async def test_a_shard_without_a_replica_stops_its_own_types_alone() -> None:
    with Cluster(replicas=False) as cluster:
        down = cluster.primary_of("stats")
        mine = [type for type in ALL if cluster.primary_of(type) is down]
        others = [type for type in ALL if type not in mine]
        async with Side(cluster.url) as writer, Side(cluster.url) as reader:
            for type in ALL:
                await writer.publish(type)
            down.kill()
            async with writer.streaming(others):
                for type in mine:
                    with pytest.raises(BackplaneUnavailable):
                        await writer.publish(type)
                async with asyncio.timeout(PATIENCE_ALONE):  # they are refused at once
                    for type in mine:
                        with pytest.raises(BackplaneUnavailable, match="backplane has a fault"):
                            await writer.publish(type)
                for found in (writer.publisher.fault, reader.backplane.reading_fault):
                    assert found is not None
                    assert found.words.startswith(", ".join(sorted(mine)) + ": ")
                assert writer.backplane.available
                counts = {type: len(reader.got[type]) for type in others}
                await until(
                    lambda: all(len(reader.got[type]) > counts[type] for type in others),
                    "the others go on",
                )
                async with Side(cluster.url, "late") as late:
                    await until(lambda: all(late.got[type] for type in others), "one starts")
                    down.start_again()
                    await until(lambda: writer.publisher.fault is None, "all works again")
                    async with writer.streaming(mine, 0.1):
                        await until(lambda: all(map(late.numbers, mine)), "it reads them too")
                    for gap in late.gaps():
                        # It has not read what came before, and says so.
                        assert (gap.first, gap.reason) == (1, "epoch")
                        assert late.numbers(gap.type)[0] == gap.last + 1
                    assert {gap.type for gap in late.gaps()} == set(mine) - {CONTROL}
            await until(lambda: reader.backplane.reading_fault is None, "all is read again")
            await read_all(writer, reader)
