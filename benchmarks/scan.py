"""Numbers of messages in received bytes, found without parsing frames or JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

_RESERVED = 64  # room before the received bytes for a number that the read before cut
_ROOM = 1 << 20


class Track:
    """What one client has received: the number that comes next and how many came."""

    __slots__ = ("next", "received", "rest")

    def __init__(self) -> None:
        self.next: int | None = None
        self.received = 0
        self.rest = b""


class Scanner:
    """Finds the numbers of messages and counts what is missing, repeated or announced.

    Args:
        key: the name of the number, `n0` or `seq`.
    """

    def __init__(self, key: str) -> None:
        self._mark = b'"%b":' % key.encode()
        self._find = re.compile(self._mark + rb"(\d+)[,}]").findall
        self._buffer = bytearray(_RESERVED + _ROOM)
        self._labels: list[bytes] = []
        self.room = memoryview(self._buffer)[_RESERVED:]
        self.counts: Counter[str] = Counter()

    def scan(self, track: Track, size: int) -> list[bytes]:
        """Take the first `size` bytes of `room` as what came next; returns the numbers found."""
        buffer, end = self._buffer, _RESERVED + size
        start = _RESERVED - len(track.rest)
        if track.rest:
            buffer[start:_RESERVED] = track.rest
        found: list[bytes] = self._find(buffer, start, end)
        if buffer[end - 1] in b"}]\n":  # not inside of a number
            track.rest = b""
        else:
            cut = buffer.rfind(self._mark, max(start, end - 32), end)
            if cut < 0 or self._find(buffer, cut, end):
                cut = max(start, end - len(self._mark))  # too short to hold a complete number
            track.rest = bytes(buffer[cut:end])
        if found:
            self._count(track, found)
        return found

    def last_string(self, mark: bytes, size: int) -> bytes:
        """What follows the last `mark` in the first `size` bytes of `room`, up to a quote.

        Nothing when there is none, or when it is cut.
        """
        end = _RESERVED + size
        start = self._buffer.rfind(mark, _RESERVED, end) + len(mark)
        quote = self._buffer.find(b'"', start, end)
        return bytes(self._buffer[start:quote]) if start >= _RESERVED and quote >= 0 else b""

    def _count(self, track: Track, found: list[bytes]) -> None:
        self.counts["received"] += len(found)
        track.received += len(found)
        expected = track.next
        if expected is not None:
            end = expected + len(found)
            if end > len(self._labels):
                self._labels.extend(b"%d" % n for n in range(len(self._labels), 2 * end))
            if found == self._labels[expected:end]:
                track.next = end
                return
        for number in found:
            self.advance(track, int(number), int(number))

    def advance(self, track: Track, first: int, last: int) -> None:
        """Note that a client has got the numbers `first` to `last`."""
        expected = first if track.next is None else track.next
        if first < expected:
            self.counts["repeated"] += min(last + 1, expected) - first
        else:
            self.counts["missing"] += first - expected
        track.next = max(expected, last + 1)

    def parse(self, track: Track, data: bytes) -> None:
        """Take bytes of plain JSON frame by frame, `gap` events included."""
        track.rest += data
        for text in _frames(track):
            message = json.loads(text)
            if message["event"] == "gap":
                first, last = message["data"]["first"], message["data"]["last"]
                self.counts["announced"] += last + 1 - first
            elif "seq" in message:
                first = last = message["seq"]
                self.counts["received"] += 1
            else:
                continue
            track.received += last + 1 - first
            self.advance(track, first, last)


def _frames(track: Track) -> Iterator[bytes]:
    """Take the complete text frames from what a client has received."""
    data, at = track.rest, 0
    while (payload := frame_end(data, at)) is not None:
        head, end = payload
        if data[at] == 0x81:
            yield data[head:end]
        at = end
    track.rest = data[at:]


def frame_end(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the payload of the frame at `at` begins and ends; None while it is incomplete.

    Frames of servers, as in RFC 6455 section 5.2: not masked.
    """
    if len(data) - at < 2:
        return None
    size, head = data[at + 1], at + 2
    if size == 126:
        size, head = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
    elif size == 127:
        size, head = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
    end = head + size
    return (head, end) if end <= len(data) else None
