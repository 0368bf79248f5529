"""Keeps the list of the users that are subscribed to each type, and announces those that come and go.

Once a second each worker looks at its own sessions and says what has changed since; nothing is done
when a client subscribes. One of the workers publishes at most one `join` and one `leave` a second
for all of them (app/backplane/attendance.py has the state that they share).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from app.backplane.attendance import PIECE, ROWS, AttendanceStore, Change
from app.backplane.client import FAILURES
from app.backplane.faults import explain
from app.backplane.worker_names import Place, place_of, place_of_row
from app.broadcast.subscriber import Group
from app.errors import ClientError
from app.log_limit import LogLimit
from app.metrics import Metrics
from app.ports import Slots
from app.protocol.envelope import encode_json
from app.protocol.schema.limits import MAX_ANNOUNCED, MAX_ANNOUNCED_BYTES
from app.seconds import next_second
from app.sessions.registry import Registry
from app.supervisor import Supervisor
from app.transport.connection import OPEN

logger = logging.getLogger("realtime.worker")

RENEWAL = 60.0
"""Seconds after which the state is kept for another `KEPT`."""
SLICE = 500
"""Sessions that are looked at before the loop gets a turn: some 200 us."""
MOST_CHANGES = 5_000
"""Users whose change one look tells; after a storm it takes longer."""
MOST_ANNOUNCED = 20_000
"""Changes that one announcement counts; later ones belong to the next."""
MOST_PIECES = 50
"""Pieces of gone workers that are removed in one turn."""
TYPE = "system"
"""Of the messages that announce."""

Publish = Callable[[str, str, Any], Awaitable[object]]
"""Publishes type, event and data; raises `ClientError` when the message is not in the stream."""


class Attendance:
    """What one worker does for the list.

    Args:
        store: of the list.
        registry: the sessions of this worker.
        slots: tell which workers this machine has.
        kept: types whose users are kept.
        announced: those of them that are announced.
        publish: how to publish.
        metrics: counts what was announced, and what was left out.
        worker_name: names this worker among all.
    """

    def __init__(
        self,
        store: AttendanceStore,
        registry: Registry,
        slots: Slots,
        *,
        kept: frozenset[str],
        announced: frozenset[str],
        publish: Publish,
        metrics: Metrics,
        worker_name: str,
    ) -> None:
        self._store = store
        self._registry = registry
        self._slots = slots
        self._kept = kept
        self._announced = announced
        self._publish = publish
        self._metrics = metrics
        self._machine, self._own = place_of(worker_name.encode())
        self._shown: dict[str, str | None] = {}
        """What the store has of this worker by user; None: that is not known."""
        self._absent: frozenset[str] = frozenset()
        """Users that are shown, and that the last look has not found."""
        self._texts: dict[tuple[frozenset[str], ...], str] = {}
        self._living: set[Place] = set()
        """Rows and generations of the workers of this machine, when gone ones were last looked for."""
        self._renewed = float("-inf")
        self._log_limit = LogLimit()
        self._task: asyncio.Task[None] | None = None

    def start(self, supervisor: Supervisor) -> None:
        """Begin to look."""
        self._task = supervisor.start("attendance", self.run, vital=False)

    async def close(self) -> None:
        """Stop; what this worker has said counts no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        try:
            await self._store.end_own()
        except FAILURES as error:
            logger.info("The lease of this worker's users ends by itself: %s", explain(error).words)

    async def run(self) -> None:
        """Look once a second for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await next_second()
            await self.look(loop.time())

    async def look(self, now: float) -> None:
        """Say what has changed, and do what is to be done for all where this worker has the turn.

        Args:
            now: monotonic seconds.
        """
        try:
            await self._show(await self._find(), now)
            await self._end_gone()
            await self._tend()
        except (*FAILURES, ClientError) as error:
            if self._log_limit.allows("failed"):
                words = error.message if isinstance(error, ClientError) else explain(error).words
                logger.warning("The list of users is not up to date: %s", words)

    # What this worker has.

    async def _find(self) -> dict[str, str]:
        """What the users of this worker are subscribed to."""
        first: dict[str, Group] = {}
        more: dict[str, list[Group]] = {}
        sessions = self._registry.all()
        for start in range(0, len(sessions), SLICE):
            if start:
                await asyncio.sleep(0)
            for session in sessions[start : start + SLICE]:
                user = session.user
                if user is None or not session.welcomed or session.state != OPEN:
                    continue
                if user not in first:
                    first[user] = session.group
                else:
                    more.setdefault(user, [first[user]]).append(session.group)
        found = {user: self._text((group.types,)) for user, group in first.items()}
        for user, groups in more.items():
            found[user] = self._text(tuple(group.types for group in groups))
        return {user: text for user, text in found.items() if text}

    def _text(self, types: tuple[frozenset[str], ...]) -> str:
        text = self._texts.get(types)
        if text is None:
            counts = Counter(name for names in types for name in names & self._kept)
            if len(self._texts) >= SLICE:
                self._texts.clear()
            text = ",".join(f"{name}:{counts[name]}" for name in sorted(counts))
            self._texts[types] = text
        return text

    async def _show(self, found: Mapping[str, str], now: float) -> None:
        shown = self._shown
        absent = frozenset(shown.keys() - found.keys())
        # A connection that passes to another worker is on neither for a moment, so what is gone
        # is said at the second look.
        gone = absent & self._absent
        self._absent = absent - gone
        changes = [(user, "") for user in gone]
        changes += [(user, text) for user, text in found.items() if shown.get(user) != text]
        changes = changes[:MOST_CHANGES]
        self._absent |= gone.difference(user for user, _ in changes)
        renew = now - self._renewed >= RENEWAL
        for start in range(0, max(1, len(changes)), PIECE):
            piece = changes[start : start + PIECE]
            shown.update(dict.fromkeys((user for user, _ in piece), None))
            kept, refused = await self._store.show(piece, renew=renew and not start)
            for user, text in piece:
                if text:
                    shown[user] = text
                else:
                    del shown[user]
            for user in refused:
                shown.pop(user, None)
            self._metrics.attendance_refused.inc(len(refused))
        if renew:
            self._renewed = now
        if kept != len(shown) and None not in shown.values():
            # The backplane has lost something, or has taken this worker for gone: say all of it again.
            shown.update(dict.fromkeys(await self._store.shown()))
            shown.update(dict.fromkeys(shown))

    # What one worker does for all.

    async def _end_gone(self) -> None:
        """End the leases of workers of this machine that are gone."""
        living = self._rows()
        if living == self._living or self._own not in living:
            return
        workers = await self._store.workers()
        # Read after the names: a worker has its row before it has a name there.
        living = self._rows()
        places = {worker: place_of(worker) for worker in workers}
        gone = [
            worker
            for worker, (machine, place) in places.items()
            if machine == self._machine and place not in living
        ]
        if gone:
            await self._store.end(gone)
        self._living = living

    def _rows(self) -> set[Place]:
        return set(map(place_of_row, self._slots.rows()))

    async def _tend(self) -> None:
        turn, pages = await self._store.take_turn(), 0
        for _ in range(MOST_PIECES):
            if turn is None or not turn.has_more:
                break
            turn = await self._store.take_turn()
        if turn is None or not turn.changes:
            return
        changes = []
        while turn is not None and turn.changes:
            changes += turn.changes
            if len(changes) >= MOST_ANNOUNCED:
                break
            pages += 1
            turn = await self._store.take_turn(pages * ROWS)
        await self._announce(changes)

    async def _announce(self, changes: Sequence[Change]) -> None:
        """Publish the users that came and those that went, then note that."""
        known: dict[str, frozenset[str]] = {}
        for event, is_new in (("join", True), ("leave", False)):
            users: dict[str, frozenset[str]] = {}
            done: list[tuple[Change, frozenset[str]]] = []
            for change in changes:
                if change.is_new != is_new:
                    continue
                before = known.get(change.user, change.announced)
                now = change.types & self._announced
                news = now - before if is_new else (before - now) & self._announced
                known[change.user] = before | now if is_new else before & now
                done.append((change, known[change.user]))
                if news:
                    users[change.user] = news
            if users:
                await self._publish(TYPE, event, self._describe(event, users))
            for start in range(0, len(done), PIECE):
                piece = done[start : start + PIECE]
                await self._store.confirm(piece, was_published=bool(users))

    def _describe(self, event: str, users: Mapping[str, frozenset[str]]) -> dict[str, object]:
        """What a message says: some users by name, and how many there are."""
        rows: list[dict[str, object]] = []
        size = 0
        for user in sorted(users)[:MAX_ANNOUNCED]:
            row: dict[str, object] = {"user": user, "types": sorted(users[user])}
            size += len(encode_json(row)) + 1
            if size > MAX_ANNOUNCED_BYTES:
                break
            rows.append(row)
        self._metrics.announced[event].inc(len(users))
        self._metrics.announced_unnamed.inc(len(users) - len(rows))
        return {"users": rows, "total": len(users)}
