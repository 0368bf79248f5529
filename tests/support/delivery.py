"""Subscribers over real sockets, for the tests of the fan-out and of catching up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from websockets.protocol import Protocol, Side

from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.broadcast.subscriber import Subscriber
from app.protocol.codecs import PLAIN
from app.transport.hub import Hub, Meter
from app.types import Gap, Message, Position


def message(seq: int, type: str = "status", epoch: str = "e1", size: int = 0) -> Message:
    body = b'{"type":"%b","event":"x","data":"%b"' % (type.encode(), b"x" * size)
    return Message(type, epoch, seq, "x", body, 0.0)


def messages(first: int, last: int, type: str = "status", epoch: str = "e1") -> list[Message]:
    return [message(seq, type, epoch) for seq in range(first, last + 1)]


def words(first: int, last: int, type: str = "status") -> list[str]:
    """Messages as `Sub.received` tells them."""
    return [f"{type} {seq}" for seq in range(first, last + 1)]


async def turn(times: int = 20) -> None:
    """Let the loop turn, long enough for all that is ready."""
    for _ in range(times):
        await asyncio.sleep(0)


class Sub(Subscriber):
    """A live subscriber and the client at its other end."""

    codec = PLAIN

    def __init__(
        self,
        bench: Bench,
        types: Collection[str],
        *,
        batch: bool = False,
        kind: int = socket.SOCK_STREAM,
        small: bool = False,
    ) -> None:
        ours, self.client = socket.socketpair(socket.AF_UNIX, kind)
        ours.setblocking(False)
        self.client.setblocking(False)
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        super().__init__(bench.hub, ours.detach(), "c")
        self.bench = bench
        self.group = bench.fanout.group(PLAIN, frozenset(types), batch)
        self.track = None
        self.held = False
        self.parser = Protocol(Side.CLIENT, max_size=None)
        self.got: list[Any] = []
        bench.hub.attach(self)
        bench.subs.append(self)

    def is_held(self) -> bool:
        return self.held

    def on_drained(self) -> None:
        if self.track is not None and self.bench.catchup is not None:
            self.bench.catchup.start(self)

    def on_lost(self, code: int, reason: str) -> None:
        self.bench.fanout.discard(self)
        if self.bench.catchup is not None:
            self.bench.catchup.discard(self)

    def move(self, types: Collection[str]) -> None:
        """Change the subscriptions as the router does."""
        fanout = self.bench.fanout
        before = fanout.leave(self) if self.track is None else self.track
        self.track = {type: before.get(type, fanout.positions[type]) for type in types}
        self.group = fanout.group(PLAIN, frozenset(types), self.group.batch)

    def received(self) -> list[Any]:
        """All that the client has got by now, in short."""
        try:
            while data := self.client.recv(1 << 20):
                self.parser.receive_data(data)
        except BlockingIOError:
            pass
        assert self.parser.parser_exc is None
        for frame in self.parser.events_received():
            if frame.opcode == 1:  # type: ignore[union-attr]
                self.got.append(_short(json.loads(bytes(frame.data))))  # type: ignore[union-attr]
            else:
                self.got.append(frame.opcode.name.lower())  # type: ignore[union-attr]
        return self.got


def _short(envelope: dict[str, Any]) -> Any:
    type, data = envelope["type"], envelope["data"]
    match envelope["event"]:
        case "gap":
            return f"gap {type} {data['first']}-{data['last']} {data['epoch']} {data['reason']}"
        case "batch_update":
            return [_short(inner) for inner in data["messages"]]
        case _:
            return f"{type} {envelope['seq']}"


class Bench:
    """A hub and a fan-out at the start of two streams."""

    def __init__(self, batch_size: int = 100, meter: Meter | None = None) -> None:
        self.hub = Hub(
            heartbeat_interval=30.0,
            heartbeat_timeout=60.0,
            max_message=1000,
            max_incoming=10_000,
            meter=meter,
        )
        self.flushes: list[tuple[list[Message | Gap], dict[str, int]]] = []
        start = {"status": Position("e1", 0), "stats": Position("e1", 0)}
        self.fanout = FanOut(self.hub, start, batch_size, self._on_flush)
        self.catchup: CatchUp | None = None
        self.subs: list[Sub] = []

    def _on_flush(
        self, items: Sequence[Message | Gap], receivers: Mapping[str, int], began: float
    ) -> None:
        self.flushes.append((list(items), dict(receivers)))

    def live(self, *types: str, **options: Any) -> Sub:
        """A new subscriber that stands where live is."""
        sub = Sub(self, types or ("status",), **options)
        self.fanout.join(sub)
        return sub

    def behind(self, *types: str, at: int = 0, epoch: str = "e1", **options: Any) -> Sub:
        """A new subscriber that has seen all up to `at`."""
        sub = Sub(self, types or ("status",), **options)
        sub.track = {type: Position(epoch, at) for type in sub.group.types}
        return sub

    def close(self) -> None:
        self.hub.stop()
        for sub in self.subs:
            sub.client.close()
