"""`yujian watch`: a table that updates, lines, or JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from yujian_realtime.client import Realtime
from yujian_realtime.closing import Ending
from yujian_realtime.command.exits import Exit, Failure, failure_of, failure_of_ending, reporting
from yujian_realtime.command.settings import Connection
from yujian_realtime.command.text import (
    clock,
    duration,
    fit,
    has_colour,
    is_screen,
    pad,
    paint,
    printable,
    summary,
)
from yujian_realtime.errors import RealtimeError
from yujian_realtime.messages import Gap, Message, State

REDRAW = 0.25
"""Seconds between two drawings of the table."""
ROWS = 200
"""Rows that are kept; the one that was updated longest ago goes first."""

_EXPLAINED = {
    "full": "the server is full",
    "restart": "the service restarts",
    "silent": "nothing was received in time",
    "slow": "this client did not read fast enough",
    "flood": "too many requests",
    "network": "the connection was lost",
    "protocol": "the service did not understand this client",
}
_LINKS = {"open": "green", "connecting": "yellow", "waiting": "yellow", "closed": "red"}


@dataclass(slots=True)
class Table:
    """The newest message of each kind, for a terminal."""

    address: str
    colour: bool
    note: str = ""
    """A line about the connection."""
    rows: dict[tuple[str, str, str], Message] = field(default_factory=dict)

    def add(self, message: Message) -> None:
        """Show a message in the row of its kind."""
        data = message.data if isinstance(message.data, dict) else {}
        kind = str(data.get("metric") or data.get("period") or data.get("host") or "")
        key = (message.type, message.event, kind)
        self.rows.pop(key, None)
        self.rows[key] = message
        if len(self.rows) > ROWS:
            del self.rows[next(iter(self.rows))]

    def draw(self, lab: Realtime, columns: int, lines: int, now: float) -> list[str]:
        """The lines of the table.

        Args:
            lab: whose state stands above it.
            columns: width of the terminal.
            lines: height of the terminal.
            now: Unix time in seconds, by the service's clock.
        """
        state, counts = lab.state, lab.counts
        link = {"open": "live", "waiting": "reconnecting"}.get(state.name, state.name)
        facts = [f"{counts.received} received", f"{counts.reconnects} reconnects"]
        if counts.recovered:
            facts.append(f"{counts.recovered} recovered")
        facts.append(f"{counts.missed} missed")
        if lab.rtt is not None:
            facts.append(f"round trip {lab.rtt * 1000:.0f} ms")
        head = fit(f"{link}  {self.address}  " + "  ".join(facts), columns)
        drawn = [paint(head[: len(link)], _LINKS[state.name], on=self.colour) + head[len(link) :]]
        if self.note:
            drawn.append(fit(self.note, columns))
        titles = f"{pad('TYPE', 10)}  {pad('EVENT', 18)}  {pad('SEQ', 8)}  {pad('AGE', 10)}  DATA"
        drawn.append(paint(fit(titles, columns), "grey", on=self.colour))
        shown = sorted(self.rows.items())
        room = max(lines - len(drawn) - 1, 1)
        if len(shown) > room:
            newest = sorted(shown, key=lambda item: item[1].timestamp)[-room:]
            shown = sorted(newest)
        for (type, event, _), message in shown:
            age = duration(now - message.timestamp / 1000)
            text = printable(summary(event, message.data))
            row = "  ".join(
                (pad(type, 10), pad(event, 18), pad(str(message.seq), 8), pad(age, 10), text)
            )
            row = fit(row, columns)
            if event == "health_alert":
                row = paint(row, "red", on=self.colour)
            drawn.append(row)
        return drawn


class Watch:
    """Follows some types, and writes what comes.

    Args:
        connection: which service.
        types: names of types.
        history: newest messages of each that come first.
        count: messages after which it ends; 0: never.
        as_json: whether to write envelopes as JSON lines.
        out: for messages.
        err: for what happens to the connection.
    """

    def __init__(
        self,
        connection: Connection,
        types: list[str],
        *,
        history: int = 1,
        count: int = 0,
        as_json: bool = False,
        out: TextIO = sys.stdout,
        err: TextIO = sys.stderr,
    ) -> None:
        self._connection = connection
        self._types = types
        self._history = history
        self._count = count
        self._json = as_json
        self._out = out
        self._err = err
        is_table = is_screen(out) and not as_json
        self._table = Table(connection.url, has_colour(out)) if is_table else None
        self._drawn = 0
        self._was_open = False
        self._failed: asyncio.Future[Failure] | None = None

    async def run(self) -> Exit:
        """Watch until the count is reached.

        Raises:
            Failure: the service cannot be reached at first, or sends this client away.
        """
        lab = Realtime(
            self._connection.url, token=self._connection.reader_token(), history=self._history
        )
        self._failed = asyncio.get_running_loop().create_future()
        lab.on("state", self._state)
        lab.on("gap", self._gap)
        lab.on("error", self._error)
        async with lab:
            failed: asyncio.Future[Any] = self._failed
            work = asyncio.create_task(self._follow(lab))
            drawing = asyncio.create_task(self._draw(lab))
            try:
                await asyncio.wait((work, failed), return_when=asyncio.FIRST_COMPLETED)
                if self._failed.done():
                    raise self._failed.result()
                with reporting(self._connection.url):
                    await work
            finally:
                for task in (work, drawing):
                    task.cancel()
                await asyncio.wait({work, drawing})
                self._show(lab)
        return Exit.OK

    async def _follow(self, lab: Realtime) -> None:
        left = self._count
        async for message in lab.subscribe(*self._types, history=self._history):
            if self._json:
                self._write(json.dumps(message.envelope, ensure_ascii=False))
            elif self._table is not None:
                self._table.add(message)
            else:
                text = printable(summary(message.event, message.data))
                place = f"{clock(message.timestamp)}  {message.type}  {message.event}"
                self._write(f"{place}  {message.seq}  {text}")
            left -= 1
            if left == 0:
                return

    def _write(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def _say(self, line: str) -> None:
        if self._table is None:
            print(line, file=self._err, flush=True)

    def _state(self, state: State) -> None:
        assert self._failed is not None
        if state.name == "open":
            if self._was_open:
                self._say("Connected again.")
            self._was_open = True
        elif state.name == "waiting" and state.cause is not None:
            if not self._was_open and state.cause in {"network", "restart"}:
                ending = Ending(state.code or 1006, message=state.message)
                self._fail(failure_of_ending(ending, self._connection.url))
                return
            why = state.message or _EXPLAINED.get(state.cause, state.cause)
            self._say(f"Waiting {state.pause or 0:.1f} s: {why}")

    def _error(self, error: RealtimeError) -> None:
        # An answer to a subscription: without it nothing would ever come.
        if error.code in {"INVALID_TYPE", "SUBSCRIPTION_INVALID", "INVALID_PAYLOAD", "FORBIDDEN"}:
            self._fail(failure_of(error, self._connection.url))
        elif error.code == "TOKEN_UNUSED":
            self._say(error.message)
            if self._table is not None:
                self._table.note = error.message
        elif error.retryable:
            self._say(f"{error.message} ({error.code}): asking again")

    def _fail(self, failure: Failure) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(failure)

    def _gap(self, gap: Gap) -> None:
        if gap.reason != "latest":
            lost = f"{gap.first} to {gap.last}" if gap.last >= gap.first else "none"
            self._say(f"Gap in '{gap.type}' ({gap.reason}): {lost}")

    # The table

    async def _draw(self, lab: Realtime) -> None:
        while True:
            self._show(lab)
            await asyncio.sleep(REDRAW)

    def _show(self, lab: Realtime) -> None:
        if self._table is None:
            return
        columns, lines = shutil.get_terminal_size()
        drawn = self._table.draw(lab, columns - 1, lines, time.time() + lab.clock_offset)
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        with contextlib.suppress(BlockingIOError):
            self._out.write(up + "".join(f"{line}\x1b[K\n" for line in drawn) + "\x1b[J")
            self._out.flush()
        self._drawn = len(drawn)
