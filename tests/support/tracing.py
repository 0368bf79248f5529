"""Whether processes that tests start count their lines for the coverage."""

from __future__ import annotations

import os
import posix
from collections.abc import Iterator
from contextlib import contextmanager

_NAMES = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
"""By these variables a process of Python knows that its lines are to be counted."""

_hidden: dict[str, str] = {}


def leave_forks_out() -> None:
    """Let what this process forks count no lines; the programs that it starts do.

    A coverage that goes on after a test marked `no_cover` registers another hook that starts one
    in every fork, and wraps `os._exit` once more: after some hundred tests a fork costs seconds.
    """
    from coverage import control

    control._start_process_coverage = lambda _: None  # type: ignore[assignment, return-value]
    os.register_at_fork(after_in_child=_end_at_once)


def _end_at_once() -> None:
    os._exit = posix._exit


def hide() -> None:
    """Let no process that is started from now on count its lines."""
    _hidden.update({name: os.environ.pop(name) for name in _NAMES if name in os.environ})


@contextmanager
def untraced() -> Iterator[None]:
    """Let the processes that are started here run at their full speed."""
    hide()
    try:
        yield
    finally:
        os.environ.update(_hidden)
        _hidden.clear()


@contextmanager
def traced() -> Iterator[None]:
    """Within `untraced`: start a process that others will use as well."""
    os.environ.update(_hidden)
    try:
        yield
    finally:
        for name in _hidden:
            os.environ.pop(name, None)
