"""A python-socketio client that keeps everything it receives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import socketio

from tests.support.client import Client, one_of_each_worker
from tests.support.envelopes import Envelope
from tests.support.raw import RawClient
from tests.support.service import Service
from tests.support.waiting import DEADLINE, until

Event = tuple[str, tuple[Any, ...]]


class SioClient(Client):
    """`socketio.AsyncClient` with its events in the order in which they came.

    Events named `offset` (recovery) are kept apart: they belong to the library's user only
    when it recovers.
    """

    def __init__(self, namespaces: tuple[str, ...] = ("/",)) -> None:
        super().__init__()
        self.sio = socketio.AsyncClient(reconnection=False)
        self.events: list[Event] = []
        self.refused: list[Any] = []
        self.reasons: list[str] = []
        self.answers: dict[str, Callable[..., Any]] = {}
        self._namespaces = namespaces
        for namespace in namespaces:
            self._listen(namespace)

    def _listen(self, namespace: str) -> None:
        async def any_event(event: str, *args: Any) -> Any:
            if event == "offset":
                return None
            self.events.append((event, args))
            answer = self.answers.get(event)
            return answer(*args) if answer else None

        async def connect_error(data: Any = None) -> None:
            self.refused.append(data)

        async def disconnect(reason: str) -> None:
            self.reasons.append(reason)

        self.sio.on("*", any_event, namespace=namespace)
        self.sio.on("connect_error", connect_error, namespace=namespace)
        self.sio.on("disconnect", disconnect, namespace=namespace)

    async def connect(self, service: Service, auth: Any = None, query: str = "") -> Self:
        """Connect to all namespaces, and wait for their CONNECT."""
        await self.sio.connect(
            service.base + (f"/?{query}" if query else ""),
            auth=auth,
            transports=["websocket"],
            namespaces=list(self._namespaces),
            socketio_path="/ws/realtime",
            wait_timeout=DEADLINE,
        )
        return self

    def sid(self, namespace: str = "/") -> str:
        """Our id in a namespace."""
        sid = self.sio.get_sid(namespace)
        assert sid is not None
        return str(sid)

    async def call(self, event: str, data: Any = None, namespace: str = "/") -> Any:
        """Emit and wait for the ack."""
        return await self.sio.call(event, data, namespace=namespace, timeout=DEADLINE)

    def named(self, event: str) -> list[tuple[Any, ...]]:
        """Arguments of every event with this name so far."""
        return [args for name, args in self.events if name == event]

    @property
    def received(self) -> list[Envelope]:
        """All envelopes so far, in order."""
        return [
            args[0]
            for _, args in self.events
            if len(args) == 1 and isinstance(args[0], dict) and "direction" in args[0]
        ]

    async def wait_event(self, event: str, count: int = 1) -> tuple[Any, ...]:
        """Wait for the `count`-th event of a name, and return its arguments."""
        await until(lambda: len(self.named(event)) >= count, f"{count} x event {event!r}")
        return self.named(event)[count - 1]

    async def close(self) -> None:
        """Disconnect and wait for the tasks of the client."""
        await super().close()
        await self.sio.disconnect()
        await self.sio.eio.wait()  # not `sio.wait`, which gives a reconnection a second to begin


@asynccontextmanager
async def sio_clients(
    service: Service, count: int = 1, **options: Any
) -> AsyncIterator[list[SioClient]]:
    """So many connected clients, closed at the end."""
    auth = options.pop("auth", None)
    clients = [SioClient(**options) for _ in range(count)]
    try:
        for client in clients:
            await client.connect(service, auth)
        yield clients
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def on_two_workers(service: Service, **options: Any) -> list[SioClient]:
    """Two connected clients of different workers."""
    namespace = options.get("namespaces", ("/",))[0]

    async def worker_of(client: SioClient) -> int:
        pid: int = (await client.call("whoami", namespace=namespace))["pid"]
        return pid

    return await one_of_each_worker(lambda: SioClient(**options).connect(service), worker_of)


async def raw_socketio(service: Service, **options: Any) -> RawClient:
    """A Socket.IO connection on a bare socket, before any packet."""
    path = options.pop("path", "/ws/realtime/")
    return await RawClient.open(service, f"{path}?EIO=4&transport=websocket", **options)


def packet(payload: bytes) -> tuple[str, Any]:
    """A text frame as its leading digits and namespace, and its JSON."""
    content = payload.decode()
    at = next((i for i, char in enumerate(content) if char in "[{"), len(content))
    return content[:at], json.loads(content[at:]) if content[at:] else None
