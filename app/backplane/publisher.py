"""Stores batches of messages in their streams, each exactly once however often it is tried."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from app.backplane.client import (
    FAILURES,
    AnyBackplane,
    Argument,
    Command,
    FailedCalls,
    Link,
    new_backoff,
)
from app.backplane.entries import body_name
from app.backplane.faults import (
    MISREAD,
    Fault,
    TooFewReplicas,
    UnexpectedAnswer,
    explain,
    of_fault,
    unexpected,
)
from app.backplane.repair import is_damage, log_repaired, repair_type
from app.backplane.scripts import (
    ONCE_MAX,
    ONCE_WINDOW,
    PUBLISH,
    Call,
    batch_key,
    meta_key,
    new_epoch,
    once_keys,
    stream_key,
)
from app.backplane.wire import Outcome
from app.clock import running_time
from app.errors import BackplaneUnavailable
from app.types import Draft, Position

logger = logging.getLogger(__name__)

ATTEMPT_TIMEOUT = 2.0
"""Seconds after which an unanswered batch is sent again over a new connection."""

CUT_SHORT = 0.01
"""Seconds before the deadline within which an attempt that is over had less time than others."""

FAULT_MEMORY = 60.0
"""Seconds for which a fault of one type is remembered when nothing more is published to it."""

_ANCHORED = 3600.0
"""Seconds for which a stream's time that was read once tells what it should be."""
_OLDEST = 60_000_000
"""Microseconds: no message waits longer to be stored. What looks older is a step of our own clock."""

WAIT_TIMEOUT = 1.0
"""Seconds for which the server waits for its replicas (BACKPLANE_WAIT) before a batch is tried again."""

MAX_REPAIRS = 3
"""Maximum repairs of the keys of a type for one batch."""

NOWHERE = Position("", 0)


class Stored(NamedTuple):
    """What `scripts.PUBLISH` has answered."""

    positions: list[Position]
    """Of each message."""
    stream_time: int
    """Microseconds; 0: the batch was stored before."""


Landed = Callable[[list[Position | BackplaneUnavailable] | None], object]

UNPUBLISHED = "Publishing is unavailable"
"""How the message of an error begins."""


class _Batch:
    """Messages of some types that are tried until each type is answered for good, or the time is up.

    Args:
        calls: of each type.
        counts: how many messages each of them is to store.
        deadline: loop time at which to give up.
    """

    def __init__(
        self, calls: Mapping[str, Call], counts: Mapping[str, int], deadline: float
    ) -> None:
        self.left = dict(calls)
        """What is not answered yet."""
        self.counts = counts
        self.fault: Fault | None = None
        """Why the last attempt is repeated."""
        self.repaired: Counter[str] = Counter()
        """How often the keys of a type were repaired."""
        self.pauses = new_backoff()
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._done: dict[str, Stored | BackplaneUnavailable] = {}

    def seconds(self) -> float:
        """How much time is left."""
        return self._deadline - self._loop.time()

    def settle(self, type: str, reply: Stored | BackplaneUnavailable) -> None:
        """Note what has come of a type."""
        self._done[type] = reply
        del self.left[type]

    def replies(self) -> dict[str, Stored | BackplaneUnavailable]:
        """What has come of each type; to be asked once.

        Raises:
            BackplaneUnavailable: nothing is known to be stored.
        """
        fault = self.fault
        for type in list(self.left):
            if fault is not None and fault.answered:
                self.settle(type, of_fault(fault, UNPUBLISHED))
            else:
                self.settle(type, BackplaneUnavailable())
        done, self._done = self._done, {}
        failed = [reply for reply in done.values() if isinstance(reply, BackplaneUnavailable)]
        if len(failed) == len(done):
            try:
                raise failed[0]
            finally:
                # The traceback would lead back to the error, in a cycle with all the bodies.
                del failed, done
        return done


