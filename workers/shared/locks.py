"""Which gunicorn masters of a data directory are alive.

Each holds a shared lock on one file. During a change of masters (USR2) there are two. A master
that gets the lock exclusively knows that there is no other.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from workers.shared.file import is_at


class MastersLock:
    """The lock file, opened by this process.

    Such locks belong to the process and end when it closes any descriptor of the file: a
    process opens it once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = self._open()

    def restore(self) -> bool:
        """Lock the file anew where it was removed; True when it was."""
        if is_at(self._path, self._fd):
            return False
        fd = self._open()
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self.share()
        return True

    def share(self) -> None:
        """Count this process among the living masters until it ends."""
        fcntl.lockf(self._fd, fcntl.LOCK_SH)

    def is_alone(self) -> bool:
        """Whether no other process is a living master; if so, keeps new ones waiting."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
