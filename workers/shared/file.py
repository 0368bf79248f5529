"""A file that processes share: made once, copied, shown in place of another, written in one piece; why it could not be."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from workers.shared.locks import FileLock

_PIECE = 64 * 1024
"""Bytes that are copied at once."""
_MAP_FIXED = 0x10
"""mmap(2), on every architecture but MIPS-like ones; Python does not name it."""


def open_shared(path: Path, header: bytes, *, random: int, size: int, create: bool = True) -> int:
    """Open a shared file, and make it when it is missing or begins with another header.

    A file with another header is not changed but replaced: processes of another version keep
    theirs.

    Args:
        header: how a file of this layout begins, never zeros alone.
        random: how many random bytes follow it in a new file; the rest is zero.
        size: of a new file, in bytes.
        create: whether a missing file is made.

    Raises:
        PermissionError: the file belongs to another user.
        FileNotFoundError: it is missing and not to be made.
        OSError: there is no room for it.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o600)
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
                os.posix_fallocate(fd, 0, size)  # a map of what is not there kills (SIGBUS)
                os.pwrite(fd, os.urandom(random), len(header))
                os.pwrite(fd, header, 0)  # last: a process that sees it sees a complete file
                return fd
            if current:
                path.unlink()
                flags |= os.O_CREAT
        os.close(fd)


def make_copy(fd: int, path: Path) -> Path:
    """Copy an open file to a new one beside `path`, which may take its place; returns where."""
    copied = path.with_name(f".{path.name}.{os.getpid()}")
    copied.unlink(missing_ok=True)
    copy = os.open(copied, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        os.posix_fallocate(copy, 0, size)
        for at in range(0, size, _PIECE):
            piece = os.pread(fd, _PIECE, at)
            if piece.strip(b"\0"):
                os.pwrite(copy, piece, at)
    except OSError:
        copied.unlink(missing_ok=True)
        raise
    finally:
        os.close(copy)
    return copied


def show_file(shown: mmap.mmap, fd: int, offset: int = 0) -> None:
    """Let a map show another file at the same address: all that refers to it goes on."""
    # Not before: it takes a megabyte, and is needed by almost no process.
    import ctypes  # noqa: PLC0415

    address = ctypes.addressof(ctypes.c_char.from_buffer(shown))
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
    )
    flags = mmap.MAP_SHARED | _MAP_FIXED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if library.mmap(address, len(shown), protection, flags, fd, offset) != address:
        raise OSError(ctypes.get_errno(), "mmap")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that its readers see complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # writing names none
        raise


def is_full(error: Exception) -> bool:
    """Whether there is no room for a file: no space, or no inode."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def explain(error: OSError) -> str:
    """One line about a file of the service that cannot be made, with what to do."""
    if error.errno is None or error.strerror is None:
        return str(error)  # our own text
    if is_full(error):
        advice = "make room there (df -h, df -i)"
    else:
        advice = "this user must be able to write to DATA_DIR and /dev/shm"
    return f"{error.strerror} ({error.filename or 'DATA_DIR or /dev/shm'}): {advice}"