class StreamPublisher:
    """Sends one batch at a time, under a number that the server remembers.

    What is not answered is retried under its number until its time is up, so a message belongs
    to one number for ever and the server can tell a retry. Where waiting cannot help it fails at
    once. The messages of one type share their fate; those of others may have another.

    Args:
        seen: the newest messages that this worker's reader knows. A stream that has fallen back
            below them gets its new epoch before anything is added to it.
        clock: Unix time in seconds, for the age of history and of chosen ids; None: the server's.
        running: seconds of a clock that makes no steps, by which steps of the server's are seen.
        only: the only type that it stores; None: it stores all.
    """

    def __init__(
        self,
        backplane: AnyBackplane,
        seen: Mapping[str, Position],
        clock: Callable[[], float] | None = None,
        running: Callable[[], float] = running_time,
        only: str | None = None,
    ) -> None:
        self._backplane = backplane
        self._link = backplane.publishing_calls(only)
        self._seen = seen
        self._clock = clock
        self._running = running
        self._anchors: dict[str, tuple[int, float]] = {}
        """By type the time of its stream (us), and `running` then."""
        self._faults: dict[str, tuple[Fault, float]] = {}
        """By type, or '' for the server's, the last fault and when it was met; not those that are over."""
        self._stored: dict[str, Position] = {}
        """By type the newest message that this worker has stored."""
        self._number = 0
        """Of the newest batch: by it the script recognises one that is tried again."""
        self._quick = self._link if isinstance(self._link, Link) else None
        """The connection, where a batch can be begun without a task."""
        self._begun: Outcome | None = None
        """What has come of a batch that was begun so, where it has to be tried again."""
        settings = backplane.settings
        self._limits: tuple[Argument, ...] = (
            settings.history_size,
            int(settings.recovery_window * 1e6),
            settings.history_bytes,
            int(ONCE_WINDOW * 1e6),
            ONCE_MAX,
        )
        self._keys: dict[str, tuple[Argument, ...]] = {}
        """By type how the arguments of the script begin: its keys."""
        self._replicas = settings.backplane_wait
        wait = (b"WAIT", self._replicas, int(WAIT_TIMEOUT * 1000))
        self._last: tuple[Command, ...] = ((b"ROLE",), wait, (b"ROLE",)) if self._replicas else ()

    @property
    def fault(self) -> Fault | None:
        """Why publishing does not work, by the last attempts; None: it does."""
        for type, (fault, since) in list(self._faults.items()):
            if not type or time.monotonic() - since < FAULT_MEMORY:
                return fault
            del self._faults[type]
        return None

    def begin(self, drafts: Sequence[Draft], landed: Landed) -> bool:
        """Store a batch without a task, where that takes no more than one answer.

        Args:
            drafts: see `store`.
            landed: called with the position of each message; or with None, and `store` is to be
                awaited next, with the same messages. Raises nothing.

        Returns:
            Whether it is begun; else `store` is to be awaited.
        """
        type = drafts[0].type
        if (
            self._quick is None
            or self._faults
            or self._replicas
            or (len(drafts) > 1 and any(draft.type != type for draft in drafts))
        ):
            return False
        self._number += 1
        done = functools.partial(self._land, type, len(drafts), landed)
        return self._quick.begin(self._call(type, drafts), ATTEMPT_TIMEOUT, done)

    def _land(self, type: str, count: int, landed: Landed, outcome: Outcome) -> None:
        if isinstance(outcome, list) and not isinstance(outcome[0], Exception):
            stored = _stored(outcome[0], count)
            if isinstance(stored, Stored):
                landed(self._outcomes(type, stored, count))
                return
        self._begun = outcome
        landed(None)

    async def store(
        self, drafts: Sequence[Draft], deadline: float
    ) -> list[Position | BackplaneUnavailable]:
        """Store a batch and return the position of each message, or why it has none.

        Args:
            drafts: messages of any types; within a type they keep their order.
            deadline: loop time at which to give up.

        Raises:
            BackplaneUnavailable: nothing is known to be stored. Without an answer in time some
                messages may have been, all those of a type or none.
        """
        begun, self._begun = self._begun, None
        if begun is None:
            self._number += 1
        type = drafts[0].type
        if len(drafts) == 1 or all(draft.type == type for draft in drafts):
            call = self._call(type, drafts)
            replies = await self._deliver({type: call}, {type: len(drafts)}, deadline, begun)
            return self._outcomes(type, replies[type], len(drafts))
        places: dict[str, list[int]] = {}
        for place, draft in enumerate(drafts):
            places.setdefault(draft.type, []).append(place)
        calls = {
            type: self._call(type, [drafts[place] for place in order])
            for type, order in places.items()
        }
        counts = {type: len(order) for type, order in places.items()}
        replies = await self._deliver(calls, counts, deadline)
        outcomes: list[Position | BackplaneUnavailable] = [NOWHERE] * len(drafts)
        for type, order in places.items():
            found = self._outcomes(type, replies[type], len(order))
            for place, outcome in zip(order, found, strict=True):
                outcomes[place] = outcome
        return outcomes

    def _outcomes(
        self, type: str, reply: Stored | BackplaneUnavailable, count: int
    ) -> list[Position | BackplaneUnavailable]:
        """What came of `count` messages of a type."""
        if isinstance(reply, BackplaneUnavailable):
            return [reply] * count
        positions, stream_time = reply
        if stream_time:
            self._anchors[type] = stream_time, self._running()
        self._stored[type] = positions[-1]
        return list(positions)

    async def _deliver(
        self,
        calls: Mapping[str, Call],
        counts: Mapping[str, int],
        deadline: float,
        begun: Outcome | None = None,
    ) -> dict[str, Stored | BackplaneUnavailable]:
        """The reply of each type, or its error.

        Args:
            calls: of each type.
            counts: how many messages each of them is to store.
            deadline: loop time at which to give up.
            begun: what has come of the first attempt, where there was one.
        """
        batch = _Batch(calls, counts, deadline)
        while batch.left and batch.seconds() > 0:
            link, types = self._link, list(batch.left)
            answers = await self._attempt(batch, begun)
            begun = None
            if answers is None:
                break
            if any(isinstance(answer, UnexpectedAnswer) for answer in answers):
                await link.distrust()
            damaged = _damaged(types, answers)
            if damaged and all(batch.repaired[type] < MAX_REPAIRS for type in damaged):
                # Retried as soon as the keys are repaired; the others are answered then as well.
                batch.repaired.update(damaged)
                await self._repair(damaged)
                continue
            fault = batch.fault = self._take(batch, types, answers)
            if fault is not None and (link.connected or not fault.elsewhere):
                await asyncio.sleep(min(batch.pauses.take(), max(0.0, batch.seconds())))
        return batch.replies()

    async def _attempt(
        self, batch: _Batch, begun: Outcome | None
    ) -> list[Stored | Exception] | None:
        """Run the scripts of a batch once, or end an attempt that is begun.

        Returns:
            What each type has stored, or its error. None: the time was too short for an answer, so
            what the attempt before this one met is the cause.
        """
        counts = [batch.counts[type] for type in batch.left]
        try:
            answers = await self._try(list(batch.left.values()), batch.seconds(), begun)
        except FailedCalls as error:
            answers = error.answers
        except FAILURES as error:
            is_late = isinstance(error, TimeoutError) and batch.seconds() < CUT_SHORT
            if batch.fault is not None and is_late:
                return None
            # Its traceback leads to this frame, and so back to itself, with all the bodies.
            return [error.with_traceback(None)] * len(counts)
        return self._read(answers, counts)

    def _try(
        self,
        calls: Sequence[Call],
        seconds: float,
        begun: Outcome | None,
    ) -> Coroutine[Any, Any, list[Any]]:
        timeout = min(seconds, ATTEMPT_TIMEOUT)
        if begun is None or self._quick is None:
            return self._link.run(calls, timeout, self._last)
        return self._quick.run(calls, timeout, begun=begun)

    def _read(self, answers: list[Any], counts: Sequence[int]) -> list[Stored | Exception]:
        """What the scripts have stored, or the error, one for each number of messages."""
        answers = self._confirmed(answers)
        return [
            answer if isinstance(answer, Exception) else _stored(answer, count)
            for answer, count in zip(answers, counts, strict=True)
        ]

    def _confirmed(self, answers: list[Any]) -> list[Any]:
        """The answers of the scripts, as errors where too few replicas have what was stored."""
        if not self._replicas:
            return answers
        *answers, stored, reached, role = answers
        error: Exception | None = None
        if isinstance(reached, Exception):
            error = reached
        else:
            try:
                count = _confirmations(stored, int(reached), role)
            except MISREAD as misread:
                error = unexpected(misread)
            else:
                if count < self._replicas:
                    error = TooFewReplicas(count, self._replicas)
                    self._backplane.count(explain(error))
        if error is None:
            return answers
        return [answer if isinstance(answer, Exception) else error for answer in answers]

    async def _repair(self, types: Iterable[str]) -> None:
        """Make the keys of types usable again that another program has written to."""
        calls = [repair_type(type, self._backplane.worker_name) for type in types]
        with contextlib.suppress(*FAILURES):
            log_repaired(await self._link.run(calls, ATTEMPT_TIMEOUT))

    def _take(
        self, batch: _Batch, types: Sequence[str], answers: Sequence[Stored | Exception]
    ) -> Fault | None:
        """Note what is answered for good; the first fault of what is to be tried again, if anything is."""
        # A link that was closed leads to another server next time; one that was kept is new.
        is_new = self._link.connected
        faults = []
        for type, answer in zip(types, answers, strict=True):
            if not isinstance(answer, Exception):
                batch.settle(type, answer)
                self._forget(type)
                continue
            fault = explain(answer)
            self._note(type, fault)
            if fault.passes or (fault.elsewhere and not is_new):
                faults.append(fault)
            else:
                batch.settle(type, of_fault(fault, UNPUBLISHED))
        return faults[0] if faults else None

    def _note(self, type: str, fault: Fault) -> None:
        place = "" if fault.of_server else type
        known = self._faults.get(place)
        self._faults[place] = fault, time.monotonic()
        if known is None or known[0].cause != fault.cause:
            level = logging.WARNING if fault.passes else logging.ERROR
            logger.log(level, "Cannot publish to %s: %s", type, fault.words)

    def _forget(self, type: str) -> None:
        """Something was stored: the server takes messages, and so does this type."""
        for place in ("", type) if self._faults else ():
            if self._faults.pop(place, None) is not None:
                logger.info("Publishing to %s works again", place or "all types")

    def _call(self, type: str, drafts: Sequence[Draft]) -> Call:
        keys = self._keys.get(type)
        if keys is None:
            own = (stream_key(type), meta_key(type), batch_key(type, self._backplane.worker_name))
            keys = self._keys[type] = (5, *own, *once_keys(type))
        known = self._known(type)
        now = None if self._clock is None else int(self._clock() * 1e6)
        wall = int(time.time() * 1e6)
        arguments: list[Argument] = [
            *keys,
            self._number,
            b"" if now is None else now,
            new_epoch(),
            known.epoch,
            known.seq,
            *self._limits,
            self._expected(type),
        ]
        # Those of one call were accepted at one time, and most have the same event.
        alike = itertools.groupby(drafts, key=_LIKENESS)
        for (event, accepted, has_id), group in alike:
            found = list(group)
            age = _age(accepted, now or wall, bounded=now is None)
            arguments += (len(found), event, age, b"1" if has_id else b"")
            for draft in found:
                body = draft.body
                arguments += (
                    (body_name(body), body, draft.id) if has_id else (body_name(body), body)
                )
        return PUBLISH, arguments

    def _expected(self, type: str) -> Argument:
        """What the time of a stream should be, in us; empty where that is not known."""
        stream_time, then = self._anchors.get(type, (0, -math.inf))
        passed = self._running() - then
        return stream_time + int(passed * 1e6) if passed < _ANCHORED else b""

    def _known(self, type: str) -> Position:
        seen = self._seen.get(type, NOWHERE)
        stored = self._stored.get(type, NOWHERE)
        if stored.epoch == seen.epoch and stored.seq > seen.seq:
            return stored
        return seen


