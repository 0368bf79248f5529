"""Waiting for a condition: the one way in which tests and benchmarks wait."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

DEADLINE = 20.0
"""Seconds that a condition may take before its test fails; never a measure of speed."""

_TURNS = 100
"""Turns of the loop for which `until` does not sleep: they take no time, but of the processor all."""

_T = TypeVar("_T")


@overload
async def until(
    condition: Callable[[], Awaitable[_T]], what: str = "", timeout: float = DEADLINE
) -> _T: ...
@overload
async def until(condition: Callable[[], _T], what: str = "", timeout: float = DEADLINE) -> _T: ...
async def until(condition: Callable[[], Any], what: str = "", timeout: float = DEADLINE) -> Any:
    """Wait until `condition` gives something true, and return that."""
    began = time.monotonic()
    turns = 0
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        waited = time.monotonic() - began
        if waited > timeout:
            raise _late(condition, what, timeout, value)
        asked = result is not value  # of another process, which it costs something
        turns += 1
        here = 0 if turns < _TURNS else 0.005  # some conditions read on each time
        await asyncio.sleep(_pause(waited, 0.03, 0.2) if asked else here)


def until_now(condition: Callable[[], _T], what: str = "", timeout: float = DEADLINE) -> _T:
    """`until` for code that runs outside of an event loop."""
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > timeout:
            raise _late(condition, what, timeout, value)
        time.sleep(_pause(waited, 0.02, 0.1))


def _pause(waited: float, shortest: float, longest: float) -> float:
    """Seconds until the next look: a tenth of what was waited so far, within these limits.

    Many tests wait at the same time, and each look takes the processor from what they wait for.
    """
    return min(max(waited / 10, shortest), longest)


def _late(condition: object, what: str, timeout: float, value: object) -> AssertionError:
    name = what or getattr(condition, "__qualname__", repr(condition))
    return AssertionError(f"not within {timeout:g} s: {name} (last: {value!r})")
