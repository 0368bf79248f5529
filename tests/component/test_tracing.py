"""What the processes of the tests count for the coverage."""

from __future__ import annotations

import os
import posix

from coverage import Coverage


def test_a_fork_counts_no_lines() -> None:
    """Else it would take seconds, after some hundred tests marked `no_cover`."""
    child = os.fork()
    if not child:
        posix._exit(0 if Coverage.current() is None and os._exit is posix._exit else 1)
    assert os.waitpid(child, 0)[1] == 0
