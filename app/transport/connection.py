"""Detached WebSocket connections: one object and one descriptor each, no task and no queue.

Writes go straight to the socket; what the kernel does not take waits in `Pending`, as references
to the bytes that all receivers share. So the unsent bytes of a connection are always known, and
those of all connections are counted in the hub's `OutputAccount`.

Closing: `Connection.close` sends a close frame, ends the sending side and goes on reading, so
that the peer gets the frame rather than a reset; the descriptor is closed when the peer closes
or after `CLOSE_TIMEOUT`.
"""

from __future__ import annotations

import enum
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Protocol

from app.errors import CloseCode
from app.log_limit import LogLimit
from app.protocol import frames
from app.protocol.frames import FrameReader, PeerClose, TooLarge, Violation
from app.transport.output import OutputAccount
from app.transport.timer_wheel import TimerWheel

logger = logging.getLogger("realtime.connection")

READ_SIZE = 16 * 1024
"""Bytes that are read from a socket at once."""
HIGH_WATER = 64 * 1024
"""Unsent bytes past which a connection gets no more stream messages until it has drained."""
INPUT_PAUSE = 256 * 1024
"""Unsent bytes past which nothing more is read from a connection, so it can ask for no more."""
OUTPUT_LIMIT = 4 * 1024 * 1024
"""Unsent bytes behind the frame that is being sent, past which a connection is given up; see
`Hub.output_limit`."""
KEPT_REST = 64 * 1024
"""Most bytes of a frame that are still sent to make room for a close frame behind it."""
FRAMES_AT_ONCE = 4
"""Frames of a connection that are handled before it is looked how long that has taken."""
CLOSE_TIMEOUT = 5.0
"""Seconds that a peer has to answer a close frame."""
BY_PEER = "transport close"
"""Why a connection ended that its peer has ended: Socket.IO's word for it."""


class ConnectionState(enum.IntEnum):
    """Where a connection is in its life.

         close()          the peer closes, or CLOSE_TIMEOUT
    OPEN ───────► CLOSING ───────► CLOSED
     │ ▲                             ▲
     │ └ taken back                  │ another worker has it
     └──────────► MOVING ────────────┘
          drop(): from any of them to CLOSED
    """

    OPEN = 0
    """Messages are read and written."""
    CLOSING = 1
    """The close frame is on its way; what still comes is not looked at."""
    CLOSED = 2
    """The descriptor is closed."""
    MOVING = 3
    """On its way to another worker: nothing is read or written here."""


# A lookup in the module costs less than one in the class.
OPEN, CLOSING = ConnectionState.OPEN, ConnectionState.CLOSING
CLOSED, MOVING = ConnectionState.CLOSED, ConnectionState.MOVING


class Pending:
    """Bytes that the kernel did not take, as the chunks they were written in.

    Args:
        data: the first chunk.
        sent: bytes of it that are sent already.
        account: where the chunks are counted until they are sent or `clear` is called.
        tick: of the hub's wheel, now.
        headless: the first chunk is the rest of a frame.
    """

    __slots__ = ("account", "chunks", "headless", "moved", "offset", "size")

    def __init__(
        self,
        data: bytes,
        sent: int,
        account: OutputAccount,
        *,
        tick: int = 0,
        headless: bool = False,
    ) -> None:
        self.account = account
        self.chunks = deque((data,))
        self.offset = sent
        """Bytes of the first chunk that are sent already."""
        self.size = len(data) - sent
        self.moved = tick
        """Tick at which the socket last took something."""
        self.headless = headless
        account.hold(data)

    @property
    def behind(self) -> int:
        """Bytes that wait behind the chunk which is being sent."""
        return self.size - len(self.chunks[0]) + self.offset

    @property
    def cost(self) -> float:
        """Bytes of memory that would be free without this connection, shared ones in part."""
        return sum(map(self.account.share, self.chunks))

    def append(self, data: bytes) -> None:
        """Add a chunk behind the others."""
        self.chunks.append(data)
        self.size += len(data)
        self.account.hold(data)

    def content(self) -> bytes:
        """All unsent bytes."""
        return b"".join(self.chunks)[self.offset :]

    def write_to(self, fd: int) -> bool:
        """Write what fits; whether all is gone. Raises OSError when the socket is dead."""
        chunks = self.chunks
        while chunks:
            chunk = chunks[0]
            view = memoryview(chunk)[self.offset :] if self.offset else chunk
            try:
                sent = os.write(fd, view)
            except BlockingIOError:
                return False
            self.size -= sent
            self.offset += sent
            if self.offset < len(chunk):
                return False
            self._pop()
        return True

    def cut(self, frame_end: Callable[[bytes, int], int] = frames.frame_end) -> bool:
        """Throw away what comes behind the frame that is being sent, to make room.

        Args:
            frame_end: where in a chunk the frame ends that a place is in.

        Returns False when the rest of that frame is too long to be kept.
        """
        chunk = self.chunks[0]
        end = len(chunk) if self.headless else frame_end(chunk, self.offset)
        if end - self.offset > KEPT_REST:
            return False
        rest = self.chunks[0][self.offset : end]
        self.clear()
        if rest:
            self.append(rest)
        self.headless = bool(rest)
        return True

    def clear(self) -> None:
        """Throw everything away."""
        for chunk in self.chunks:
            self.account.give_back(chunk)
        self.chunks.clear()
        self.offset = 0
        self.size = 0

    def _pop(self) -> None:
        self.account.give_back(self.chunks.popleft())
        self.offset = 0
        self.headless = False


