"""Messages of the past: a short tail in memory, the rest from the streams, read once for all."""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Mapping

from app.backplane.client import FAILURES, AnyBackplane
from app.backplane.entries import OVERHEAD, entry_id, to_message, with_gaps
from app.backplane.faults import reading_answer, unavailable
from app.backplane.scripts import PAGE, stream_key
from app.shared_calls import SharedCalls
from app.turns import AT_ONCE, Turns
from app.types import Gap, Message, Position

TAIL_MESSAGES, TAIL_BYTES = 256, 1_000_000
"""Newest messages of a type that are kept in memory, at most; one of any size is kept."""
CHUNK = 100
"""Messages that are read at once, from a multiple of this number; fewer where they are large."""
PAGE_BYTES = 1024 * 1024
"""Bytes of messages that are read at once; a single message may be longer."""
CACHE_BYTES = 8_000_000
"""Bytes of older messages that are kept in memory, as `_weight` counts them."""
_OBJECT_BYTES = 400
"""Of a Message beside its body."""

_Chunk = tuple[list[Message], bool]
"""Messages, and whether there are more of the chunk than `PAGE_BYTES` allowed."""


class _Tail:
    """The newest messages of one type without a hole."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.bytes = 0

    def append(self, message: Message) -> None:
        """Add the newest message; what does not join on replaces all."""
        messages = self.messages
        if messages:
            last = messages[-1]
            if last.seq + 1 != message.seq or last.epoch != message.epoch:
                messages.clear()
                self.bytes = 0
        messages.append(message)
        self.bytes += len(message.body)
        while len(messages) > TAIL_MESSAGES or (self.bytes > TAIL_BYTES and len(messages) > 1):
            self.bytes -= len(messages.popleft().body)

    def after(self, epoch: str, seq: int, limit: int) -> list[Message] | None:
        """Up to `limit` messages after `seq`, or None when the tail begins later."""
        messages = self.messages
        if not messages or messages[0].epoch != epoch or messages[0].seq > seq + 1:
            return None
        skip = seq + 1 - messages[0].seq
        return [messages[place] for place in range(skip, min(skip + limit, len(messages)))]


class History:
    """Reads what is behind the live position of this worker.

    Args:
        positions: where live is, per type: `StreamReader.positions`.
        page_bytes: most bytes of messages in one answer of `newest`, if it is more than one.
        turns: reads begin and their answers are decoded in turn, and those that have waited for one go on
            in turn.
    """

    def __init__(
        self,
        backplane: AnyBackplane,
        positions: Mapping[str, Position],
        page_bytes: int = PAGE_BYTES,
        turns: Turns = AT_ONCE,
    ) -> None:
        self._backplane = backplane
        self._positions = positions
        self._largest = backplane.settings.max_message_size + OVERHEAD
        self._tails: dict[str, _Tail] = {}
        self._epoch_changes: dict[str, tuple[str, Gap]] = {}
        """The last change of epoch by type: the epoch before, and the gap that announced it."""
        self._reads = SharedCalls(turns)
        self._turns = turns
        self._chunks: OrderedDict[Hashable, list[Message]] = OrderedDict()
        self._cut: set[Hashable] = set()
        """Keys of chunks that end early, since they would be longer than `PAGE_BYTES`."""
        self._strides: dict[str, int] = {}
        """Messages of a chunk by type, where they are fewer than `CHUNK`."""
        self._chunk_bytes = 0
        self._page_bytes = page_bytes

    def remember(self, items: Iterable[Message | Gap]) -> None:
        """Take what the reader returned, gaps included, when it goes live."""
        tails = self._tails
        type, tail = "", None
        for item in items:
            if item.type != type:
                type = item.type
                tail = tails.get(type)
            if tail is None:
                tail = tails[type] = _Tail()
            if isinstance(item, Message):
                tail.append(item)
            elif item.reason == "epoch" and tail.messages:
                self._epoch_changes[item.type] = tail.messages[-1].epoch, item

    @property
    def cached_bytes(self) -> int:
        """Bytes of messages kept in memory."""
        return self._chunk_bytes + sum(tail.bytes for tail in self._tails.values())

    def recent(self, type: str, epoch: str, seq: int) -> list[Message] | None:
        """All messages after `seq` that memory holds, or None when it lacks the first of them."""
        tail = self._tails.get(type)
        return None if tail is None else tail.after(epoch, seq, TAIL_MESSAGES)

    async def after(self, type: str, epoch: str, seq: int, limit: int) -> list[Message | Gap]:
        """The next messages after `seq`, at most `limit` and perhaps fewer, in order.

        Never goes beyond the live position; [] means that it is reached. The first item is a gap
        when messages were trimmed (`history`) or the stream is another (`epoch`).

        Raises:
            BackplaneUnavailable: what is wanted is not in memory and cannot be read.
        """
        live = self._positions.get(type)
        if live is None:
            return []
        if epoch != live.epoch:
            left, gap = self._epoch_changes.get(type, ("", None))
            if gap is not None and gap.epoch == live.epoch and left == epoch:
                return [gap]  # as for the clients that were connected
            return [Gap(type, live.epoch, 1, live.seq, "epoch")]
        if seq >= live.seq:
            return []
        tail = self._tails.get(type)
        found = tail.after(epoch, seq, limit) if tail is not None else None
        if found is None:
            found = await self._stretch(type, epoch, seq + 1, live.seq)
        found = [message for message in found[:limit] if message.seq <= live.seq]
        if not found:
            return [Gap(type, epoch, seq + 1, live.seq, "history")]
        return with_gaps(type, epoch, seq, found)

    async def newest(
        self, type: str, limit: int, before: int | None = None
    ) -> tuple[list[Message], bool]:
        """The newest messages (below seq `before`), newest last, and whether there are older ones.

        At most `limit`, and at most `page_bytes` of them but at least one. Always asks the
        stream, so a publisher sees its own message at once.

        Raises:
            BackplaneUnavailable: the stream cannot be read.
        """
        if limit < 1 or (before is not None and before <= 1):
            return [], False

        async def read() -> tuple[list[Message], bool]:
            newest = b"+" if before is None else entry_id(before - 1)
            return await self._read_page(type, b"XREVRANGE", newest, b"-", limit, self._page_bytes)

        key = ("newest", type, limit, before)
        await self._reads.settle(key)
        found, more = await self._reads.share(key, read)
        return found[::-1], more

    async def latest(self, type: str) -> Message | None:
        """The newest message, from memory where it is the live one."""
        tail, live = self._tails.get(type), self._positions.get(type)
        if tail is not None and tail.messages and live is not None:
            last = tail.messages[-1]
            if (last.epoch, last.seq) == (live.epoch, live.seq):
                return last
        found, _ = await self.newest(type, 1)
        return found[0] if found else None

    async def _stretch(self, type: str, epoch: str, first: int, last: int) -> list[Message]:
        """Messages from the first that is still held at or after `first`; [] if none is."""
        found, reached = await self._from_chunk(type, epoch, first)
        if found or reached >= last:
            return found

        async def read() -> list[Message]:
            page, _ = await self._read_page(type, b"XRANGE", entry_id(first), b"+", 1, 0)
            return page

        # The chunk is gone: continue where history begins, once for all requests that go that far back.
        oldest = await self._reads.share(("oldest", type, reached), read)
        return (await self._from_chunk(type, epoch, oldest[0].seq))[0] if oldest else []

    async def _from_chunk(self, type: str, epoch: str, first: int) -> tuple[list[Message], int]:
        """What the chunk of seq `first` holds from there on, and the last seq it may hold."""
        while True:
            stride = self._strides.get(type, CHUNK)
            number = (first - 1) // stride
            key = (type, epoch, stride, number)
            chunk = self._cached(key, first)
            if chunk is None:
                await self._reads.settle(key)
                chunk = self._cached(key, first)
            if chunk is None:
                start, end = number * stride + 1, (number + 1) * stride
                read = functools.partial(self._read_chunk, key, type, start, end)
                chunk = await self._reads.share(key, read)
            messages, cut = chunk
            found = [message for message in messages if message.seq >= first]
            if cut and not found:
                # Messages are so large that a chunk is to hold fewer of them.
                self._strides[type] = min(stride - 1, max(1, len(messages)))
                continue
            return [m for m in found if m.epoch == epoch], (number + 1) * stride

    def _cached(self, key: Hashable, first: int) -> _Chunk | None:
        """A chunk in memory, if it reaches `first`: the one at the end of the stream grows."""
        messages = self._chunks.get(key)
        if messages is None:
            return None
        cut = key in self._cut
        if messages[-1].seq < first and not cut:
            return None
        self._chunks.move_to_end(key)
        return messages, cut

    async def _read_chunk(self, key: Hashable, type: str, first: int, last: int) -> _Chunk:
        size = last - first + 1
        messages, cut = await self._read_page(
            type, b"XRANGE", entry_id(first), entry_id(last), size, PAGE_BYTES
        )
        self._drop_chunk(key)
        if messages:
            self._chunks[key] = messages
            self._chunk_bytes += _weight(messages)
            if cut:
                self._cut.add(key)
            elif len(messages) == size and 8 * _weight(messages) < PAGE_BYTES:
                self._strides[type] = min(CHUNK, 2 * size)
        while self._chunk_bytes > CACHE_BYTES:
            self._drop_chunk(next(iter(self._chunks)))
        return messages, cut

    def _drop_chunk(self, key: Hashable) -> None:
        self._chunk_bytes -= _weight(self._chunks.pop(key, []))
        self._cut.discard(key)

    async def _read_page(
        self, type: str, command: bytes, start: bytes, end: bytes, limit: int, most: int
    ) -> tuple[list[Message], bool]:
        """Messages in the order of `command`, and whether there are more up to `end`.

        At most `limit`, and no more once there are `most` bytes of them.
        """
        arguments = (stream_key(type), command, start, end, limit, most)
        try:
            await self._turns.take()
            (reply,) = await self._backplane.ask([(b"EVAL", PAGE.source, 1, *arguments)])
            await self._turns.take()
            with reading_answer():
                more, *entries = reply
                found = [to_message(type, entry, self._largest) for entry in entries]
        except FAILURES as error:
            raise unavailable(error, "The history is unavailable") from error
        return [message for message in found if message is not None], bool(more)


def _weight(chunk: Iterable[Message]) -> int:
    # Twice the body: the frames that codecs cache on a message are about as long.
    return sum(2 * len(message.body) + _OBJECT_BYTES for message in chunk)
