"""Server-sent events: a client that only receives, over plain HTTP (docs/PROTOCOL.md).

The answer to its request is written once its place is claimed and it is known where it goes on, so
that it can still be refused with a status. What it sends behind the request is read and dropped,
within the limits of every connection. It answers no pings: it lives for as long as the kernel of the
peer confirms what is written, and at least a comment is written every `COMMENT_SECONDS`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, NoReturn

from app.errors import ClientError, CloseCode, ErrorCode, NoRoomNow
from app.protocol import envelope, http_answers
from app.protocol.codecs import COMMENT, EVENT_STREAM
from app.protocol.offsets import Offset
from app.protocol.requests import ConnectOptions, Request
from app.sessions.auth import Identity
from app.sessions.protocol_session import ProtocolSession
from app.sessions.refused import note_refusal
from app.sessions.retry import draw_delay, read_delay, retry_reason
from app.sessions.session import FLOWING, Opening, Recovery, Work
from app.sessions.subscriptions import Start
from app.transport import kernel
from app.transport.connection import OPEN
from app.types import Gap, Position

COMMENT_SECONDS = 15.0
"""Seconds between two comments: proxies close what is silent for longer."""
FINAL_RETRY = 3_600_000
"""Milliseconds after which a client connects again that should not: nothing else keeps an EventSource away."""
_END = b"\n\n"
_FINAL = frozenset(code for code in CloseCode if code.is_final)

logger = logging.getLogger("realtime.session")


class EventStreamSession(ProtocolSession):
    """A client of `GET /events`."""

    __slots__ = ()

    protocol = "sse"
    codec = EVENT_STREAM
    heartbeat_every: ClassVar[float | None] = COMMENT_SECONDS
    ping_frame = None

    # How it begins.

    def begin(
        self,
        opening: Opening,
        identity: Identity | None,
        options: ConnectOptions,
        offset: Offset | None,
    ) -> None:
        """Claim a place, and answer the request.

        Args:
            opening: what the answer begins with.
            identity: what its token proves.
            options: what it asks for.
            offset: where it stands, if it comes back.
        """
        if identity is not None:
            self.authenticated(identity)
        try:
            claim = self.context.claiming.claim(self)
        except ClientError as error:
            self._refuse(error, opening)
            return
        work = self._open(opening, options, offset) if claim is None else None
        if claim is None and work is None:
            return
        if not self.welcomed:
            self.need_extra().opening = opening
        self.start_task(self._open_slowly(claim, work, opening, options, offset), is_frame=False)

    async def _open_slowly(
        self,
        claim: Work | None,
        work: Work | None,
        opening: Opening,
        options: ConnectOptions,
        offset: Offset | None,
    ) -> None:
        try:
            if claim is not None:
                await claim
                work = self._open(opening, options, offset)
            if work is not None:
                await work
        except ClientError as error:
            if self.welcomed:
                raise
            self._refuse(error, opening)
        except Exception:
            if self.welcomed:
                raise
            logger.exception("A stream cannot begin", extra={"connection": self.id})
            self.drop("internal error")

    def _open(
        self, opening: Opening, options: ConnectOptions, offset: Offset | None
    ) -> Work | None:
        """Go on with a client whose place is claimed; returns what remains to be awaited."""
        if self.state != OPEN:
            return None
        if offset is None:
            return self._greet(opening, options)
        chosen = self.context.welcome.chosen_by(self, options).types
        known = {type: at for type, at in offset.positions.items() if type in chosen}
        live = self.context.fanout.positions
        if all(at == live[type] for type, at in known.items()):
            return self._greet(opening, options, {})
        return self._recover(opening, options, known)

    async def _recover(
        self, opening: Opening, options: ConnectOptions, known: Mapping[str, Position]
    ) -> None:
        starts = await self.context.subscriptions.find_starts(self, known)
        if self.state == OPEN:
            self._greet(opening, options, starts)

    def _greet(
        self, opening: Opening, options: ConnectOptions, starts: Mapping[str, Start] | None = None
    ) -> Work | None:
        """Answer the request, and let messages flow; returns what remains to be awaited.

        Args:
            opening: what the answer begins with.
            options: what the client asks for; one that comes back gets no history.
            starts: where types go on for one that comes back; the others begin where live is.
        """
        welcome, live = self.context.welcome, self.context.fanout.positions
        if self.extra is not None:
            self.extra.opening = None
        self.send(opening.head)
        if starts is not None:
            options = replace(options, history=None)
            positions = {type: live[type] for type in welcome.chosen_by(self, options).types}
            positions |= {type: start.position for type, start in starts.items()}
            gaps = tuple(start.gap for start in starts.values() if start.gap)
            if gaps:
                self.need_extra().recovery = Recovery(options, positions, gaps, None)
            welcome.greet(self, options, positions)
            if gaps:
                self.need_extra().recovery = None
                self._send_gaps(positions, gaps)
        elif options.history is None:
            welcome.greet(self, options, live)
        else:
            return welcome.greet(self, options)
        self.context.catchup.start(self)
        return None

    def _send_gaps(self, positions: Mapping[str, Position], gaps: Sequence[Gap]) -> None:
        for gap in gaps:
            self.context.metrics.gaps[gap.reason].inc()
        group = self.group
        self.send(self.codec.write(gaps, group.types, positions, batch=group.batch))

    def _refuse(self, error: ClientError, opening: Opening) -> None:
        """Answer with a status, or, to a browser that is to come back, with a stream that ends."""
        self.context.metrics.errors[error.code].inc()
        note_refusal(self.context.refusals, error)
        if isinstance(error, NoRoomNow):
            code, reason = CloseCode.TRY_AGAIN_LATER, error.close_reason
        elif error.code is ErrorCode.MAX_CONNECTIONS_EXCEEDED:
            code, reason = CloseCode.POLICY_VIOLATION, "too many connections of this user"
        else:
            code, reason = CloseCode.RESTART, retry_reason()
        delay = read_delay(reason)
        if delay is not None and opening.is_browser:
            words = opening.head + error_event(error) + last_event(code, reason)
        else:
            status = 429 if error.code is ErrorCode.MAX_CONNECTIONS_EXCEEDED else 503
            seconds = -(-(delay or draw_delay()) // 1000)
            headers = {"Retry-After": str(seconds), **opening.headers}
            words = http_answers.error(status, error.code, error.message, headers)
        self._leave(code, reason, words)

    # Sending.

    def send_event(self, event: str, envelope: bytes) -> None:
        """Send an event of this service; nothing may be sent before the answer has begun."""
        if not self.welcomed:
            return
        data = self.codec.event(event, envelope)
        track = self.track
        if event == "connected":
            # Where gaps follow, or history, the client must ask for them again if it is cut off now.
            is_complete = self.phase == FLOWING and (
                self.extra is None or self.extra.recovery is None
            )
            first = self._id(track) if is_complete else b""
            data = self.codec.retry(draw_delay()) + first + data
        elif event == "history_data" and (self.extra is None or not self.extra.pages):
            # With the last answer of those that it asked for it has all of its history.
            data = self._id(track) + data
        self.send(data)

    def _id(self, positions: Mapping[str, Position] | None) -> bytes:
        group = self.group
        positions = self.context.fanout.positions if positions is None else positions
        return self.codec.id(group.types, positions, group.batch)

    @staticmethod
    def frame_end(chunk: bytes, place: int) -> int:
        """Where the event ends that `place` is in."""
        if place == 0 or chunk[place - 2 : place] == _END:
            return place
        end = chunk.find(_END, place - 1)
        return len(chunk) if end < 0 else end + len(_END)

    # Receiving: nothing is expected.

    def receive(self, data: bytes) -> None:
        """Drop what comes behind the request; it counts as a frame that is no message."""
        self.hub.extra_frames += 1

    def request_of(self, message: str | bytes) -> Request | None:
        """Of none."""
        return None

    def handle(self, message: str | bytes) -> NoReturn:
        """Never called: no message is read."""
        raise NotImplementedError

    def reply(self, request: Request, event: str, envelope: bytes) -> None:
        """Send an answer as an event."""
        self.send_event(event, envelope)

    # Whether it is still there.

    def heartbeat(self) -> None:
        """Send a comment; note that the peer lives if it has confirmed all that came before."""
        if self.has_confirmed():
            self.seen = self.hub.wheel.now
        if self.pending is None and self.welcomed:
            self.send(COMMENT)

    def ping(self) -> None:
        """Send a comment, which the kernel of the peer confirms."""
        if self.welcomed:
            self.send(COMMENT)

    def is_pong(self, data: bytes) -> bool:
        """It has none."""
        return False

    def has_confirmed(self) -> bool:
        """Whether the kernel of the peer has confirmed all that was written."""
        return self.pending is None and not kernel.count_unsent(self.fd)

    def heartbeat_missed(self) -> None:
        """The peer has not confirmed everything for as long as the timeout."""
        if self.has_confirmed():
            self.hub.wheel.add(self)
            self.ping()
        elif not self.hub.spare(self):
            self.end(CloseCode.HEARTBEAT_TIMEOUT, "heartbeat timeout")

    def mark_probe(self) -> int:
        """How much the kernel of the peer has confirmed."""
        return kernel.progress(self.fd)

    def has_answered(self, mark: int) -> bool:
        """Whether the kernel of the peer has confirmed something since then, or everything."""
        return self.has_confirmed() or kernel.progress(self.fd) > mark

    # How it ends.

    def close(self, code: int, reason: str = "") -> None:
        """Send a last event that says why and when to come back, and end the stream."""
        if self.welcomed:
            self._leave(code, reason, last_event(code, reason))
        else:
            opening = self.extra.opening if self.extra is not None else None
            words = b"" if opening is None else opening.head + last_event(code, reason)
            self._leave(code, reason, words)


def error_event(error: ClientError) -> bytes:
    """An `error` event, for a stream that ends."""
    return EVENT_STREAM.event("error", envelope.error_envelope(error.code, error.message))


def last_event(code: int, reason: str) -> bytes:
    """What a stream ends with; the client connects again after the time that it says.

    Args:
        code: as of a close frame.
        reason: words, or `retry_reason()`.
    """
    delay = read_delay(reason)
    data: dict[str, object] = {"code": int(code), "reason": reason}
    if delay is not None:
        data = {"code": int(code), "reason": "", "retryAfter": delay}
    if delay is None:
        # With an expired token it is refused the next time, and then stays away.
        stays_away = code in _FINAL and code != CloseCode.UNAUTHORIZED
        delay = FINAL_RETRY if stays_away else draw_delay()
    event = "connection_closing"
    return EVENT_STREAM.retry(delay) + EVENT_STREAM.event(
        event, envelope.envelope("system", event, data)
    )