class ConnectionHub(Protocol):
    """What a connection needs of its hub (app/transport/hub.py), which stands above it."""

    wheel: TimerWheel
    max_message: int
    output_limit: int
    slice_ends: float
    owed_pongs: dict[Connection, bytes]
    bytes_sent: int
    bytes_received: int
    extra_frames: int
    closed: dict[int, int]
    ended: dict[int, int]

    def send_soon(self, connection: Connection, frame: bytes, /) -> None:
        """Queue a frame for the end of this pass of the loop."""

    def take_queued(self, connection: Connection, /) -> bytes:
        """The queued frames of a connection, to be written before anything else."""

    def back_up(self, connection: Connection, data: bytes, sent: int, /) -> None:
        """Keep what a socket did not take."""

    def watch(self, connection: Connection, /) -> None:
        """Make the epoll wait for what the connection is ready for now."""

    def put_off(self, connection: Connection, /) -> None:
        """Go on in the next pass with what a connection has sent."""

    def forget_unfinished(self, connection: Connection, /) -> None:
        """Stop accounting for bytes of its unfinished messages."""

    def note_unfinished(self, connection: Connection, change: int, /) -> None:
        """Account for bytes of unfinished messages."""

    def hold(self, connection: Connection, seconds: float, /) -> None:
        """Read nothing from a connection for some time, or close it."""

    def spare(self, connection: Connection, /) -> bool:
        """Go on with a connection that is silent, if that is since it reads slowly."""

    def log_given_up(self, connection: Connection, reason: str, /) -> None:
        """Log that a connection is closed for not reading."""

    def close_later(self, connection: Connection, /) -> None:
        """Close the descriptor if the peer does not in time."""

    def close_flooding(self, connection: Connection, /) -> None:
        """Read nothing more from a connection that is being closed with 4429."""

    def detach(self, connection: Connection, /) -> None:
        """Forget a connection and close its descriptor."""


