"""The replica of this machine: what its leader says of it, and how a worker reads from it.

The leader (workers/leader/replica.py) compares the replica with the primary several times a second
and notes the result in a file that all workers of the machine read. A worker reads from the replica
while that note is fresh and says that it may; it looks at the replica itself as well, since the note
may be some tenths of a second old.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from app.backplane.client import Command, Link
from app.backplane.faults import Fault
from app.backplane.server import server_at
from app.errors import PresenceError
from app.private_file import read_private, write_private

MAX_SECONDS_BEHIND = 1.0
"""Seconds by which a replica that is read may be behind its primary."""
MAX_BYTES_BEHIND = 4 * 2**20
"""Bytes of the replication stream by which it may be behind."""
STALE = 2.0
"""Seconds after which a note says nothing any more."""
LOOK_INTERVAL = 0.25
"""Seconds between two looks at the note."""
RETRY = 1.0
"""Seconds for which the primary is read after the replica could not be."""

INFO: Command = (b"INFO", b"replication")

_LARGEST = 4096


class NotThere(PresenceError):
    """The replica cannot be read at the position of the worker; the message says why."""


@dataclass(frozen=True, slots=True)
class ReplicaNote:
    """What the leader says of the replica."""

    at: float
    """Seconds of the machine's monotonic clock."""
    usable: bool
    """Whether workers may read from it."""
    words: str
    """Its state, for people."""
    history: str
    """The replication id of the primary: another one is another history."""
    clock: float
    """The primary's Unix time minus the machine's monotonic clock, in seconds."""
    bytes_behind: int
    """Bytes of the replication stream that it lacks."""
    seconds_behind: float
    """Seconds since the primary had the first of these."""

    @property
    def is_fresh(self) -> bool:
        """Whether it was written within the last `STALE` seconds."""
        return time.monotonic() - self.at < STALE


class ReplicaFile:
    """The file in which the newest note stands.

    Args:
        path: in memory, since it is written several times a second.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, note: ReplicaNote) -> None:
        """Replace the note.

        Raises:
            OSError: it cannot be written.
        """
        write_private(self._path, json.dumps(asdict(note)).encode())

    def read(self) -> ReplicaNote | None:
        """The newest note; None when there is none that can be read."""
        try:
            note = ReplicaNote(**json.loads(read_private(self._path, _LARGEST)))
            is_sound = math.isfinite(note.at + note.clock)
        except (OSError, ValueError, TypeError):
            return None
        return note if is_sound else None

    def remove(self) -> None:
        """Remove it: there is no replica."""
        with contextlib.suppress(OSError):
            self._path.unlink()


class ReplicaRoute:
    """A worker's way to the replica.

    Args:
        url: of the replica.
        name: of the connection, shown by CLIENT LIST.
        read_note: returns the newest note of the leader.
        report: is called when a call went well.
    """

    def __init__(
        self,
        url: str,
        name: str,
        read_note: Callable[[], ReplicaNote | None],
        report: Callable[[], None],
    ) -> None:
        self.link = Link(server_at(url), name, self._report)
        self.is_read = False
        """Whether this worker reads from the replica now."""
        self.left = 0
        """Times that this worker went over to the primary, since the start."""
        self._note: ReplicaNote | None = None
        self._read_note = read_note
        self._went_well = report
        self._not_before = 0.0
        self._history = ""  # that of the replica when it was entered

    @property
    def note(self) -> ReplicaNote | None:
        """What the leader said last; None: nothing, or too long ago."""
        note = self._note
        return note if note is not None and note.is_fresh else None

    @property
    def usable(self) -> bool:
        """Whether the leader says that the replica may be read."""
        note = self.note
        return note is not None and note.usable

    @property
    def is_due(self) -> bool:
        """Whether to try it now."""
        return self.usable and time.monotonic() >= self._not_before

    def enter(self) -> None:
        """This worker reads from the replica from now on."""
        self.is_read = True

    async def leave(self) -> None:
        """Read from the primary for a while."""
        self._not_before = time.monotonic() + RETRY
        self.left += self.is_read
        self.is_read = False
        await self.link.close()

    def check(self, info: bytes) -> None:
        """Make sure, by its INFO, that the replica is still what the leader has seen.

        A blocked XREAD outlives a full resync, even one with another history.

        Raises:
            NotThere: it is not.
        """
        note = self.note
        if note is None or not note.usable:
            raise NotThere("the leader says nothing of it" if note is None else note.words)
        if not self.is_read:
            self._history = note.history
        if (
            note.history != self._history
            or b"\nmaster_replid:%b\r" % self._history.encode() not in info
        ):
            raise NotThere("it has another history")
        if b"\nmaster_link_status:up\r" not in info:
            raise NotThere("it has lost its primary")

    def server_time(self) -> float:
        """The primary's Unix time in seconds, by the last note."""
        assert self._note is not None
        return self._note.clock + time.monotonic()

    def seconds_behind(self) -> float:
        """Seconds by which what this worker reads is behind the primary, by the last note."""
        note = self._note if self.is_read else None
        return 0.0 if note is None else note.seconds_behind

    async def watch(self) -> None:
        """Look at the notes until cancelled; a read in progress ends when the replica fails."""
        while True:
            self._note = self._read_note()
            if self.is_read and not self.usable:
                await self.link.abort()
            await asyncio.sleep(LOOK_INTERVAL)

    async def close(self) -> None:
        """Close the connection."""
        await self.link.close()

    def _report(self, faults: Sequence[Fault]) -> None:
        # What fails here is read from the primary: no fault of the backplane.
        if not faults:
            self._went_well()
