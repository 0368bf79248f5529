"""What this service needs of gunicorn, and of aiohttp's worker for it, beyond their documentation.

Every name of theirs that is not documented stands in this module only. A release without one of
them fails here, at the import, with one line that names it.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import gunicorn
import gunicorn.arbiter
import gunicorn.sock
from aiohttp.worker import GunicornWebWorker
from gunicorn.arbiter import Arbiter
from gunicorn.pidfile import Pidfile
from gunicorn.workers.workertmp import WorkerTmp

_CLASS_NAMES: Iterable[tuple[type, tuple[str, ...]]] = (
    (
        Arbiter,
        (
            *("WORKER_BOOT_ERROR", "LISTENERS", "WORKERS", "START_CTX"),
            *("stop", "murder_workers", "wait_for_signals", "handle_hup", "handle_term"),
            *("spawn_worker", "reexec"),
        ),
    ),
    (WorkerTmp, ("last_update", "notify")),
    (Pidfile, ("create", "validate")),
    (GunicornWebWorker, ("_run", "_notify_waiter_done")),
)
_INSTANCE_NAMES: Iterable[tuple[type, tuple[str, ...]]] = (
    (Arbiter, ("SIG_QUEUE", "pidfile", "systemd", "worker_age")),
    (Pidfile, ("fname", "pid")),
    (GunicornWebWorker, ("_task", "_notify_waiter")),
)
"""Attributes that `__init__` sets."""


def _missing() -> Iterator[str]:
    for owner, names in _CLASS_NAMES:
        yield from (f"{owner.__name__}.{name}" for name in names if not hasattr(owner, name))
    for owner, names in _INSTANCE_NAMES:
        code = owner.__init__.__code__  # type: ignore[misc]
        yield from (f"{owner.__name__}().{name}" for name in names if name not in code.co_names)


if missing := ", ".join(_missing()):
    raise ImportError(f"gunicorn {gunicorn.__version__} has no {missing}, which workers/ builds on")

BOOT_ERROR: int = Arbiter.WORKER_BOOT_ERROR
"""Exit code of a worker that makes its master stop."""


class GunicornWorker(GunicornWebWorker):
    """aiohttp's worker, without its loop and its way to serve."""

    def start(self) -> None:
        """Run on `self.loop`; past aiohttp's own, which would make a loop of asyncio's."""
        super(GunicornWebWorker, self).init_process()

    async def work(self) -> None:
        """Serve until TERM."""
        raise NotImplementedError

    async def _run(self) -> None:
        await self.work()

    async def pause(self) -> None:
        """Wait until `wake`, or for a signal that ends this worker."""
        waiter = self._notify_waiter = self.loop.create_future()
        await waiter

    def wake(self) -> None:
        """End the pause."""
        self._notify_waiter_done()

    def cancel_work(self) -> None:
        """Cancel `work`, if it has begun."""
        if self._task is not None:
            self._task.cancel()


# The arbiter: gunicorn's object in the master.


def before_stop(arbiter: Any, act: Callable[[], None]) -> None:
    """Call `act` before the arbiter stops its workers, closes its sockets and ends."""
    stop = arbiter.stop

    def guarded(graceful: bool = True) -> None:
        act()
        stop(graceful)

    arbiter.stop = guarded


def keep_socket_paths(arbiter: Any, *, keep: bool) -> None:
    """Whether the arbiter leaves the paths of Unix sockets alone at its end.

    It believes that systemd made them, and that it need not tell a new master of them at USR2.
    """
    arbiter.systemd = keep


def on_wrong_configuration(arbiter: Any, report: Callable[[str], None]) -> None:
    """Let the good configuration stay in force when a reload finds one that fails.

    gunicorn prints why and ends by a code; `report` gets the last line of that, else the error.
    """
    application = arbiter.app
    read = application.reload

    def reload() -> None:
        good = application.cfg
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed):
                read()
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a file may raise anything)
            lines = printed.getvalue().strip().splitlines()
            report(lines[-1] if lines else str(error))
            application.cfg = good

    application.reload = reload


def at_each_look(arbiter: Any, look: Callable[[], None], seconds: float) -> None:
    """Call `look` each time before the arbiter kills silent workers, every so many seconds if no signal comes."""
    wait = arbiter.wait_for_signals
    arbiter.wait_for_signals = lambda timeout=seconds: wait(max(timeout, seconds))
    murder = arbiter.murder_workers

    def looking() -> None:
        look()
        murder()

    arbiter.murder_workers = looking


def before_hup(arbiter: Any, should_end: Callable[[], bool]) -> None:
    """Let a HUP end the service where `should_end` says so, instead of reloading it."""
    reload = arbiter.handle_hup

    def handle_hup() -> None:
        if should_end():
            arbiter.handle_term()
        reload()

    arbiter.handle_hup = handle_hup


