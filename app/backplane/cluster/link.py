"""Connections to the nodes of a Cluster, and the way of one slot to the node that serves it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, NoScriptError, RedisError
from redis.exceptions import ConnectionError as LostConnection

from app.backplane import redis_private
from app.backplane.client import FAILURES, Command, complete, pack
from app.backplane.cluster.pipeline import Pipeline
from app.backplane.cluster.slot_map import Node, SlotMap
from app.backplane.faults import Fault, Unsettled, explain, reading_answer
from app.backplane.scripts import Call
from app.backplane.server import CONNECT_TIMEOUT, connection_options, open_connection
from app.errors import PresenceError
from app.setting_values import ClusterAddress
from app.shared_calls import SharedCalls

MAX_REDIRECTS = 5
"""Redirections of one call that are followed."""

ASKING: Command = (b"ASKING",)


class SlotMoved(PresenceError, RedisError):
    """Another node serves the slot now; the next call goes there."""


class Redirection(NamedTuple):
    """Where a node sends a command."""

    node: Node
    asking: bool
    """This command alone (ASK); else all of the slot from now on (MOVED)."""


def redirection(answer: Any, asked: Node) -> Redirection | None:
    """What a reply says of another node; None: nothing."""
    if not isinstance(answer, AskError):  # MovedError is one
        return None
    return Redirection(
        Node(answer.host or asked.host, answer.port), not isinstance(answer, MovedError)
    )


class Cluster:
    """The nodes of a Cluster as one worker knows them.

    Args:
        address: of some of its nodes, and how to log in.
    """

    def __init__(self, address: ClusterAddress) -> None:
        self._kind, self._options = connection_options(address.url)
        for where in ("host", "port", "db"):
            self._options.pop(where, None)
        self.map = SlotMap([Node(*place) for place in address.nodes], self._ask_for_map)

    def make(self, node: Node, name: str, protocol: int) -> AbstractConnection:
        """A connection to a node, not yet open."""
        where = {"host": node.host, "port": node.port, "protocol": protocol}
        return self._kind(client_name=name, **self._options | where)

    async def _ask_for_map(self, node: Node) -> Any:
        connection = self.make(node, "yujian-map", 2)
        try:
            await open_connection(connection)
            await connection.send_command("CLUSTER", "SLOTS")
            with reading_answer():
                return await connection.read_response()
        finally:
            redis_private.drop(connection)


class Connections:
    """One connection to each node that is used, opened by the first call that needs it.

    Args:
        cluster: its nodes.
        name: shown by CLIENT LIST.
        protocol: of the server's two; 3 has notices.
        first: a command that begins each connection.
        notice: is given each push.
        lost: is called when a connection has ended.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        protocol: int = 2,
        first: Command | None = None,
        notice: Callable[[list[Any]], None] = lambda _: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.map = cluster.map
        self._cluster = cluster
        self._name = name
        self._protocol = protocol
        self._first = first
        self._notice = notice
        self._lost = lost
        self._open: dict[Node, Pipeline] = {}
        self._opening = SharedCalls()

    def open_to(self, node: Node | None) -> Pipeline | None:
        """The connection to a node, if there is one."""
        return None if node is None else self._open.get(node)

    async def to(self, node: Node) -> Pipeline:
        """The connection to a node; those that want it while it is opened share the attempt.

        Raises:
            FAILURES: it cannot be opened.
        """
        pipeline = self._open.get(node)
        if pipeline is not None and pipeline.is_open:
            return pipeline
        return await self._opening.share(node, functools.partial(self._connect, node))

    async def close(self) -> None:
        """Close all connections."""
        await self._opening.close()
        for pipeline in list(self._open.values()):
            pipeline.abort()

    async def _connect(self, node: Node) -> Pipeline:
        connection = self._cluster.make(node, self._name, self._protocol)
        with contextlib.ExitStack() as undo:
            undo.callback(redis_private.drop, connection)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await open_connection(connection)
                pipeline = Pipeline(connection, self._notice, lambda lost: self._gone(node, lost))
            undo.callback(pipeline.abort)
            if self._first is not None:
                (answer,) = await pipeline.exchange(pack([self._first]), 1, CONNECT_TIMEOUT)
                if isinstance(answer, RedisError):
                    raise answer
            undo.pop_all()
        self._open[node] = pipeline
        return pipeline

    def _gone(self, node: Node, pipeline: Pipeline) -> None:
        if self._open.get(node) is pipeline:
            del self._open[node]
            self._lost()


