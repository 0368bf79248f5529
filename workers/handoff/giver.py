"""The worker that leaves: gives its connections to its successors, batch by batch.

See `channel.py` for the conversation and `app/sessions/handoff/transfer.py` for the sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.sessions.handoff.transfer import SessionBatch, Transfer
from workers.handoff.channel import (
    BATCH,
    DEATH_SECONDS,
    TIMEOUT,
    Answer,
    Broken,
    MessageSocket,
    Offer,
    close_all,
    to_memory,
)
from workers.handoff.http import KIND, HttpBatch, HttpHandoff
from workers.handoff.report import Outcome, Pause
from workers.shared import paths
from workers.shared.polling import INTERVAL, wait_until
from workers.shared.processes import start_time
from workers.shared.slots import READY, STARTING, Row, SlotTable

SIBLING_SECONDS = 2.0
"""How long a worker waits for all its successors when one is ready."""
LANES = 3
"""Batches that are under way at one time: while one waits for its answer, another one is described."""
SESSIONS = 48
"""Sessions in a batch. No worker serves what is under way: fewer at one time pause for less, but all take longer."""
SWEEP_SECONDS = 0.2
"""Between two looks whether the successors still live."""
REST_SECONDS = 2.0
"""How long the handlers of a connection may go on running before it is drained instead."""

logger = logging.getLogger(__name__)


class Conversation:
    """The giver's end of a conversation with one successor.

    Args:
        path: where the successor listens.
        timeout: seconds for each step.
    """

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._socket: MessageSocket | None = None

    async def offer(
        self, offer: Offer, descriptors: Sequence[int], chunks: Sequence[bytes] = ()
    ) -> Answer:
        """Ask which of the offered connections the successor takes.

        Args:
            offer: what goes as JSON.
            descriptors: of the connections.
            chunks: bytes that go beside it; the successor finds them as `chunks` of the offer.

        Raises:
            Broken: it does not answer.
        """
        memory: list[int] = []
        try:
            if self._socket is None:
                self._socket = MessageSocket.connect(self._path, self._timeout)
            if chunks:
                memory = [await asyncio.to_thread(to_memory, chunks)]
                offer = offer | {"payload": [len(chunk) for chunk in chunks]}
            await self._socket.send(offer, [*descriptors, *memory])
            answer, strays = await self._socket.receive()
            close_all(strays)
        except (OSError, EOFError, ValueError) as error:
            await self._abandon()
            raise Broken(str(error)) from error
        finally:
            close_all(memory)
        if not isinstance(answer, list) or len(answer) != len(descriptors):
            await self._abandon()
            raise Broken("the answer is not one boolean for each connection")
        return [bool(taken) for taken in answer]

    async def commit(self) -> None:
        """Tell the successor that what it accepted is its own now.

        An answer means that it serves them. None at all may mean the same, so this raises
        nothing: what was let go is not taken back.
        """
        assert self._socket is not None
        try:
            await self._socket.send("commit")
            _, strays = await self._socket.receive()
            close_all(strays)
        except (OSError, EOFError, ValueError) as error:
            logger.warning("A successor did not confirm what it took over: %s", error)
            self.close()

    def close(self) -> None:
        """End the conversation."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _abandon(self) -> None:
        """End the conversation in a way that a successor which is late can tell from a death."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                await self._socket.send("abort")
        self.close()


class Giver:
    """Gives the connections of one worker away.

    Args:
        data_dir: of the service.
        slots: the slot table.
        row: this worker's row.
        transfer: its sessions.
        http: its HTTP connections.
    """

    def __init__(
        self, data_dir: Path, slots: SlotTable, row: int, transfer: Transfer, http: HttpHandoff
    ) -> None:
        self.http = http
        self._data_dir = data_dir
        self._slots = slots
        self._row = row
        self._transfer = transfer
        self._conversations: dict[tuple[int, int], Conversation] = {}
        """By the successor's process and the lane."""
        self._under_way: dict[int, int] = {}
        """Connections in unanswered offers, by the pid of their successor."""
        self._swept_at = 0.0
        """When dead workers were last looked for (monotonic seconds)."""
        self._given: dict[int, int] = {}
        """Connections that each successor has taken, by pid."""
        self._broken: set[int] = set()
        """Pids of workers that take nothing more."""
        self._http_given: dict[int, int] = {}
        """HTTP connections, likewise."""
        self._no_http: set[int] = set()
        """Workers of an older version: they take sessions only."""
        self._born = start_time(os.getpid())
        """When this process started."""

    async def give_all(self) -> Outcome:
        """Give every connection that can be given; what is left over is to be drained."""
        outcome = Outcome()
        had_successors = bool(self._successors())
        await self._await_siblings()
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as lanes:
                for lane in range(LANES):
                    lanes.create_task(self._give_on(lane, outcome, began + REST_SECONDS))
            if self._transfer.left() and not self._successors():
                outcome.orphaned = had_successors and await self._are_gone()
        finally:
            for conversation in self._conversations.values():
                conversation.close()
            self._conversations.clear()
            self._transfer.resume()
        outcome.left = len(self._transfer.left())
        outcome.successors = len(self._given)
        outcome.seconds = time.monotonic() - began
        return outcome

    def has_http_successors(self) -> bool:
        """Whether some worker may still take HTTP connections."""
        self._slots.sweep()
        return any(row.pid not in self._no_http for row in self._successors())

    async def give_http(self) -> None:
        """Give the HTTP connections that are at rest; the others go on here."""
        conversations: dict[int, Conversation] = {}
        try:
            while self.has_http_successors() and (batch := self.http.pack(BATCH)).connections:
                await self._give_http(batch, conversations)
        finally:
            for conversation in conversations.values():
                conversation.close()

    async def _give_http(self, batch: HttpBatch, conversations: dict[int, Conversation]) -> None:
        rows = [row for row in self._successors() if row.pid not in self._no_http]
        successor = min(rows, key=lambda row: self._http_given.get(row.pid, 0), default=None)
        answer = [False] * len(batch.connections)
        try:
            if successor is None:
                return
            if successor.pid not in conversations:
                conversations[successor.pid] = self._begin(successor)
            offer = {"kind": KIND, "giver": self._own(), "states": batch.states}
            try:
                answer = await conversations[successor.pid].offer(offer, batch.descriptors)
                await conversations[successor.pid].commit()
            except Broken as error:
                logger.warning("Worker %d takes nothing over: %s", successor.pid, error)
                self._broken.add(successor.pid)
                answer = [False] * len(batch.connections)
                return
            if not any(answer):
                self._no_http.add(successor.pid)
            self._http_given[successor.pid] = self._http_given.get(successor.pid, 0) + sum(answer)
        finally:
            self.http.settle(batch, answer)
            batch.close()

    async def _give_on(self, lane: int, outcome: Outcome, rest_until: float) -> None:
        """Give batch after batch; most of the time of each is waiting, hence several lanes."""
        while self._transfer.left():
            sessions = self._transfer.at_rest(self._share())
            if not sessions:
                if time.monotonic() >= rest_until or not self._transfer.can_wait():
                    return
                await asyncio.sleep(INTERVAL)
                continue
            successor = self._choose_successor()
            if successor is None:
                return
            packed_at = time.monotonic()
            passed = await self._give(successor, lane, self._transfer.pack(sessions))
            outcome.passed += passed
            if passed:
                outcome.pauses.append(Pause(time.monotonic() - packed_at, passed))

    async def _await_siblings(self) -> None:
        """Give all that start together the time to be ready, so that each gets its share."""

        def all_started() -> bool:
            self._slots.sweep()
            return not any(row.state == STARTING for row in self._slots.rows())

        await wait_until(all_started, SIBLING_SECONDS)

    def _share(self) -> int:
        """Connections in the next batch: small ones in the end, to be spread evenly."""
        left, successors = len(self._transfer.left()), max(1, len(self._successors()))
        return min(SESSIONS, max(1, left // (LANES * successors)))

    def _others(self) -> list[Row]:
        return [r for r in self._slots.rows() if r.number != self._row and r.state == READY]

    def _successors(self) -> list[Row]:
        found = [row for row in self._others() if row.pid not in self._broken]
        return [row for row in found if not row.stats.get("deaf")] or found  # see app/canary.py

    async def _are_gone(self) -> bool:
        """Whether the successors have died, not refused; a killed process takes a moment to end."""

        def gone() -> bool:
            self._slots.sweep()
            return not self._others()

        return await wait_until(gone, DEATH_SECONDS)

    def _choose_successor(self) -> Row | None:
        """The ready worker with the fewest connections, what is on its way to it included."""
        now = time.monotonic()
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._slots.sweep()
        return min(
            self._successors(),
            key=lambda row: row.connections + self._under_way.get(row.pid, 0),
            default=None,
        )

    async def _give(self, successor: Row, lane: int, batch: SessionBatch) -> int:
        if not batch.sessions:
            return 0
        count = len(batch.sessions)
        self._under_way[successor.pid] = self._under_way.get(successor.pid, 0) + count
        try:
            return await self._converse(successor, lane, batch)
        finally:
            self._under_way[successor.pid] -= count

    async def _converse(self, successor: Row, lane: int, batch: SessionBatch) -> int:
        conversation = self._conversations.get((successor.pid, lane))
        if conversation is None:
            conversation = self._begin(successor)
            self._conversations[successor.pid, lane] = conversation
        offer = {
            "giver": self._own(),
            "control": [batch.control.epoch, batch.control.seq],
            "states": batch.states,
        }
        try:
            answer = await conversation.offer(offer, batch.descriptors, batch.payload.chunks)
        except Broken as error:
            logger.warning("Worker %d takes nothing over: %s", successor.pid, error)
            self._broken.add(successor.pid)
            await self._transfer.take_back(batch, batch.sessions, stay=False)
            return 0
        pairs = list(zip(batch.sessions, answer, strict=True))
        accepted = [session for session, taken in pairs if taken]
        await conversation.commit()
        self._transfer.let_go(accepted)
        refused = [session for session, taken in pairs if not taken]
        if refused:
            if not accepted:
                self._broken.add(successor.pid)
            await self._transfer.take_back(batch, refused, stay=bool(accepted))
        self._given[successor.pid] = self._given.get(successor.pid, 0) + len(accepted)
        return len(accepted)

    def _begin(self, successor: Row) -> Conversation:
        return Conversation(paths.successor_socket(self._data_dir, successor.pid))

    def _own(self) -> dict[str, Any]:
        """How an offer names its giver."""
        mine = self._slots.row(self._row)
        assert mine is not None
        return {
            "row": self._row,
            "generation": mine.generation,
            "pid": os.getpid(),
            "born": self._born,
        }
