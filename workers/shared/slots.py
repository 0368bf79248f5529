"""The slot table: what all processes of this machine must know of each other, to the unit.

A file in memory with one row per worker, shared through mmap by masters and workers of every
generation, and the users' table (`users.py`). It is locked with `lockf` on a descriptor
that each process opens for itself after the fork: the kernel drops the lock of a process that
dies. Such locks belong to the process and end when it closes *any* descriptor of the file, so
a process opens the file once, and threads do not exclude each other: one thread uses it.

A process may be killed inside the critical section. Nothing needs repair then: the counts
that matter are single 8-byte stores in the row of the process that died, sums are taken over
the rows, and a row is in use from the moment its pid is written, which is last, until it is
cleared, which is last too. What must never be counted low (connections of living workers) is
never derived from two stores.

The file may be removed while processes use it (systemd's RemoveIPC does that when a user logs
out). Then one of them puts a copy in its place under the lock of the old file, and marks that as
moved; a process that takes the lock of a file that has moved changes to the copy. So no count is lost,
and a process that starts finds the same table (`restore`).

The file has no settings: callers bring the caps, so that workers before and after a reload
may differ. The master imports this module, so it imports nothing of `app`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from workers.shared.file import make_copy, open_shared, show_file
from workers.shared.locks import FileLock, is_at
from workers.shared.processes import start_time
from workers.shared.recent import RecentTable
from workers.shared.users import OF_ADDRESS, UsersTable

ROWS = 128
"""Workers at one time; with HUP and USR2 there are up to four times as many as configured."""

STATS_SIZE = 4000
"""Most bytes of a worker's figures, as JSON."""

LARGEST_FIGURE = 2**53
"""Larger numbers are no figures: clients count in doubles."""

STARTING, READY, LEAVING, GONE = 1, 2, 3, 4
"""States of a row; GONE: its process has ended and its users are being taken out of their table."""
STATE_NAMES: dict[int, Literal["starting", "ready", "leaving"]] = {
    STARTING: "starting",
    READY: "ready",
    LEAVING: "leaving",
}

_VERSION = 1
_WORD = 8
(
    PID,
    BORN,
    MASTER,
    GENERATION,
    STARTED,
    STATE,
    CONNECTIONS,
    QUEUE_MESSAGES,
    QUEUE_BYTES,
    WAITING_HIGH,
    WAITING_NORMAL,
    WAITING_LOW,
    EVICTIONS,
    UPDATED,
    STATS_LENGTH,
    STOPPING,
) = range(16)
_COLUMNS = 16
WAITING = (WAITING_HIGH, WAITING_NORMAL, WAITING_LOW)

_GEOMETRY = struct.pack("<8sIIII", b"YJ-SLOTS", _VERSION, ROWS, _COLUMNS, STATS_SIZE)
_KEY = slice(len(_GEOMETRY), len(_GEOMETRY) + 16)
_HIGH, _NEXT_GENERATION, _FAILED_STARTS, _HALTED, _USERS = range(5, 10)
"""Words of the header: rows that were ever in use, the next generation, workers that died
while starting, the master that is to halt, and the first word of the users' table."""
_DIED = _USERS + UsersTable.HEADER_WORDS
_DIED_AT = _DIED + 1
"""Words of the header: workers that died while they served, and when one last died, be it at its
start (microseconds of the monotonic clock, which all processes share; 0: never)."""
_MOVED, _RESTORED = _DIED_AT + 1, _DIED_AT + 2
"""Words of the header: 1 when this file was removed and a copy has taken its place; how many
shared files of the service were removed and put back."""
_FORKED_AT = _RESTORED + 1
"""Word of the header: when a master forked a worker that has no row yet (microseconds of the monotonic
clock; 0: there is none)."""
_USERS_BY_TYPE = 64
"""First word of the header that counts users by type: further on, since a worker of an older
version that shares the file may use none of these words."""
_LINES, _HANDSHAKES = slice(128, 256), slice(256, 512)
"""Words of the header: log lines of the last minute, handshakes of addresses in the last second."""
_REMOVED_AT_ONCE = 8
"""Users of a dead worker that are removed under one lock: some 20 us."""