class SlotLink:
    """Calls of one slot, as `client.Link`; any number at a time.

    Args:
        connections: to the nodes.
        key: any of the slot.
        report: is given the faults that each call has met; none means that all is well.
        stays: whether what was read from one node must be compared before another is read: then a
            call that is sent elsewhere fails with `SlotMoved`, and `connected` is false.
    """

    def __init__(
        self,
        connections: Connections,
        key: bytes,
        report: Callable[[Sequence[Fault]], None],
        *,
        stays: bool = False,
    ) -> None:
        self._connections = connections
        self._map = connections.map
        self._slot = key_slot(key)
        self._report = report
        self._stays = stays
        self._used: Pipeline | None = None
        """The connection of the last call."""

    @property
    def connected(self) -> bool:
        """Whether the next call goes over the connection of the last one."""
        open_now = self._connections.open_to(self._map.node_of(self._slot))
        return self._used is not None and self._used is open_now

    @property
    def is_alone(self) -> bool:
        """Whether no other node could take the place of the one that serves the slot."""
        return not self._map.has_replica(self._slot)

    async def call(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """Send commands and return their replies; see `client.Link.call`."""
        answers = await self._exchange(commands, timeout)
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    async def run(
        self, calls: Sequence[Call], timeout: float, last: Sequence[Command] = ()
    ) -> list[Any]:
        """Run scripts; see `client.Link.run`."""
        commands: list[Command] = [(b"EVALSHA", script.sha, *rest) for script, rest in calls]
        answers = await self._exchange(commands, timeout, last)

        async def run_source(forgotten: Sequence[Call]) -> list[Any]:
            # With each call, not loaded before: another node may serve the slot by now.
            sources = [(b"EVAL", script.source, *rest) for script, rest in forgotten]
            return await self._exchange(sources, timeout, last)

        return await complete(calls, answers, run_source)

    async def close(self) -> None:
        """Compare again before the next call; the connection is the other slots' as well."""
        self._used = None

    async def distrust(self) -> None:
        """End the connection, which is the other slots' as well; see `client.Link.distrust`."""
        if self._used is not None:
            self._used.abort()
        self._used = None

    async def _exchange(
        self, commands: Sequence[Command], timeout: float, last: Sequence[Command] = ()
    ) -> list[Any]:
        """The replies, an error reply in its place.

        Args:
            commands: of the slot.
            timeout: seconds, redirections included.
            last: commands to follow on the same connection, also when only some are repeated.
        """
        until = asyncio.get_running_loop().time() + timeout
        try:
            answers = await self._follow(commands, until, last)
        except FAILURES as failure:
            if not isinstance(failure, SlotMoved):
                self._report([explain(failure)])
            raise
        faults = [
            explain(answer)
            for answer in answers
            if isinstance(answer, RedisError) and not isinstance(answer, NoScriptError)
        ]
        if any(fault.cause == "cluster" or fault.elsewhere for fault in faults):
            self._map.refresh_soon()
        self._report(faults)
        return answers

    async def _follow(
        self, commands: Sequence[Command], until: float, last: Sequence[Command]
    ) -> list[Any]:
        answers: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        found: Redirection | None = None
        for _ in range(1 + MAX_REDIRECTS):
            asked = found.node if found is not None else await self._node(until)
            sent: list[Command] = []
            for n in left:
                sent += (
                    [ASKING, commands[n]] if found is not None and found.asking else [commands[n]]
                )
            got = await self._at(asked, [*sent, *last], until)
            got, ends = got[: len(sent)], got[len(sent) :]
            if found is not None and found.asking:
                got = got[1::2]
            again, found = [], None
            for n, answer in zip(left, got, strict=True):
                answers[n] = answer
                to = redirection(answer, asked)
                if to is not None:
                    again.append(n)
                    found = to
            if found is None:
                return [*answers, *ends]
            if not found.asking:
                self._moved(found.node)
            left = again
        raise Unsettled("its nodes do not agree which of them has the type")

    def _moved(self, node: Node) -> None:
        compared = self.connected
        self._map.move(self._slot, node)
        self._map.refresh_soon()  # what has moved one slot may have moved others
        if self._stays and compared:
            self._used = None
            raise SlotMoved(f"{node} serves it now")

    async def _node(self, until: float) -> Node:
        node = self._map.node_of(self._slot)
        if node is None:
            async with asyncio.timeout_at(until):
                await self._map.refresh()
            node = self._map.node_of(self._slot)
        if node is None:
            raise LostConnection("no node of the Cluster serves the slot")
        return node

    async def _at(self, node: Node, commands: Sequence[Command], until: float) -> list[Any]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(until):
                pipeline = await self._connections.to(node)
            timeout = max(0.0, until - loop.time())
            answers = await pipeline.exchange(pack(commands), len(commands), timeout)
        except FAILURES:
            self._used = None
            self._map.suspect(node)
            raise
        if node == self._map.node_of(self._slot):
            self._used = pipeline
        return answers
