"""How the same envelope looks on the two protocols: finished WebSocket frames.

A message is encoded once per codec and kept on the `Message`, so a flush to thousands of
connections joins ready bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from app.protocol import envelope
from app.protocol.frames import TEXT, build_frame
from app.protocol.offsets import encode_offset
from app.types import Gap, Message, Position


class Codec:
    """Encodes for the plain protocol: an envelope is a text frame."""

    name = "plain"
    protocol = "plain"
    """What the client speaks, whichever extension it uses."""

    def message(self, message: Message) -> bytes:
        """The frame of a stream's message."""
        frame = message.frames.get(self.name)
        if frame is None:
            frame = message.frames[self.name] = self.event(message.event, message.envelope)
        return frame

    def event(self, event: str, envelope: bytes) -> bytes:
        """The frame of any envelope."""
        return build_frame(TEXT, envelope)

    def gap(self, gap: Gap) -> bytes:
        """The frame that announces a gap."""
        data = {"first": gap.first, "last": gap.last, "epoch": gap.epoch, "reason": gap.reason}
        return self.event("gap", envelope.envelope(gap.type, "gap", data))

    def offset(self, types: Iterable[str], positions: Mapping[str, Position], batch: bool) -> bytes:
        """What ends each write that carried messages: nothing, since they bear their `seq`."""
        return b""

    def batch(self, messages: Sequence[Message]) -> bytes:
        """One `batch_update` frame for several messages."""
        joined = b",".join(message.envelope for message in messages)
        data = b'{"messages":[%b]}' % joined
        return self.event("batch_update", envelope.answer("system", "batch_update", data))

    def run(self, messages: Sequence[Message]) -> bytes:
        """Messages without a gap between them, for a subscriber that takes batches."""
        if len(messages) > 1:
            return self.batch(messages)
        return self.message(messages[0]) if messages else b""

    def flush(self, items: Sequence[Message | Gap], *, batch: bool) -> bytes:
        """All frames of one flush for one kind of subscriber, in order."""
        if len(items) == 1:
            item = items[0]
            return self.message(item) if isinstance(item, Message) else self.gap(item)
        if not batch:
            return b"".join(
                self.message(item) if isinstance(item, Message) else self.gap(item)
                for item in items
            )
        parts: list[bytes] = []
        run: list[Message] = []
        for item in items:
            if isinstance(item, Message):
                run.append(item)
                continue
            parts += [self.run(run), self.gap(item)]
            run = []
        return b"".join([*parts, self.run(run)])


class SocketIOCodec(Codec):
    """Encodes for Socket.IO 5 over Engine.IO 4: MESSAGE, EVENT, `[event, envelope]`."""

    name = "socketio"
    protocol = "socketio"

    def event(self, event: str, envelope: bytes) -> bytes:
        """The frame of any envelope."""
        return build_frame(TEXT, b"42[%b,%b]" % (json.dumps(event).encode(), envelope))

    def offset(self, types: Iterable[str], positions: Mapping[str, Position], batch: bool) -> bytes:
        """The `offset` event, which clients send back when they connect anew."""
        offset = encode_offset(types, positions, batch)
        return build_frame(TEXT, b'42["offset","%b"]' % offset.encode())

    def ack(self, id: int, envelope: bytes) -> bytes:
        """The acknowledgement of an event in the main namespace."""
        return build_frame(TEXT, b"43%d[%b]" % (id, envelope))


PLAIN = Codec()
SOCKETIO = SocketIOCodec()
