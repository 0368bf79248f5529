"""The gunicorn worker class: aiohttp's, on uvloop, with a row in the slot table.

The master imports this module once and keeps it over reloads, so it holds only what gunicorn
needs to know; everything else is `workers.runtime`, imported after the fork, which adds its hooks
by `on_leave` and `on_end`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

import uvloop
from aiohttp import web

from workers import gunicorn_private, master
from workers.shared import paths
from workers.shared.file import explain, is_full, write_atomically
from workers.shared.slots import LEAVING, READY, SlotTable

_PAUSE_AFTER_FAILURE = 1.0
"""Seconds: the master replaces a worker that failed at once, over and over."""
_FIRST_FAILURES, _LONGEST_PAUSE = 4, 16.0
"""Failures for one reason from which on each pause is twice as long, and seconds of the longest."""
_STEP = 0.1
"""Seconds between two looks in a pause whether the service stops."""
_SOON = 5.0
"""Seconds after the pause of one failure within which the next one is a repetition."""

_NOTIFY_SECONDS = 4.0
"""Between two signs of life to the master, and two looks whether it is there, until
`show_life_at`; gunicorn.conf.py says after how long a silent worker is killed."""

_SLOTS_WAIT = 10.0
"""Seconds to wait for other processes to put the slot table back where it was removed."""

_LONGEST_REASON = 4000
"""Characters of a reason for a failed start that are kept for `make reload`: the last ones."""

_FAILED = 1
"""Exit code. With `BOOT_ERROR` the master would stop the service."""


class CannotServe(Exception):
    """A worker cannot start, for a reason that needs no traceback: one line."""


class RealtimeWorker(gunicorn_private.GunicornWorker):
    """A worker that shows its state in the slot table.

    `starting` from the fork, `ready` when its sockets serve, `leaving` after TERM,
    and the row is freed at its end.
    """

    slots: SlotTable
    row = -1

    hurried = False
    """Whether to stop at once, without time for a drain."""

    _before_leaving: Callable[[], Awaitable[bool]] | None = None
    _after_end: Callable[[], None] | None = None
    _next_sign: Callable[[Callable[[], None]], object] | None = None
    _early_signals: SimpleQueue[int]
    _served = False
    _leaving: asyncio.Task[None] | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what this worker cannot do; called by the master before the first fork."""
        if cfg.is_ssl:
            log.error(
                "certfile, keyfile: TLS in the worker is not supported, since connections live on"
                " duplicated descriptors; let a proxy in front of it do TLS"
            )
            sys.exit(1)

    def take_early_signals(self, queue: SimpleQueue[int]) -> None:
        """Where the handlers of the master put signals, until the worker has its own."""
        self._early_signals = queue

    def on_leave(self, hand_over: Callable[[], Awaitable[bool]]) -> None:
        """Call this on TERM; the worker serves until it returns.

        It returns False when this worker must stay, since there is no successor.
        """
        self._before_leaving = hand_over

    def on_end(self, act: Callable[[], None]) -> None:
        """Call this when the row has been freed, the very last thing."""
        self._after_end = act

    def show_life_at(self, plan: Callable[[Callable[[], None]], object]) -> None:
        """Show the master signs of life when `plan` calls what it is given, which takes the place of a timer.

        That is to be within a third of the master's timeout.
        """
        self._next_sign = plan

    def init_process(self) -> None:
        """Run the worker; ends with SystemExit."""
        global _current  # noqa: PLW0603 (one worker per process)
        assert master.current is not None
        _current = self
        gc.disable()  # until it serves: what a start imports and makes stays
        self.slots = master.current.slots  # until this process has opened its own
        try:
            self.slots.restore()  # or this worker would not know of the others
            self.slots = SlotTable(
                paths.slots_file(master.current.data_dir),
                master.current.settings["max_total_connections"],
                wait=_SLOTS_WAIT,
            )
            self.row = self.slots.claim_row(master=self.ppid)
            self.loop = uvloop.new_event_loop()
            asyncio.set_event_loop(self.loop)
            # Without gunicorn's wrapper, which logs an error when one is closed twice.
            self.sockets: list[Any] = [listener.sock for listener in self.sockets]
            self.start()
        except Exception as error:
            before = _note_failure(master.current.data_dir, error)
            if self._served:
                raise
            if (reason := _known_reason(error)) or before:
                self.log.error("This worker cannot serve: %s", reason or repr(error))
            else:
                self.log.exception("This worker cannot serve")
            sys.exit(self._boot_failure_code(_pause_after(before)))
        finally:
            if self.row < 0:
                self.slots.give_up_claim()
            self.slots.free(os.getpid())
            if self._after_end is not None:
                self._after_end()

    def listeners(self) -> list[int]:
        """Duplicates of the listening sockets, which are the caller's; none when it leaves."""
        return [os.dup(listener.fileno()) for listener in self.sockets if listener.fileno() >= 0]

    def run(self) -> None:
        """Serve until TERM; ends with SystemExit."""
        self.booted = False  # set anew when the sockets serve
        self._keep_notifying()
        self.loop.call_soon(self._take_signals)
        try:
            super().run()
        except asyncio.CancelledError:  # TERM before it served
            sys.exit(0)

    async def work(self) -> None:
        """Serve until TERM."""
        try:
            await self._serve()
        finally:
            # A start that failed leaves tasks behind; let them end before the loop is closed.
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self) -> None:
        """Serve until TERM: as aiohttp's worker does, but on sites of the runner's own."""
        runner = await self.wsgi()
        gc.enable()
        await runner.setup()
        for site in self._make_sites(runner):
            await site.start()
        self.booted = True
        try:
            self.notify()
            while self.alive:
                await self.pause()
        except Exception:
            self.log.exception("This worker stops")
        await runner.cleanup()

    def _make_sites(self, runner: Any) -> list[web.BaseSite]:
        make_site = getattr(runner, "make_site", None)
        if make_site is not None:
            return [make_site(self.sockets)]
        # A reload may go back to code whose connections all begin at aiohttp.
        return [web.SockSite(runner, listener) for listener in self.sockets]

    def notify(self) -> None:
        """Tell the master that this worker lives; the first time, all processes that it serves."""
        super().notify()
        if self.booted and not self._served:
            self._served = True
            for listener in self.sockets:
                if listener.fileno() >= 0:
                    listener.listen(self.cfg.backlog)  # aiohttp has set 128
            if self.alive:
                self.slots.set_state(self.row, READY)

    def _keep_notifying(self) -> None:
        # Not only while it serves: the start and the drain may take long as well.
        self.notify()
        if self._next_sign is None:
            self.loop.call_later(_NOTIFY_SECONDS, self._keep_notifying)
        else:
            self._next_sign(self._keep_notifying)
        if self.booted and self.alive and self.ppid != os.getppid():
            self.alive = False
            self.log.info("The master is gone: this worker stops")
            self.wake()

    def init_signals(self) -> None:
        """Leave most signals to the handlers of the master until the loop runs.

        uvloop loses what comes before: a worker that gets TERM while it starts would have
        to be killed.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _take_signals(self) -> None:
        super().init_signals()
        with contextlib.suppress(Empty):
            while True:
                sig = self._early_signals.get_nowait()
                if sig == signal.SIGTERM:
                    self.handle_exit(sig, None)
                elif sig in (signal.SIGINT, signal.SIGQUIT):
                    self.handle_quit(sig, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """TERM: leave when another worker serves. The signal may be repeated at any time."""
        del sig, frame
        if self._leaving is None:
            self.slots.set_state(self.row, LEAVING)
            self._leaving = self.loop.create_task(self._leave())

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """QUIT or INT: leave now."""
        self.hurried = True
        self.slots.set_state(self.row, LEAVING)
        self._cancel_start()
        super().handle_quit(sig, frame)

    async def _leave(self) -> None:
        if self._served and await self._stays() and self.alive:
            # A stop of the service sends TERM once, and this one may have come while it was leaving.
            if not self.slots.is_stopping(self.row):
                self._leaving = None
                self.slots.set_state(self.row, READY)
                return
            await self._stays()
        self.alive = False
        self._cancel_start()
        self.wake()

    async def _stays(self) -> bool:
        """Hand over; True when there is no successor."""
        if self._before_leaving is None:
            return False
        try:
            return not await self._before_leaving()
        except Exception:
            self.log.exception("This worker leaves at once")
            return False

    def _cancel_start(self) -> None:
        if not self._served:
            self.cancel_work()

    def _boot_failure_code(self, pause: float) -> int:
        """With workers of the same master serving, only this one has failed.

        With none, the master should stop: at the first start, and as a new master beside an
        old one (USR2), which then goes on alone.
        """
        for row in self.slots.rows():
            mine = row.master == self.ppid and row.number != self.row
            if mine and row.state in (READY, LEAVING):
                until = time.monotonic() + pause
                while time.monotonic() < until and not self.slots.is_stopping(self.row):
                    time.sleep(_STEP)
                return _FAILED
        if not self.slots.first_to_halt(self.ppid):
            return _FAILED  # a second one would cut the master's orderly halt short
        return gunicorn_private.BOOT_ERROR


def _known_reason(error: Exception) -> str:
    """One line that says all of it; empty where a traceback must."""
    if isinstance(error, CannotServe):
        return str(error)
    return explain(error) if isinstance(error, OSError) and is_full(error) else ""


def _note_failure(data_dir: Path, error: Exception) -> int:
    """Keep the reason for `make reload`; returns how many workers have failed for it before this one."""
    reason = _known_reason(error) or "".join(traceback.format_exception(error))
    reason = reason[-_LONGEST_REASON:]
    path, now, before = paths.failure_file(data_dir), time.time(), 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        last = json.loads(path.read_bytes())
        if last["reason"] == reason and now - last["at"] < _pause_after(last["before"]) + _SOON:
            before = last["before"] + 1
    note = {"pid": os.getpid(), "at": now, "reason": reason, "before": before}
    with contextlib.suppress(OSError):
        write_atomically(path, json.dumps(note).encode())
    return before


def _pause_after(before: int) -> float:
    """Seconds that a worker whose start fails waits with its end, when so many have failed before it.

    The first ones, as those of a reload, do not wait for long: it lasts as long as they do.
    """
    return min(
        _LONGEST_PAUSE, _PAUSE_AFTER_FAILURE * 2.0 ** max(0, min(before, 99) - _FIRST_FAILURES)
    )


_current: RealtimeWorker | None = None


def current() -> RealtimeWorker:
    """The worker that this process is."""
    assert _current is not None
    return _current
