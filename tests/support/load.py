"""Publishers that never give up: what they were promised can be compared with what came."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import aiohttp

from tests.support.envelopes import Envelope, flatten
from tests.support.service import TOKEN, Service


class Load:
    """Publishes from several tasks, so that calls are always under way; each message has an id.

    A call that fails is repeated with the same id, as docs/PROTOCOL.md says to publishers.

    Args:
        ids: whether the messages carry the ids. Without, what it stores twice shows: the id
            is in the data, and a call that fails is given up.
        pause: seconds between two messages of a task. Without one they would take all of the
            processor that there is, from what the test waits for and from other tests.
    """

    def __init__(
        self,
        service: Service,
        type: str = "status",
        publishers: int = 8,
        size: int = 100,
        *,
        ids: bool = True,
        pause: float = 0.01,
    ) -> None:
        self.accepted: dict[str, tuple[int, str]] = {}
        """By id: the `seq` and `epoch` that a 2xx answered."""
        self.answers: dict[int, int] = {}
        """How often each HTTP status came; 0: the connection broke."""
        self._service = service
        self._type = type
        self._publishers = publishers
        self._filler = "x" * size
        self._ids = ids
        self._pause = pause
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._service.base,
            headers={"Authorization": f"Bearer {TOKEN}"},
            connector=aiohttp.TCPConnector(limit=0),
        )
        self._tasks = [asyncio.create_task(self._publish(n)) for n in range(self._publishers)]
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._stop.set()
        if error is not None:
            for task in self._tasks:
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
        if error is None:
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def _publish(self, publisher: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            ident = f"load-{publisher}-{number}"
            body: dict[str, Any] = {"type": self._type, "event": "load"}
            body["data"] = [ident, self._filler]
            if self._ids:
                body["id"] = ident
            while True:
                try:
                    async with self._session.post("/ws/broadcast", json=body) as response:
                        answer = await response.json()
                        self._count(response.status)
                        if response.status == 200:
                            self.accepted[ident] = (answer["seq"], answer["epoch"])
                            break
                        assert response.status == 503, answer
                        assert answer["code"] in {"BACKPLANE_UNAVAILABLE", "QUEUE_OVERFLOW"}
                        assert int(response.headers["Retry-After"]) >= 1
                except aiohttp.ClientError:
                    self._count(0)
                await asyncio.sleep(0.02)
                if not self._ids:
                    break
            await asyncio.sleep(self._pause)

    def _count(self, status: int) -> None:
        self.answers[status] = self.answers.get(status, 0) + 1

    @property
    def count(self) -> int:
        """Messages accepted so far."""
        return len(self.accepted)

    @property
    def last(self) -> int:
        """The highest `seq` that was answered."""
        return max(seq for seq, _ in self.accepted.values())

    def check(self, received: list[Envelope]) -> None:
        """Assert that each accepted message came exactly once, with the promised `seq`."""
        came: dict[str, Any] = {}
        for got in flatten(received):
            if got["event"] == "load":
                ident = got["data"][0]
                assert ident not in came, f"{ident} came twice"
                came[ident] = (got["seq"], got["epoch"])
        missing = {ident: at for ident, at in self.accepted.items() if ident not in came}
        assert not missing, (
            f"{len(missing)} accepted messages never came: {list(missing.items())[:5]}"
        )
        wrong = {ident for ident, at in self.accepted.items() if came[ident] != at}
        assert not wrong, f"{len(wrong)} came with another seq than was answered"
