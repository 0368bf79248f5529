"""A real slot table for a test of one process: on a file that is removed once it is open."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from app.config import Settings
from app.types import WorkerRow
from workers.shared import slots as layout
from workers.shared.slots import READY, ROWS, STATE_NAMES, SlotTable
from workers.shared.worker_slots import WorkerSlots

STATES = {name: state for state, name in STATE_NAMES.items()}


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a slot table that several processes, or several objects, open."""
    path = Path(f"/dev/shm/yujian-test-{os.getpid()}-{random.randrange(2**32)}")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def table(path: Path) -> SlotTable:
    """The slot table there."""
    return SlotTable(path)


def new_table() -> SlotTable:
    """A table on a file that is gone."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        return SlotTable(Path(directory) / "slots", 100)


class TableSlots(WorkerSlots):
    """The slots of a worker that is ready, and rows that a test writes.

    Args:
        settings: have the caps.
        now: seconds of a clock that all processes share.
        table: which other workers of the test share; None: a table of its own.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        now: Callable[[], float] = time.monotonic,
        table: SlotTable | None = None,
    ) -> None:
        self.table = table or new_table()
        super().__init__(self.table, self.table.claim_row(1), settings or Settings(), now)
        self.table.set_state(self.index, READY)
        if table is None:
            self.show([dataclasses.replace(row, updated=0.0) for row in self.rows()])

    @property
    def connections(self) -> int:
        return self.total_connections()

    def show(self, rows: Sequence[WorkerRow]) -> None:
        """Let the table have these rows and no others."""
        columns = self.table.columns
        while self.table.high() < len(rows):
            self.table.claim_row(1)
        for number in range(ROWS):
            columns[layout.PID][number] = 0
        for row in rows:
            self.table.set_stats(row.index, dict(row.stats))
            for column, value in (
                (layout.GENERATION, row.generation),
                (layout.STARTED, round(row.started * 1e6)),
                (layout.STATE, STATES[row.state]),
                (layout.CONNECTIONS, row.connections),
                (layout.UPDATED, round(row.updated * 1e6)),
                (layout.PID, row.pid),
            ):
                columns[column][row.index] = value


@functools.cache
def caps(connections: int, per_user: int, messages: int, size: int) -> Settings:
    return dataclasses.replace(
        Settings(),
        max_total_connections=connections,
        max_connections_per_user=per_user,
        max_queue_size=messages,
        max_queue_bytes=size,
    )


def slots(
    table: SlotTable,
    row: int = 0,
    *,
    connections: int = 10_000,
    per_user: int = 10_000,
    queue: tuple[int, int] = (10, 100),
) -> WorkerSlots:
    """One worker's part of a table, with caps of its own."""
    return WorkerSlots(table, row, caps(connections, per_user, *queue))
