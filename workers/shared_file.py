"""A file that processes share, and the lock on it.

The lock is `lockf` (POSIX): the kernel takes it from a process that dies. It belongs to the
process, not to the descriptor, and ends when the process closes *any* descriptor of the file;
so a process opens the file once. Threads of one process do not exclude each other.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """Exclusive lock on the first byte of an open file, over processes; not reentrant."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def try_enter(self) -> bool:
        """Take the lock if no other process has it."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1)


def open_shared(path: Path, header: bytes, *, random: int, size: int) -> int:
    """Open a shared file, and make it when it is missing or begins with another header.

    A file with another header is not changed but replaced: processes of another version keep
    theirs.

    Args:
        header: how a file of this layout begins, never zeros alone.
        random: how many random bytes follow it in a new file; the rest is zero.
        size: of a new file, in bytes.

    Raises:
        PermissionError: the file belongs to another user.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            os.close(fd)
            raise PermissionError(f"{path} belongs to another user")
        with FileLock(fd):
            # It may have been replaced while this process waited for the lock.
            try:
                current = path.lstat().st_ino == status.st_ino
            except FileNotFoundError:
                current = False
            found = os.pread(fd, len(header), 0)
            if current and found == header:
                return fd
            if current and not found.strip(b"\0"):
                os.ftruncate(fd, 0)
                os.ftruncate(fd, size)
                os.pwrite(fd, os.urandom(random), len(header))
                os.pwrite(fd, header, 0)  # last: whoever sees it sees a whole file
                return fd
            if current:
                path.unlink()
        os.close(fd)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that its readers see whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