def forgive(arbiter: Any, now: float, seconds: float) -> list[int]:
    """Let workers that have been silent for `seconds` count as active just now; their pids."""
    forgiven = []
    for pid, worker in list(arbiter.WORKERS.items()):
        with contextlib.suppress(OSError, ValueError):
            if now - worker.tmp.last_update() > seconds:
                worker.tmp.notify()
                forgiven.append(pid)
    return forgiven


def age(arbiter: Any) -> int:
    """A number that rises with each worker: those of a reload have larger ones."""
    found: int = arbiter.worker_age
    return found


def make_younger(arbiter: Any, than: int) -> bool:
    """Let all workers count as started anew, if none is younger; False when one is.

    Until then a reload waits for the older ones to end, and replaces no dead worker meanwhile.
    """
    workers = sorted(arbiter.WORKERS.values(), key=lambda worker: int(worker.age))
    if any(worker.age > than for worker in workers):
        return False
    for worker in workers:
        arbiter.worker_age += 1
        worker.age = arbiter.worker_age
    return True


def survive_failed_spawn(arbiter: Any, report: Callable[[OSError], None]) -> None:
    """Let a worker that cannot be forked be missing until the arbiter's next look; it would end itself."""
    spawn = arbiter.spawn_worker

    def spawn_worker() -> int | None:
        try:
            pid: int | None = spawn()
        except OSError as error:
            if os.getpid() != arbiter.pid:
                raise  # the worker itself
            report(error)
            return None
        return pid

    arbiter.spawn_worker = spawn_worker


def survive_failed_successor(arbiter: Any, report: Callable[[BaseException], None]) -> None:
    """Let a USR2 that cannot start a new master change nothing.

    The arbiter would end where it cannot fork; and a fork of it that cannot become the new master would end its workers.
    """
    start = arbiter.reexec

    def reexec() -> None:
        try:
            start()
        except (Exception, SystemExit) as error:  # noqa: BLE001 (of the hook before it, too)
            report(error)
            if os.getpid() != arbiter.pid:
                os._exit(1)

    arbiter.reexec = reexec


def write_pid_files_by(write: Callable[[Path, int], None]) -> None:
    """Let `write` make the pid files, which get the process id.

    gunicorn would leave a temporary file where it cannot, and end a service that runs.
    """

    class PidFile(Pidfile):
        def create(self, pid: int) -> None:
            owner = self.validate()
            if owner == pid:
                return
            if owner:  # gunicorn shows this text, and ends
                raise RuntimeError(
                    f"process {owner} of {self.fname} is a service with this DATA_DIR: 'make reload'"
                    " renews it, 'python -m workers.start --replace' takes its place"
                )
            self.pid = pid
            write(Path(self.fname), pid)

    gunicorn.arbiter.Pidfile = PidFile


def has_pid_file(arbiter: Any) -> bool:
    """Whether the arbiter knows of a pid file, which it writes and removes."""
    return arbiter.pidfile is not None


def move_pid_file(arbiter: Any, path: str, pid: int) -> None:
    """Let the arbiter's pid file be this one, which is there."""
    arbiter.pidfile.fname, arbiter.pidfile.pid = path, pid


def forget_pid_file(arbiter: Any) -> None:
    """Let a reload make the object of the pid file anew, and leave the file alone."""
    arbiter.pidfile = None


def claim_pid_file(arbiter: Any) -> None:
    """Let the arbiter remove at its end the file that it found to be its own."""
    if arbiter.pidfile is not None and arbiter.pidfile.pid is None:
        arbiter.pidfile.pid = arbiter.pid


def signals(arbiter: Any) -> SimpleQueue[int]:
    """Where the handlers of the master put signals; a worker has them until it sets its own."""
    found: SimpleQueue[int] = arbiter.SIG_QUEUE
    return found


def start_again_by_module(arbiter: Any) -> None:
    """Let USR2 start `python -m gunicorn`.

    gunicorn would run its __main__.py as a script, where its own `http` hides Python's.
    """
    arbiter.START_CTX["args"] = [sys.executable, "-m", "gunicorn", *sys.argv[1:]]


def listening_sockets(arbiter: Any) -> list[socket.socket]:
    """The sockets that the master listens on, without gunicorn's wrapper."""
    return [listener.sock for listener in arbiter.LISTENERS]


def inherited_sockets() -> list[socket.socket]:
    """Those that the master before has passed on at USR2; the descriptors stay gunicorn's."""
    passed = os.environ.get("GUNICORN_FD", "")
    return [socket.socket(fileno=os.dup(int(number))) for number in passed.split(",") if number]


def listen_anew(arbiter: Any) -> None:
    """Listen on the configured address, and leave the inherited sockets to the master before."""
    for number in os.environ.pop("GUNICORN_FD").split(","):
        os.close(int(number))
    arbiter.LISTENERS = gunicorn.sock.create_sockets(arbiter.cfg, arbiter.log)