_TABLE_AT = mmap.PAGESIZE
_STATS_AT = _TABLE_AT + _COLUMNS * ROWS * _WORD
_USERS_AT = -(-(_STATS_AT + ROWS * STATS_SIZE) // mmap.PAGESIZE) * mmap.PAGESIZE


FORK_PATIENCE = 10.0
"""Seconds that a worker may take from the fork to its row."""
_PATIENCE = 3.0
"""Seconds to wait for another process to put the file back."""
_INTERVAL = 0.02


class _TableLock(FileLock):
    """The lock of the file, or of the copy that has taken its place.

    Args:
        fd: of the file.
        header: of the table.
        follow: goes over to the copy; the descriptor keeps its number.
    """

    __slots__ = ("_follow", "_header")

    def __init__(self, fd: int, header: memoryview, follow: Callable[[], None]) -> None:
        super().__init__(fd)
        self._header = header
        self._follow = follow

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1)  # as `FileLock`, without another call
        while self._header[_MOVED]:
            self.__exit__()
            self._follow()
            super().__enter__()


class Row(NamedTuple):
    """One worker."""

    number: int
    pid: int
    master: int
    """Pid of the master that started it."""
    generation: int
    started: float
    """Unix time in seconds."""
    state: int
    connections: int
    updated: float
    """Unix time in seconds at which it last wrote its figures, or got ready; 0 before that."""
    stats: dict[str, Any]


