"""A Socket.IO client: Engine.IO 4 packets on one WebSocket, Socket.IO 5 packets within them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from socketio import packet as sio_packet

from app.errors import ClientError, CloseCode, ErrorCode
from app.protocol.codecs import SOCKETIO
from app.protocol.envelope import decode_json
from app.protocol.frames import TEXT, build_close, build_frame
from app.protocol.offsets import Offset, decode_offset
from app.protocol.requests import (
    DEFAULT_OPTIONS,
    ConnectOptions,
    Request,
    check_cost,
    parse_options,
)
from app.protocol.schema.actions import ACTIONS
from app.protocol.schema.limits import MAX_VALUES
from app.sessions.auth import NAME_RULE, user_name
from app.sessions.claiming import REPLACE_SECONDS
from app.sessions.protocol_session import ProtocolSession
from app.sessions.refused import note_refusal
from app.sessions.resume_tokens import Pid
from app.sessions.session import HELD, OUTSIDE, Recovery, Work, weigh
from app.sessions.socketio.client import MAIN, SocketIOClient
from app.sessions.socketio.engine import message_frame
from app.sessions.token_keys import KeysUnavailable
from app.transport.connection import OPEN, OUTPUT_LIMIT

MAX_ATTACHMENTS = 100
"""Binary attachments of one packet."""

_UNFIT = "The placeholders do not match the attachments."
_CONNECT = str(sio_packet.CONNECT)
_BARE_CONNECT = f"4{_CONNECT}"
"""To the main namespace without `auth`: what most clients of a storm begin with."""
_CONNECT_WITH_AUTH = f"{_CONNECT}{{"
"""The same with it, for which python-socketio's parser would cost twice as much as its JSON."""
_LONGEST_CONNECT = 64 * 1024
"""Characters of a CONNECT packet: tokens and what applications add."""
_PONG_HEAD, _PONG = b"\x81\x81", ord("3")
"""A PONG packet: the head of its frame, with the bit of the mask, and what follows the mask."""
_HEAD = 512
"""Characters of a packet that is not parsed in which its kind, ack and event are looked for."""
_EVENT_HEAD = re.compile(
    r"4(?:2|5[0-9]{1,10}-)(?:(?P<namespace>/[^,\[]*),)?(?P<ack>[0-9]{1,15})?"
    r'\s*\[\s*"(?P<name>[^"\\]*)',
    re.ASCII,
)
_ACK_KINDS = ("3", "6")
_LONGEST_PROBE = 125
"""Characters of an Engine.IO ping of a client, which is answered with what it says."""
_EVENTS = (sio_packet.EVENT, sio_packet.BINARY_EVENT)
_REASONS = {
    "transport close": "transport close",
    "client disconnect": "client disconnect",
    "heartbeat timeout": "ping timeout",
}
"""Reasons given to python-socketio's disconnect handlers; any other end is `server disconnect`."""


