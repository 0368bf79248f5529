"""Stream entries as Valkey replies them, turned into messages and gaps.

An entry is `[b"0-<seq>", [b"p", epoch, b"e", event, b"t", accepted in us, b"d<seal>", body]]`.
The seal is a checksum of the body: an entry that bears it was written by this service, whose
bodies are JSON. Without it (earlier versions, other programs) the body is parsed to make sure,
since clients cannot continue after a broken frame. The seal protects against mistakes, not against
attacks: a program that can write to the backplane can send anything to clients.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from zlib import crc32

from app.backplane.scripts import CONTROL
from app.errors import ClientError
from app.protocol.envelope import RESERVED_ON_WIRE, decode_json
from app.types import Gap, Message

MAX_SEQ = 2**53 - 2
"""The last number of a message; clients count in doubles."""
LARGEST = 64 * 1024 * 1024 + 4096
"""Bytes of the largest body that any setting allows."""
OVERHEAD = 4096
"""Bytes of an envelope around the data of a message, generously."""

_ENVELOPE = {"id", "type", "timestamp", "direction", "event", "data"}
_FIELDS = 8
_EPOCH = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_TIME_DIGITS = 18
_MOST_EPOCHS = 256
"""Epochs whose text is kept, so that messages of one share it."""
_epochs: dict[bytes, str] = {}
_SEED = 0x79756A69  # so that an empty body has no seal of zeros


def body_name(body: bytes) -> bytes:
    """The name of the field of a body, with the seal."""
    return b"d%08x" % crc32(body, _SEED)


def entry_id(seq: int) -> bytes:
    """The id of a message in its stream."""
    return b"0-%d" % seq


def seq_of(entry: Any) -> int | None:
    """The number of an entry; None when it cannot be one of a message."""
    time, _, seq = entry[0].partition(b"-")
    number = int(seq) if seq.isdigit() and len(seq) <= 16 else MAX_SEQ + 1
    return number if time == b"0" and number <= MAX_SEQ else None


def to_message(type: str, entry: Any, largest: int = LARGEST) -> Message | None:
    """The message that an entry holds, or None when another program wrote what is no message.

    Args:
        type: of the stream.
        entry: as Valkey replies it.
        largest: bytes of the largest body that clients take.
    """
    id, fields = entry
    if fields is None or len(fields) != _FIELDS:
        return None
    p, epoch_bytes, e, event, t, accepted, name, body = fields
    if p != b"p" or e != b"e" or t != b"t" or id[:2] != b"0-" or len(accepted) > _TIME_DIGITS:
        return None
    epoch = _epochs.get(epoch_bytes) or _read_epoch(epoch_bytes)
    if epoch is None:
        return None
    try:
        seq = int(id[2:])
        message = Message(type, epoch, seq, event.decode(), body, int(accepted) / 1e6)
    except ValueError:
        return None
    if seq > MAX_SEQ or (
        name != b"d%08x" % crc32(body, _SEED) and not _is_sound(message, name, largest)
    ):
        return None
    return message


def _read_epoch(text: bytes) -> str | None:
    """The epoch as all messages of it share it; None when it is none."""
    if not _EPOCH.fullmatch(text):
        return None
    if len(_epochs) >= _MOST_EPOCHS:
        _epochs.clear()
    epoch = _epochs[text] = text.decode()
    return epoch


def _is_sound(message: Message, name: bytes, largest: int) -> bool:
    """Whether a message without a seal can be sent to clients."""
    body = message.body
    if not name.startswith(b"d") or len(body) > largest or message.event in RESERVED_ON_WIRE:
        return False
    if message.type == CONTROL:
        return True  # parsed when it is carried out
    try:
        value = decode_json(body + b"}")
    except ClientError:
        return False
    return (
        isinstance(value, dict)
        and value.keys() >= _ENVELOPE
        and (value["type"], value["event"]) == (message.type, message.event)
    )


def with_gaps(
    type: str, epoch: str, after: int, messages: Iterable[Message]
) -> list[Message | Gap]:
    """Messages that should follow `after`, and a gap wherever some are missing."""
    result: list[Message | Gap] = []
    for message in messages:
        seq = message.seq
        if seq != after + 1:
            result.append(Gap(type, epoch, after + 1, seq - 1, "history"))
        result.append(message)
        after = seq
    return result
