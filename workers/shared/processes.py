"""What /proc tells about a process, and its end; numbers alone are not enough, since pids are reused."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path

from workers.shared.polling import block_until

logger = logging.getLogger(__name__)

SUCCESSOR = "SUCCESSOR_OF"
"""Environment variable of a master that was started beside another one: the pid of that."""

_LONGEST = 4096
"""Bytes of /proc/<pid>/stat at most; it has some 300."""
_STATE = 0
_START_TIME = 19
"""Fields of /proc/<pid>/stat counted from the one after the name (proc_pid_stat(5))."""

_KILLED_SECONDS = 10.0
"""Seconds that a killed process has to be gone."""


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None when it is gone.

    A zombie counts as gone: it runs no code and holds no sockets.

    Raises:
        OSError: unknown, since this process has no descriptor left.
    """
    try:
        # Each worker asks this of all others every few seconds; `Path` costs five times as much.
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, _LONGEST)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[_STATE] in (b"Z", b"X"):
        return None
    return int(fields[_START_TIME])


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process, which does nothing until SIGCONT."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return text[text.rindex(b")") + 2 :].split()[_STATE] in (b"T", b"t")


def read_pid(path: Path) -> int | None:
    """The process id in a file; None when there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def command_line(pid: int) -> bytes:
    """Arguments of a process, each ended by a zero byte; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children(pid: int) -> set[int]:
    """Processes that this one has started and has not reaped, zombies among them."""
    with contextlib.suppress(OSError):
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return set()


def called_with(argument: bytes) -> list[int]:
    """Pids of the processes of this user that have an argument, in any place of their command line.

    Not those of a container with other files: the same path means another file there.
    """
    ours = Path("/proc/self/ns/mnt").stat().st_ino
    found = []
    for place in Path("/proc").glob("[1-9]*"):
        pid = int(place.name)
        if b"\0%b\0" % argument in command_line(pid):
            with contextlib.suppress(OSError):  # gone, or another user's
                if (place / "ns/mnt").stat().st_ino == ours:
                    found.append(pid)
    return found


def end(pid: int, born: int, grace: float) -> None:
    """Send TERM to a process, and KILL if it is there after `grace` seconds. Blocks.

    Args:
        pid: of a process of this user, which may be gone already.
        born: its start time.
        grace: seconds.
    """
    for signum, limit in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILLED_SECONDS)):
        if start_time(pid) != born:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
        if block_until(lambda: start_time(pid) != born, limit):
            return
        logger.warning("Process %d does not react to signal %d", pid, signum)
