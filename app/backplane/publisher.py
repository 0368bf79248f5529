"""Stores batches of messages in their streams, each exactly once however often it is tried."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from app.backplane.client import FAILURES, Argument, Backplane, Pauses
from app.backplane.scripts import (
    ONCE_MAX,
    ONCE_WINDOW,
    PUBLISH,
    Script,
    batch_key,
    meta_key,
    new_epoch,
    once_keys,
    stream_key,
)
from app.errors import BackplaneUnavailable
from app.types import Draft, Position

logger = logging.getLogger(__name__)

ATTEMPT_TIMEOUT = 2.0
"""Seconds after which an unanswered batch is sent again over a new connection."""

NOWHERE = Position("", 0)


class StreamPublisher:
    """Sends one batch at a time, under a number that the server remembers.

    A batch is retried whole and under its number until it is answered or its time is up, so a
    message belongs to one number for ever and the server can tell a retry.

    Args:
        seen: the newest messages that this worker's reader knows. A stream that has fallen back
            below them gets its new epoch before anything is added to it.
        clock: Unix time in seconds, for the age of history and of chosen ids.
    """

    def __init__(
        self,
        backplane: Backplane,
        seen: Mapping[str, Position],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._backplane = backplane
        self._seen = seen
        self._clock = clock
        self._stored: dict[str, Position] = {}
        self._number = 0

    async def store(self, drafts: Sequence[Draft], deadline: float) -> list[Position]:
        """Store a batch and return the positions of its messages.

        Args:
            drafts: messages of any types; within a type they keep their order.
            deadline: loop time at which to give up.

        Raises:
            BackplaneUnavailable: no answer in time; messages may have been stored, all those of
                a type or none.
        """
        self._number += 1
        places: dict[str, list[int]] = {}
        for place, draft in enumerate(drafts):
            places.setdefault(draft.type, []).append(place)
        calls = [
            self._call(type, [drafts[place] for place in order]) for type, order in places.items()
        ]
        replies = await self._deliver(calls, deadline)
        positions = [NOWHERE] * len(drafts)
        for (type, order), reply in zip(places.items(), replies, strict=True):
            for place, position in zip(order, parse_result(reply), strict=True):
                positions[place] = position
            self._stored[type] = positions[order[-1]]
        return positions

    async def _deliver(
        self, calls: Sequence[tuple[Script, Sequence[Argument]]], deadline: float
    ) -> list[bytes]:
        loop = asyncio.get_running_loop()
        pauses = Pauses()
        logged = False
        while (left := deadline - loop.time()) > 0:
            try:
                return await self._backplane.publishing.run(calls, min(left, ATTEMPT_TIMEOUT))
            except FAILURES as error:
                if not logged:
                    logger.warning("publishing failed, trying again: %r", error)
                    logged = True
                await asyncio.sleep(min(pauses.take(), max(0.0, deadline - loop.time())))
        raise BackplaneUnavailable

    def _call(self, type: str, drafts: Sequence[Draft]) -> tuple[Script, Sequence[Argument]]:
        settings = self._backplane.settings
        known = self._known(type)
        arguments: list[Argument] = [
            5,
            stream_key(type),
            meta_key(type),
            batch_key(type, self._backplane.worker_id),
            *once_keys(type),
            self._number,
            int(self._clock() * 1e6),
            new_epoch(),
            known.epoch,
            known.seq,
            settings.history_size,
            int(settings.recovery_window * 1e6),
            settings.history_bytes,
            int(ONCE_WINDOW * 1e6),
            ONCE_MAX,
        ]
        for draft in drafts:
            arguments += (
                draft.event,
                int(draft.accepted * 1e6),
                draft.body,
                draft.id if draft.once else b"",
            )
        return PUBLISH, arguments

    def _known(self, type: str) -> Position:
        seen = self._seen.get(type, NOWHERE)
        stored = self._stored.get(type, NOWHERE)
        if stored.epoch == seen.epoch and stored.seq > seen.seq:
            return stored
        return seen


def parse_result(reply: bytes) -> list[Position]:
    """Positions from what the script returns; see `scripts.PUBLISH`."""
    epoch, *rest = reply.decode().split(" ")
    if len(rest) == 2:
        first, count = int(rest[0]), int(rest[1])
        return [Position(epoch, seq) for seq in range(first, first + count)]
    positions = []
    for word in rest[0].split(","):
        seq, _, other = word.partition(":")
        positions.append(Position(other or epoch, int(seq)))
    return positions
