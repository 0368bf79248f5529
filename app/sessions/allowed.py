"""The types that users' tokens allow; sessions with the same claim share one object."""

from __future__ import annotations

from app.protocol.requests import Allowed

MOST = 256
"""Claims that are remembered."""


class AllowedTypes:
    """Remembers what the claims `types` of tokens allow.

    Args:
        known: the types that there are.
    """

    def __init__(self, known: frozenset[str]) -> None:
        self._known = known
        self._found: dict[frozenset[str], Allowed] = {}

    def of(self, types: frozenset[str] | None) -> Allowed | None:
        """What a claim allows; None: all."""
        if types is None:
            return None
        found = self._found.get(types)
        if found is None:
            if len(self._found) >= MOST:
                self._found.clear()
            found = self._found[types] = Allowed.of(self._known, types)
        return found
