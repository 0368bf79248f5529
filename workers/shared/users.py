"""How many connections each user holds on this machine: a hash table in the slot file.

Open addressing with linear probing. An entry is two 8-byte words: the keyed hash of the user,
and `types << 32 | row << 24 | count`: the connections that one worker holds for that user, and a bit
for each type that any of them is subscribed to. A user with connections on three workers has
three entries. Client addresses are counted in the same way where their connections are limited: as
entries whose row has the bit `OF_ADDRESS`, which count towards no user. Callers hold the lock of the slot file.

A process may be killed between any two stores, so each step leaves a table that is right as
it stands: an entry exists from the moment its hash is written, which is last, and is gone
from the moment its hash is overwritten, which is first. A table that must be tidied or grown
is copied to another part of the file and replaces the old one by a single store.

Every call under the lock touches the entries of one user and their neighbours, a handful, however
many users there are. What must be known of all users is counted as entries change: different
users, and different users of each type. These counts may be off by the one step that a process
was killed in; it leaves a mark, and `recount` corrects them. Only `make_room` and `recount` read all
of the table under the lock: at the start of a worker, and after a process was killed inside it.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

from workers.shared.file import show_file

_EMPTY = 0
_ERASED = 1
"""An entry was here: a search goes on past it, a new entry may take its place."""
_FIRST_HASH = 2

_LARGEST = (1 << 64) - 1
_MOST_BITS = 28  # of the number of a place
_COUNT = 0xFF_FFFF
_ROW = 0xFF
_ROW_SHIFT = 24
_TYPES_SHIFT = 32
OF_ADDRESS = 0x80
"""Bit of the row in an entry of a client address; rows of workers are below it."""
_ENTRY_SIZE = 16
_ROOM = 4
"""Entries per connection: at a quarter full a search ends after one or two steps."""
_FEWEST = 1 << 16
_PIECE = 64 * 1024
"""Bytes that are written at once."""

_AREA, _DISTINCT, _FILLED = range(3)
"""Words of the header: place and size of the table, users, entries that are not empty."""

MAX_TYPES = 32
"""Bits of an entry, one for each type."""
_SETTLED = MAX_TYPES
"""Word behind the counts by type: 1 while the counts are right, 0 within a step."""

_STRIDE = 1024
"""Entries that are read at once without the lock: some 100 us."""


class _TablePlace(NamedTuple):
    """Where a table lies in the file."""

    offset: int
    """Bytes."""
    buckets: int
    """Entries that it has room for."""


class UsersTable:
    """The users' table.

    Args:
        fd: the slot file.
        header: three 8-byte words of it that belong to this table.
        by_type: `TYPE_WORDS` more words, zero in a new file.
        base: offset in the file after which nothing but this table lies; a multiple of the page size.
    """

    HEADER_WORDS = 3
    TYPE_WORDS = MAX_TYPES + 1

    def __init__(self, fd: int, header: memoryview, by_type: memoryview, base: int) -> None:
        self._fd = fd
        self._header = header
        self._by_type = by_type
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
        if not self._header[_AREA]:
            self._rebuild(wanted)
            self._set_counts({}, filled=0)
            return
        if wanted > self._refresh():
            self._rebuild(wanted)
        self.recount()

    @property
    def _is_empty(self) -> bool:
        """Whether it is certain that there is no entry; otherwise one must look."""
        return not self._header[_FILLED] and bool(self._by_type[_SETTLED])

    def recount(self) -> None:
        """Count anew if a process was killed within a step; otherwise nothing is touched."""
        if self._by_type[_SETTLED]:
            return
        self._refresh()
        types: dict[int, int] = {}
        for key, value in self._live():
            if not value >> _ROW_SHIFT & OF_ADDRESS:
                types[key] = types.get(key, 0) | value >> _TYPES_SHIFT
        keys = self._entries.tolist()[::2]
        self._set_counts(types, filled=len(keys) - keys.count(_EMPTY))

    def _set_counts(self, types: Mapping[int, int], *, filled: int) -> None:
        """Write the counts: of users with the types of each, and of entries that are not empty."""
        for number in range(MAX_TYPES):
            self._by_type[number] = sum(bits >> number & 1 for bits in types.values())
        self._header[_DISTINCT] = len(types)
        self._header[_FILLED] = filled
        self._by_type[_SETTLED] = 1

    def claim(self, key: int, row: int, cap: int, gone: Container[int] = ()) -> bool:
        """Count one connection more for a user, unless all rows together hold `cap`.

        Args:
            key: 64-bit keyed hash of the user.
            row: the worker that holds the connection, with `OF_ADDRESS` for an address.
            cap: most connections of one user.
            gone: rows of dead workers, whose entries are being removed and do not count.

        Raises:
            OSError: every place is taken, and there is no room for a larger table.
        """
        key = max(key, _FIRST_HASH)
        buckets = self._refresh()
        if self._header[_FILLED] * 2 > buckets:
            self._is_tidied(buckets)  # else the old one may have places left
            self._refresh()
        entries, mask = self._entries, self._mask
        total, own, place, known = 0, -1, -1, False
        at = key & mask
        for _ in range(buckets):
            found = entries[2 * at]
            if found == _EMPTY:
                break
            if found == key:
                known = True
                value = entries[2 * at + 1]
                if _row(value) & ~OF_ADDRESS not in gone:
                    total += value & _COUNT
                if _row(value) == row:
                    own = at
            elif found == _ERASED and place < 0:
                place = at
            at = (at + 1) & mask
        else:  # no place is empty: something else has written to the table, or there was no room to tidy it
            if self._is_tidied(2 * buckets):
                return self.claim(key, row, cap, gone)
        if total >= cap:
            return False
        if own >= 0:
            if entries[2 * own + 1] & _COUNT < _COUNT:
                entries[2 * own + 1] += 1
            return True
        if place < 0:
            place = at
            if entries[2 * at] != _EMPTY:
                raise OSError(
                    errno.ENOSPC, "the users' table is full, and there is no room for a larger one"
                )
        self._add(place, key, row, is_distinct=not (known or row & OF_ADDRESS))
        return True

    def _add(self, place: int, key: int, row: int, *, is_distinct: bool) -> None:
        """Write an entry with one connection to a place that is empty or erased."""
        entries = self._entries
        settled = self._begin_step()
        if entries[2 * place] == _EMPTY:
            self._step(_FILLED, 1)
        entries[2 * place + 1] = row << _ROW_SHIFT | 1
        entries[2 * place] = key
        if is_distinct:
            self._step(_DISTINCT, 1)
        self._by_type[_SETTLED] = settled

    def _is_tidied(self, buckets: int) -> bool:
        """Copy the entries to a clean table; False where there is no room for it."""
        try:
            self._rebuild(buckets)
        except OSError:
            return False
        return True

    def held(self, key: int, gone: Container[int] = ()) -> int:
        """Connections of a user, or of an address, on all rows but those that are `gone`."""
        key = max(key, _FIRST_HASH)
        self._refresh()
        entries, mask = self._entries, self._mask
        total, at = 0, key & mask
        for _ in range(mask + 1):
            found = entries[2 * at]
            if found == _EMPTY:
                break
            value = entries[2 * at + 1]
            if found == key and _row(value) & ~OF_ADDRESS not in gone:
                total += value & _COUNT
            at = (at + 1) & mask
        return total

    def release(self, key: int, row: int) -> None:
        """Count one connection less; nothing happens when `row` holds none for that user."""
        key = max(key, _FIRST_HASH)
        own, others, types = self._find(key, row)
        if own < 0:
            return
        if self._entries[2 * own + 1] & _COUNT > 1:
            self._entries[2 * own + 1] -= 1
        else:
            self._remove(own, others, types)

    def remove(self, key: int, row: int) -> None:
        """Take out all that one worker holds for a user."""
        own, others, types = self._find(key, row)
        if own >= 0:
            self._remove(own, others, types)

    def _find(self, key: int, row: int) -> tuple[int, bool, int]:
        """Place of a user's entry of one row (-1: none), and of the other rows: any, their types."""
        self._refresh()
        entries, mask = self._entries, self._mask
        own, others, types = -1, False, 0
        at = key & mask
        for _ in range(mask + 1):
            found = entries[2 * at]
            if found == _EMPTY:
                break
            if found == key:
                value = entries[2 * at + 1]
                if _row(value) == row:
                    own = at
                else:
                    others = True
                    types |= value >> _TYPES_SHIFT
            at = (at + 1) & mask
        return own, others, types

    def _remove(self, at: int, others: bool, types_of_others: int) -> None:
        value = self._entries[2 * at + 1]
        types = value >> _TYPES_SHIFT
        settled = self._begin_step()
        self._erase(at)
        if not (others or _row(value) & OF_ADDRESS):
            self._step(_DISTINCT, -1)
        self._count_types(types | types_of_others, types_of_others)
        self._by_type[_SETTLED] = settled

    def set_types(self, key: int, row: int, types: int) -> None:
        """Say what a user's connections on one worker are subscribed to, one bit a type."""
        own, _, types_of_others = self._find(max(key, _FIRST_HASH), row)
        if own < 0:
            return
        value = self._entries[2 * own + 1]
        settled = self._begin_step()
        self._entries[2 * own + 1] = types << _TYPES_SHIFT | value & (1 << _TYPES_SHIFT) - 1
        self._count_types(types_of_others | value >> _TYPES_SHIFT, types_of_others | types)
        self._by_type[_SETTLED] = settled

    def _begin_step(self) -> int:
        """Mark the counts as wrong; returns what the mark is after the step.

        A mark that a killed process has left stays until `recount`.
        """
        settled = int(self._by_type[_SETTLED])
        self._by_type[_SETTLED] = 0
        return settled

    def _step(self, word: int, change: int) -> None:
        """Change a count of the header by one, within what a word can hold."""
        self._header[word] = min(max(self._header[word] + change, 0), _LARGEST)

    def _count_types(self, before: int, after: int) -> None:
        changed, number = before ^ after, 0
        while changed:
            if changed & 1:
                step = 1 if after >> number & 1 else -1
                self._by_type[number] = min(max(0, self._by_type[number] + step), _LARGEST)
            changed >>= 1
            number += 1

    def users_of_type(self, number: int) -> int:
        """Different users with a connection that is subscribed to a type, by its bit."""
        return int(self._by_type[number])

    def keys_of_row(self, row: int) -> Iterator[list[int]]:
        """Hashes of the users, or with `OF_ADDRESS` addresses, of a row, stretch by stretch of the table.

        Needs no lock: the row is a dead worker's, so it gets no more entries, and what `remove`
        no longer finds it leaves alone. A table that was moved meanwhile is read again.
        """
        area = 0
        while area != self._header[_AREA] and not self._is_empty:
            area = self._header[_AREA]
            self._refresh()
            entries = self._entries
            for start in range(0, len(entries), 2 * _STRIDE):
                if area != self._header[_AREA]:
                    break
                words = entries[start : start + 2 * _STRIDE].tolist()
                found = [
                    key
                    for key, value in zip(words[::2], words[1::2], strict=True)
                    if key >= _FIRST_HASH and _row(value) == row
                ]
                yield found
                if area != self._area:
                    break  # this process has mapped another table while it removed those

    def show_file(self) -> None:
        """Show what the descriptor leads to now, a copy of the file of before."""
        if self._map is not None:
            show_file(self._map, self._fd, _place(self._area).offset)

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
            self._step(_FILLED, -1)
            at = (at - 1) & mask

    def _live(self) -> list[tuple[int, int]]:
        """Hash and value of each entry."""
        words = self._entries.tolist()
        return [
            pair for pair in zip(words[::2], words[1::2], strict=True) if pair[0] >= _FIRST_HASH
        ]

    def _refresh(self) -> int:
        """Map the table where it lies now, and return its size."""
        area = self._header[_AREA]
        if area != self._area:
            if not self._is_place(area):  # something else has written to the header
                self._header[_AREA] = self._area
                if not self._area:
                    self._rebuild(_FEWEST)
                return self._mask + 1
            offset, buckets = _place(area)
            self._map_area(offset, buckets)
            self._area = area
        return self._mask + 1

    def _is_place(self, area: int) -> bool:
        """Whether a table can lie there."""
        offset, buckets = _place(area)
        end = offset + buckets * _ENTRY_SIZE
        return offset >= self._base and end <= os.fstat(self._fd).st_size

    def _map_area(self, offset: int, buckets: int) -> mmap.mmap:
        self._entries.release()
        if self._map is not None:
            self._retired.append(self._map)
        self._map = mmap.mmap(self._fd, buckets * _ENTRY_SIZE, offset=offset)
        self._entries = memoryview(self._map).cast("Q")
        self._mask = buckets - 1
        return self._map

    def _rebuild(self, buckets: int) -> None:
        """Copy the entries to a clean table beside the old one, then switch over to it.

        Raises:
            OSError: there is no room for it; nothing has changed.
        """
        live: list[tuple[int, int]] = []
        # Before the entries are read: where there is no room, each claim tries this.
        offset = self._make_room(buckets)
        old_map = None
        if self._header[_AREA]:
            self._refresh()
            old_map = self._map
            # One of each user and row: many of one hash would take for ever to be put in their places.
            live = list({(key, _row(value)): (key, value) for key, value in self._live()}.values())
            if len(live) * 2 > buckets:
                while len(live) * 2 > buckets:
                    buckets *= 2
                offset = self._make_room(buckets)
        # All zero, whatever a killed process has left here.
        for at in range(offset, offset + buckets * _ENTRY_SIZE, _PIECE):
            os.pwrite(self._fd, bytes(_PIECE), at)
        self._map_area(offset, buckets)
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

    def _make_room(self, buckets: int) -> int:
        """Where a table of so many entries can lie, in memory that the file has by now.

        Raises:
            OSError: there is no room.
        """
        offset, size, old_area = self._base, buckets * _ENTRY_SIZE, self._header[_AREA]
        if old_area:
            old_offset, old_buckets = _place(old_area)
            if offset + size > old_offset:
                offset = old_offset + old_buckets * _ENTRY_SIZE
        os.posix_fallocate(self._fd, offset, size)  # a map of what is not there kills (SIGBUS)
        return offset


def _row(value: int) -> int:
    return value >> _ROW_SHIFT & _ROW


def _place(area: int) -> _TablePlace:
    """What the word of a place says: offsets are multiples of a page, which leaves low bits free."""
    low = mmap.PAGESIZE - 1
    return _TablePlace(area & ~low, 1 << min(area & low, _MOST_BITS))
