"""Puts back what other programs remove from under the service while it runs.

systemd removes the shared memory of a user at logout (RemoveIPC), cleaners empty /tmp. What the
processes have open goes on working, but those that start find nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from app.seconds import REST, next_second

LOOK_SECONDS = 2
"""Between two looks whether the parts are there, or `REST`."""

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """Something in the file system that the processes share."""

    is_there: Callable[[], bool]
    """Whether processes that start will find it."""
    restore: Callable[[], bool]
    """Puts it back; False when that is not for this process to do, or not needed."""


class SharedFilesGuard:
    """Looks every `LOOK_SECONDS` whether the parts are there.

    Args:
        parts: by name, such as 'the slot table'.
        count: called for each part that was put back.
    """

    def __init__(self, parts: Mapping[str, Part], count: Callable[[], None]) -> None:
        self._parts = dict(parts)
        self._count = count
        self._failing: set[str] = set()

    def add(self, name: str, part: Part) -> None:
        """Look after one part more."""
        self._parts[name] = part

    def faults(self) -> list[str]:
        """What is missing now, for `GET /status`."""
        missing = (name for name, part in self._parts.items() if not part.is_there())
        return [f"shared files: {name} is gone" for name in missing]

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await next_second(LOOK_SECONDS, REST)
            self.look()

    def look(self) -> None:
        """Put back what is missing; raises nothing."""
        for name, part in self._parts.items():
            try:
                if part.restore():
                    logger.error("Something removed %s; it is there again", name)
                    self._count()
            except Exception:
                if name not in self._failing:
                    logger.exception("%s cannot be put back; it is tried again", name)
                self._failing.add(name)
            else:
                self._failing.discard(name)
