"""Locks of files, which the kernel takes from a process that dies.

`lockf` (POSIX) belongs to the process, not to the descriptor, and ends when the process closes *any*
descriptor of the file; so a process opens the file once, and its threads do not exclude each other.
`flock` belongs to the descriptor: it passes to a child with it, and keeps threads apart.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from workers.shared.paths import check_own


def open_lock(path: Path) -> int:
    """A descriptor of the file of a lock, which is the caller's; the file is made if need be.

    Raises:
        PermissionError: it is a link, a directory, a socket or a pipe, or another user's.
    """
    check_own(path)
    # Between the two calls it may have changed; a pipe must not block.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        raise PermissionError(f"{path} was exchanged while it was opened")
    return fd


def reopen_lock(path: Path) -> int:
    """As `open_lock`, after the file was removed: all of its directory may have been.

    Raises:
        PermissionError: as `open_lock`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return open_lock(path)


def try_flock(fd: int) -> bool:
    """Take the `flock` of a descriptor if no other has it."""
    return _try(fcntl.flock, fd)


def take_flock(fd: int) -> None:
    """Wait for the `flock` of a descriptor, and take it."""
    fcntl.flock(fd, fcntl.LOCK_EX)


def _try(lock: Callable[..., None], fd: int, *length: int) -> bool:
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, *length)
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_at(path: Path, fd: int) -> bool:
    """Whether an open file is the one that others find under a path."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    mine = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


class FileLock:
    """Exclusive lock on the first byte of an open file, over processes; not reentrant."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def try_enter(self) -> bool:
        """Take the lock if no other process has it."""
        return _try(fcntl.lockf, self._fd, 1)

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1)


class MastersLock:
    """Which gunicorn masters of a data directory are alive.

    Each holds a shared lock on one file. During a change of masters (USR2) there are two. A master
    that gets the lock exclusively knows that there is no other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = open_lock(path)

    def restore(self) -> bool:
        """Lock the file anew where it was removed; True when it was."""
        if is_at(self._path, self._fd):
            return False
        fd = reopen_lock(self._path)
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self.share()
        return True

    def share(self) -> None:
        """Count this process among the living masters until it ends."""
        fcntl.lockf(self._fd, fcntl.LOCK_SH)

    def is_alone(self) -> bool:
        """Whether no other process is a living master; if so, keeps new ones waiting."""
        return _try(fcntl.lockf, self._fd)
