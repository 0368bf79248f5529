"""What a gunicorn master keeps over reloads: its settings, its lock and the slot table.

The master imports this module once and never anew (HUP executes gunicorn.conf.py again, which
finds everything here as it was); its workers inherit the state through the fork. It imports
nothing of `app`, so that reloaded workers bring new code: settings are checked in a child.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import logging
import math
import os
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from dotenv import dotenv_values

from workers import gunicorn_private, logs
from workers.reload import fingerprint
from workers.shared import paths
from workers.shared.file import explain, write_atomically
from workers.shared.listening import address_of, fault_of, stands_for
from workers.shared.locks import MastersLock
from workers.shared.polling import block_until
from workers.shared.processes import SUCCESSOR, called_with, end, read_pid, start_time
from workers.shared.slots import SlotTable

logger = logging.getLogger("gunicorn.error")

_SLOTS_WAIT = 5.0
"""Seconds to wait for other processes to put the slot table back."""
_KEEP_SECONDS, _KEEP_AT_REST = 2.5, 5.5
"""Between two looks whether shared files are there, and the same while no client is connected to this machine;
the workers look at theirs as often."""
_LOOK_SECONDS = 2.0
"""Between two looks of the master's loop; signals, and the end of a worker, wake it at once."""
_SLEPT = 5.0
"""Seconds between two looks of the master's loop that mean that it was stopped meanwhile."""
_ADDRESS_SECONDS, _ADDRESS_INTERVAL = 5.0, 0.2
"""For which the start waits for its address, and between two tries."""
_ORPHANS_SECONDS = 15.0
"""The same where workers of a killed master listen there: they look for it every six seconds or more often."""
_SPAWN_LOG_SECONDS = 10.0
"""Between two lines about workers that cannot be started."""
_END_SECONDS = 5.0
"""Seconds after which a server that is to end is killed."""
_HANGUP = 2.0
"""Seconds after the loss of the terminal, as it is seen here, in which a HUP is due to that."""
_SPARE_FILES = 256
"""Descriptors that a worker needs beside those of its clients."""


class WrongSettings(Exception):
    """The settings cannot be used; the message is one line that names the first wrong one."""


