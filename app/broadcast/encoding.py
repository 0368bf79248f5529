"""The frames of messages and gaps, even where one of them cannot be encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.protocol.codecs import Codec
from app.types import Gap, Message

Failed = Callable[[Exception], None]
"""Called with the error of each message that is left out."""


def encode_items(
    codec: Codec, items: Sequence[Message | Gap], *, batch: bool, failed: Failed
) -> bytes:
    """All frames for one kind of subscriber, in order; raises nothing.

    A message that cannot be encoded is announced as a gap; the others are not affected.
    """
    try:
        return codec.flush(items, batch=batch)
    except Exception:  # noqa: BLE001 (found and reported below)
        return b"".join(_encode_one(codec, item, failed) for item in items)


def _encode_one(codec: Codec, item: Message | Gap, failed: Failed) -> bytes:
    try:
        return codec.flush([item], batch=False)
    except Exception as error:  # noqa: BLE001 (reported)
        failed(error)
    if isinstance(item, Gap):
        return b""
    try:
        return codec.gap(Gap(item.type, item.epoch, item.seq, item.seq, "history"))
    except Exception as error:  # noqa: BLE001 (reported)
        failed(error)
        return b""
