"""The replica of the shared server that this machine's workers read from.

Every worker reads every message; from a replica of the machine's own the shared server sends it once.
The leader runs that replica (a Valkey on a Unix socket that keeps nothing on disk), lets it follow, compares it
with the primary several times a second, and notes for the workers whether it may be read
(app/backplane/replica.py).

It follows the primary itself, or another of its replicas where it matters how many the primary has:
with Sentinels, which would watch it and cannot reach it; with BACKPLANE_WAIT and `min-replicas-to-write`,
for which it would count although it can save nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from redis.asyncio.connection import parse_url

from app.backplane.client import FAILURES, Command, Link, info_of
from app.backplane.faults import MISREAD, explain, reading_answer
from app.backplane.replica import (
    INFO,
    LOOK_INTERVAL,
    MAX_BYTES_BEHIND,
    MAX_SECONDS_BEHIND,
    ReplicaFile,
    ReplicaNote,
)
from app.backplane.replication import Replication
from app.backplane.server import Server, server_at
from app.config import Settings
from app.setting_values import cluster_address, sentinel_address
from workers.leader.valkey import Valkey
from workers.shared import paths

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 0.5
"""Seconds that a server may take for an answer before the replica is not read any more."""
SETTLE = 1.0
"""Seconds for which a replica must have been in sync before it is read (again)."""
STUCK = 5.0
"""Seconds after which a replica that stays behind gets a new connection to its primary."""
SAMPLES = 240
"""Measurements of the primary that are kept: a minute of them."""
CHECK_INTERVAL = 30.0
"""Seconds between two looks at the size of the primary's data."""
LOG_AFTER = 5.0
"""Seconds for which the replica may not be usable before that is logged."""

_HZ = 10
"""How often a second the replica looks after itself: its link and the workers wait for that."""
_LEAST_DATABASES = 16
_FEWEST_WORKERS = 2
_SHARE = 2, 5
"""The part of the machine's memory that the replica may take."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Source:
    """What the URL of the shared server says of following it."""

    address: Address | None
    """The server; None: Sentinels name it."""
    user: str
    password: str
    database: int


def source_of(url: str) -> Source | str:
    """What of a BACKPLANE_URL a replica needs, or why there can be none."""
    if cluster_address(url) is not None:
        return "no machine runs a replica of a Cluster"
    sentinels = sentinel_address(url)
    plain = url if sentinels is None else sentinels.url
    if plain.startswith("unix:"):
        return "the server of BACKPLANE_URL is on this machine"
    if plain.startswith("rediss:"):
        return "a replica does not check the name in a TLS certificate, as workers do"
    words = parse_url(plain)
    return Source(
        Address(words.get("host", "localhost"), words.get("port", 6379))
        if sentinels is None
        else None,
        words.get("username") or "",
        words.get("password") or "",
        int(words.get("db") or 0),
    )


def url(settings: Settings) -> str | None:
    """Where the workers of this machine may read beside the shared server; None: nowhere."""
    if not settings.backplane_url or settings.backplane_replica != "auto" or why_none(settings):
        return None
    source = source_of(settings.backplane_url)
    assert isinstance(source, Source)
    return f"unix://{paths.replica_place(settings.data_dir).socket}?db={source.database}"


def why_none(settings: Settings) -> str | None:
    """Why the workers read from the shared server although BACKPLANE_REPLICA is on; None: no reason."""
    if not settings.backplane_url or settings.backplane_replica != "auto":
        return None
    if settings.workers < _FEWEST_WORKERS:
        return "one worker alone gains nothing by a replica"
    source = source_of(settings.backplane_url)
    return source if isinstance(source, str) else None


class Lag:
    """How far a replica is behind, by offsets in the replication stream."""

    def __init__(self) -> None:
        self._primary: deque[tuple[float, int]] = deque(maxlen=SAMPLES)

    def note_primary(self, now: float, offset: int) -> None:
        """Take the primary's offset at `now` (seconds)."""
        if self._primary and offset < self._primary[-1][1]:
            self._primary.clear()  # another primary
        self._primary.append((now, offset))

    def behind(self, now: float, offset: int) -> tuple[int, float]:
        """Bytes, and seconds since the primary is known to have had the first of them."""
        if not self._primary:
            return 0, 0.0
        lacked = next((then for then, at in self._primary if at > offset), now)
        return max(0, self._primary[-1][1] - offset), now - lacked


