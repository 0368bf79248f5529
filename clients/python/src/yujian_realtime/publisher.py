"""Publishes messages over HTTP; each is stored once, however often a call is repeated."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from yujian_realtime.errors import PublishError
from yujian_realtime.http import Answer, HttpClient, unreadable
from yujian_realtime.protocol import PresenceSet, PublishedMessage

Priority = Literal["high", "normal", "low"]

_CALL_MESSAGES = 500
_CALL_BYTES = 512 * 1024
"""Messages and bytes of one call: half of what the service takes, or a single message."""


def _new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Draft:
    """A message to publish."""

    type: str
    event: str
    data: Any = None
    priority: Priority = "normal"
    id: str = field(default_factory=_new_id)
    """By which the service recognises a repeated call, for five minutes."""

    def body(self) -> PublishedMessage:
        """As the service takes it."""
        return {
            "type": self.type,
            "event": self.event,
            "data": self.data,
            "priority": self.priority,
            "id": self.id,
        }


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a message stands."""

    id: str
    type: str
    seq: int
    epoch: str


class Publisher(HttpClient):
    """Publishes with a publish token; the arguments are those of `HttpClient`.

    A call that fails for now is repeated: no connection, 429, 502 to 504, a full queue. Every
    message has an id, so a repeated one is stored once.
    """

    async def publish(
        self,
        type: str,
        event: str,
        data: Any = None,
        *,
        priority: Priority = "normal",
        id: str | None = None,
    ) -> Stored:
        """Publish one message; when this returns, it is in the stream.

        Args:
            type: of the message.
            event: its name.
            data: any JSON value.
            priority: when the service's queue is full, the lowest goes first.
            id: chosen by the caller, where another call may bring the same message.

        Raises:
            PublishError: it was refused, or no answer came; then it may have been stored.
            ValueError, TypeError: JSON cannot say `data`.
        """
        draft = Draft(type, event, data, priority, id or _new_id())
        try:
            answer = await self.call("POST", "/ws/broadcast", draft.body())
            (stored,) = _outcomes(answer, [answer.body], [draft])
        except PublishError as error:
            raise PublishError(error.code, error.message, error.status, draft.id) from None
        if isinstance(stored, PublishError):
            raise stored
        return stored

    async def publish_many(self, drafts: Iterable[Draft]) -> list[Stored | PublishError]:
        """Publish messages in as few calls as possible.

        Those of a type keep their order, unless the service had no room for one of them for a
        time: it is repeated and stands behind the others.

        Returns:
            For each message, in order, where it stands or why it is not stored.

        Raises:
            PublishError: a complete call was refused, or no answer came.
            ValueError, TypeError: JSON cannot say the data of a message.
        """
        results: list[Stored | PublishError] = []
        for chunk in _chunks(drafts):
            results += await self._publish_chunk(chunk)
        return results

    async def _publish_chunk(self, drafts: list[Draft]) -> list[Stored | PublishError]:
        results: dict[int, Stored | PublishError] = {}
        left = dict(enumerate(drafts))
        attempt = 0
        while left:
            attempt += 1
            bodies = [draft.body() for draft in left.values()]
            answer = await self.call("POST", "/ws/broadcast", bodies)
            outcomes = _outcomes(answer, answer.body, left.values())
            again: dict[int, Draft] = {}
            for (place, draft), outcome in zip(left.items(), outcomes, strict=True):
                results[place] = outcome
                if (
                    isinstance(outcome, PublishError)
                    and outcome.retryable
                    and attempt < self._attempts
                ):
                    again[place] = draft
            left = again
            if left:
                await self._sleep(self.pause(attempt))
        return [results[place] for place in range(len(drafts))]

    async def set_presence(
        self, state: Literal["idle", "working", "offline"], task: str | None = None
    ) -> PresenceSet:
        """Set what the lab does; raises like `publish`."""
        answer = await self.call("POST", "/status", {"state": state, "task": task})
        if not isinstance(answer.body, dict):
            raise unreadable(answer.status)
        return cast("PresenceSet", answer.body)


def _outcomes(answer: Answer, items: Any, drafts: Collection[Draft]) -> list[Stored | PublishError]:
    """What an answer says of each draft.

    Raises:
        PublishError: it is none of the service.
    """
    try:
        return [
            PublishError(item["code"], item["error"], answer.status, draft.id)
            if "error" in item
            else Stored(item["id"], item["type"], item["seq"], item["epoch"])
            for draft, item in zip(drafts, items, strict=True)
        ]
    except (KeyError, TypeError, ValueError):
        raise unreadable(answer.status) from None


def _chunks(drafts: Iterable[Draft]) -> Iterator[list[Draft]]:
    chunk: list[Draft] = []
    size = 0
    for draft in drafts:
        length = len(json.dumps(draft.body(), ensure_ascii=False, allow_nan=False).encode())
        if chunk and (len(chunk) >= _CALL_MESSAGES or size + length > _CALL_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(draft)
        size += length
    if chunk:
        yield chunk
