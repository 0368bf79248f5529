"""Stream entries as Valkey replies them, turned into messages and gaps.

An entry is `[b"0-<seq>", [b"p", epoch, b"e", event, b"t", accepted in us, b"d", body]]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from app.types import Gap, Message

FIELDS = 8


def entry_id(seq: int) -> bytes:
    """The id of a message in its stream."""
    return b"0-%d" % seq


def to_message(type: str, entry: Any) -> Message | None:
    """The message that an entry holds, or None when somebody else wrote it."""
    id, fields = entry
    if len(fields) != FIELDS or fields[4] != b"t":
        return None
    return Message(
        type,
        fields[1].decode(),
        int(id[2:]),
        fields[3].decode(),
        fields[7],
        int(fields[5]) / 1e6,
    )


def with_gaps(
    type: str, epoch: str, after: int, messages: Iterable[Message]
) -> list[Message | Gap]:
    """Messages that should follow `after`, and a gap wherever some are missing."""
    result: list[Message | Gap] = []
    for message in messages:
        if message.seq != after + 1:
            result.append(Gap(type, epoch, after + 1, message.seq - 1, "history"))
        result.append(message)
        after = message.seq
    return result
