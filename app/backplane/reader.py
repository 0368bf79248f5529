"""Reads every stream from where it was, through every outage, and says so where it cannot."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.backoff import Backoff
from app.backplane.client import (
    ANSWER_TIMEOUT,
    FAILURES,
    AnyBackplane,
    AnyLink,
    Command,
    new_backoff,
)
from app.backplane.entries import OVERHEAD, entry_id, seq_of, to_message, with_gaps
from app.backplane.faults import MISREAD, UnexpectedAnswer, explain, reading_answer, unexpected
from app.backplane.repair import is_damage, log_repaired, repair_type
from app.backplane.replica import INFO, NotThere, ReplicaRoute
from app.backplane.scripts import CONTROL, LOCATE, meta_key, new_epoch, stream_key
from app.clock import steady_time
from app.log_limit import LogLimit
from app.seconds import REST, Seconds, seconds_of
from app.types import Gap, Message, Position

logger = logging.getLogger(__name__)

BLOCK = 0.9
"""Seconds that one XREAD waits for news."""
REST_BLOCK = REST + 0.4
"""The same while the worker rests: a bit more than there are between two probes (app/canary.py), so that a probe
ends it where nothing else happens."""
LATE = 1.1
"""Seconds by which it may be answered later: the private Valkey looks at its blocked clients once a second."""
CALM = 0.5
"""Seconds that an XREAD waits at least where messages come rarely."""
BUSY_READS = 4
"""So many shorter ones in a row are no accident: messages come often."""
FIRST_COUNT = 16
"""Entries of each stream that the first XREAD asks for."""
READ_BYTES = 4 * 1024 * 1024
"""Bytes of messages in one XREAD past which the next one asks for fewer."""
BEHIND = 0.5
"""Seconds without an XREAD after which so much may wait that the server would build too large an answer."""
DEAD = 1.6
"""Seconds after its time that an XREAD is given up, with the connection."""
CLOCK_NOISE = 0.25
"""Seconds by which two clocks may differ and count as the same."""
CHECK_INTERVAL = 1.0
"""Seconds between two looks at the epochs: a stream that starts anew answers no XREAD."""
ENTER_TIMEOUT = 0.5
"""Seconds that the replica may take to answer a worker that would read from it."""
ENTER_TRIES, ENTER_PAUSE = 10, 0.02
"""How often it is asked for what the worker has read from the primary, and seconds between."""

_SHIFT = re.compile(rb"-?\d{1,17}")


@dataclass(slots=True)
class Batch:
    """What one read brought, in the order of each stream."""

    messages: list[Message | Gap] = field(default_factory=list)
    control: list[Message] = field(default_factory=list)
    control_lost: bool = False
    """Messages between workers are missing before those in `control`."""


@dataclass(frozen=True, slots=True)
class _Located:
    epoch: str
    base: int
    newest: int
    oldest: int


class Reader(Protocol):
    """What delivers and shows needs of a reader: `StreamReader`, or one of a Cluster."""

    positions: dict[str, Position]
    unreadable: Counter[str]

    @property
    def reconnects(self) -> int:
        """See `StreamReader`."""

    async def start(self) -> None:
        """See `StreamReader`."""

    async def read(self) -> Batch:
        """See `StreamReader`."""

    def lag(self) -> float:
        """See `StreamReader`."""


class StreamReader:
    """One XREAD over the streams of all types and of the workers' own.

    It reads from the replica of this machine where there is one that can be read, and from the
    primary otherwise, from the same position. Only the primary says that a stream has a new epoch:
    a replica that resyncs may hold older data or none.

    Args:
        clock: Unix time in seconds, without steps: messages are given the time at which they were
            accepted by this clock, however the server's or another machine's goes.
        replica: of this machine, if there may be one.
        types: whose streams are read; None: those of all types, and the workers' own.
        unreadable: counts what cannot be read, for several readers.
    """

    def __init__(
        self,
        backplane: AnyBackplane,
        clock: Callable[[], float] = steady_time,
        replica: ReplicaRoute | None = None,
        types: Sequence[str] | None = None,
        unreadable: Counter[str] | None = None,
    ) -> None:
        self.positions: dict[str, Position] = {}
        """Per type the last message that `read` returned; always the same dict."""
        self.reconnects = 0
        """Connections made anew after a loss, since the start."""
        self.unreadable: Counter[str] = Counter() if unreadable is None else unreadable
        """Entries of each stream that could not be read, since the start."""
        self._replica = replica
        self._has_moved = False
        """The primary is read since the replica cannot be."""
        self._clock = clock
        self._types = tuple(types or (*backplane.settings.message_types, CONTROL))
        self._link = backplane.reading_calls(self._types)
        self._by_key = {stream_key(type): type for type in self._types}
        """Types by the keys of their streams, as replies name them."""
        self._most = backplane.settings.broadcast_batch_size
        """Messages that `read` returns at once, at most."""
        self._count = min(self._most, FIRST_COUNT)
        """Entries of each stream that the next XREAD asks for: fewer where they are large."""
        self._largest = backplane.settings.max_message_size + OVERHEAD
        """Bytes of a valid entry, at most."""
        self._seconds: Seconds | None = None
        """Of the loop in which it was started: they say whether the worker rests."""
        self._block = BLOCK
        """Seconds that the newest XREAD waits for news."""
        self._filled = time.monotonic()
        """When an XREAD was last answered."""
        self._apart: list[str] = []
        """Types that are still to be read one at a time, since much may wait."""
        self._apart_bytes = 0
        """Bytes of messages that such reads of all types have brought."""
        self._apart_found = 0
        """Entries of the present one that they have brought."""
        self._is_behind = False
        """They follow a pause: what they bring is delivered together."""
        self._usual_count = self._count
        """Entries to ask for when they are over, where they have brought little."""
        self._backplane = backplane
        self._worker = backplane.worker_name
        self._read: dict[str, Position] = {}
        """Ahead of `positions` by what is pending."""
        self._pending: deque[Message | Gap] = deque()
        """What was read and `read` has not returned yet."""
        # Of the entry at `_read`: by its content a stream is known again after an outage, even
        # when others have added to it since it fell back.
        self._prints: dict[str, tuple[bytes, int] | None] = {}
        self._ahead: dict[str, float] = {}
        """Seconds that a stream's clock is ahead of `clock`, where it is."""
        self._checked = 0.0
        """When epochs and ends were last compared (monotonic seconds)."""
        self._short_reads = 0
        """XREADs in a row that have waited for less than CALM."""
        self._answered = time.monotonic()
        """When the backplane last answered (monotonic seconds)."""
        self._is_lost = False
        """The connection is new, and nothing was compared since."""
        self._log_limit = LogLimit()
        self._damaged: set[str] = set()
        """Types with keys to repair before reading continues."""

    async def start(self) -> None:
        """Take the ends of all streams as positions.

        Raises:
            FAILURES: the backplane does not answer; may be called again.
        """
        self._seconds = seconds_of(asyncio.get_running_loop())
        with reading_answer():
            await self._repair(self._types)
            for type, found in zip(self._types, await self._locate(self._types), strict=True):
                self._read[type] = Position(found.epoch, found.newest)
            self._prints = await self._fetch_prints(self._link)
        self.positions.update(self._read)  # in place: others hold it
        self._checked = self._answered = time.monotonic()

    async def read(self) -> Batch:
        """Wait for news and return them; `positions` then includes them.

        Returns at most `broadcast_batch_size` messages. An outage is waited out.
        """
        batch = Batch()
        if not self._pending:
            await self.fetch()
        self.take(batch, self._most)
        return batch

    async def fetch(self) -> None:
        """Wait for news, which `take` then has. An outage is waited out."""
        pauses: Backoff | None = None  # of the attempts since the last one that went well
        while not self._pending or self._has_more():
            if self._replica is not None and await self._read_replica(self._replica):
                pauses = None
                continue
            try:
                if self._is_lost or not self._link.connected:
                    self._is_lost = True
                    await self._resume()
                    self._is_lost, pauses = False, None
                elif self._damaged:
                    await self._repair(sorted(self._damaged))
                    await self._check()
                elif time.monotonic() - self._checked >= CHECK_INTERVAL:
                    await self._check()
                else:
                    await self._fill(self._link)
                self._answered = time.monotonic()
            except (*FAILURES, *MISREAD) as error:
                await self._note_failure(error, is_first=pauses is None)
                self._is_behind = False  # what was read is delivered first
                if self._pending:
                    return
                pauses = pauses or new_backoff()
                await asyncio.sleep(pauses.take())

    def _has_more(self) -> bool:
        """Whether more of what has waited is to be read before what was read is delivered.

        A write to many connections costs the same for one message as for many, so what waited meanwhile
        must not be written in pieces: that would take longer still, and more would wait.
        """
        return (
            self._is_behind
            and bool(self._apart)
            and self._apart_bytes < READ_BYTES
            and len(self._pending) < self._most
        )

    async def _note_failure(self, error: Exception, *, is_first: bool) -> None:
        """Note why the primary cannot be read, so that reading can go on."""
        self._has_moved = False
        if isinstance(error, MISREAD):
            error = unexpected(error)
        if isinstance(error, UnexpectedAnswer):
            await self._link.distrust()
            self._backplane.note_misread(self._types, explain(error))
        if is_first:
            logger.warning("Cannot read from the backplane, retrying: %s", explain(error).words)
        if is_damage(error):
            self._damaged.update(self._types)

    def lag(self) -> float:
        """Seconds by which this worker's clients are behind the backplane, as far as it knows."""
        silent = max(0.0, time.monotonic() - self._answered - self._block - LATE)
        if self._pending and isinstance(oldest := self._pending[0], Message):
            return max(silent, self._clock() - oldest.accepted)
        return silent if self._replica is None else max(silent, self._replica.seconds_behind())

    async def _read_replica(self, replica: ReplicaRoute) -> bool:
        """Read once from the replica; False: the primary is to be read."""
        try:
            if not replica.is_read:
                if not replica.is_due:
                    return False
                await self._enter(replica)
            elif time.monotonic() - self._checked >= CHECK_INTERVAL:
                await self._check_replica(replica, ANSWER_TIMEOUT)
            else:
                await self._fill(replica.link, replica)
        except (*FAILURES, *MISREAD, NotThere) as error:
            if isinstance(error, MISREAD):
                error = unexpected(error)
            if is_damage(error):
                self._damaged.update(self._types)
            if replica.is_read:
                self._has_moved = True
                words = str(error) if isinstance(error, NotThere) else explain(error).words
                logger.info("Reading from the primary, not from the replica: %s", words)
            await replica.leave()
            return False
        self._answered = time.monotonic()
        return True

    async def _enter(self, replica: ReplicaRoute) -> None:
        """Go over to the replica, if it has what was read.

        Raises:
            FAILURES, NotThere: it cannot be read, or not from this position.
        """
        for attempt in range(1, ENTER_TRIES + 1):
            try:
                await self._check_replica(replica, ENTER_TIMEOUT)
                await self._compare_prints(replica)
                break
            except NotThere:
                if attempt == ENTER_TRIES:
                    raise
                await asyncio.sleep(ENTER_PAUSE)
        replica.enter()
        await self._link.close()
        logger.info("Reading from the replica of this machine")

    async def _check_replica(self, replica: ReplicaRoute, timeout: float) -> None:
        """Make sure that the replica holds the streams that were read, up to the same place.

        Raises:
            FAILURES, NotThere: it does not, or not yet.
        """
        info, *replies = await replica.link.call([INFO, *self._ask_ends()], timeout)
        replica.check(info)
        self._take_ends_of(replica, replies)

    def _take_ends_of(self, replica: ReplicaRoute, replies: Sequence[Any]) -> None:
        """Compare what a replica has answered to `_ask_ends`; raises NotThere."""
        doubtful = self._compare_ends(replies, replica.server_time() - self._clock())
        if doubtful:
            raise NotThere(f"it has not the same messages of {', '.join(doubtful)}")
        self._checked = time.monotonic()

    async def _compare_prints(self, replica: ReplicaRoute) -> None:
        prints = await self._fetch_prints(replica.link, ENTER_TIMEOUT)
        other = [type for type, old in self._prints.items() if old not in (None, prints[type])]
        if other:
            raise NotThere(f"it has other messages of {', '.join(other)}")

    def take(self, batch: Batch, most: int) -> None:
        """Add what has been fetched to a batch, at most so many messages; see `positions`."""
        pending = self._pending
        if len(pending) <= most:
            found = list(pending)
            pending.clear()
        else:
            found = [pending.popleft() for _ in range(most)]
        last = {item.type: item for item in found}
        if CONTROL in last:
            control = [item for item in found if item.type == CONTROL]
            kept = [item for item in control if isinstance(item, Message)]
            batch.control += kept
            batch.control_lost |= len(kept) < len(control)
            found = [item for item in found if item.type != CONTROL]
        batch.messages += found
        self.positions.update({type: item.position for type, item in last.items()})

    async def _fill(self, link: AnyLink, replica: ReplicaRoute | None = None) -> None:
        if time.monotonic() - self._filled > BEHIND:
            if not self._apart:  # else those that are left have their turn first
                self._usual_count = self._count
                self._read_apart()
            self._count, self._apart_bytes, self._is_behind = self._safe_count(), 0, True
        command = self._ask_one(self._apart[-1]) if self._apart else self._ask_all()
        # The wait for news is over when the ends are asked for: where messages come rarely this saves
        # a round trip for each of them. They say nothing while there is more to read before them.
        is_calm = self._short_reads < BUSY_READS and not self._apart
        ends, most = self._ask_ends() if is_calm else [], self._count
        asked, patience = time.monotonic(), self._block + DEAD
        if replica is None:
            time_of = [(b"TIME",)] if ends else []
            reply, *ends = await link.call([command, *ends, *time_of], patience)
        else:
            reply, info, *ends = await link.call([command, INFO, *ends], patience)
            replica.check(info)
        self._filled = time.monotonic()
        self._short_reads = self._short_reads + 1 if self._filled - asked < CALM else 0
        await self._take_in(reply or [])
        if not ends or any(len(entries) >= most for _, entries in reply or []):
            return
        if replica is None:
            await self._take_ends(ends)
        else:
            self._take_ends_of(replica, ends)

    def _ask_all(self) -> Command:
        """Wait for news of all streams."""
        read = self._read
        ids = [b"0-%d" % read[type].seq for type in self._types]
        self._block = REST_BLOCK if self._seconds is not None and self._seconds.rests else BLOCK
        wait = int(self._block * 1000)
        return b"XREAD", b"COUNT", self._count, b"BLOCK", wait, b"STREAMS", *self._by_key, *ids

    def _ask_one(self, type: str) -> Command:
        """What there is of one stream."""
        id = b"0-%d" % self._read[type].seq
        return b"XREAD", b"COUNT", self._count, b"STREAMS", stream_key(type), id

    def _read_apart(self) -> None:
        """Read one stream at a time from now on, until all of them together bring little.

        An XREAD brings at least one entry of each stream, and the server holds all of it in memory.
        """
        self._apart, self._apart_bytes = list(self._types), 0

    def _safe_count(self) -> int:
        """Entries of one stream of which an answer is not too large, whatever they are."""
        return min(self._most, max(1, READ_BYTES // self._largest))

    def _end_apart(self, size: int, found: int) -> None:
        """One stream was read: go on with the next one, or with more of this one where that was little.

        Args:
            size: bytes of messages that the answer has brought.
            found: entries in it.
        """
        self._apart_bytes += size
        self._apart_found += found
        is_little = size < READ_BYTES // 4 and self._apart_bytes < READ_BYTES
        if (
            self._is_behind
            and found >= self._count
            and is_little
            and self._apart_found < self._most
        ):
            more = max(self._safe_count(), min(FIRST_COUNT, 2 * self._count))
            self._count = min(more, self._most - self._apart_found)
            return
        self._apart.pop()
        self._apart_found = 0
        if not self._is_behind:
            return
        self._count = self._safe_count()
        if not self._apart:
            self._is_behind = False
            if self._apart_bytes < READ_BYTES // 4:
                self._count = self._usual_count

    async def _take_in(self, reply: Sequence[Any]) -> None:
        """Take what an XREAD has brought."""
        size = 0
        for _, found in reply:
            for _, fields in found:
                size += len(fields[-1]) if fields else 0
        if size > READ_BYTES:
            self._count = max(1, self._count * READ_BYTES // size)
        if self._apart:
            self._end_apart(size, sum(len(found) for _, found in reply))
            size = self._apart_bytes
        if size > READ_BYTES and not self._apart:
            self._read_apart()
        elif 0 < size < READ_BYTES // 4 and not self._apart:
            self._count = min(self._most, 2 * self._count)
        for key, entries in reply:
            await self._add(self._by_key[key], entries)

    async def _add(self, type: str, entries: Sequence[Any]) -> None:
        """Take entries that follow the last one read, up to the first of another epoch.

        What no worker has written is left out, which makes a gap.
        """
        at = self._read[type]
        epoch, largest = at.epoch, self._largest
        messages: list[Message] = []
        newest, last, located = at.seq, None, False
        for entry in entries:
            message = to_message(type, entry, largest)
            if message is None or message.epoch != epoch:
                if not located:
                    self._add_messages(type, messages, last)
                    if self._replica is not None and self._replica.is_read:
                        raise NotThere(f"the primary has to say what follows in {type}")
                    messages, located = [], True
                    (found,) = await self._locate([type])
                    if self._follow(type, found):
                        return
                self._note_unreadable(type, entry)
                seq = seq_of(entry)
                if seq is None:
                    # No reading goes on past it, whatever the position.
                    self._damaged.add(type)
                    break
                newest = seq
                continue
            if message.seq <= newest:
                raise UnexpectedAnswer(f"the entry {message.seq} of {type} after {newest}")
            messages.append(message)
            newest, last = message.seq, entry
        self._add_messages(type, messages, last)
        if newest > self._read[type].seq:
            first = self._read[type].seq + 1
            self._skip(type, Gap(type, at.epoch, first, newest, "history"))

    def _add_messages(self, type: str, messages: Sequence[Message], last: Any) -> None:
        if messages:
            if ahead := self._ahead.get(type):
                for message in messages:
                    message.accepted -= ahead
            at = self._read[type]
            self._pending.extend(with_gaps(type, at.epoch, at.seq, messages))
            self._read[type] = messages[-1].position
            self._prints[type] = _fingerprint(last)

    def _note_unreadable(self, type: str, entry: Any) -> None:
        self.unreadable[type] += 1
        if self._log_limit.allows(type):
            logger.error(
                "The entry %s in the stream of %s is not a message of this service and is skipped"
                " (unreadable entries of this stream so far: %d)",
                entry[0].decode(errors="replace"),
                type,
                self.unreadable[type],
            )

    async def _repair(self, types: Iterable[str]) -> None:
        """Make keys usable again that another program has written to."""
        calls = [repair_type(type, self._worker) for type in types]
        log_repaired(await self._link.run(calls, ANSWER_TIMEOUT))
        self._damaged.clear()

    async def _check(self) -> None:
        """Compare all epochs and ends with what was read."""
        commands = [*self._ask_ends(), (b"TIME",)]
        await self._take_ends(await self._link.call(commands, ANSWER_TIMEOUT))

    async def _take_ends(self, answers: Sequence[Any]) -> None:
        """Compare what the primary has answered to `_ask_ends` and TIME."""
        *replies, server_time = answers
        ahead = int(server_time[0]) + int(server_time[1]) / 1e6 - self._clock()
        await self._follow_all(self._compare_ends(replies, ahead))
        self._checked = time.monotonic()

    def _ask_ends(self) -> list[Command]:
        return [(b"HMGET", meta_key(type), b"p", b"n", b"k") for type in self._types]

    def _compare_ends(self, replies: Sequence[Any], ahead: float) -> list[str]:
        """The types that are not as they were read: another epoch, or an earlier end.

        Args:
            replies: to `_ask_ends`.
            ahead: seconds that the server's clock is ahead of ours.
        """
        doubtful = []
        for type, (epoch, newest, shift) in zip(self._types, replies, strict=True):
            self._note_clock(type, ahead, shift)
            at = self._read[type]
            behind = newest is None or not newest.isdigit() or int(newest[:20]) < at.seq
            if epoch != at.epoch.encode() or behind:
                doubtful.append(type)
        return doubtful

    def _note_clock(self, type: str, ahead: float, shift: bytes | None) -> None:
        """Note how far a stream's clock is ahead: the server's, and what takes out its steps."""
        if shift is not None and _SHIFT.fullmatch(shift):
            ahead += int(shift) / 1e6
        # The time that an answer takes makes no difference between clocks.
        self._ahead[type] = ahead if abs(ahead) > CLOCK_NOISE else 0.0

    async def _resume(self) -> None:
        """On a new connection: besides what `_check` does, are these the same streams?"""
        prints = await self._fetch_prints(self._link)
        changed = [
            type
            for type, old in self._prints.items()
            if old is not None and prints[type] is not None and prints[type] != old
        ]
        await self._follow_all(changed, force=True)
        await self._check()
        if self._has_moved:
            self._has_moved = False
            return
        self.reconnects += 1
        logger.info("Reading from the backplane works again")

    async def _follow_all(self, types: Sequence[str], force: bool = False) -> None:
        if types:
            for type, found in zip(types, await self._locate(types, force), strict=True):
                self._follow(type, found)

    def _follow(self, type: str, found: _Located) -> bool:
        """Go over to another epoch; False if it is the one that is being read."""
        if found.epoch == self._read[type].epoch:
            return False
        last = max(found.base, found.oldest - 1)
        logger.warning("The stream of %s has a new epoch, after seq %d", type, last)
        self._skip(type, Gap(type, found.epoch, 1, last, "epoch"))
        return True

    def _skip(self, type: str, gap: Gap) -> None:
        self._pending.append(gap)
        self._read[type] = Position(gap.epoch, gap.last)
        self._prints[type] = None

    async def _locate(self, types: Iterable[str], force: bool = False) -> list[_Located]:
        calls = []
        for type in types:
            known = self._read.get(type, Position("", 0))
            keys = (2, stream_key(type), meta_key(type))
            known_as = (known.epoch, known.seq, b"1" if force else b"")
            calls.append((LOCATE, (*keys, new_epoch(), *known_as)))
        replies = await self._link.run(calls, ANSWER_TIMEOUT)
        return [
            _Located(epoch.decode(), int(base), int(newest), int(oldest))
            for epoch, base, newest, oldest in replies
        ]

    async def _fetch_prints(
        self, link: AnyLink, timeout: float = ANSWER_TIMEOUT
    ) -> dict[str, tuple[bytes, int] | None]:
        ids = {type: entry_id(at.seq) for type, at in self._read.items()}
        replies = await link.call(
            [(b"XRANGE", stream_key(type), id, id) for type, id in ids.items()], timeout
        )
        return {
            type: _fingerprint(reply[0]) if reply else None
            for type, reply in zip(ids, replies, strict=True)
        }


def _fingerprint(entry: Any) -> tuple[bytes, int] | None:
    fields = entry[1]
    if fields is None or len(fields) <= 5:
        return None
    return bytes(fields[5]), zlib.crc32(fields[-1])
