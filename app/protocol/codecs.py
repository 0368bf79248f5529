"""How the same envelope looks on each protocol: finished WebSocket frames, or server-sent events.

A message is encoded once per codec and kept on the `Message`, so a flush to thousands of
connections joins ready bytes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

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

    def write(
        self,
        items: Sequence[Message | Gap],
        types: Iterable[str],
        positions: Mapping[str, Position],
        *,
        batch: bool,
    ) -> bytes:
        """All bytes of one write for one kind of subscriber.

        Args:
            items: messages and gaps, in order.
            types: what the subscriber is subscribed to.
            positions: where it stands after the write, at least in these types.
            batch: whether several messages may form a batch.
        """
        return self.flush(items, batch=batch) + self.offset(types, positions, batch)

    def flush(self, items: Sequence[Message | Gap], *, batch: bool) -> bytes:
        """All frames of one flush for one kind of subscriber, in order."""
        if len(items) == 1:
            item = items[0]
            return self.message(item) if isinstance(item, Message) else self.gap(item)
        if not batch:
            message = self.message
            return b"".join(
                [message(item) if isinstance(item, Message) else self.gap(item) for item in items]
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


@functools.lru_cache(maxsize=256)
def _event_head(name: str) -> bytes:
    """How the packet of an event begins; there are few names."""
    return b"42[%b," % json.dumps(name).encode()


class SocketIOCodec(Codec):
    """Encodes for Socket.IO 5 over Engine.IO 4: MESSAGE, EVENT, `[event, envelope]`."""

    name = "socketio"
    protocol = "socketio"

    def event(self, event: str, envelope: bytes) -> bytes:
        """The frame of any envelope."""
        return build_frame(TEXT, b"%b%b]" % (_event_head(event), envelope))

    def offset(self, types: Iterable[str], positions: Mapping[str, Position], batch: bool) -> bytes:
        """The `offset` event, which clients send back when they connect anew."""
        offset = encode_offset(types, positions, batch)
        return build_frame(TEXT, b'42["offset","%b"]' % offset.encode())

    def ack(self, id: int, envelope: bytes) -> bytes:
        """The acknowledgement of an event in the main namespace."""
        return build_frame(TEXT, b"43%d[%b]" % (id, envelope))


class EventStreamCodec(Codec):
    """Encodes for `text/event-stream` (html.spec.whatwg.org, "Server-sent events").

    An envelope is the data of a default event (`message`). Each message and gap has an `id`: the
    offset of a client that has received this and all before it.
    """

    name = "sse"
    protocol = "sse"

    def event(self, event: str, envelope: bytes) -> bytes:
        """The event of any envelope."""
        if b"\n" in envelope or b"\r" in envelope:
            # Between the values of a message that another program has stored.
            envelope = envelope.translate(_NO_LINE_ENDS)
        return b"data: %b\n\n" % envelope

    def offset(self, types: Iterable[str], positions: Mapping[str, Position], batch: bool) -> bytes:
        """An `id` alone, which is no event but is remembered by the client."""
        return self.id(types, positions, batch) + b"\n"

    def id(self, types: Iterable[str], positions: Mapping[str, Position], batch: bool) -> bytes:
        """The line that goes before an event after which its client stands at `positions`."""
        return b"id: %b\n" % encode_offset(types, positions, batch).encode()

    def write(
        self,
        items: Sequence[Message | Gap],
        types: Iterable[str],
        positions: Mapping[str, Position],
        *,
        batch: bool,
    ) -> bytes:
        """All events of one write, each with its own `id`: a write may be cut anywhere."""
        after = {type: positions[type] for type in sorted(types)}
        parts: list[bytes] = []
        # From the end, where the positions are known; what comes first is put in last.
        for event in reversed(_events(items, batch)):
            if isinstance(event[0], Message):
                parts.append(self.run(cast("Sequence[Message]", event)))
            else:
                parts.append(self.gap(event[0]))
            parts.append(self.id(after, after, batch))
            for item in reversed(event):
                first = item.seq if isinstance(item, Message) else item.first
                after[item.type] = Position(item.epoch, max(0, first - 1))
        return b"".join(reversed(parts))

    def retry(self, milliseconds: int) -> bytes:
        """The line that says when to connect again after the end of the stream."""
        return b"retry: %d\n" % milliseconds


def _events(items: Sequence[Message | Gap], batch: bool) -> list[list[Message | Gap]]:
    """What forms one event each: a gap, a message, or several messages."""
    events: list[list[Message | Gap]] = []
    is_run = False
    for item in items:
        if batch and is_run and isinstance(item, Message):
            events[-1].append(item)
        else:
            events.append([item])
        is_run = isinstance(item, Message)
    return events


_NO_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")

COMMENT = b":\n"
"""What a client ignores; proxies see that the stream is in use."""

PLAIN = Codec()
SOCKETIO = SocketIOCodec()
EVENT_STREAM = EventStreamCodec()