class Replica:
    """Keeps the replica running, following, and noted, until cancelled; it goes on running then.

    Args:
        settings: of the service; BACKPLANE_URL is one of a server that can be followed.
        memory: bytes that the replica may take.
    """

    def __init__(self, settings: Settings, memory: int) -> None:
        source = source_of(settings.backplane_url)
        if isinstance(source, str):
            raise ValueError(source)
        self._source = source
        self._data_dir = settings.data_dir
        self._memory = memory
        self._file = ReplicaFile(paths.replica_note(settings.data_dir))
        """The note for the workers."""
        place = paths.replica_place(settings.data_dir)
        self._log_file = place.log
        """Of the replica's own Valkey."""
        self._server: Server = server_at(settings.backplane_url)
        self._primary = Link(self._server, "yujian-replica-watch", _ignore)
        """The connection to the shared server."""
        self._local = Link(server_at(f"unix://{place.socket}"), "yujian-replica-watch", _ignore)
        """The connection to the replica."""
        self._counts = bool(settings.backplane_wait) or source.address is None
        """It matters how many replicas the primary has: this one follows another of them."""
        self._too_large = ""
        """Why there is no room for the data of the primary; empty: there is."""
        self._checked = -math.inf
        """When that was last looked at (monotonic seconds, as below)."""
        self._lag = Lag()
        """How far the replica is behind."""
        self._good_since = math.inf
        """Since when it may be read; infinite: it may not."""
        self._stuck_since = math.inf
        """Since when it is too far behind; infinite: it is not."""
        self._unusable_since = time.monotonic()
        """Since when workers cannot read from it."""
        self._is_logged = False
        """That is in the log."""
        self._switched = asyncio.Event()
        """Set when the Sentinels name another primary."""

    async def run(self) -> None:
        """See the class."""
        valkey = Valkey(
            self._data_dir,
            "no",
            hz=_HZ,
            place=paths.replica_place,
            options=await self._options(),
            name="The replica",
        )
        listening = self._server.listen(self._switched.set)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(valkey.run())
                group.create_task(self._keep())
        finally:
            if listening is not None:
                listening.cancel()
            await self._primary.close()
            await self._local.close()
            await self._server.close()

    async def _options(self) -> dict[str, str]:
        databases = max(_LEAST_DATABASES, self._source.database + 1)
        try:
            (reply,) = await self._ask(self._primary, [(b"CONFIG", b"GET", b"databases")])
            databases = max(databases, int(reply[1]))
        except (*FAILURES, *MISREAD):
            pass  # a managed server may forbid CONFIG
        return {
            "appendonly": "no",
            "databases": str(databases),
            # What it holds while it has no primary may be older than what a worker has read.
            "replica-serve-stale-data": "no",
            "replica-priority": "0",
            "repl-timeout": "20",
        }

    async def _keep(self) -> None:
        while True:
            note = await self.step()
            try:
                self._file.write(note)
            except OSError as error:
                self._log(f"the note for them cannot be written: {error}")
            try:
                async with asyncio.timeout(LOOK_INTERVAL):
                    await self._switched.wait()
            except TimeoutError:
                continue
            self._switched.clear()
            self._primary.renew()

    async def step(self) -> ReplicaNote:
        """Look at both servers once, let the replica follow, and return what is to be noted."""
        primary, clock, words = await self._look_at_primary()
        local = await self._look_at_local()
        history, lacking, late = "", 0, 0.0
        if primary is not None:
            history = primary.history
            if time.monotonic() - self._checked >= CHECK_INTERVAL:
                await self._check_primary()
            words = await self._steer(primary, local)
        if primary is not None and local is not None and not words:
            words, lacking, late = await self._compare(primary, local)
        now = time.monotonic()
        self._good_since = min(self._good_since, now) if not words else math.inf
        usable = not words and now - self._good_since >= SETTLE
        if not words:
            words = "in sync" if usable else "it has only just caught up"
        self._note_change(now, usable, words)
        return ReplicaNote(now, usable, words, history, clock, lacking, round(late, 3))

    async def _look_at_primary(self) -> tuple[Replication | None, float, str]:
        """The primary, its clock minus ours, and what is wrong with it."""
        try:
            answers = await self._ask(self._primary, [INFO, (b"TIME",)])
            now = time.monotonic()
            with reading_answer():
                info, (seconds, microseconds) = answers
                primary = Replication.of(info.decode(errors="replace"))
                clock = int(seconds) + int(microseconds) / 1e6 - now
        except FAILURES as error:
            return None, 0.0, f"the primary cannot be asked: {explain(error).words}"
        if primary.role != "master":
            return None, clock, "the server of BACKPLANE_URL is itself a replica"
        self._lag.note_primary(now, primary.offset)
        return primary, clock, ""

    async def _look_at_local(self) -> Replication | None:
        try:
            (info,) = await self._ask(self._local, [INFO])
            return Replication.of(info_of(info))
        except FAILURES:
            return None

    async def _check_primary(self) -> None:
        """Look whether there is room for its data."""
        self._checked = time.monotonic()
        try:
            (info,) = await self._ask(self._primary, [(b"INFO", b"memory")])
            lines = info_of(info).splitlines()
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
            used = int(facts.get("used_memory", "0"))
        except (*FAILURES, ValueError):
            return
        self._too_large = (
            f"the data of the primary take {used >> 20} MB of the {self._memory >> 20} MB that a"
            " replica may have here"
            if used > self._memory
            else ""
        )

    async def _steer(self, primary: Replication, local: Replication | None) -> str:
        """Let the replica follow the right server; why it follows none, or ''."""
        if local is None:
            return "the replica does not answer"
        wanted, words = self._wanted(primary, local)
        current = Address(*local.primary) if local.role == "slave" else None
        if current == wanted:
            return words
        commands: list[Command] = [(b"REPLICAOF", b"NO", b"ONE"), (b"FLUSHALL", b"ASYNC")]
        if wanted is not None:
            login = (b"masteruser", self._source.user, b"masterauth", self._source.password)
            commands = [(b"CONFIG", b"SET", *login), (b"REPLICAOF", wanted.host, wanted.port)]
            logger.info("The replica of this machine follows %s:%d", *wanted)
        try:
            await self._ask(self._local, commands)
        except FAILURES as error:
            return f"the replica cannot be set up: {explain(error).words}"
        return words or "it begins to follow the primary"

    def _wanted(self, primary: Replication, local: Replication) -> tuple[Address | None, str]:
        """What the replica should follow, and why nothing."""
        if self._too_large:
            return None, self._too_large
        if not self._counts and not primary.counts_replicas:
            return self._source.address, ""
        found = sorted(Address(one.host, one.port) for one in primary.replicas if one.online)
        if not found:
            return None, "the primary has no replica that this one could follow"
        current = Address(*local.primary)
        if current in found:
            return current, ""
        # Machines choose differently, and each the same again.
        return found[zlib.crc32(str(self._data_dir).encode()) % len(found)], ""

    async def _compare(self, primary: Replication, local: Replication) -> tuple[str, int, float]:
        """Why the replica may not be read, or ''; bytes and seconds that it is behind."""
        now = time.monotonic()
        if not local.linked:
            return self._out_of_sync(), 0, 0.0
        if local.history != primary.history:
            # It was refused PSYNC and has made do with SYNC, which names no history.
            words, lacking, late = self._out_of_sync(), 0, 0.0
        else:
            lacking, late = self._lag.behind(now, local.offset)
            words = f"the replica is {lacking} bytes and {late:.1f} s behind"
            if late <= MAX_SECONDS_BEHIND and lacking <= MAX_BYTES_BEHIND:
                self._stuck_since = math.inf
                return "", lacking, late
        self._stuck_since = min(self._stuck_since, now)
        if now - self._stuck_since >= STUCK:
            self._stuck_since = now
            try:
                await self._ask(self._local, [(b"CLIENT", b"KILL", b"TYPE", b"master")])
            except FAILURES:
                pass  # it is looked at again soon
        return words, lacking, late

    def _out_of_sync(self) -> str:
        """With the last thing that the replica has complained of."""
        try:
            with self._log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 4096))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        said = [line.partition(" # ")[2] for line in lines if " # " in line]
        said = [line for line in said if not line.startswith("WARNING")]
        complaint = said[-1][:160] if said else "it is being copied"
        return f"the replica is not in sync ({complaint})"

    def _note_change(self, now: float, usable: bool, words: str) -> None:
        if usable:
            if self._is_logged:
                self._is_logged = False
                logger.info("The replica of this machine can be read")
            self._unusable_since = math.inf
            return
        self._unusable_since = min(self._unusable_since, now)
        if now - self._unusable_since >= LOG_AFTER:
            self._log(words)

    def _log(self, words: str) -> None:
        if not self._is_logged:
            self._is_logged = True
            logger.warning("The workers read from the shared server: %s", words)

    async def _ask(self, link: Link, commands: Sequence[Command]) -> list[Any]:
        return await link.call(commands, ANSWER_SECONDS)


def _ignore(_: object) -> None:
    """What fails here shows in the note."""


def share_of(memory: int) -> int:
    """Bytes that a replica may take of the memory of a machine."""
    return memory * _SHARE[0] // _SHARE[1]


def forget(data_dir: Path) -> None:
    """Remove the note: no replica runs."""
    ReplicaFile(paths.replica_note(data_dir)).remove()
