"""Bytes that travel beside the states of sessions: unsent ones, half-read frames, messages.

They are no part of the JSON, which names each by its number. A chunk that several sessions of a
batch share, such as the bytes of a flush, travels once, and the sessions share it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

State = dict[str, Any]
"""A session, as JSON says it."""


class Payload:
    """The chunks of one batch."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0
        self._numbers: dict[int, int] = {}

    def add(self, chunk: bytes) -> int:
        """Take a chunk in; returns its number."""
        number = self._numbers.get(id(chunk))
        if number is None:
            number = self._numbers[id(chunk)] = len(self.chunks)
            self.chunks.append(chunk)
            self.size += len(chunk)
        return number


def unfold(state: State, chunks: Sequence[bytes]) -> State:
    """A copy of a state with its bytes in place of their numbers.

    A state of version 1 has them as base64, and neither an inbox nor pages.

    Raises:
        KeyError, IndexError, TypeError, ValueError: it is no such state.
    """
    old = state["version"] == 1

    def take(value: Any) -> bytes:
        if old:
            return base64.b64decode(value, validate=True)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError("not the number of a chunk")
        return chunks[value]

    unfolded = dict(state)
    reader = state["reader"]
    if reader is not None:
        fragments = reader["fragments"]
        unfolded["reader"] = reader | {
            "buffer": take(reader["buffer"]),
            "fragments": None if fragments is None else take(fragments),
        }
    unsent = state["unsent"]
    if old:
        unfolded |= {"offset": 0, "headless": True, "inbox": [], "pages": []}
        unfolded["unsent"] = [] if unsent is None else [take(unsent)]
    else:
        unfolded["unsent"] = [take(number) for number in unsent]
        unfolded["inbox"] = [
            take(number).decode() if is_text else take(number) for number, is_text in state["inbox"]
        ]
    socketio = state.get("socketio")
    if socketio is not None and socketio["packet"] is not None:
        packet = socketio["packet"]
        attachments = [take(part) for part in packet["attachments"]]
        unfolded["socketio"] = socketio | {"packet": packet | {"attachments": attachments}}
    return unfolded
