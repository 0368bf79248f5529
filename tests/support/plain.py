"""A client of the plain protocol that behaves: the `websockets` library with an inbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Container, Mapping
from typing import Any, Self
from urllib.parse import urlencode

import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.support.client import ReadingClient, one_of_each_worker
from tests.support.envelopes import Envelope, reaches, summary
from tests.support.service import Service
from tests.support.waiting import DEADLINE


def endpoint(service: Service, **query: Any) -> str:
    """URL of the socket endpoint of a service."""
    mark = "?" if query else ""
    return f"ws://127.0.0.1:{service.port}/ws/realtime{mark}{urlencode(query)}"


class PlainClient(ReadingClient):
    """One connection of the plain protocol, with everything it ever received."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.received: list[Envelope] = []
        self._taken: set[int] = set()
        super().__init__()

    @classmethod
    async def open(
        cls, service: Service, *, headers: Mapping[str, str] | None = None, **query: Any
    ) -> Self:
        """Connect; the query is that of docs/PROTOCOL.md."""
        opened = await connect(
            endpoint(service, **query),
            additional_headers=headers,
            compression=None,
            max_size=None,
            max_queue=None,
            open_timeout=DEADLINE,
            ping_interval=None,
            close_timeout=5,
            proxy=None,
        )
        return cls(opened)

    async def close(self) -> None:
        """Close, as a client that is done does."""
        await super().close()
        await self.socket.close()
        await self._reading

    async def _receive(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self.socket:
                self.received.append(json.loads(text))
                self._note()

    def _got(self) -> str:
        return f"closed with {self.socket.close_code}; got {summary(self.received)}"

    @property
    def port(self) -> int:
        """Our own port of this connection."""
        port: int = self.socket.local_address[1]
        return port

    async def send(self, action: str, payload: object = None, **more: object) -> str:
        """Send a request, and return its id."""
        ident = str(uuid.uuid4())
        body = {"id": ident, "type": "config", "timestamp": 0, "action": action, **more}
        if payload is not None:
            body["payload"] = payload
        await self.socket.send(json.dumps(body))
        return ident

    async def request(self, action: str, payload: object = None) -> Envelope:
        """Send a request, and return its answer."""
        ident = await self.send(action, payload)
        return await self.expect(lambda got: got.get("replyTo") == ident, f"an answer to {action}")

    async def expect(
        self, wanted: Callable[[Envelope], bool] | str, what: str = "", timeout: float = DEADLINE
    ) -> Envelope:
        """The first message that fits and was not returned before; waits for it.

        Args:
            wanted: a condition, or the name of an event.
        """
        match = wanted if callable(wanted) else (lambda got: got["event"] == wanted)
        name = what or (wanted if isinstance(wanted, str) else "the message")
        index = await self._find(match, name, timeout, self._taken)
        self._taken.add(index)
        return self.received[index]

    async def _find(
        self,
        match: Callable[[Envelope], bool],
        name: str,
        timeout: float,
        skipped: Container[int] = (),
    ) -> int:
        """Index of the first message that fits; waits for it."""
        checked = 0

        def found() -> list[int]:
            nonlocal checked
            for index in range(checked, len(self.received)):
                if index not in skipped and match(self.received[index]):
                    return [index]
            checked = len(self.received)
            return []

        (index,) = await self.until(found, name, timeout)
        return index

    async def barrier(self) -> None:
        """Wait until everything sent to us before now has come: a ping of the protocol."""
        await self.request("ping", {})

    async def wait_closed(self, timeout: float = DEADLINE) -> int:
        """Wait for the other side to close, and return its code."""
        async with asyncio.timeout(timeout):
            await self._reading
        assert self.socket.close_code is not None
        return self.socket.close_code

    def events(self, name: str) -> list[Envelope]:
        """All messages with this event so far."""
        return [got for got in self.received if got["event"] == name]

    async def wait_seq(self, type: str, seq: int, timeout: float = DEADLINE) -> None:
        """Wait until the message `seq` of a type has come, or a gap that covers it.

        Takes nothing away from `expect`: one batch may bring several types to their ends.
        """
        await self._find(lambda got: reaches(got, type, seq), f"{type} up to {seq}", timeout)


async def spread(service: Service, count: int = 2, **query: Any) -> list[PlainClient]:
    """Clients on `count` different workers.

    Those of a named user come one after another, for the sake of the cap per user.
    """

    async def worker_of(client: PlainClient) -> int:
        return await asyncio.to_thread(service.worker_of, client.port)

    at_once = 1 if "user" in query else 8
    return await one_of_each_worker(
        lambda: PlainClient.open(service, **query), worker_of, count, at_once=at_once
    )
