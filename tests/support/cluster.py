"""A Cluster of six real nodes on the loopback: three primaries, each with a replica."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import redis
from redis.crc import key_slot

from app.backplane.cluster.client import ClusterBackplane
from app.backplane.cluster.publisher import ClusterPublisher
from app.backplane.cluster.reader import ClusterReader
from app.backplane.scripts import stream_key
from app.config import Settings
from app.errors import BackplaneUnavailable
from app.setting_values import cluster_address
from app.types import Gap, Message
from tests.support.backplane import draft
from tests.support.ports import free_port
from tests.support.sentinels import ServerProcess
from tests.support.waiting import until_now

SLOTS = 16384
NODE_TIMEOUT_MS = 1000
"""Milliseconds without an answer after which nodes hold one of them for failed."""


class Cluster:
    """Started by `with`; `url` is for BACKPLANE_URL.

    Args:
        options: further ones of the nodes.
        replicas: whether each primary has one.
        front: puts something before a node, which clients are to find in its place; is given host
            and port of the node and returns the port of that on the loopback.
    """

    def __init__(
        self,
        *options: str,
        replicas: bool = True,
        front: Callable[[tuple[str, int]], int] | None = None,
    ) -> None:
        self._options = options
        self._front = front
        self._fronts: dict[int, int] = {}  # port that clients find -> port of the node
        self._with_replicas = replicas
        self._stack = contextlib.ExitStack()
        self.nodes: list[ServerProcess] = []
        """The first three begin as primaries, each with the node three places on as its replica."""

    def __enter__(self) -> Self:
        root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="yj-c-")))
        buses: list[int] = []
        for number in range(6 if self._with_replicas else 3):
            port, bus = free_port(), free_port()
            buses.append(bus)
            words = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes"]
            words += ["--appendfsync", "no", "--save", "", "--cluster-port", str(bus)]
            words += ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
            words += ["--repl-diskless-sync-delay", "0"]
            words += ["--cluster-node-timeout", str(NODE_TIMEOUT_MS), *self._options]
            if self._front is not None:
                found = self._front(("127.0.0.1", port))
                self._fronts[found] = port
                words += ["--cluster-announce-client-port", str(found)]
            node = ServerProcess(root / f"node{number}", port, *words)
            self._stack.callback(node.close)
            self.nodes.append(node)
            self.command(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                self.command(node, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, buses[0])
        for number in range(3):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            self.command(self.nodes[number], "CLUSTER", "ADDSLOTSRANGE", first, last)
        until_now(lambda: all(map(self._knows_all, self.nodes)), "the nodes know each other")
        for number, node in enumerate(self.nodes[3:]):
            self.command(node, "CLUSTER", "REPLICATE", self.id_of(self.nodes[number]))
        until_now(lambda: all(map(self._is_well, self.nodes)), "the cluster is well", 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        ports = list(self._fronts) or [node.port for node in self.nodes]
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)

    def command(self, node: ServerProcess, *words: Any) -> Any:
        return node.client.execute_command(*words)

    def replica_of(self, type: str) -> ServerProcess:
        """A replica of the node that serves a type."""
        primary = self.primary_of(type)
        return next(
            node
            for node in self.nodes
            if node is not primary and f"master_port:{primary.port}\r" in self._replication(node)
        )

    def others(self, type: str) -> list[ServerProcess]:
        """The primaries that do not serve a type."""
        primary = self.primary_of(type)
        found = [port for _, _, (_, port, *_), *_ in self.slots(primary)]
        ports = {self._fronts.get(port, port) for port in found}
        return [node for node in self.nodes if node.port in ports and node is not primary]

    def migrate(self, type: str, to: ServerProcess) -> None:
        """Move the slot of a type to another node, all at once."""
        slot = key_slot(stream_key(type))
        words = ("SLOTSRANGE", slot, slot, "NODE", self.id_of(to))
        self.command(self.primary_of(type), "CLUSTER", "MIGRATESLOTS", *words)

    def wait_for_primary(self, type: str, node: ServerProcess) -> None:
        """Wait until every living node says that this one serves a type."""

        def agreed() -> bool:
            living = [one for one in self.nodes if one.answers()]
            return all(self.primary_of(type, one) is node for one in living)

        until_now(agreed, f"{node.port} serves {type}", 20)

    def id_of(self, node: ServerProcess) -> str:
        return str(self.command(node, "CLUSTER", "MYID"))

    def primary_of(self, type: str, asked: ServerProcess | None = None) -> ServerProcess:
        """The node that serves a type, as another node says."""
        slot = key_slot(stream_key(type))
        asked = asked or next(node for node in self.nodes if node.answers())
        for first, last, (_, port, *_), *_ in self.slots(asked):
            if first <= slot <= last:
                own = self._fronts.get(port, port)
                return next(node for node in self.nodes if node.port == own)
        raise LookupError(type)

    def slots(self, node: ServerProcess) -> Any:
        """What a node answers to CLUSTER SLOTS."""
        client = redis.connection.Connection(port=node.port)
        try:
            client.connect()
            client.send_command("CLUSTER", "SLOTS")
            return client.read_response()
        finally:
            client.disconnect()

    def _replication(self, node: ServerProcess) -> str:
        client = redis.connection.Connection(port=node.port)
        try:
            client.connect()
            client.send_command("INFO", "replication")
            return bytes(client.read_response()).decode()
        except redis.RedisError:
            return ""
        finally:
            client.disconnect()

    def _knows_all(self, node: ServerProcess) -> bool:
        info = str(self.command(node, "CLUSTER", "INFO"))
        return f"cluster_known_nodes:{len(self.nodes)}\r" in info

    def _is_well(self, node: ServerProcess) -> bool:
        if "cluster_state:ok\r" not in str(self.command(node, "CLUSTER", "INFO")):
            return False
        info: dict[str, Any] = node.client.info("replication")  # type: ignore[assignment]
        if info["role"] == "slave":
            return bool(info["master_link_status"] == "up")
        return not self._with_replicas or info["connected_slaves"] == 1


class Side:
    """The backplane side of one worker over a Cluster; what it reads is in `got`."""

    def __init__(self, url: str, name: str = "test", **settings: Any) -> None:
        address = cluster_address(url)
        assert address is not None
        self.backplane = ClusterBackplane(
            address, dataclasses.replace(Settings(), backplane_url=url, **settings), name
        )
        self.reader = ClusterReader(self.backplane)
        self.publisher = ClusterPublisher(self.backplane, self.reader.positions)
        self.got: dict[str, list[Message | Gap]] = {type: [] for type in self.backplane.types}
        self.stored: dict[str, list[int]] = {type: [] for type in self.backplane.types}
        """Numbers of the messages whose publishing was answered well."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.backplane.connect(asyncio.get_running_loop().time() + 10)
        await self.reader.start()
        self._task = asyncio.get_running_loop().create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.backplane.close()

    async def publish(self, type: str, within: float = 5.0) -> None:
        """Publish one message.

        Raises:
            BackplaneUnavailable: it may not be stored.
        """
        deadline = asyncio.get_running_loop().time() + within
        (found,) = await self.publisher.store([draft(type=type)], deadline)
        if isinstance(found, BackplaneUnavailable):
            raise found
        self.stored[type].append(found.seq)

    @contextlib.asynccontextmanager
    async def streaming(
        self, types: Sequence[str], pause: float = 0.01, *, may_fail: bool = False
    ) -> AsyncIterator[None]:
        """Publish to each type, one message after the other, each within 20 seconds on a machine with other work."""
        stopping = asyncio.Event()
        passed = (BackplaneUnavailable,) if may_fail else ()

        async def stream(type: str) -> None:
            while not stopping.is_set():
                with contextlib.suppress(*passed):
                    await self.publish(type, within=20.0)
                await asyncio.sleep(pause)

        async with asyncio.TaskGroup() as group:
            for type in types:
                group.create_task(stream(type))
            yield
            stopping.set()

    def numbers(self, type: str) -> list[int]:
        """Of the messages that were read; a gap has none."""
        return [item.seq for item in self.got[type] if isinstance(item, Message)]

    def gaps(self) -> list[Gap]:
        """All that were read."""
        return [item for items in self.got.values() for item in items if isinstance(item, Gap)]

    async def _follow(self) -> None:
        while True:
            batch = await self.reader.read()
            for item in (*batch.messages, *batch.control):
                self.got[item.type].append(item)
