"""How many connections each user holds on this machine: a hash table in the slot file.

Open addressing with linear probing. An entry is two 8-byte words: the keyed hash of the user,
and `types << 32 | row << 24 | count`: the connections that one worker holds for that user, and a bit
for each type that any of them is subscribed to. A user with connections on three workers has
three entries. Callers hold the lock of the slot file.

A process may be killed between any two stores, so each step leaves a table that is right as
it stands: an entry exists from the moment its hash is written, which is last, and is gone
from the moment its hash is overwritten, which is first. A table that must be tidied or grown
is copied to another part of the file and replaces the old one by a single store. The counts
in the header may be off by the one step that was cut short: `remove_row`, which is called for
every process that died, counts anew.
"""

from __future__ import annotations

import mmap
import os

_EMPTY = 0
_ERASED = 1
"""An entry was here: a search goes on past it, a new entry may take its place."""
_FIRST_HASH = 2

_COUNT = 0xFF_FFFF
_ROW = 0xFF
_ROW_SHIFT = 24
_TYPES_SHIFT = 32
_ENTRY_SIZE = 16
_ROOM = 4
"""Entries per connection: at a quarter full a search ends after one or two steps."""
_FEWEST = 1 << 16

_AREA, _DISTINCT, _FILLED = range(3)
"""Words of the header: place and size of the table, users, entries that are not empty."""