class SlotTable:
    """The slot table, opened by this process.

    Args:
        path: the file; made when it is missing or was laid out by another version.
        connections: how many connections the users' table must have room for.
        wait: seconds to wait for a file that is missing, because processes that run will put it
            back; None: it is made.

    Raises:
        PermissionError: the file belongs to another user of this machine.
        FileNotFoundError: it is missing and was not put back in time.
    """

    def __init__(self, path: Path, connections: int = 10_000, *, wait: float | None = None) -> None:
        self._path = path
        self._fd = _open(path) if wait is None else _open_existing(path, wait)
        self._map = mmap.mmap(self._fd, _USERS_AT)
        words = memoryview(self._map).cast("Q")
        self._header = words[: _TABLE_AT // _WORD]
        """Words of the header."""
        self.lock = _TableLock(self._fd, self._header, self._follow)
        """Around each change, and each sum over rows."""
        self.columns = _split(words[_TABLE_AT // _WORD : _STATS_AT // _WORD])
        """A word of each row: `PID`, `BORN` and so on."""
        self.hash_key = bytes(self._map[_KEY])
        """For the hashes of users, addresses and kinds of lines."""
        users = self._header[_USERS : _USERS + UsersTable.HEADER_WORDS]
        by_type = self._header[_USERS_BY_TYPE : _USERS_BY_TYPE + UsersTable.TYPE_WORDS]
        self.users = UsersTable(self._fd, users, by_type, _USERS_AT)
        """Connections by user, and by address."""
        self.lines = RecentTable(self._header[_LINES])
        """Kinds of log lines that were written lately."""
        self.handshakes = RecentTable(self._header[_HANDSHAKES])
        """Of addresses within the last second."""
        self._shown: tuple[dict[str, Any], int] = {}, 0
        """What `set_stats` has written last, and its length: it changes in few of many seconds."""
        self._read: dict[int, tuple[bytes, dict[str, Any]]] = {}
        """By row what was read of it last, and what that says."""
        with self.lock:
            self.users.make_room(connections)

    # The file.

    def is_there(self) -> bool:
        """Whether processes that start will find this table, as far as it is for them."""
        if self._header[_MOVED] and self._path.exists():
            with self.lock:  # changes to the copy, for readers without the lock
                pass
        return is_at(self._path, self._fd) or (self._path.exists() and not self._is_rival())

    def restore(self) -> bool:
        """Put the file back when it was removed; True when this call did it.

        Another file in its place gives way, unless it is laid out otherwise, as that of another
        version is, or a worker that runs has a row in it.
        """
        if self.is_there():
            return False
        with self.lock:  # of the copy, if another process was faster
            if self.is_there():
                return False
            if self._path.exists():
                if not self._supersede():
                    return False
            else:
                self._move()
        self.count_restored()
        return True

    def _move(self) -> None:
        copy = make_copy(self._fd, self._path)
        # Marked first, since from then on it is the copy that processes change. Should this one
        # be killed in between, the others wait for the copy in vain and start again.
        self._header[_MOVED] = 1
        copy.replace(self._path)

    @property
    def restored(self) -> int:
        """Shared files of the service that were removed and put back, since the table exists."""
        return int(self._header[_RESTORED])

    def count_restored(self) -> None:
        """Count another file of the service that was put back."""
        with self.lock:
            self._header[_RESTORED] += 1

    def _is_rival(self) -> bool:
        """Whether the file in the place of this one is laid out alike, or not laid out yet."""
        try:
            with self._path.open("rb") as file:
                found = file.read(len(_GEOMETRY))
        except OSError:
            return True
        return found == _GEOMETRY or not found.strip(b"\0")

    def _supersede(self) -> bool:
        """Send the users of a rival file to the copy that takes its place; False: it has workers."""
        rival = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            lock = FileLock(rival)
            if not lock.try_enter():
                return False
            size = _STATS_AT - _TABLE_AT
            words = os.pread(rival, size, _TABLE_AT).ljust(size, b"\0")
            table = _split(memoryview(words).cast("Q"))
            for pid, born in zip(table[PID].tolist(), table[BORN].tolist(), strict=True):
                if pid and start_time(pid) == born:
                    return False
            self._move()
            os.pwrite(rival, (1).to_bytes(_WORD, "little"), _MOVED * _WORD)
            return True
        finally:
            os.close(rival)

    def _follow(self) -> None:
        """Go over to the file that has taken the place of this one."""
        try:
            fd = _open_existing(self._path, _PATIENCE)
        except FileNotFoundError:
            # Removed again before any process that lives went over: this one is the newest.
            self._header[_MOVED] = 0
            return
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        show_file(self._map, self._fd)
        self.users.show_file()

    # Rows.

    def note_fork(self) -> None:
        """Say that a worker is about to be forked, which will claim a row. Masters call it."""
        with self.lock:
            self._header[_FORKED_AT] = _monotonic()

    def is_forking(self) -> bool:
        """Whether a worker was forked within `FORK_PATIENCE` that has no row yet."""
        forked_at: int = self._header[_FORKED_AT]
        return bool(forked_at) and _monotonic() - forked_at < FORK_PATIENCE * 1e6

    def give_up_claim(self) -> None:
        """Count a failed start of this process, which has no row. It must be about to end."""
        with self.lock:
            self._header[_FORKED_AT] = 0
            self._header[_FAILED_STARTS] += 1
            self._header[_DIED_AT] = _monotonic()

    def claim_row(self, master: int) -> int:
        """Take a row for this process, in state `starting`, and return its index.

        Raises:
            RuntimeError: all rows are in use.
        """
        pid = os.getpid()
        born = start_time(pid)
        assert born is not None
        self.sweep()
        with self.lock:
            pids = self.columns[PID].tolist()
            if 0 not in pids:
                raise RuntimeError(f"all {ROWS} rows of the slot table are in use")
            index = pids.index(0)
            self._clear(index)
            generation = self._header[_NEXT_GENERATION] + 1
            self._header[_NEXT_GENERATION] = generation
            self._header[_HIGH] = max(self._header[_HIGH], index + 1)
            self._header[_FORKED_AT] = 0
            for column, value in (
                (BORN, born),
                (MASTER, master),
                (GENERATION, generation),
                (STARTED, _now()),
                (STATE, STARTING),
                (PID, pid),
            ):
                self.columns[column][index] = value
        # A process of a version that does not know addresses has left those of the row's last worker.
        for _ in self._remove_keys(index, pid, born, index | OF_ADDRESS):
            pass
        return index

    def free(self, pid: int) -> bool:
        """Free the row of a process that is about to end; False when it has none."""
        for index in range(self.high()):
            if self.columns[PID][index] == pid:
                self._free_row(index)
                return True
        return False

    def sweep(self) -> list[int]:
        """Free the rows of processes that are gone, and return their pids.

        Masters call it when a worker has ended, and workers now and then, for those whose
        master was killed.
        """
        return [pid for pid in self.sweep_in_steps() if pid]

    def sweep_in_steps(self) -> Iterator[int]:
        """The same in steps of some 100 us, for a caller that has other things to do in between.

        Yields:
            The pid of a row that was freed, or 0 after a step on the way there.
        """
        self.users.tidy()
        pids, born = self.columns[PID], self.columns[BORN]
        try:
            gone = [
                (index, pids[index], born[index])
                for index in range(self.high())
                if pids[index] and start_time(pids[index]) != born[index]
            ]
        except OSError:  # no descriptor to look with: another process or a later call will
            return
        for index, pid, birth in gone:
            yield from self._free_in_steps(index, pid, birth, died=True)

    def set_state(self, index: int, state: int) -> None:
        """Say that a worker is `STARTING`, `READY` or `LEAVING`."""
        with self.lock:
            self.columns[STATE][index] = state
            if state == READY and not self.columns[UPDATED][index]:
                self.columns[UPDATED][index] = _now()  # from now on its silence counts

    def rows(self) -> list[Row]:
        """Every row of a worker that runs, or of which no call of `sweep` has seen that it ended."""
        with self.lock:
            high = self.high()
            columns = [column[:high].tolist() for column in self.columns]
            used = [n for n in range(high) if columns[PID][n] and columns[STATE][n] != GONE]
            texts = [self._figures_text(n) for n in used]
        return [
            _row(n, [column[n] for column in columns], self._figures(n, text))
            for n, text in zip(used, texts, strict=True)
        ]

    def has_connections(self) -> bool:
        """Whether any client is connected to this machine."""
        return any(self.columns[CONNECTIONS][: self.high()])

    def row(self, number: int) -> Row | None:
        """One of these."""
        return next((row for row in self.rows() if row.number == number), None)

    @property
    def failed_starts(self) -> int:
        """Workers that have ended while they were `starting`, since the file exists."""
        return int(self._header[_FAILED_STARTS])

    @property
    def deaths(self) -> int:
        """Workers that have ended while they were `ready`, since the file exists."""
        return int(self._header[_DIED])

    def since_death(self) -> float:
        """Seconds since a worker exited unexpectedly; infinite when none has."""
        died_at = self._header[_DIED_AT]
        return max(0.0, (_monotonic() - died_at) / 1e6) if died_at else math.inf

    def note_stop(self, master: int) -> None:
        """Say that a master, which is a pid, stops: its workers get TERM once more at most.

        A worker that is leaving cannot tell this TERM from one that comes again.
        """
        with self.lock:
            for index in range(self.high()):
                if self.columns[MASTER][index] == master:
                    self.columns[STOPPING][index] = 1

    def is_stopping(self, index: int) -> bool:
        """Whether the master of the worker in a row stops."""
        return bool(self.columns[STOPPING][index])

    def first_to_halt(self, master: int) -> bool:
        """Whether this is the first call about that master, which is a pid."""
        name = (start_time(master) or 0) << 32 | master
        with self.lock:
            if self._header[_HALTED] == name:
                return False
            self._header[_HALTED] = name
            return True

    @property
    def identity(self) -> str:
        """A name of this table that no other has, on whatever machine."""
        return hashlib.blake2b(self.hash_key, digest_size=_WORD).hexdigest()

    # Figures.

    def high(self) -> int:
        """Rows that were ever in use."""
        return min(int(self._header[_HIGH]), ROWS)

    def set_stats(self, index: int, stats: dict[str, Any]) -> None:
        """Show figures of a worker to all processes.

        Raises:
            ValueError: they take more than `STATS_SIZE` bytes as JSON.
        """
        shown, length = self._shown
        if stats == shown and self.columns[STATS_LENGTH][index] == length:
            with self.lock:
                self.columns[UPDATED][index] = _now()
            return
        text = json.dumps(stats, separators=(",", ":")).encode()
        if len(text) > STATS_SIZE:
            raise ValueError(f"figures of a worker take {len(text)} bytes, over {STATS_SIZE}")
        start = _STATS_AT + index * STATS_SIZE
        with self.lock:
            self._map[start : start + len(text)] = text
            self.columns[STATS_LENGTH][index] = len(text)
            self.columns[UPDATED][index] = _now()
        self._shown = stats, len(text)

    # Inside.

    def _free_row(self, index: int) -> None:
        pid, birth = self.columns[PID][index], self.columns[BORN][index]
        for _ in self._free_in_steps(index, pid, birth, died=False):
            pass

    def _free_in_steps(self, index: int, pid: int, birth: int, *, died: bool) -> Iterator[int]:
        """Free a row in steps, each of which may be the last: then another call goes on with it.

        What the dead worker held of the caps is given back in the first one.
        """
        with self.lock:
            if not self._is(index, pid, birth):
                return
            state = self.columns[STATE][index]
            if state == STARTING:
                self._header[_FAILED_STARTS] += 1
                self._header[_DIED_AT] = _monotonic()
            elif state == READY and died:
                self._header[_DIED] += 1
                self._header[_DIED_AT] = _monotonic()
            self.columns[STATE][index] = GONE
            self._clear(index)
        for row in (index, index | OF_ADDRESS):
            yield from self._remove_keys(index, pid, birth, row)
        with self.lock:
            if not self._is(index, pid, birth):
                return
            self.users.recount()
            self.columns[STATE][index] = 0
            self.columns[PID][index] = 0
        yield pid

    def _remove_keys(self, index: int, pid: int, birth: int, row: int) -> Iterator[int]:
        """Take out what a row has in the users' table, in steps, while it is of that process.

        Args:
            index: of the row.
            pid: of the process that has it.
            birth: of that process.
            row: what entries name it: itself, or with `OF_ADDRESS`.
        """
        for keys in self.users.keys_of_row(row):
            for start in range(0, len(keys), _REMOVED_AT_ONCE):
                with self.lock:
                    if not self._is(index, pid, birth):
                        return
                    for key in keys[start : start + _REMOVED_AT_ONCE]:
                        self.users.remove(key, row)
                yield 0
            yield 0

    def _is(self, index: int, pid: int, birth: int) -> bool:
        return bool(self.columns[PID][index] == pid and self.columns[BORN][index] == birth)

    def _clear(self, index: int) -> None:
        """Everything but what says whose row it is, and in which state."""
        for number, column in enumerate(self.columns):
            if number not in (PID, BORN, STATE):
                column[index] = 0

    def _figures_text(self, index: int) -> bytes:
        start = _STATS_AT + index * STATS_SIZE
        return self._map[start : start + min(self.columns[STATS_LENGTH][index], STATS_SIZE)]

    def _figures(self, index: int, text: bytes) -> dict[str, Any]:
        """What the worker in a row shows of itself; parsed when it has changed."""
        known = self._read.get(index)
        if known is None or known[0] != text:
            known = self._read[index] = text, _parse_figures(text)
        return dict(known[1])


def _open(path: Path, *, create: bool = True) -> int:
    random = _KEY.stop - _KEY.start
    return open_shared(path, _GEOMETRY, random=random, size=_USERS_AT, create=create)


def _open_existing(path: Path, wait: float) -> int:
    """Open the file, when it is there, or another process has put it back.

    Raises:
        FileNotFoundError: it has not been within `wait` seconds.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            return _open(path, create=False)
        except FileNotFoundError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_INTERVAL)


def _split(words: memoryview) -> list[memoryview]:
    """The columns of the table, or of a copy of it."""
    return [words[n * ROWS : (n + 1) * ROWS] for n in range(_COLUMNS)]


def _row(index: int, values: Sequence[int], stats: dict[str, Any]) -> Row:
    return Row(
        number=index,
        pid=values[PID],
        master=values[MASTER],
        generation=values[GENERATION],
        started=values[STARTED] / 1e6,
        state=values[STATE],
        connections=values[CONNECTIONS],
        updated=values[UPDATED] / 1e6,
        stats=stats,
    )


def _parse_figures(stats: bytes) -> dict[str, Any]:
    """What a worker shows of itself, without what no version of this service would show."""
    try:
        value = json.loads(stats) if stats else {}
    except (ValueError, RecursionError):  # its worker was killed while it wrote
        return {}
    if not isinstance(value, dict):
        return {}
    return {name: item for name, item in value.items() if _is_shown(item)}


def _is_shown(item: object) -> bool:
    if isinstance(item, dict):
        return all(map(_is_number, item.values()))
    return isinstance(item, str) or _is_number(item)


def _is_number(item: object) -> bool:
    return isinstance(item, int | float) and abs(item) < LARGEST_FIGURE  # not NaN either


def _now() -> int:
    return int(time.time() * 1e6)


def _monotonic() -> int:
    return time.monotonic_ns() // 1000