class SocketIOSession(ProtocolSession, SocketIOClient):
    """A client of the Socket.IO protocol."""

    __slots__ = ()

    protocol = "socketio"
    codec = SOCKETIO
    connects_by_frame = True
    ping_frame = build_frame(TEXT, b"2")

    def begin(self, options: ConnectOptions) -> None:
        """Send the OPEN packet; the client's CONNECT comes next."""
        if options is not DEFAULT_OPTIONS:
            self.need_extra().options = options
        self.context.connect_deadlines.await_connect(self)
        self.send(self.context.open_packet.frame(self.id))

    # Packets.

    def on_text(self, text: str) -> None:
        """Handle an Engine.IO packet."""
        if text != "3":
            self._receive(text)
        else:
            self.hub.extra_frames += 1

    def is_pong(self, data: bytes) -> bool:
        """See `Connection`; here it is a PONG packet."""
        return len(data) == 7 and data.startswith(_PONG_HEAD) and data[6] ^ data[2] == _PONG

    def request_of(self, message: str | bytes) -> Request | None:
        """The event whose acknowledgement a client waits for."""
        found = _EVENT_HEAD.match(message[:_HEAD]) if isinstance(message, str) else None
        if found is None or found["ack"] is None or (found["namespace"] or MAIN) != MAIN:
            return None
        return Request("", None, None, int(found["ack"]))

    def handle(self, message: str | bytes) -> Work | None:
        """Act on one Engine.IO packet."""
        if message == _BARE_CONNECT and (self.extra is None or not self.extra.packet_size):
            return self.context.sio.connect(self, MAIN, None)
        if isinstance(message, bytes):
            return self._attachment(message)
        kind = message[:1]
        if kind == "4":
            try:
                self._check_cost(message)
                return self._packet(message[1:])
            except ClientError as error:
                if message[1:2] == _CONNECT:
                    self.context.sio.refuse_connect(self, _namespace(message), error)
                else:
                    self.send_error(error, self.request_of(message))
                return None
        if kind == "2":
            check_cost(message, _LONGEST_PROBE)
            self.send(build_frame(TEXT, b"3" + message[1:].encode()))
        elif kind == "1":
            self._leave(CloseCode.NORMAL, "client disconnect", build_close(CloseCode.NORMAL))
        elif kind not in ("3", "5", "6"):
            self.end(CloseCode.PROTOCOL_ERROR, "this is not an Engine.IO 4 packet")
        return None

    def _check_cost(self, message: str) -> None:
        """Make sure that a packet is cheap to parse, without parsing it.

        Raises:
            ClientError: MESSAGE_TOO_LARGE.
        """
        if len(message) <= MAX_VALUES:
            return
        if message[1:2] == _CONNECT:
            check_cost(message, _LONGEST_CONNECT)
            return
        settings = self.context.settings
        found = _EVENT_HEAD.match(message[:_HEAD])
        is_action = found is not None and (
            found["name"] in ACTIONS and (found["namespace"] or MAIN) == MAIN
        )
        is_ours = is_action or (found is None and message[1:2] not in _ACK_KINDS)
        if settings.handlers and not is_ours:
            most = settings.max_event_size
            if len(message) > most:
                raise ClientError(
                    ErrorCode.MESSAGE_TOO_LARGE,
                    f"An event may have at most {most} characters, without its attachments.",
                )
        else:
            check_cost(message)

    def _packet(self, text: str) -> Work | None:
        if self.drop_packet():
            message = "The previous packet is dropped: its attachments are missing."
            self.send_error(ClientError(ErrorCode.PARSE_ERROR, message))
        if text.startswith(_CONNECT_WITH_AUTH):
            return self.context.sio.connect(self, MAIN, self._decode(decode_json, text[1:]))
        packet = self._decode(self._parse, text)
        if packet.packet_type in _EVENTS and not (
            isinstance(packet.data, list) and packet.data and isinstance(packet.data[0], str)
        ):
            raise ClientError(
                ErrorCode.INVALID_PAYLOAD, "An event must be an array that begins with its name."
            )
        if packet.packet_type in (sio_packet.ACK, sio_packet.BINARY_ACK) and (
            packet.id is None or not isinstance(packet.data, list)
        ):
            raise ClientError(ErrorCode.INVALID_PAYLOAD, "An ACK must have an id and an array.")
        if packet.attachment_count:
            self._await_attachments(packet, text)
            return None
        if self.phase >= HELD and _is_action(packet):
            payload = packet.data[1] if len(packet.data) > 1 else None
            request = Request(packet.data[0], payload, None, packet.id)
            return self.context.router.handle(self, request)
        return self._dispatch(packet, weigh(text))

    def _await_attachments(self, packet: Any, text: str) -> None:
        """Keep a packet until its attachments have come.

        Raises:
            ClientError: it may have none, or not these.
        """
        manager = self.context.sio.manager
        if packet.attachment_count > MAX_ATTACHMENTS:
            raise ClientError(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"A packet may have at most {MAX_ATTACHMENTS} attachments.",
            )
        namespace = packet.namespace or MAIN
        sid = manager.sid_from_eio_sid(self, namespace)
        if sid is None or not manager.is_connected(sid, namespace):
            raise ClientError(
                ErrorCode.INVALID_ACTION, "Connect to the namespace before the first event."
            )
        numbers = list(_placeholders(packet.data))
        if any(not _is_place(number, packet.attachment_count) for number in numbers):
            raise ClientError(ErrorCode.PARSE_ERROR, _UNFIT)
        self.context.sio.incomplete[self] = packet
        extra = self.need_extra()
        extra.packet_size = weigh(text)
        self.hub.input.keep(self, extra.packet_size)

    def _parse(self, text: str) -> Any:
        return self.context.sio.packet_class(encoded_packet=text)

    @staticmethod
    def _decode(parse: Callable[[str], Any], text: str) -> Any:
        """Parse what a client has sent.

        Raises:
            ClientError: it is no packet.
        """
        try:
            return parse(text)
        except ClientError:
            raise
        except (ValueError, IndexError, TypeError, AttributeError):
            raise ClientError(ErrorCode.PARSE_ERROR, "This is not a Socket.IO 5 packet.") from None

    def _attachment(self, data: bytes) -> Work | None:
        server = self.context.sio
        packet = server.incomplete.get(self)
        if packet is None:
            raise ClientError(ErrorCode.PARSE_ERROR, "The attachment belongs to no packet.")
        if self._result_size(packet, data) > self.hub.max_message:
            self.drop_packet()
            raise self._too_large()
        try:
            complete = packet.add_attachment(data)
        except (ValueError, IndexError, TypeError, KeyError):
            self.drop_packet()
            raise ClientError(ErrorCode.PARSE_ERROR, _UNFIT) from None
        extra = self.need_extra()
        if not complete:
            extra.packet_size += len(data)
            self.hub.input.keep(self, len(data))
            return None
        size = extra.packet_size + len(data)
        self.drop_packet()
        return self._dispatch(packet, size)

    def _result_size(self, packet: Any, data: bytes) -> int:
        """Bytes of a packet's attachments with the next one, each as often as it is used."""
        sizes: list[int] = [*map(len, packet.attachments), len(data)]
        result = 0
        if len(sizes) == packet.attachment_count:
            result = sum(sizes[number] for number in _placeholders(packet.data))
        return max(sum(sizes), result)

    def drop_packet(self) -> bool:
        """Forget the packet that waits for its attachments; whether there was one."""
        if self.context.sio.incomplete.pop(self, None) is None:
            return False
        extra = self.need_extra()
        self.hub.input.keep(self, -extra.packet_size)
        extra.packet_size = 0
        return True

    def _dispatch(self, packet: Any, size: int) -> Work | None:
        """Hand a packet to python-socketio; an error answers its ack, if it asks for one."""
        try:
            return self.context.sio.dispatch(self, packet, size)
        except ClientError as error:
            if packet.packet_type not in _EVENTS:
                raise
            if (packet.namespace or MAIN) != MAIN:
                # Not a namespace of this service's own errors: as python-socketio, no answer.
                return None
            self.send_error(error, Request("", None, None, packet.id))
            return None

    # Coming in.

    def identify(self, data: Any) -> Work | None:
        """See `SocketIOClient`."""
        if self.context.verifier.enabled:
            try:
                self.authenticate(data, anew=True)
            except KeysUnavailable as unavailable:
                return self._identify_slowly(data, unavailable)
        return self._identify(data)

    async def _identify_slowly(self, data: Any, unavailable: KeysUnavailable) -> None:
        """Check a token with keys that have to be fetched first."""
        await self.context.verifier.settle(unavailable)
        self.authenticate(data, anew=True, may_fetch=False)
        work = self._identify(data)
        if work is not None:
            await work

    def _identify(self, auth: Any) -> Work | None:
        context = self.context
        if not auth or not isinstance(auth, dict):
            return context.claiming.claim(self)
        if not context.verifier.enabled and "user" in auth:
            name = user_name(auth["user"])
            if name is None:
                raise ClientError(ErrorCode.INVALID_PAYLOAD, f"auth.user {NAME_RULE}.")
            self.user = name
        options = parse_options(auth, self.types)
        if options is not DEFAULT_OPTIONS:
            self.need_extra().options = options
        text = auth.get("pid")
        pid = context.tokens.read_pid(text) if isinstance(text, str) else None
        if pid is None:
            return context.claiming.claim(self)
        if not context.verifier.enabled and "user" not in auth:
            self.user = pid.user
        return self._recover(str(text), pid, decode_offset(auth.get("offset")) or pid.offset)

    def authenticate(self, data: Any, *, anew: bool = False, may_fetch: bool = True) -> None:
        """See `SocketIOClient`."""
        verifier = self.context.verifier
        if not verifier.enabled or (self.user is not None and not anew):
            return
        token = data.get("token") if isinstance(data, dict) else None
        if isinstance(token, str):
            self.authenticated(verifier.verify(token, may_fetch=may_fetch))
        elif self.user is None:
            raise ClientError(ErrorCode.UNAUTHORIZED, "Connect with a token: auth: {token: '…'}.")

    async def _recover(self, text: str, pid: Pid, offset: Offset) -> None:
        """Take the place of the connection that a client had, and find what it missed.

        Where that one still answers, this is another client: a duplicated tab.
        """
        context = self.context
        old = context.registry.by_id.get(pid.sid)
        replacing = context.claiming.replace_owner(self, text)
        replaced = replacing is not None and not await asyncio.shield(replacing)
        work = context.claiming.claim(
            self, patience=context.claiming.replace_patience if replaced else 0.0
        )
        if work is not None:
            await work
        starts = await context.subscriptions.find_starts(
            self, {type: at for type, at in offset.positions.items() if type in self.types}
        )
        if replaced and old is not None:
            # The disconnect handlers of the old connection still know it by the id.
            await context.registry.wait_free(pid.sid, REPLACE_SECONDS)
        recovered = (
            replaced
            and starts.keys() == offset.positions.keys()
            and all(start.recovered for start in starts.values())
            and pid.sid not in context.registry.by_id
        )
        if recovered:
            context.registry.rename(self, pid.sid)
        self.need_extra().recovery = Recovery(
            ConnectOptions(frozenset(starts), offset.batch),
            {type: start.position for type, start in starts.items()},
            tuple(start.gap for start in starts.values() if start.gap is not None),
            text if recovered else None,
        )

    def note_refusal(self, error: ClientError | None) -> None:
        """See `SocketIOClient`."""
        if error is None:
            if self.state == OPEN:  # else it is gone, and its handler may have failed for that
                self.context.refusals.note("handler")
        else:
            self.context.metrics.errors[error.code].inc()
            note_refusal(self.context.refusals, error)

    def connect_answer(self) -> str:
        """What the CONNECT packet says, as JSON."""
        recovery = self.extra.recovery if self.extra is not None else None
        if recovery is not None and recovery.pid is not None:
            pid = recovery.pid
        else:
            options, context = self._first_options(), self.context
            pid = context.tokens.pid(
                self.id,
                self.user,
                context.welcome.chosen_by(self, options).types,
                options.batch,
                context.fanout.positions,
            )
        # The name of a user is all of it that JSON may have to write otherwise.
        text = f'"{pid}"' if self.user is None else json.dumps(pid)
        return f'{{"sid":"{self.id}","pid":{text}}}'

    def _first_options(self) -> ConnectOptions:
        extra = self.extra
        if extra is None:
            return DEFAULT_OPTIONS
        return (
            extra.recovery.options
            if extra.recovery is not None
            else extra.options or DEFAULT_OPTIONS
        )

    def accepted(self, namespace: str) -> Work | None:
        """See `SocketIOClient`."""
        self.context.connect_deadlines.entered(self)
        extra = self.extra
        past: Work | None = None
        if namespace == MAIN:
            recovery = extra.recovery if extra is not None else None
            positions = recovery.positions if recovery is not None else None
            past = self.context.welcome.greet(self, self._first_options(), positions)
            if extra is not None:
                extra.options = None
            if extra is not None and recovery is not None:
                extra.recovery = None
                for gap in recovery.gaps:
                    self.context.metrics.gaps[gap.reason].inc()
                    self.send(self.codec.gap(gap))
                self.send_offset()
                self.context.catchup.start(self)
        if extra is not None:
            for frames in self.take_held(namespace):
                self.send(frames)
        return past

    def hold_frames(self, namespace: str, frames: bytes) -> None:
        """Keep what is emitted before the CONNECT packet of a namespace, up to a limit."""
        extra = self.need_extra()
        if extra.held_frames is None:
            extra.held_frames = {}
        if sum(len(one) for held in extra.held_frames.values() for one in held) > OUTPUT_LIMIT:
            self.give_up("too many bytes are emitted before it is connected")
            return
        extra.held_frames.setdefault(namespace, []).append(frames)
        self.hub.output.hold(frames)

    def take_held(self, namespace: str) -> list[bytes]:
        """What was kept for a namespace, which is kept no more."""
        extra = self.extra
        if extra is None or extra.held_frames is None:
            return []
        held = extra.held_frames.pop(namespace, [])
        for frames in held:
            self.hub.output.give_back(frames)
        return held

    def left(self, namespace: str) -> None:
        """Note that the client left a namespace; outside of all it must enter one in time."""
        if namespace == MAIN:
            self._left_main()
        if self.state == OPEN and not self.is_entering:
            self.context.connect_deadlines.await_connect(self)

    def _left_main(self) -> None:
        """Leave the main namespace; the client may enter it again as another user."""
        context = self.context
        context.fanout.discard(self)
        context.catchup.discard(self)
        context.claiming.release(self)
        self.phase = OUTSIDE
        self.track = None
        self.group = context.no_subscriptions[self.codec.protocol]
        context.registry.rename(self)

    # Sending.

    def send_event(self, event: str, envelope: bytes) -> None:
        """Send an event of this service; nothing may be sent before CONNECT."""
        if self.phase >= HELD:
            self.send(self.codec.event(event, envelope))

    def send_packet(self, packet: Any) -> None:
        """Send a packet without attachments."""
        self.send(message_frame(packet.encode()))

    def reply(self, request: Request, event: str, envelope: bytes) -> None:
        """Answer as an acknowledgement if the client waits for one, else as an event."""
        if request.ack is None:
            self.send_event(event, envelope)
        else:
            self.send(SOCKETIO.ack(request.ack, envelope))

    # Leaving.

    def end(self, code: CloseCode, reason: str) -> None:
        """Close; after a DISCONNECT packet the client does not come back by itself."""
        if code.is_final and self.phase:
            self.send(message_frame(str(sio_packet.DISCONNECT)))
        self.close(code, reason)

    def on_lost(self, code: int, reason: str) -> None:
        """Leave everything, and tell the application's handlers."""
        self.context.connect_deadlines.entered(self)
        super().on_lost(code, reason)
        self.context.sio.lost(self, _REASONS.get(reason, "server disconnect"))

    def forget(self) -> None:
        """Be found until the disconnect handlers are done."""
        if self.phase == OUTSIDE:
            super().forget()


def _placeholders(data: Any) -> Iterator[Any]:
    """The numbers of attachments in a packet's data, as often as they are used."""
    rest = [data]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        elif isinstance(value, dict):
            if value.get("_placeholder") and "num" in value:
                yield value["num"]
            else:
                rest += value.values()


def _is_place(number: object, count: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count


def _is_action(packet: Any) -> bool:
    return (
        packet.packet_type == sio_packet.EVENT
        and (packet.namespace or MAIN) == MAIN
        and packet.data[0] in ACTIONS
    )


def _namespace(message: str) -> str:
    """The namespace of a CONNECT packet, whatever else is in it."""
    found = re.match("/[^,?]*", message[2:_HEAD])
    return found[0] if found else MAIN
