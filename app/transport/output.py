"""The sum of the bytes that one worker holds because its clients have not read them yet."""

from __future__ import annotations

from collections.abc import Callable

CHUNK_COST = 100
"""Bytes of memory that a chunk takes beside its content."""
PAGE_BYTES = 1024 * 1024
"""Most bytes of messages in one answer with history; a single message may be longer."""
ANSWER_SHARE = 0.75
"""Part of the limit up to which answers are built; the rest is for what is not asked for."""


class OutputAccount:
    """Counts chunks of unsent bytes; a chunk that many connections share counts once.

    Nothing here is called for bytes that a socket takes at once.

    Args:
        limit: bytes; past it `on_over` is called.
        on_over: called at each chunk that is held past the limit; it must not give chunks back
            before it returns.
    """

    __slots__ = ("_holders", "_on_over", "limit", "page", "reserved", "total")

    def __init__(self, limit: int, on_over: Callable[[], None]) -> None:
        self.limit = limit
        self.page = min(PAGE_BYTES, limit // 8)
        """Bytes of messages in one answer with history."""
        self.total = 0
        """Bytes held now."""
        self.reserved = 0
        """Bytes of answers that are being built."""
        self._on_over = on_over
        # By identity: the holder keeps the chunk alive for as long as it is counted.
        self._holders: dict[int, int] = {}

    def hold(self, chunk: bytes) -> None:
        """Count a chunk for one more holder."""
        holders = self._holders.get(id(chunk), 0)
        self._holders[id(chunk)] = holders + 1
        if not holders:
            self.total += len(chunk) + CHUNK_COST
            if self.total > self.limit:
                self._on_over()

    def give_back(self, chunk: bytes) -> None:
        """Count a chunk for one holder less."""
        holders = self._holders[id(chunk)] - 1
        if holders:
            self._holders[id(chunk)] = holders
        else:
            del self._holders[id(chunk)]
            self.total -= len(chunk) + CHUNK_COST

    def share(self, chunk: bytes) -> float:
        """Bytes of a held chunk that one of its holders answers for."""
        return (len(chunk) + CHUNK_COST) / self._holders[id(chunk)]

    def has_room(self) -> bool:
        """Whether an answer of a page may be built now; the first one always may.

        Those that wait for room look again now and then: bytes are given back many times in each
        pass of the loop, and an event for each would cost more than it says.
        """
        taken = self.total + self.reserved
        return not taken or taken + self.page <= self.limit * ANSWER_SHARE

    def reserve(self) -> None:
        """An answer of a page is being built, until `unreserve`."""
        self.reserved += self.page

    def unreserve(self) -> None:
        """It is built, and counted by what it is."""
        self.reserved -= self.page
