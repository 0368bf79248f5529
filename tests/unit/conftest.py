"""Unit tests start no process: what does fails at once, also from within the code that it tests."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator

import pytest

from tests.support.delivery import turn
from tests.support.reloading import data_dir, root
from tests.support.sessions import Worker
from tests.support.slots import path, table

__all__ = ["data_dir", "path", "root", "table"]

_STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})
_running: dict[str, str] = {}


def _refuse_processes(event: str, _args: tuple[object, ...]) -> None:
    if _running and event in _STARTS:  # at the end of Python both may be gone
        raise AssertionError(f"a unit test starts a process ({event}): move it to tests/component")


sys.addaudithook(_refuse_processes)


@pytest.fixture(autouse=True)
def no_process() -> object:
    """Refuse to start a process while the test runs."""
    _running["pid"] = str(os.getpid())
    yield
    _running.clear()


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    """The parts of a worker that sessions need, without a server."""
    worker = Worker()
    yield worker
    worker.close()
    await turn()
