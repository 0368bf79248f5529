"""Interfaces that `app` defines and `workers` implements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from app.types import WorkerRow


class QueueTotals(NamedTuple):
    """What waits in the queues of all workers."""

    messages: int
    size: int
    """Bytes."""


class WorkersDied(NamedTuple):
    """Workers that exited unexpectedly since the service was started."""

    starting: int
    serving: int


class ConnectionPlaces(Protocol):
    """Places of connections in the cap of the machine."""

    def reserve_connection(self) -> bool:
        """Count one connection more; False when the machine is at its cap."""

    def release_connection(self) -> None:
        """Count one connection less."""


class Slots(ConnectionPlaces, Protocol):
    """Counts that all workers of this machine share; see workers/shared/worker_slots.py.

    Every call is atomic over all processes and takes a few microseconds.
    """

    index: int
    """The row of this worker."""

    def reserve_connections(self, most: int) -> int:
        """Count connections more; returns how many: one at most where the cap is near, 0 at the cap."""

    def release_connections(self, count: int) -> None:
        """Count connections less."""

    def adopt_connections(self, row: int, generation: int, count: int) -> None:
        """Count connections here that were counted in the row of a worker that hands them off.

        Args:
            row: of the giver.
            generation: of the giver; a row that another worker has by now is left alone.
            count: how many.
        """

    def claim_user(self, user: str) -> bool:
        """Count one connection of `user`; False when that user is at the cap."""

    def release_user(self, user: str) -> None:
        """Give one claim of this worker on `user` back."""

    def adopt_user(self, row: int, generation: int, user: str) -> None:
        """Count a connection of a user here that was counted in another worker's row."""

    def count_handshake(self, address: str) -> int:
        """Count a handshake of an address; how many there were within a second, this one included."""

    def connections_of_address(self, address: str) -> int:
        """Connections that an address holds on all workers."""

    def claim_address(self, address: str) -> bool:
        """Count one connection of an address; False when that address is at the cap."""

    def release_address(self, address: str) -> None:
        """Give one claim of this worker on an address back."""

    def adopt_address(self, row: int, generation: int, address: str) -> None:
        """Count a connection of an address here that was counted in another worker's row."""

    def begin_line(self, kind: str, interval: float, waiting: int) -> int | None:
        """Claim the one log line of a kind that all workers may write within `interval` seconds.

        Args:
            kind: of the line.
            interval: in seconds.
            waiting: events of that kind which this worker has not logged since its last call.

        Returns:
            Events that no worker has logged since the last line; None: a line was written already,
            and the next one counts this event and those that were waiting.
        """

    def reserve_queue(self, size: int, messages: int = 1) -> bool:
        """Count messages of `size` bytes in all into the queue; False when they do not all fit."""

    def release_queue(self, messages: int, size: int) -> None:
        """Count messages out of the queue of this worker, `size` bytes in all."""

    def ask_to_evict(self, below: int) -> bool:
        """Ask a worker that holds messages ranked after `below` to drop one, the lowest first.

        Ranks are those of `Priority`: 0 high, 2 low. Returns False when no other worker holds any
        that no one has asked for yet.
        """

    def evictions_asked(self) -> int:
        """How many messages other workers have asked this one to drop, and it has not yet."""

    def end_evictions(self, count: int) -> None:
        """Take back so many of those requests: they are met, or nothing is left to drop."""

    def evictions_awaited(self) -> int:
        """As `evictions_asked`, of all other workers together."""

    def set_queued(self, per_priority: Sequence[int]) -> None:
        """Tell the others how many messages of each priority wait here (high, normal, low)."""

    def set_stats(self, stats: dict[str, object]) -> None:
        """Show figures of this worker to all others; at most 4 000 bytes as JSON."""

    def total_connections(self) -> int:
        """Connections of all workers."""

    def queue_totals(self) -> QueueTotals:
        """Messages and bytes in the queues of all workers."""

    def set_user_types(self, user: str, types: int) -> None:
        """Say what this worker's connections of a user are subscribed to, one bit a type."""

    def users_of_type(self, number: int) -> int:
        """Different users that are subscribed to a type, by the number of its bit."""

    def unique_users(self) -> int:
        """Different users that hold claims."""

    def workers_died(self) -> WorkersDied:
        """Workers that exited unexpectedly."""

    def files_restored(self) -> int:
        """Shared files that were removed and then restored, since the service was started."""

    def since_death(self) -> float:
        """Seconds since a worker exited unexpectedly; infinite when none has."""

    def rows(self) -> list[WorkerRow]:
        """All rows in use, this worker's own included."""
