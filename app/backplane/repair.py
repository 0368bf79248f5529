"""Repairs keys that another program has written to.

The service shares its server with nothing else, but an operator's mistake or another program may
leave a key of another type under one of its names, or an entry in a stream after which the stream
cannot go on. That would stop reading or publishing for good.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from app.backplane.faults import reading_answer
from app.backplane.scripts import REPAIR, Call, batch_key, meta_key, once_keys, stream_key

logger = logging.getLogger(__name__)

_SIGNS = ("WRONGTYPE", "UNUSABLE", "ID specified in XADD", "last possible ID")


def is_damage(error: Exception) -> bool:
    """Whether an error reply means that another program has written to a key of the service."""
    text = str(error)
    return any(sign in text for sign in _SIGNS)


def repair_type(type: str, publisher: str) -> Call:
    """The call that repairs all keys of a message type.

    Args:
        type: the message type.
        publisher: the worker whose record of its last batch is repaired as well.
    """
    newer, older = once_keys(type)
    return repair_keys(
        {
            stream_key(type): b"stream",
            meta_key(type): b"hash",
            batch_key(type, publisher): b"string",
            newer: b"hash",
            older: b"hash",
        }
    )


def repair_keys(keys: dict[bytes, bytes]) -> Call:
    """The call that repairs keys of one slot; the values are their expected types."""
    return REPAIR, (len(keys), *keys, *keys.values())


def log_repaired(replies: Iterable[Sequence[bytes]]) -> None:
    """Log the keys that calls of `REPAIR` have changed.

    Raises:
        UnexpectedAnswer: these are no replies to it.
    """
    with reading_answer():
        keys = [key.decode(errors="replace") for reply in replies for key in reply]
    for key in keys:
        logger.error(
            "Another program has written to the key %s of the backplane;"
            " it was renamed with the suffix ':foreign', or its invalid entries were removed",
            key,
        )
