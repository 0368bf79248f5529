"""All connections of one worker to a Cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from redis.crc import key_slot
from redis.exceptions import RedisError

from app.backplane.client import (
    ANSWER_TIMEOUT,
    FAILURES,
    AnyBackplane,
    Argument,
    Command,
    info_of,
    pack,
    risks,
    server_config,
    until_reached,
)
from app.backplane.cluster.link import Cluster, Connections, SlotLink
from app.backplane.cluster.slot_map import Node
from app.backplane.faults import Fault, combined, explain
from app.backplane.needs import missing, needs
from app.backplane.scripts import CONTROL, Script, stream_key
from app.config import Settings
from app.setting_values import ClusterAddress

_WITHOUT_KEY = (b"INFO", b"TIME", b"CONFIG", b"COMMAND", b"ACL")


class ClusterBackplane(AnyBackplane):
    """As `client.Backplane`, with a connection of each kind to every node that has types.

    Args:
        address: of some nodes, and how to log in.
        settings: of the service.
        worker_name: names this worker among all that use the backplane, ever.
    """

    def __init__(self, address: ClusterAddress, settings: Settings, worker_name: str) -> None:
        super().__init__(settings, worker_name)
        self.types = (*settings.message_types, CONTROL)
        self._cluster = cluster = Cluster(address)
        self._name = worker_name
        self._news: dict[bytes, Callable[[], None]] = {}
        streams = [stream_key(type) for type in self.types]
        prefixes = [word for key in streams for word in (b"PREFIX", key)]
        self._reading = Connections(
            cluster,
            f"yujian-read-{worker_name}",
            protocol=3,
            first=(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *prefixes),
            notice=self._take_notice,
            lost=self._wake_all,
        )
        self._publishing = [Connections(cluster, f"yujian-publish-{worker_name}")]
        self._asking = Connections(cluster, f"yujian-ask-{worker_name}")
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, deadline: float, *, replica: bool = False) -> None:
        """Wait until a node says which of them serves what, and one of these answers."""

        async def examine() -> list[tuple[bool, list[str]]]:
            await self._cluster.map.refresh()
            found = [await self._examine(node) for node in self._cluster.map.primaries()]
            if not any(is_well for is_well, _ in found):
                raise RedisError("no primary answers")
            return found

        found = await until_reached(examine, deadline)
        self._warnings = list(dict.fromkeys(line for _, lines in found for line in lines))

    async def close(self) -> None:
        """End all tasks, and close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._cluster.map.close()
        for connections in (self._reading, *self._publishing, self._asking):
            await connections.close()

    @property
    def available(self) -> bool:
        """Whether a node has answered within the last five seconds."""
        return time.monotonic() - self._answered_at < 5.0

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """See `AnyBackplane`."""
        link = SlotLink(self._asking, self._key_of(commands[0]), self._note)
        try:
            return await link.call(commands, ANSWER_TIMEOUT)
        except FAILURES as error:
            if explain(error).answered or isinstance(error, TimeoutError):
                raise
            return await link.call(commands, ANSWER_TIMEOUT)

    async def run(self, script: Script, arguments: Sequence[Argument]) -> Any:
        """See `AnyBackplane`."""
        link = SlotLink(self._asking, bytes(arguments[1]), self._note)  # type: ignore[arg-type]
        return (await link.run([(script, arguments)], ANSWER_TIMEOUT))[0]

    def reading_calls(self, types: Sequence[str]) -> SlotLink:
        """See `AnyBackplane`; for one type."""
        (type,) = types

        def note(faults: Sequence[Fault]) -> None:
            self._note_reading_of(type, faults)

        return SlotLink(self._reading, stream_key(type), note, stays=True)

    def publishing_calls(self, type: str | None) -> SlotLink:
        """See `AnyBackplane`; for one type."""
        assert type is not None
        connections = self._publishing[0]
        if self.settings.backplane_wait:
            # WAIT holds up all that comes after it on its connection.
            connections = Connections(self._cluster, f"yujian-publish-{self._name}")
            self._publishing.append(connections)
        return SlotLink(connections, stream_key(type), self._note)

    def note_misread(self, types: Sequence[str], fault: Fault) -> None:
        """See `AnyBackplane`."""
        for type in types:
            self._note_reading_of(type, [fault])

    def on_news(self, type: str, call: Callable[[], None]) -> None:
        """Call when a stream may have got messages, or a connection to a node was lost."""
        self._news[stream_key(type)] = call

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run what belongs to the connections, until it is done or they are closed."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _examine(self, node: Node) -> tuple[bool, list[str]]:
        """Whether a node answers, and what of it is not as it should be."""

        async def ask(commands: Sequence[Command]) -> list[Any]:
            pipeline = await self._asking.to(node)
            answers = await pipeline.exchange(pack(commands), len(commands), ANSWER_TIMEOUT)
            for answer in answers:
                if isinstance(answer, RedisError):
                    raise answer
            return answers

        try:
            (reply,) = await ask([(b"INFO",)])
            info = info_of(reply)
        except FAILURES as error:
            return False, [f"the node {node} cannot be used: {explain(error).words}"]
        self._note(())
        node_of = self._cluster.map.node_of
        mine = [type for type in self.types if node_of(key_slot(stream_key(type))) == node]
        share = len(mine) / len(self.types)
        lines = risks(info, await server_config(ask), self.settings, share)
        lines += await missing(ask, needs(self.settings, replica=False))
        return True, lines

    def _key_of(self, command: Command) -> bytes:
        """The key of a command; of one without a key that of any slot whose node answers."""
        name = command[0]
        if name in _WITHOUT_KEY:
            return stream_key(self._any_type())
        key = command[3] if name in (b"EVAL", b"EVALSHA") else command[1]
        assert isinstance(key, bytes)
        return key

    def _any_type(self) -> str:
        return next((type for type in self.types if type not in self.reading_faults), CONTROL)

    def _take_notice(self, push: list[Any]) -> None:
        # None in place of the keys: all data of the node are gone.
        if push[0] == b"invalidate" and push[1] is not None:
            for key in push[1]:
                if (call := self._news.get(key)) is not None:
                    call()
        else:
            self._wake_all()

    def _wake_all(self) -> None:
        for call in self._news.values():
            call()

    def _note(self, faults: Sequence[Fault]) -> None:
        self.errors.update(fault.cause for fault in faults)
        if all(fault.answered for fault in faults):
            self._answered_at = time.monotonic()

    def _note_reading_of(self, type: str, faults: Sequence[Fault]) -> None:
        self._note(faults)
        if faults:
            self.reading_faults[type] = faults[0]
        else:
            self.reading_faults.pop(type, None)
        self.reading_fault = combined(self.reading_faults)