_LIKENESS = operator.attrgetter("event", "accepted", "once")
"""What the script is given once for messages in a row that have it in common."""


def _age(accepted: float, now: int, *, bounded: bool) -> int:
    """Microseconds since a message was accepted; `bounded`: where our own clock may make steps."""
    age = now - int(accepted * 1e6)
    return min(max(0, age), _OLDEST) if bounded else age


def _confirmations(before: Any, reached: int, after: Any) -> int:
    """Replicas that have what was stored, without those of machines (`replication`), which save nothing.

    Args:
        before: the answer to ROLE before WAIT.
        reached: the answer to WAIT.
        after: the answer to ROLE after it. Where either is an error, `reached` has to do.
    """
    if not (isinstance(before, list) and isinstance(after, list) and len(after) == 3):
        return reached
    if all(int(port) for _, port, _ in after[2]):
        return reached
    return sum(int(port) > 0 and int(at) >= int(before[1]) for _, port, at in after[2])


def _damaged(types: Sequence[str], answers: Sequence[Any]) -> set[str]:
    return {
        type
        for type, answer in zip(types, answers, strict=True)
        if isinstance(answer, Exception) and is_damage(answer)
    }


def _stored(answer: Any, count: int) -> Stored | UnexpectedAnswer:
    """What a script has answered that was to store so many messages."""
    try:
        result, stream_time = answer
        positions = parse_result(result)
        if len(positions) != count:
            raise ValueError(f"{len(positions)} positions of {count} messages")
        return Stored(positions, int(stream_time or 0))
    except MISREAD as error:
        return unexpected(error)


def parse_result(reply: bytes) -> list[Position]:
    """Positions from what the script returns; see `scripts.PUBLISH`."""
    epoch, *rest = reply.decode().split(" ")
    if len(rest) == 2:
        first, count = int(rest[0]), int(rest[1])
        return [Position(epoch, seq) for seq in range(first, first + count)]
    positions = []
    for word in rest[0].split(","):
        seq, _, other = word.partition(":")
        positions.append(Position(other or epoch, int(seq), maybe_known=True))
    return positions
