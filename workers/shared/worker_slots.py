# ruff: noqa: D102 (the port documents its methods)
"""The counts that workers share, as one worker sees and changes them: `app.ports.Slots`.

They lie in the slot table (`slots.py`, which has the layout and the rows). A count that matters is one
8-byte store in the row of its own worker, so that a process that is killed leaves it right.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

from app.config import Settings
from app.ports import QueueTotals, Slots, WorkersDied
from app.types import WorkerRow
from workers.shared import slots as layout
from workers.shared.slots import LARGEST_FIGURE, STATE_NAMES, WAITING, SlotTable
from workers.shared.users import OF_ADDRESS

_NO_CAP = 1 << 31
_FAR = 1000
"""Connections below the cap from which on several are counted at once: what workers have counted ahead must
not keep a client out."""


class WorkerSlots(Slots):
    """One worker's part of the slot table; the caps are those of its settings.

    Args:
        table: the slot table, opened by this process.
        index: the row that this worker has claimed.
        settings: have the caps, so that workers before and after a reload may differ.
        now: seconds of a clock that all processes of the machine share.
    """

    def __init__(
        self,
        table: SlotTable,
        index: int,
        settings: Settings,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = index
        self._table = table
        self._lock = table.lock
        self._pids = table.columns[layout.PID]
        self._states = table.columns[layout.STATE]
        self._generations = table.columns[layout.GENERATION]
        self._connections = table.columns[layout.CONNECTIONS]
        self._queue_messages = table.columns[layout.QUEUE_MESSAGES]
        self._queue_bytes = table.columns[layout.QUEUE_BYTES]
        self._waiting = [table.columns[number] for number in WAITING]
        self._evictions = table.columns[layout.EVICTIONS]
        self._users = table.users
        self._connections_cap = settings.max_total_connections
        self._user_cap = settings.max_connections_per_user
        self._queue_cap = settings.max_queue_size
        self._queue_bytes_cap = settings.max_queue_bytes
        self._address_cap = settings.max_connections_per_address
        self._now = now
        if self._address_cap:  # an address takes as much room as a user
            with self._lock:
                self._users.make_room(2 * self._connections_cap)

    def worker_name(self) -> str:
        """Names this worker among all of all machines, ever: machine, row and generation."""
        return f"{self._table.identity}-{self.index}-{self._generations[self.index]}"

    # Connections.

    def reserve_connection(self) -> bool:
        return self.reserve_connections(1) > 0

    def reserve_connections(self, most: int) -> int:
        with self._lock:
            free = self._connections_cap - sum(self._connections[: self._table.high()])
            count = most if free >= _FAR else min(1, max(0, free))
            if count:
                self._connections[self.index] += count
            return count

    def release_connection(self) -> None:
        self.release_connections(1)

    def release_connections(self, count: int) -> None:
        with self._lock:
            self._connections[self.index] = max(0, self._connections[self.index] - count)

    def adopt_connections(self, row: int, generation: int, count: int) -> None:
        connections = self._connections
        with self._lock:
            # Up first: if this process is killed between the two, the cap is not exceeded.
            connections[self.index] += count
            if self._is_generation(row, generation):
                connections[row] = max(0, connections[row] - count)

    def total_connections(self) -> int:
        return sum(self._connections[: self._table.high()])

    # Users.

    def claim_user(self, user: str) -> bool:
        key = self._key(user)
        with self._lock:
            return self._users.claim(key, self.index, self._user_cap, self._gone_rows())

    def release_user(self, user: str) -> None:
        key = self._key(user)
        with self._lock:
            self._users.release(key, self.index)

    def adopt_user(self, row: int, generation: int, user: str) -> None:
        self._adopt(self._key(user), row, generation, 0)

    def set_user_types(self, user: str, types: int) -> None:
        key = self._key(user)
        with self._lock:
            self._users.set_types(key, self.index, types)

    def users_of_type(self, number: int) -> int:
        return self._users.users_of_type(number)

    def unique_users(self) -> int:
        return self._users.distinct

    # Addresses.

    def count_handshake(self, address: str) -> int:
        key = self._address_key(address)
        with self._lock:
            return self._table.handshakes.count(key, self._now(), 1.0)

    def connections_of_address(self, address: str) -> int:
        key = self._address_key(address)
        with self._lock:
            return self._users.held(key, self._gone_rows())

    def claim_address(self, address: str) -> bool:
        key = self._address_key(address)
        cap = self._address_cap or _NO_CAP
        with self._lock:
            return self._users.claim(key, self.index | OF_ADDRESS, cap, self._gone_rows())

    def release_address(self, address: str) -> None:
        key = self._address_key(address)
        with self._lock:
            self._users.release(key, self.index | OF_ADDRESS)

    def adopt_address(self, row: int, generation: int, address: str) -> None:
        self._adopt(self._address_key(address), row, generation, OF_ADDRESS)

    def _adopt(self, key: int, row: int, generation: int, kind: int) -> None:
        with self._lock:
            is_counted = self._is_generation(row, generation)
            try:
                self._users.claim(key, self.index | kind, _NO_CAP)
            except OSError:
                if not is_counted:
                    raise
                # There is no place for both at once.
                self._users.release(key, row | kind)
                self._users.claim(key, self.index | kind, _NO_CAP)
            else:
                if is_counted:
                    self._users.release(key, row | kind)

    # Log lines.

    def begin_line(self, kind: str, interval: float, waiting: int) -> int | None:
        key = self._key(f"line\0{kind}")
        with self._lock:
            return self._table.lines.begin(key, self._now(), interval, waiting)

    # Broadcast queues.

    def reserve_queue(self, size: int, messages: int = 1) -> bool:
        counts, sizes = self._queue_messages, self._queue_bytes
        with self._lock:
            high = self._table.high()
            if (
                sum(counts[:high]) + messages > self._queue_cap
                or sum(sizes[:high]) + size > self._queue_bytes_cap
            ):
                return False
            counts[self.index] += messages
            sizes[self.index] += size
            return True

    def release_queue(self, messages: int, size: int) -> None:
        counts, sizes, index = self._queue_messages, self._queue_bytes, self.index
        with self._lock:
            counts[index] = max(0, counts[index] - messages)
            sizes[index] = max(0, sizes[index] - size)

    def queue_totals(self) -> QueueTotals:
        with self._lock:
            high = self._table.high()
            return QueueTotals(sum(self._queue_messages[:high]), sum(self._queue_bytes[:high]))

    def set_queued(self, per_priority: Sequence[int]) -> None:
        with self._lock:
            for column, count in zip(self._waiting, per_priority, strict=True):
                column[self.index] = count

    def ask_to_evict(self, below: int) -> bool:
        high = self._table.high()
        pids = self._pids[:high].tolist()
        waiting = [column[:high].tolist() for column in self._waiting]
        evictions = self._evictions
        # The lowest rank is asked first.
        for rank in range(len(waiting) - 1, below, -1):
            for other in range(high):
                if not pids[other] or other == self.index:
                    continue
                # A row drops its lowest first, so earlier requests count against them.
                if sum(column[other] for column in waiting[rank:]) <= evictions[other]:
                    continue
                with self._lock:
                    held = sum(column[other] for column in self._waiting[rank:])
                    if self._pids[other] and held > evictions[other] < LARGEST_FIGURE:
                        evictions[other] += 1
                        return True
        return False

    def evictions_asked(self) -> int:
        return int(self._evictions[self.index])

    def end_evictions(self, count: int) -> None:
        if count:
            with self._lock:
                self._evictions[self.index] = max(0, self._evictions[self.index] - count)

    def evictions_awaited(self) -> int:
        return sum(self._evictions[: self._table.high()]) - self._evictions[self.index]

    # What the table itself counts.

    def set_stats(self, stats: dict[str, object]) -> None:
        self._table.set_stats(self.index, stats)

    def workers_died(self) -> WorkersDied:
        return WorkersDied(self._table.failed_starts, self._table.deaths)

    def files_restored(self) -> int:
        return self._table.restored

    def since_death(self) -> float:
        return self._table.since_death()

    def rows(self) -> list[WorkerRow]:
        return [
            WorkerRow(
                index=row.number,
                pid=row.pid,
                started=row.started,
                generation=row.generation,
                state=STATE_NAMES[row.state],
                connections=row.connections,
                stats=row.stats,
                updated=row.updated,
            )
            for row in self._table.rows()
            if row.state in STATE_NAMES
        ]

    # Inside.

    def _is_generation(self, row: int, generation: int) -> bool:
        return bool(self._pids[row] and self._generations[row] == generation)

    def _gone_rows(self) -> Sequence[int]:
        """Rows of dead workers; almost always none."""
        high = self._table.high()
        if layout.GONE not in self._states[:high].tolist():
            return ()
        return [n for n in range(high) if self._states[n] == layout.GONE]

    def _address_key(self, address: str) -> int:
        return self._key(f"address\0{address}")  # no user's name has that character

    def _key(self, name: str) -> int:
        # An Origin header may have bytes that are no UTF-8.
        word = name.encode(errors="surrogatepass")
        digest = hashlib.blake2b(word, digest_size=8, key=self._table.hash_key)
        return int.from_bytes(digest.digest(), "little")
