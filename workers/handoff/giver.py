"""What a worker does with its connections when it leaves: gives them to its heirs, batch by batch.

See `workers/handoff/channel.py` for the conversation and `app/sessions/handoff/transfer.py` for the
sessions.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.sessions.handoff import shape
from app.sessions.handoff.transfer import Batch, Transfer
from app.types import Position
from workers.handoff import http as http_handoff
from workers.handoff.channel import BATCH, DEATH_SECONDS, LISTENERS, Broken, Giver, Heir
from workers.handoff.http import HttpHandoff, HttpParcel
from workers.shared import paths
from workers.shared.processes import start_time
from workers.shared.slots import READY, ROWS, STARTING, Row, SlotTable

log = logging.getLogger(__name__)

SIBLING_SECONDS = 2.0
"""How long a worker waits for all its heirs when one is ready."""
LANES = 4
"""Batches that are under way at one time."""
SWEEP_SECONDS = 0.2
"""Between two looks whether the heirs still live."""
REST_SECONDS = 2.0
"""How long the handlers of a connection may go on running before it is drained instead."""


@dataclass(slots=True)
class Outcome:
    """What became of the connections of a worker that left."""

    passed: int = 0
    left: int = 0
    """Not given: nobody would or could take them."""
    heirs: int = 0
    """Workers that have taken connections."""
    orphaned: bool = False
    """There were heirs, but they are gone."""
    seconds: float = 0.0
    pauses: list[tuple[float, int]] = field(default_factory=list)
    """For each batch the seconds for which nobody served it, and its connections."""

    def add(self, later: Outcome) -> None:
        """Add what became of connections that came late."""
        self.passed += later.passed
        self.left = later.left
        self.heirs = max(self.heirs, later.heirs)
        self.seconds += later.seconds
        self.pauses += later.pauses


def _is_offer(offer: dict[str, Any]) -> bool:
    """Whether an offer has what its taker needs besides states."""
    giver, control = offer.get("giver"), offer.get("control")
    if not isinstance(giver, dict) or not shape.is_number(giver.get("born")):
        return False
    if not all(shape.is_count(giver.get(name)) for name in ("row", "generation", "pid")):
        return False
    if giver["row"] >= ROWS:
        return False
    return offer.get("kind") == http_handoff.KIND or shape.is_position(control)


class Succession:
    """Both ends of the handoff of one worker.

    Args:
        data_dir: of the service.
        slots: the slot table.
        row: this worker's row.
        passing: its sessions.
        http: its HTTP connections.
        listeners: gives duplicates of its listening sockets, for a second master.
    """

    def __init__(
        self,
        data_dir: Path,
        slots: SlotTable,
        row: int,
        passing: Transfer,
        http: HttpHandoff,
        listeners: Callable[[], list[int]],
    ) -> None:
        self.http = http
        self._data_dir = data_dir
        self._slots = slots
        self._row = row
        self._passing = passing
        self._heir = Heir(
            paths.heir_socket(data_dir, os.getpid()),
            self._judge,
            self._take,
            self._is_alive,
            {LISTENERS: listeners},
        )
        self._givers: dict[tuple[int, int], Giver] = {}
        self._under_way: dict[int, int] = {}
        self._swept_at = 0.0
        self._given: dict[int, int] = {}
        self._broken: set[int] = set()
        self._http_given: dict[int, int] = {}
        self._no_http: set[int] = set()
        """Workers of an older version: they take sessions only."""
        self._born = start_time(os.getpid())

    def start(self) -> None:
        """Be ready to take connections over; sockets of workers that were killed are removed."""
        for stale in paths.runtime_dir(self._data_dir).glob("heir-*.sock"):
            pid = stale.stem.removeprefix("heir-")
            if pid.isdigit() and start_time(int(pid)) is None:
                stale.unlink(missing_ok=True)
        self._heir.start()

    def is_there(self) -> bool:
        """Whether others find the socket on which this worker takes connections over."""
        return not self._heir.listening or paths.heir_socket(self._data_dir, os.getpid()).exists()

    def restore(self) -> bool:
        """Listen anew where the socket was removed; False when it was not."""
        if self.is_there():
            return False
        paths.make_private(paths.runtime_dir(self._data_dir))
        self._heir.listen_anew()
        return True

    async def stop(self) -> None:
        """Take no more."""
        await self._heir.stop()

    # Taking.

    def _judge(self, offer: dict[str, Any]) -> list[bool]:
        states = offer["states"]
        if not _is_offer(offer):
            raise ValueError("an offer names its giver and the position of its control stream")
        mine = self._own_row()
        if mine is None or mine.state != READY:
            return [False] * len(states)
        if offer.get("kind") == http_handoff.KIND:
            return self.http.judge(states)
        return self._passing.judge(states, offer.get("chunks", ()))

    async def _take(
        self, offer: dict[str, Any], states: Sequence[Any], descriptors: Sequence[int]
    ) -> None:
        if not states:
            return  # what is refused need not name its giver
        if offer.get("kind") == http_handoff.KIND:
            await self.http.take(states, descriptors)
            return
        giver = offer["giver"]
        await self._passing.unpack(
            (giver["row"], giver["generation"]),
            states,
            descriptors,
            Position(*offer["control"]),
            offer.get("chunks", ()),
        )

    @staticmethod
    def _is_alive(offer: dict[str, Any]) -> bool:
        giver = offer["giver"]
        try:
            return bool(start_time(giver["pid"]) == giver["born"])
        except OSError:
            return True

    def _own(self) -> dict[str, Any]:
        """How an offer names its giver."""
        mine = self._own_row()
        assert mine is not None
        return {
            "row": self._row,
            "generation": mine.generation,
            "pid": os.getpid(),
            "born": self._born,
        }

    def _own_row(self) -> Row | None:
        return next((row for row in self._slots.rows() if row.number == self._row), None)

    # Giving.

    async def give_all(self) -> Outcome:
        """Give every connection that can be given; who is left over is to be drained."""
        outcome = Outcome()
        had_heirs = bool(self._heirs())
        await self._await_siblings()
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as lanes:
                for lane in range(LANES):
                    lanes.create_task(self._give_on(lane, outcome, began + REST_SECONDS))
            if self._passing.left() and not self._heirs():
                outcome.orphaned = had_heirs and await self._are_gone()
        finally:
            for giver in self._givers.values():
                giver.close()
            self._givers.clear()
            self._passing.resume()
        outcome.left = len(self._passing.left())
        outcome.heirs = len(self._given)
        outcome.seconds = time.monotonic() - began
        return outcome

    def has_takers(self) -> bool:
        """Whether some worker may still take HTTP connections."""
        self._slots.sweep()
        return any(row.pid not in self._no_http for row in self._heirs())

    async def give_http(self) -> None:
        """Give the HTTP connections that are at rest; the others go on here."""
        takers: dict[int, Giver] = {}
        try:
            while self.has_takers() and (parcel := self.http.pack(BATCH)).connections:
                await self._give_http(parcel, takers)
        finally:
            for giver in takers.values():
                giver.close()

    async def _give_http(self, parcel: HttpParcel, takers: dict[int, Giver]) -> None:
        rows = [row for row in self._heirs() if row.pid not in self._no_http]
        heir = min(rows, key=lambda row: self._http_given.get(row.pid, 0), default=None)
        answer = [False] * len(parcel.connections)
        try:
            if heir is None:
                return
            if heir.pid not in takers:
                takers[heir.pid] = Giver(paths.heir_socket(self._data_dir, heir.pid))
            offer = {"kind": http_handoff.KIND, "giver": self._own(), "states": parcel.states}
            try:
                answer = await takers[heir.pid].offer(offer, parcel.descriptors)
                await takers[heir.pid].commit()
            except Broken as error:
                log.warning("Worker %d takes nothing over: %s", heir.pid, error)
                self._broken.add(heir.pid)
                answer = [False] * len(parcel.connections)
                return
            if not any(answer):
                self._no_http.add(heir.pid)
            self._http_given[heir.pid] = self._http_given.get(heir.pid, 0) + sum(answer)
        finally:
            self.http.settle(parcel, answer)
            parcel.close()

    async def _give_on(self, lane: int, outcome: Outcome, rest_until: float) -> None:
        """Give batch after batch; most of the time of each is waiting, hence several lanes."""
        while self._passing.left():
            sessions = self._passing.at_rest(self._share())
            if not sessions:
                if time.monotonic() >= rest_until or not self._passing.can_wait():
                    return
                await asyncio.sleep(0.02)
                continue
            heir = self._choose_heir()
            if heir is None:
                return
            packed_at = time.monotonic()
            passed = await self._give(heir, lane, self._passing.pack(sessions))
            outcome.passed += passed
            if passed:
                outcome.pauses.append((time.monotonic() - packed_at, passed))

    async def _await_siblings(self) -> None:
        """Give all that start together the time to be ready, so that each gets its share."""
        until = time.monotonic() + SIBLING_SECONDS
        while time.monotonic() < until:
            self._slots.sweep()
            if not any(row.state == STARTING for row in self._slots.rows()):
                return
            await asyncio.sleep(0.02)

    def _share(self) -> int:
        """Connections in the next batch: small ones in the end, to be spread evenly."""
        left, heirs = len(self._passing.left()), max(1, len(self._heirs()))
        return min(BATCH, max(1, left // (LANES * heirs)))

    def _others(self) -> list[Row]:
        return [r for r in self._slots.rows() if r.number != self._row and r.state == READY]

    def _heirs(self) -> list[Row]:
        heirs = [row for row in self._others() if row.pid not in self._broken]
        return [row for row in heirs if not row.stats.get("deaf")] or heirs  # see app/canary.py

    async def _are_gone(self) -> bool:
        """Whether the heirs have died, not refused; who is killed takes a moment to end."""
        until = time.monotonic() + DEATH_SECONDS
        while self._others():
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(0.02)
            self._slots.sweep()
        return True

    def _choose_heir(self) -> Row | None:
        """The ready worker with the fewest connections, what is on its way to it included."""
        now = time.monotonic()
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._slots.sweep()
        return min(
            self._heirs(),
            key=lambda row: row.connections + self._under_way.get(row.pid, 0),
            default=None,
        )

    async def _give(self, heir: Row, lane: int, parcel: Batch) -> int:
        if not parcel.sessions:
            return 0
        count = len(parcel.sessions)
        self._under_way[heir.pid] = self._under_way.get(heir.pid, 0) + count
        try:
            return await self._converse(heir, lane, parcel)
        finally:
            self._under_way[heir.pid] -= count

    async def _converse(self, heir: Row, lane: int, parcel: Batch) -> int:
        giver = self._givers.get((heir.pid, lane))
        if giver is None:
            giver = Giver(paths.heir_socket(self._data_dir, heir.pid))
            self._givers[heir.pid, lane] = giver
        offer = {
            "giver": self._own(),
            "control": [parcel.control.epoch, parcel.control.seq],
            "states": parcel.states,
        }
        try:
            answer = await giver.offer(offer, parcel.descriptors, parcel.payload.chunks)
        except Broken as error:
            log.warning("Worker %d takes nothing over: %s", heir.pid, error)
            self._broken.add(heir.pid)
            await self._passing.take_back(parcel, parcel.sessions, stay=False)
            return 0
        pairs = list(zip(parcel.sessions, answer, strict=True))
        accepted = [session for session, taken in pairs if taken]
        await giver.commit()
        self._passing.let_go(accepted)
        refused = [session for session, taken in pairs if not taken]
        if refused:
            if not accepted:
                self._broken.add(heir.pid)
            await self._passing.take_back(parcel, refused, stay=bool(accepted))
        self._given[heir.pid] = self._given.get(heir.pid, 0) + len(accepted)
        return len(accepted)
