"""Time that a test hands in: a clock that it sets, and a loop whose timers do not wait."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class Clock:
    """Gives `now`, in seconds, until a test changes it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    """Looks at descriptors, but instead of waiting for a timer lets its time come."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if not ready:
            self.ahead += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in which timers come in their order and at once; for tests without threads."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        self._began = super().time()

    def time(self) -> float:
        """Seconds that timers have waited for: those that work takes do not count."""
        return self._began + self._clock.ahead


async def elapse(seconds: float) -> None:
    """Let time go by, in a `VirtualLoop`."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
    await asyncio.sleep(seconds)


def virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in a `VirtualLoop`; its fixtures must need no loop."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **named))

    return run