class UsersTable:
    """The users' table.

    Args:
        fd: the slot file.
        header: three 8-byte words of it that belong to this table.
        base: offset in the file after which nothing but this table lies; a whole page.
    """

    HEADER_WORDS = 3

    def __init__(self, fd: int, header: memoryview, base: int) -> None:
        self._fd = fd
        self._header = header
        self._base = base
        self._area = 0
        self._map: mmap.mmap | None = None
        self._retired: list[mmap.mmap] = []
        self._entries = memoryview(b"")
        self._mask = 0

    @property
    def distinct(self) -> int:
        """Different users that hold connections."""
        return int(self._header[_DISTINCT])

    def make_room(self, connections: int) -> None:
        """Grow the table, if need be, for so many connections."""
        wanted = _FEWEST
        while wanted < connections * _ROOM:
            wanted *= 2
        if not self._header[_AREA] or wanted > self._refresh():
            self._rebuild(wanted)

    def claim(self, key: int, row: int, cap: int) -> bool:
        """Count one connection more for a user, unless all rows together hold `cap`.

        Args:
            key: 64-bit keyed hash of the user.
            row: the worker that holds the connection.
        """
        key = max(key, _FIRST_HASH)
        buckets = self._refresh()
        if self._header[_FILLED] * 2 > buckets:
            self._rebuild(buckets)
            self._refresh()
        entries, mask = self._entries, self._mask
        total, own, place = 0, -1, -1
        at = key & mask
        while (found := entries[2 * at]) != _EMPTY:
            if found == key:
                value = entries[2 * at + 1]
                total += value & _COUNT
                if _row(value) == row:
                    own = at
            elif found == _ERASED and place < 0:
                place = at
            at = (at + 1) & mask
        if total >= cap:
            return False
        if own >= 0:
            entries[2 * own + 1] += 1
            return True
        if place < 0:
            place = at
            self._header[_FILLED] += 1
        entries[2 * place + 1] = row << _ROW_SHIFT | 1
        entries[2 * place] = key
        if not total:
            self._header[_DISTINCT] += 1
        return True

    def release(self, key: int, row: int) -> None:
        """Count one connection less; nothing happens when `row` holds none for that user."""
        key = max(key, _FIRST_HASH)
        self._refresh()
        entries, mask = self._entries, self._mask
        own, others = -1, False
        at = key & mask
        while (found := entries[2 * at]) != _EMPTY:
            if found == key:
                if _row(entries[2 * at + 1]) == row:
                    own = at
                else:
                    others = True
            at = (at + 1) & mask
        if own < 0:
            return
        if entries[2 * own + 1] & _COUNT > 1:
            entries[2 * own + 1] -= 1
            return
        self._erase(own)
        if not others:
            self._header[_DISTINCT] -= 1

    def set_types(self, key: int, row: int, types: int) -> None:
        """Say what a user's connections on one worker are subscribed to, one bit a type."""
        key = max(key, _FIRST_HASH)
        self._refresh()
        entries, mask = self._entries, self._mask
        at = key & mask
        while (found := entries[2 * at]) != _EMPTY:
            value = entries[2 * at + 1]
            if found == key and _row(value) == row:
                low = (1 << _TYPES_SHIFT) - 1
                entries[2 * at + 1] = types << _TYPES_SHIFT | value & low
                return
            at = (at + 1) & mask

    def users_of_type(self, number: int) -> int:
        """Different users with a connection that is subscribed to a type, by its bit."""
        self._refresh()
        bit = 1 << (_TYPES_SHIFT + number)
        return len({key for key, value in self._live().values() if value & bit})

    def remove_row(self, row: int) -> None:
        """Take out all that one worker holds, and correct the counts of the header."""
        self._refresh()
        others: set[int] = set()
        for at, (key, value) in self._live().items():
            if _row(value) == row:
                self._erase(at)
            else:
                others.add(key)
        self._header[_DISTINCT] = len(others)
        keys = self._entries.tolist()[::2]
        self._header[_FILLED] = len(keys) - keys.count(_EMPTY)

    def tidy(self) -> None:
        """Let go of old tables. Call it without the lock.

        A map holds a descriptor of the file, and to close one ends the lock of this process.
        """
        while self._retired:
            self._retired.pop().close()

    def _erase(self, at: int) -> None:
        entries, mask = self._entries, self._mask
        entries[2 * at] = _ERASED
        if entries[2 * ((at + 1) & mask)] != _EMPTY:
            return
        # No search goes on past this place, so it and erased ones before it can be empty.
        while entries[2 * at] == _ERASED:
            entries[2 * at] = _EMPTY
            self._header[_FILLED] -= 1
            at = (at - 1) & mask

    def _live(self) -> dict[int, tuple[int, int]]:
        """Place of each entry -> (hash, value)."""
        words = self._entries.tolist()
        pairs = zip(words[::2], words[1::2], strict=True)
        return {at: pair for at, pair in enumerate(pairs) if pair[0] >= _FIRST_HASH}

    def _refresh(self) -> int:
        """Map the table where it lies now, and return its size."""
        area = self._header[_AREA]
        if area != self._area:
            offset, buckets = _place(area)
            self._map_area(offset, buckets)
            self._area = area
        return self._mask + 1

    def _map_area(self, offset: int, buckets: int) -> mmap.mmap:
        self._entries.release()
        if self._map is not None:
            self._retired.append(self._map)
        self._map = mmap.mmap(self._fd, buckets * _ENTRY_SIZE, offset=offset)
        self._entries = memoryview(self._map).cast("Q")
        self._mask = buckets - 1
        return self._map

    def _rebuild(self, buckets: int) -> None:
        """Copy the entries to a clean table beside the old one, then switch over to it."""
        live: list[tuple[int, int]] = []
        offset = self._base
        old_area, old_map = self._header[_AREA], None
        if old_area:
            self._refresh()
            old_map = self._map
            live = list(self._live().values())
            old_offset, old_buckets = _place(old_area)
            if offset + buckets * _ENTRY_SIZE > old_offset:
                offset = old_offset + old_buckets * _ENTRY_SIZE
        end = offset + buckets * _ENTRY_SIZE
        if os.fstat(self._fd).st_size < end:
            os.ftruncate(self._fd, end)
        # All zero, whatever a killed process has left here.
        self._map_area(offset, buckets).madvise(mmap.MADV_REMOVE)
        entries, mask = self._entries, self._mask
        for key, value in live:
            at = key & mask
            while entries[2 * at] != _EMPTY:
                at = (at + 1) & mask
            entries[2 * at] = key
            entries[2 * at + 1] = value
        self._area = offset | buckets.bit_length() - 1
        self._header[_AREA] = self._area
        self._header[_FILLED] = len(live)
        if old_map is not None:
            old_map.madvise(mmap.MADV_REMOVE)  # gives the memory back


def _row(value: int) -> int:
    return value >> _ROW_SHIFT & _ROW


def _place(area: int) -> tuple[int, int]:
    """Offset and number of entries: offsets are whole pages, which leaves low bits free."""
    low = mmap.PAGESIZE - 1
    return area & ~low, 1 << (area & low)