class Connection:
    """One WebSocket peer. Subclasses say what its messages mean.

    Args:
        hub: the hub of this worker.
        fd: a non-blocking socket descriptor that this object owns from now on.
        id: name of the connection in messages and logs.
    """

    __slots__ = ("fd", "hub", "id", "pending", "reader", "seen", "state")

    heartbeat_every: ClassVar[float | None] = None
    """Seconds between two heartbeats at most; None: the interval of the wheel."""
    ping_frame: ClassVar[bytes | None] = frames.build_frame(frames.PING, b"")
    """What `heartbeat` sends; None: that is another matter."""

    def __init__(self, hub: ConnectionHub, fd: int, id: str) -> None:
        self.hub = hub
        self.fd = fd
        self.id = id
        self.state = OPEN
        self.reader: FrameReader | None = None
        """Of a frame or message that has come in part; None: there is none."""
        self.pending: Pending | None = None
        """What the socket has not taken; None: it has taken all."""
        self.seen = 0
        """Tick of the wheel at which something was last received."""

    # What subclasses implement.

    @staticmethod
    def frame_end(chunk: bytes, place: int) -> int:
        """Where in a chunk that was written the frame ends that `place` is in."""
        return frames.frame_end(chunk, place)

    def on_text(self, text: str) -> None:
        """A text message arrived."""
        raise NotImplementedError

    def on_binary(self, data: bytes) -> None:
        """A binary message arrived."""
        raise NotImplementedError

    def on_too_large(self) -> None:
        """A message over the limit was skipped."""
        raise NotImplementedError

    def on_oversized(self) -> None:
        """A message so large that the connection ends with 1009; the last chance to say so."""

    def on_drained(self) -> None:
        """Everything written has left."""

    def on_lost(self, code: int, reason: str) -> None:
        """The connection is no longer open; called once.

        Args:
            code: close code, 1006 when there was no close frame.
            reason: `BY_PEER` when the peer went away, otherwise what the server said.
        """

    def on_detached(self) -> None:
        """The descriptor is closed; called once, after `on_lost`."""

    def on_throttled(self, seconds: float) -> None:
        """Nothing is read from it for so long, since it has used more than its share."""

    def on_flood(self) -> None:
        """It has sent more than it may."""
        self.close(CloseCode.FLOOD, "flood")

    def heartbeat(self) -> None:
        """Send a ping."""
        if self.ping_frame is not None:
            self.send(self.ping_frame)

    def is_pong(self, data: bytes) -> bool:
        """Whether these bytes are no more than the answer to a heartbeat, as most clients send it."""
        return len(data) == _PONG_SIZE and data.startswith(_PONG_HEAD)

    def ping(self) -> None:
        """Send a ping of WebSocket's own, which every client answers by itself."""
        self.send(_PING_FRAME)

    def heartbeat_missed(self) -> None:
        """Nothing was received within the heartbeat timeout."""
        if self.hub.spare(self):
            return
        self.close(CloseCode.HEARTBEAT_TIMEOUT, "heartbeat timeout")

    # Sending.

    def send(self, frame: bytes) -> None:
        """Queue a finished frame for the end of this pass of the loop."""
        if self.state == OPEN:
            self.hub.send_soon(self, frame)

    def write_now(self, data: bytes) -> None:
        """Write finished frames now, behind those that are queued for the end of this pass."""
        self.write(self.hub.take_queued(self) + data)

    def write(self, data: bytes) -> None:
        """Write finished frames now; what does not fit waits in `pending`."""
        pending = self.pending
        hub = self.hub
        hub.bytes_sent += len(data)
        if pending is not None:
            if pending.behind > hub.output_limit:
                self.give_up("too many bytes that the client does not read")
                return
            pending.append(data)
            if pending.size > INPUT_PAUSE:
                hub.watch(self)
            return
        try:
            sent = os.write(self.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop(BY_PEER)
            return
        if sent < len(data):
            hub.back_up(self, data, sent)

    def writable(self) -> None:
        """The kernel takes bytes again."""
        pending = self.pending
        if pending is None:
            return
        before = pending.size
        try:
            drained = pending.write_to(self.fd)
        except OSError:
            self.drop(BY_PEER)
            return
        if pending.size < before:
            # Its answer to a ping may be far behind: taking bytes is a sign of life as well.
            self.seen = pending.moved = self.hub.wheel.now
        if drained:
            self.pending = None
            self.hub.watch(self)
            if self.state == OPEN:
                pong = self.hub.owed_pongs.pop(self, None)
                if pong is not None:
                    self.send(frames.build_frame(frames.PONG, pong))
                self.on_drained()
            else:
                self._end_sending()
        elif pending.size <= INPUT_PAUSE:
            self.hub.watch(self)

    def give_up(self, reason: str) -> None:
        """Close for what the peer does not read: that is thrown away, and 4413 sent if it can be.

        It cannot be where the socket takes nothing, or is in the middle of a long frame.
        """
        self.hub.log_given_up(self, reason)
        pending = self.pending
        if self.state == OPEN and pending is not None and pending.cut(self.frame_end):
            self.hub.take_queued(self)
            if not pending.size:
                self.pending = None
            self.hub.watch(self)
            self.close(CloseCode.NOT_READING, reason)
            return
        self.drop(reason, CloseCode.NOT_READING)

    # Receiving.

    def readable(self) -> bool:
        """Bytes, the end, or an error wait in the kernel.

        Returns whether that was no more than the answer to a heartbeat, after some silence: it
        costs next to nothing, and no client can send many.
        """
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.drop(BY_PEER)
            return False
        hub = self.hub
        now = hub.wheel.now
        silent, self.seen = now - self.seen, now
        hub.bytes_received += len(data)
        if silent >= _SILENT_TICKS and self.reader is None and self.is_pong(data):
            hub.extra_frames += 1
            return True
        self.receive(data)
        return False

    def receive(self, data: bytes) -> None:
        """Handle received bytes; some may be put off until the next pass of the loop."""
        hub = self.hub
        if self.reader is None:
            single = frames.read_single(data)
            if single is not None:
                payload = single[1]
                if not isinstance(payload, str):
                    hub.extra_frames += 1  # a pong
                elif self.state == OPEN:
                    self.on_text(payload)
                return
            if not data:
                return
            self.reader = FrameReader(hub.max_message)
        reader = self.reader
        while True:
            held = reader.held
            events = reader.feed(data, FRAMES_AT_ONCE)
            change = reader.held - held
            if change:
                hub.note_unfinished(self, change)
            if reader.idle:
                self.reader = None
            hub.extra_frames += reader.frames
            for opcode, payload in events:
                if opcode in (frames.TEXT, frames.BINARY):
                    hub.extra_frames -= 1
                self._handle(opcode, payload)
            if not reader.cut or self.reader is not reader:
                return
            if time.monotonic() >= hub.slice_ends:
                hub.put_off(self)
                return
            data = b""

    def _handle(self, opcode: int, payload: str | bytes | Violation | PeerClose | TooLarge) -> None:
        if self.state == OPEN:
            if isinstance(payload, str):
                self.on_text(payload)
            elif not isinstance(payload, bytes):
                self._handle_rare(payload)
            elif opcode == frames.BINARY:
                self.on_binary(payload)
            elif opcode == frames.PING:
                if self.pending is None:
                    self.send(frames.build_frame(frames.PONG, payload))
                else:
                    # The peer does not read: only the last ping is answered (RFC 6455, 5.5.3).
                    self.hub.owed_pongs[self] = payload
        elif self.state == CLOSING:
            if opcode == frames.CLOSE:
                self.drop("closed")
            elif opcode == frames.VIOLATION:
                # What follows cannot be understood, so only the end of the stream counts now.
                self.reader = None

    def _handle_rare(self, event: Violation | PeerClose | TooLarge) -> None:
        """Act on what most connections see once or never."""
        if isinstance(event, Violation):
            self._violated(event)
        elif isinstance(event, TooLarge):
            self.on_too_large()
        elif event.code == frames.NO_CODE:
            answer = frames.build_frame(frames.CLOSE, b"")
            self._leave(CloseCode.NORMAL, BY_PEER, answer)
        else:
            self._leave(event.code, BY_PEER, frames.build_close(event.code, ""))

    def _violated(self, violation: Violation) -> None:
        """Close, since the peer has violated the protocol."""
        if _violations.allows(violation.reason):
            logger.info(
                "Protocol violation: %s",
                violation.reason,
                extra={"connection": self.id, "code": violation.code},
            )
        if violation.code == CloseCode.TOO_BIG:
            self.on_oversized()
        self.close(violation.code, violation.reason)

    # Closing.

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and wait for the peer's; harmless when already closing."""
        self._leave(code, reason, frames.build_close(code, reason))

    def drop(self, reason: str, code: int = 1006) -> None:
        """Close the descriptor now."""
        if self.state == CLOSED:
            return
        was_open = self.state == OPEN
        self.state = CLOSED
        try:
            if was_open:
                self._lost(code, reason)
        finally:
            self.hub.detach(self)
            # The kernel will soon give its number to another file.
            self.fd = -1
            self.reader = None
            if self.pending is not None:
                self.pending.clear()
                self.pending = None
            self.on_detached()

    def _leave(self, code: int, reason: str, frame: bytes) -> None:
        if self.state != OPEN:
            return
        last_words = self.hub.take_queued(self)
        self.state = CLOSING
        self._lost(code, reason)
        self.hub.forget_unfinished(self)
        if self.reader is not None and self.reader.held:
            # The rest of a half-read message is noise now, and not worth its memory.
            self.reader = None
        self.hub.wheel.discard(self)
        self.hub.close_later(self)
        if code == CloseCode.FLOOD:
            self.hub.close_flooding(self)
        self.write(last_words + frame)
        if self.state == CLOSING and self.pending is None:
            self._end_sending()

    def _lost(self, code: int, reason: str) -> None:
        closed = self.hub.closed
        closed[code] = closed.get(code, 0) + 1
        if reason != BY_PEER:
            ended = self.hub.ended
            ended[code] = ended.get(code, 0) + 1
        self.on_lost(code, reason)

    def _end_sending(self) -> None:
        """Tell the peer that nothing more comes; it is then its turn to close."""
        borrowed = socket.socket(fileno=self.fd)
        try:
            borrowed.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(BY_PEER)
        finally:
            borrowed.detach()


_PING_FRAME = frames.build_frame(frames.PING, b"")
_PONG_HEAD, _PONG_SIZE = b"\x8a\x80", 6
"""An empty pong: its head, with the bit of the mask, and its size with the mask."""
_SILENT_TICKS = 2
"""Ticks of the wheel without input after which a pong is looked at no further."""
_violations = LogLimit(60.0)
