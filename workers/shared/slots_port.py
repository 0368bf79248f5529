# ruff: noqa: D102 (the port documents its methods)
"""The slot table as the inside of a worker sees it: `app.ports.Slots` for one row."""

from __future__ import annotations

from collections.abc import Sequence

from app.config import Settings
from app.ports import Slots
from app.types import Priority, WorkerRow
from workers.shared.slots import STATE_NAMES, SlotTable


class RowSlots(Slots):
    """Implements `app.ports.Slots`; the caps are those of this worker's settings.

    Args:
        table: the slot table, opened by this process.
        index: the row that this worker has claimed.
    """

    def __init__(self, table: SlotTable, index: int, settings: Settings) -> None:
        self.index = index
        self._table = table
        self._connections_cap = settings.max_total_connections
        self._user_cap = settings.max_connections_per_user
        self._queue_cap = settings.max_queue_size
        self._queue_bytes_cap = settings.max_queue_bytes

    def worker_name(self) -> str:
        """Names this worker among all of all machines, ever: machine, row and generation."""
        row = next(row for row in self._table.rows() if row.number == self.index)
        return f"{self._table.identity}-{row.number}-{row.generation}"

    def reserve_connection(self) -> bool:
        return self._table.reserve_connection(self.index, self._connections_cap)

    def release_connection(self) -> None:
        self._table.release_connection(self.index)

    def adopt_connections(self, row: int, generation: int, count: int) -> None:
        """See `app.sessions.handoff.transfer.Counts`."""
        self._table.adopt_connections(self.index, row, generation, count)

    def adopt_user(self, row: int, generation: int, user: str) -> None:
        """See `app.sessions.handoff.transfer.Counts`."""
        self._table.adopt_user(self.index, row, generation, user)

    def claim_user(self, user: str) -> bool:
        return self._table.claim_user(self.index, user, self._user_cap)

    def release_user(self, user: str) -> None:
        self._table.release_user(self.index, user)

    def reserve_queue(self, size: int) -> bool:
        return self._table.reserve_queue(self.index, size, self._queue_cap, self._queue_bytes_cap)

    def release_queue(self, messages: int, size: int) -> None:
        self._table.release_queue(self.index, messages, size)

    def ask_to_evict(self, below: Priority) -> bool:
        return self._table.ask_to_evict(self.index, int(below))

    def take_evictions(self) -> int:
        return self._table.take_evictions(self.index)

    def set_queued(self, per_priority: Sequence[int]) -> None:
        self._table.set_queued(self.index, per_priority)

    def set_stats(self, stats: dict[str, object]) -> None:
        self._table.set_stats(self.index, stats)

    def total_connections(self) -> int:
        return self._table.total_connections()

    def queue_totals(self) -> tuple[int, int]:
        return self._table.queue_totals()

    def set_user_types(self, user: str, types: int) -> None:
        self._table.set_user_types(self.index, user, types)

    def users_of_type(self, number: int) -> int:
        return self._table.users_of_type(number)

    def unique_users(self) -> int:
        return self._table.unique_users()

    def workers_died(self) -> tuple[int, int]:
        return self._table.failed_starts, self._table.deaths

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
                queue_messages=row.queue_messages,
                queue_bytes=row.queue_bytes,
                stats=row.stats,
                updated=row.updated,
            )
            for row in self._table.rows()
            if row.state in STATE_NAMES
        ]
