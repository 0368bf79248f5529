"""What a write with messages and gaps consists of, even where one of them cannot be encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from app.protocol.codecs import Codec
from app.types import Gap, Message, Position

Failed = Callable[[Exception], None]
"""Called with the error of each message that is left out."""


def encode_write(
    codec: Codec,
    items: Sequence[Message | Gap],
    types: Iterable[str],
    positions: Mapping[str, Position],
    *,
    batch: bool,
    failed: Failed,
) -> bytes:
    """All bytes of a write for one kind of subscriber, in order; raises nothing.

    A message that cannot be encoded is announced as a gap; the others are not affected.

    Args:
        codec: of the subscribers.
        items: messages and gaps.
        types: what they are subscribed to.
        positions: where they stand after the write, at least in these types.
        batch: whether several messages may form a batch.
        failed: called with the error of each message that is left out.
    """
    try:
        return codec.write(items, types, positions, batch=batch)
    except Exception:  # noqa: BLE001 (found and reported below)
        frames = b"".join(_encode_one(codec, item, failed) for item in items)
        return frames + codec.offset(types, positions, batch)


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
