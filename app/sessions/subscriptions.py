"""What sessions are subscribed to, and where each type begins for them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.backoff import Backoff
from app.backplane.history import History
from app.broadcast.catchup import CatchUp
from app.broadcast.fanout import FanOut
from app.metrics import Metrics
from app.protocol import requests
from app.protocol.envelope import answer, encode_json
from app.protocol.requests import Request, Subscribe
from app.sessions.pages import READ_SECONDS, Pages
from app.sessions.rates import Rates
from app.sessions.session import HELD, Session, Work
from app.transport.connection import OPEN
from app.types import Gap, Message, Position

FIRST_AHEAD_PAUSE, LONGEST_AHEAD_PAUSE = 0.02, 0.5
"""Seconds before a recovery looks again whether this worker has caught up; then twice the last."""
AHEAD_SECONDS = 2.0
"""How long a recovery of any number of types waits for this worker to reach what the client saw on a
faster one."""
MAX_DESCRIBED = 1024
"""Combinations of types whose `subscribed` is kept, until the next flush."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a type begins to flow for a client that recovers."""

    position: Position
    recovered: bool
    gap: Gap | None = None


class Subscriptions:
    """Changes what sessions are subscribed to.

    Args:
        known: the types that there are.
        fanout: has the groups that sessions are in.
        catchup: lets new types flow.
        history: where a client that recovers goes on.
        pages: send the newest messages to those that ask for them.
        rates: charges the sessions for reads.
        metrics: counts gaps.
    """

    def __init__(
        self,
        *,
        known: frozenset[str],
        fanout: FanOut,
        catchup: CatchUp,
        history: History,
        pages: Pages,
        rates: Rates,
        metrics: Metrics,
    ) -> None:
        self._known = known
        self._fanout = fanout
        self._catchup = catchup
        self._history = history
        self._pages = pages
        self._rates = rates
        self._metrics = metrics
        self._described: dict[tuple[frozenset[str], bool], bytes] = {}
        """What `subscribed` says to sessions that stand at `_described_at`, by types and batch option."""
        self._described_at: Mapping[str, Position] | None = None

    # By request.

    def subscribe(self, session: Session, request: Request) -> Work | None:
        """Carry out `subscribe`; returns what remains to be awaited.

        Raises:
            ClientError: the request is not valid; what is returned raises BACKPLANE_UNAVAILABLE.
        """
        wanted = requests.parse_subscribe(request.payload, session.types)
        flowing = frozenset() if session.phase == HELD else session.group.types
        if not flowing.isdisjoint(wanted.recover):
            # A client that repeats its request, since it has not got the answer.
            recover = {t: at for t, at in wanted.recover.items() if t not in flowing}
            wanted = dataclasses.replace(wanted, recover=recover)
        if wanted.recover or wanted.history is not None:
            return self._subscribe_with_past(session, request, wanted)
        self._begin(session, request, wanted, {}, {})
        return None

    def unsubscribe(self, session: Session, request: Request) -> None:
        """Carry out `unsubscribe`; raises ClientError."""
        fields = request.payload if isinstance(request.payload, dict) else {}
        gone = requests.parse_types(fields.get("types"), self._known)
        left = session.group.types - gone
        self.move(session, left, session.group.batch)
        session.answer(request, "unsubscribed", {"types": sorted(left)})
        session.send_offset()

    async def _subscribe_with_past(
        self, session: Session, request: Request, wanted: Subscribe
    ) -> None:
        starts = await self.find_starts(session, wanted.recover)
        ends: dict[str, Position] = {}
        if wanted.history is not None:
            # What is stored meanwhile must not fall between the history and live messages.
            before = self._fanout.positions
            new = wanted.types - starts.keys()
            if session.phase != HELD:
                new -= session.group.types
            self._rates.charge(session, READ_SECONDS * len(new))
            ends = {type: await self._pages.find_end(type, before[type]) for type in sorted(new)}
            starts |= {type: Start(end, recovered=False) for type, end in ends.items()}
        if session.state == OPEN:
            self._begin(session, request, wanted, starts, ends)

    def _begin(
        self,
        session: Session,
        request: Request,
        wanted: Subscribe,
        starts: Mapping[str, Start],
        ends: Mapping[str, Position],
    ) -> None:
        batch = session.group.batch if wanted.batch is None else wanted.batch
        positions = {type: start.position for type, start in starts.items()}
        self.move(session, session.group.types | wanted.types, batch, positions, start=False)
        data = self._describe(session, wanted.types, batch, starts)
        session.reply(request, "subscribed", answer("config", "subscribed", data, request.id))
        for start in starts.values():
            if start.gap is not None:
                self._metrics.gaps[start.gap.reason].inc()
                session.send(session.codec.gap(start.gap))
        session.send_offset()
        if wanted.history is not None:
            self._pages.plan(session, wanted.types, wanted.history, ends, request.id)
        self._catchup.start(session)

    def _describe(
        self, session: Session, types: frozenset[str], batch: bool, starts: Mapping[str, Start]
    ) -> bytes:
        """What `subscribed` says, as JSON."""
        track, live = session.track, self._fanout.positions
        assert track is not None
        # Most clients of a storm subscribe to the same types at the same position.
        is_common = not starts and all(track[type] is live[type] for type in types)
        if is_common:
            if self._described_at is not live:
                self._described_at = live
                self._described.clear()
            known = self._described.get((types, batch))
            if known is not None:
                return known
        described = {
            type: {
                "epoch": live[type].epoch,
                "seq": live[type].seq,
                "recovered": type in starts and starts[type].recovered,
                "from": track[type].seq + 1,
            }
            for type in sorted(types)
        }
        data = encode_json({"types": described, "batch": batch})
        if is_common and len(self._described) < MAX_DESCRIBED:
            self._described[types, batch] = data
        return data

    # By rooms, and in all ways.

    def add(self, session: Session, type: str) -> None:
        """Subscribe a session to one type more."""
        if type not in session.group.types:
            self.move(session, session.group.types | {type}, session.group.batch)
            session.send_offset()

    def remove(self, session: Session, type: str) -> None:
        """Take one type away from a session."""
        if type in session.group.types:
            self.move(session, session.group.types - {type}, session.group.batch)
            session.send_offset()

    def move(
        self,
        session: Session,
        types: Iterable[str],
        batch: bool,
        positions: Mapping[str, Position] | None = None,
        *,
        start: bool = True,
    ) -> None:
        """Change what a session is subscribed to; new types begin where live is.

        Args:
            session: whose subscriptions change.
            types: all types that it has from now on.
            batch: whether it gets batches.
            positions: where types begin instead.
            start: let them flow at once, if nothing holds the session back.
        """
        chosen = frozenset(types)
        live = self._fanout.positions
        before = self._fanout.leave(session) if session.track is None else session.track
        had = session.group.types
        track = {type: before[type] if type in had else live[type] for type in chosen}
        track.update(positions or {})
        session.track = track
        session.group = self._fanout.group(session.codec, chosen, batch)
        if start:
            self._catchup.start(session)

    # Recovery.

    async def find_starts(
        self, session: Session, positions: Mapping[str, Position]
    ) -> dict[str, Start]:
        """Where a client that has seen these positions goes on; its session is charged for the reads.

        Raises:
            BackplaneUnavailable: a stream cannot be read.
        """
        live = self._fanout.positions
        behind = sum(at != live[type] for type, at in positions.items())
        self._rates.charge(session, READ_SECONDS * behind)
        deadline = time.monotonic() + AHEAD_SECONDS
        return {type: await self._find_start(type, at, deadline) for type, at in positions.items()}

    async def _find_start(self, type: str, position: Position, deadline: float) -> Start:
        pauses = Backoff(FIRST_AHEAD_PAUSE, LONGEST_AHEAD_PAUSE)
        # Not woken by each flush: thousands that claim to be far ahead would cost every flush a
        # step of each of their tasks.
        while self._is_ahead(type, position) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(pauses.take())
        if position == self._fanout.positions[type]:
            return Start(position, recovered=True)
        if self._is_behind(type, position):
            items = await self._history.after(type, position.epoch, position.seq, 1)
            if items and isinstance(items[0], Message):
                return Start(position, recovered=True)
        # The newest message stands for the state; what lies between will not come.
        live = self._fanout.positions[type]
        start = Position(live.epoch, max(0, live.seq - 1))
        if self._is_behind(type, position):
            gap = Gap(type, live.epoch, position.seq + 1, start.seq, "history")
        else:
            gap = Gap(type, live.epoch, 1, start.seq, "epoch")
        return Start(start, False, gap)

    def _is_behind(self, type: str, position: Position) -> bool:
        live = self._fanout.positions[type]
        return position.epoch == live.epoch and position.seq < live.seq

    def _is_ahead(self, type: str, position: Position) -> bool:
        live = self._fanout.positions[type]
        return position.epoch == live.epoch and position.seq > live.seq