class Master:
    """One service as its master sees it.

    Args:
        home: directory of `.env`, and the base of relative paths.
        monotonic: seconds.

    Raises:
        WrongSettings: there are no good settings yet.
    """

    _files_fault = ""
    """Why shared files could not be put back the last time; empty: nothing was wrong."""
    _runs = False
    """The service has started, so a fault need not end it."""

    def __init__(self, home: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._monotonic = monotonic
        self.settings, self.dotenv = _read(home)
        self.bind: str = self.settings["bind"]
        """Address that gunicorn listens on, where systemd gives no sockets in its place."""
        self._has_given_sockets = (
            os.environ.get("LISTEN_PID") == str(os.getpid()) and SUCCESSOR not in os.environ
        )
        """Of systemd, which keeps them open: another BIND does not take their place."""
        self.data_dir = Path(self.settings["data_dir"])
        # One that exists may be shared with others: its mode is not ours to change.
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.data_dir.stat().st_mode & 0o1002 == 0o002:
            logger.warning(
                "Every user of this machine may write into DATA_DIR %s: chmod o-w it", self.data_dir
            )
        for file in paths.files_in(self.data_dir):
            paths.check_own(file)
        paths.make_private(paths.runtime_dir(self.data_dir))
        if not self.settings["backplane_url"]:
            paths.make_private(paths.valkey_place(self.data_dir).directory)
        self.metrics_dir = paths.make_private(paths.metrics_dir(self.data_dir))
        self.lock = MastersLock(paths.masters_lock(self.data_dir))
        self.lock.share()  # waits for a last master that is about to clean up
        alone = self.lock.is_alone()
        self.slots = self._open_slots(alone)
        self.slots.sweep()
        if alone:
            # In a new container the pid in a file left behind is likely to be in use.
            for file in self._pid_files:
                file.unlink(missing_ok=True)
            paths.log_level_file(self.data_dir).unlink(missing_ok=True)
            if not self.slots.rows():
                shutil.rmtree(self.metrics_dir, ignore_errors=True)
        paths.make_private(self.metrics_dir)
        self.lock.share()
        self._age_at_reload = 0
        # With nohup the terminal's end is not to be noticed.
        self._in_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and has_terminal()
        self._terminal_lost = -math.inf

    @property
    def _pid_files(self) -> paths.PidFiles:
        return paths.pid_files(self.data_dir)

    @property
    def pid_file(self) -> Path:
        """Where gunicorn writes its process id; after USR2 it puts a suffix of its own to it."""
        first, second = self._pid_files
        if SUCCESSOR in os.environ and "GUNICORN_PID" not in os.environ:
            owner = read_pid(first)
            if owner not in (None, os.getpid()) and start_time(owner):
                return second
        return first

    def pass_pid_file_on(self) -> None:
        """At the end of this master: the one beside it is the master from now on."""
        first, second = self._pid_files
        if read_pid(first) == os.getpid():
            first.unlink(missing_ok=True)
        successor = read_pid(second)
        if successor not in (None, os.getpid()) and not first.exists() and start_time(successor):
            with contextlib.suppress(FileNotFoundError):
                second.rename(first)

    def guard_addresses(self, arbiter: Any) -> None:
        """Leave the path of a Unix socket alone when another master listens on it.

        gunicorn removes it at its end, unless it was started by systemd or has made the other
        master itself. A successor is no service of systemd, though its sockets came that way: it
        passes them on by itself at USR2.
        """
        if SUCCESSOR in os.environ:
            gunicorn_private.keep_socket_paths(arbiter, keep=False)

        def leave_to_others() -> None:
            if not self.lock.is_alone():
                gunicorn_private.keep_socket_paths(arbiter, keep=True)

        gunicorn_private.before_stop(arbiter, leave_to_others)

    def announce_stop(self, arbiter: Any) -> None:
        """Let workers know of a stop: with TERM alone one that waits for a successor might stay."""

        def announce() -> None:
            with contextlib.suppress(OSError):
                self.slots.note_stop(os.getpid())

        gunicorn_private.before_stop(arbiter, announce)

    def _open_slots(self, alone: bool) -> SlotTable:
        """Open the slot table; one that was removed is for the processes that run to put back."""
        path = paths.slots_file(self.data_dir)
        connections = self.settings["max_total_connections"]
        if not alone:
            with contextlib.suppress(FileNotFoundError):
                return SlotTable(path, connections, wait=_SLOTS_WAIT)
        return SlotTable(path, connections)

    def record(self) -> None:
        """Write down what this process is made of, for `workers.reload`.

        Raises:
            SystemExit: there is no room for it; bears the line that says so.
        """
        try:
            bind = None if self._has_given_sockets else self.bind
            fingerprint.record(paths.configuration().parent, self.data_dir, bind)
        except OSError as error:
            raise logs.ending(explain(error)) from None

    def await_address(self, arbiter: Any) -> None:
        """Wait until BIND can be listened on: a service that is ending may still have it.

        A socket that is there is kept, unless it was passed on by a master with another BIND.

        Raises:
            SystemExit: it stays impossible; bears the line that says why.
        """
        with contextlib.ExitStack() as stack:
            inherited = [
                address_of(stack.enter_context(one)) for one in gunicorn_private.inherited_sockets()
            ]
        bind = self.bind
        if os.environ.get("LISTEN_PID") == str(os.getpid()) or (
            inherited and stands_for(bind, inherited)
        ):
            return
        faults = [""]

        def is_free() -> bool:
            faults[0] = fault_of(bind, *inherited[:1])
            return not faults[0]

        seconds = _ORPHANS_SECONDS if self.slots.rows() else _ADDRESS_SECONDS
        if not block_until(is_free, seconds, _ADDRESS_INTERVAL):
            for file in self._pid_files:
                if read_pid(file) == os.getpid():
                    file.unlink(missing_ok=True)
            raise logs.ending(faults[0])
        if inherited:
            logger.info("BIND is %s, no longer %s", bind, ", ".join(inherited))
            gunicorn_private.listen_anew(arbiter)

    def write_pid_file(self, path: Path, pid: int) -> None:
        """Make it readable for all; a service that runs goes on without, and tries it again.

        Raises:
            SystemExit: the service starts, and there is no room for it; bears the line that says so.
        """
        try:
            write_pid_file(path, pid)
        except OSError as error:
            if not self._runs:
                raise logs.ending(explain(error)) from None
            logger.error("The pid file is missing, and is written later: %s", explain(error))

    def guard_configuration(self, arbiter: Any) -> None:
        """Let a gunicorn.conf.py that fails on a reload change nothing.

        gunicorn would exit, and the service with it.
        """

        def report(error: str) -> None:
            logger.error("gunicorn.conf.py fails, so the old one stays in force: %s", error)

        gunicorn_private.on_wrong_configuration(arbiter, report)

    def watch_over(self, arbiter: Any) -> None:
        """Extend what the master does at each look, in place of killing silent workers alone.

        It puts shared files back. And when it was stopped itself, as a frozen container is, it
        gives its workers, which were stopped as well, another `timeout` before it kills any.
        """
        self._runs = True
        looked_at = [self._monotonic()]
        kept_at = [-math.inf]

        def look() -> None:
            now = self._monotonic()
            if now - kept_at[0] >= self._keep_seconds():
                kept_at[0] = now
                self.keep_files(arbiter)
            self._look_at_terminal()
            passed, looked_at[0] = now - looked_at[0], now
            if passed > _SLEPT:
                self._forgive(arbiter, now, passed)

        gunicorn_private.at_each_look(arbiter, look, _LOOK_SECONDS)

    def _keep_seconds(self) -> float:
        return _KEEP_SECONDS if self.slots.has_connections() else _KEEP_AT_REST

    def guard_spawning(self, arbiter: Any) -> None:
        """Go on with the workers that there are while no other can be started."""
        logged_at = [-math.inf]

        def report(error: OSError) -> None:
            now = self._monotonic()
            if now - logged_at[0] >= _SPAWN_LOG_SECONDS:
                logged_at[0] = now
                logger.error(
                    "A worker cannot be started, which is tried again: %s (is the limit of processes,"
                    " TasksMax or ulimit -u, or the memory reached, or /dev/shm full?)",
                    error,
                )
            self.end_failed_reload(arbiter)

        gunicorn_private.survive_failed_spawn(arbiter, report)

    def guard_succession(self, arbiter: Any) -> None:
        """Go on as before where no new master can be started."""

        def report(error: BaseException) -> None:
            logger.error("A new master cannot be started, so this one goes on: %s", error)

        gunicorn_private.survive_failed_successor(arbiter, report)

    def guard_terminal(self, arbiter: Any) -> None:
        """End when the terminal is closed, which the kernel and shells tell by HUP too.

        A HUP counts as that when it comes with the loss of the terminal. Without a terminal, with
        nohup, or long after the loss, HUP is a reload and nothing else.
        """

        def is_closed() -> bool:
            self._look_at_terminal()
            closed = self._monotonic() - self._terminal_lost < _HANGUP
            if closed:
                logger.warning("The terminal was closed: the service ends")
            return closed

        gunicorn_private.before_hup(arbiter, is_closed)

    def _look_at_terminal(self) -> None:
        if self._in_terminal and not has_terminal():
            self._in_terminal, self._terminal_lost = False, self._monotonic()

    def _forgive(self, arbiter: Any, now: float, passed: float) -> None:
        """Let workers that have been silent count as active just now."""
        forgiven = gunicorn_private.forgive(arbiter, now, _SLEPT)
        if forgiven:
            logger.warning(
                "This process was stopped for %.0f s: workers that were silent meanwhile (%s) are"
                " given time anew",
                passed,
                ", ".join(map(str, forgiven)),
            )

    def keep_files(self, arbiter: Any) -> None:
        """Put back shared files that something has removed; raises nothing."""
        try:
            if self.slots.restore():
                logger.error("Something removed the slot table; it is there again")
            if self.lock.restore():
                logger.error("Something removed the lock of the masters; it is there again")
            paths.make_private(self.metrics_dir)
            paths.make_private(paths.runtime_dir(self.data_dir))
            if gunicorn_private.has_pid_file(arbiter):
                self._keep_pid_file(arbiter)
        except Exception as error:  # noqa: BLE001 (a master that ends takes all with it)
            fault = explain(error) if isinstance(error, OSError) else str(error)
            if fault != self._files_fault:
                logger.error("Shared files cannot be put back, which is tried again: %s", fault)
            self._files_fault = fault
        else:
            self._files_fault = ""

    def _keep_pid_file(self, arbiter: Any) -> None:
        if any(read_pid(path) == os.getpid() for path in self._pid_files):
            return
        path = self.pid_file
        if path.exists():
            return  # of another master
        write_pid_file(path, os.getpid())
        logger.error("Something removed %s; it is there again", path)
        gunicorn_private.move_pid_file(arbiter, str(path), os.getpid())

    def allow_open_files(self) -> None:
        """Raise the limit of open files as far as this process may; workers inherit it."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                soft = hard
            except (OSError, ValueError) as error:
                logger.warning("The limit of open files stays at %d: %s", soft, error)
        cap = self.settings["max_total_connections"]
        if soft != resource.RLIM_INFINITY and soft < cap + _SPARE_FILES:
            logger.warning(
                "MAX_TOTAL_CONNECTIONS=%d: a worker may open %d files only; raise the limit"
                " (LimitNOFILE, ulimit -Hn) or lower the setting",
                cap,
                soft,
            )

    def note_reload(self, arbiter: Any) -> None:
        """Remember which workers are the old ones; before the new ones are started.

        gunicorn removes its pid file now and writes it anew: a reader in between would find no
        service. Without an object of it, it leaves the file alone and makes the object anew.
        """
        self._age_at_reload = gunicorn_private.age(arbiter)
        gunicorn_private.forget_pid_file(arbiter)
        first, second = self._pid_files
        if self.pid_file == first and read_pid(second) == os.getpid():
            second.replace(first)  # the master that was there before has been killed

    def end_failed_reload(self, arbiter: Any) -> None:
        """Let the master's loop go on when every new worker of a reload has died.

        In `Arbiter.reload` it waits for all workers that are older than the reload, up to
        `graceful_timeout`, and replaces no dead worker meanwhile. The old ones stay, so they
        count as started anew.
        """
        if self._age_at_reload and gunicorn_private.make_younger(arbiter, self._age_at_reload):
            self._age_at_reload = 0

    def end_servers(self, error: Exception) -> None:
        """End the servers of this service where the code that stops them cannot be used. Blocks.

        Args:
            error: why not, such as that the checkout was deleted.
        """
        logger.error("Valkey is ended without the code of the service: %s", error)
        for place in (paths.valkey_place, paths.replica_place):
            for pid in called_with(os.fsencode(place(self.data_dir).socket)):
                born = start_time(pid)
                if born is not None:
                    end(pid, born, _END_SECONDS)

    def clean_up(self) -> None:
        """Remove what is in memory, unless workers of a killed master still use it."""
        paths.fingerprint_file(self.data_dir, os.getpid()).unlink(missing_ok=True)
        self.slots.sweep()
        if not self.slots.rows():
            paths.slots_file(self.data_dir).unlink(missing_ok=True)
            shutil.rmtree(self.metrics_dir, ignore_errors=True)

    def reload(self) -> None:
        """Take new settings; invalid ones are logged in one line, and the last valid ones stay."""
        try:
            settings, dotenv = _read(self._home)
            if settings["data_dir"] != self.settings["data_dir"]:
                raise WrongSettings("DATA_DIR: cannot change on a reload; restart the service")
            bind = settings["bind"]
            if bind != self.bind and not self._has_given_sockets:
                if fault := fault_of(bind, self.bind):
                    raise WrongSettings(fault)
                fingerprint.note_bind(self.data_dir, bind)
                self.bind = bind
        except WrongSettings as error:
            logger.error("The settings stay as they were: %s", error)
        except OSError as error:
            logger.error("The settings stay as they were: %s", explain(error))
        else:
            self.settings, self.dotenv = settings, dotenv


def write_pid_file(path: Path, pid: int) -> None:
    """Write a process id so that all users can read it."""
    write_atomically(path, f"{pid}\n".encode())
    path.chmod(0o644)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return True


current: Master | None = None
"""The master of this process, or the one that this worker was forked from."""


def load(home: Path) -> Master:
    """The master of this process, with the newest good settings.

    Raises:
        WrongSettings: there are no good settings yet.
    """
    global current  # noqa: PLW0603 (what outlives a reload of gunicorn.conf.py)
    if current is None:
        current = Master(home)
    else:
        current.reload()
    return current


def _read(home: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The checked settings, and what `.env` said when they were checked.

    Workers take the latter instead of the file, so that one that is started in place of a dead
    one has the settings of its siblings.
    """
    dotenv_path = home / ".env"
    while True:
        before = _contents(dotenv_path)
        code, shown, said = _check(home)
        if _contents(dotenv_path) == before:
            break
    warnings = said.strip().splitlines()
    if code or not shown:
        raise WrongSettings(warnings[-1] if warnings else f"exit code {code}")
    settings = json.loads(shown)
    if not logging.getLogger().hasHandlers():
        logs.set_up(settings["log_level"].upper(), settings["log_format"])
    for line in warnings:
        logger.warning("%s", line.removeprefix("warning: "))
    values = dotenv_values(stream=io.StringIO(before.decode()), interpolate=False)
    return settings, {name: text or "" for name, text in values.items()}


def _check(home: Path) -> tuple[int, str, str]:
    """Let a child run `app.config`: its exit code, and what it has written to stdout and stderr.

    It is a fork: this process has most of what that imports, and another one would begin with nothing.
    """
    with (
        os.fdopen(os.memfd_create("stdout"), "w+") as out,
        os.fdopen(os.memfd_create("stderr"), "w+", errors="backslashreplace") as errors,
    ):
        pid = os.fork()
        if not pid:
            _check_here(home, out, errors)
        code = 0
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, _written(out), _written(errors)


def _check_here(home: Path, out: TextIO, errors: TextIO) -> NoReturn:
    """Run `app.config` in place of this process."""
    code = 1
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            importlib.invalidate_caches()
            config = importlib.import_module("app.config")
            os.chdir(home)
            code = config.main([])
        except BaseException:  # noqa: BLE001 (the child ends here in any case)
            traceback.print_exc()
        finally:
            out.flush()
            errors.flush()
            os._exit(code)


def _written(file: TextIO) -> str:
    file.seek(0)
    return file.read()


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise WrongSettings(f"{path} cannot be read: {error.strerror}") from None
