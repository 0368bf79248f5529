"""A live session as JSON and chunks of bytes, for another worker to go on with (docs/design/handoff.md).

The state bears a version. A worker that does not know the version, or cannot take what the
state says, refuses that session and the worker that has it drains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from sys import getsizeof
from typing import Any

from app.errors import ClientError, PresenceError
from app.protocol.deflate import InflatingReader
from app.protocol.envelope import decode_json, encode_json
from app.protocol.frames import FrameReader
from app.protocol.requests import ConnectOptions, Request
from app.sessions.context import SessionContext
from app.sessions.deflated import session_class
from app.sessions.event_stream import EventStreamSession
from app.sessions.handoff import shape
from app.sessions.handoff.payload import Payload, State, unfold
from app.sessions.plain import PlainSession
from app.sessions.protocol_session import ProtocolSession
from app.sessions.session import ENTERED, ENTERING, FLOWING, HELD, LEAVING, Extra, Page, Session
from app.sessions.socketio.client import MAIN
from app.sessions.socketio.session import SocketIOSession
from app.transport.connection import Pending
from app.types import Position

VERSION = 2
NEWER_VERSION = 3
"""Of a session whose token limits its types, or with an extension: a service that does not know of that
must not go on with it."""
OLD_VERSION = 1
"""What the service before this one writes: its bytes are base64."""

_NEWER = {"allowed", "deflate"}


class CannotPass(PresenceError):
    """A session cannot be handed over; it is drained instead."""


def is_at_rest(session: Session) -> bool:
    """Whether nothing is being done for a session that its state could not tell."""
    extra = session.extra
    return extra is None or not (extra.task or extra.handlers)


def dump_session(
    session: Session, times: tuple[float, float], exported_at: float, payload: Payload
) -> State:
    """The state of a session that has left its hub, at rest and with nothing queued.

    Args:
        session: open; if it was live it has left its group, so `track` says where it stands.
        times: of the heartbeat, see `TimerWheel.times`.
        exported_at: monotonic seconds, which all processes of a machine share.
        payload: takes its bytes.

    Raises:
        CannotPass: there is something that JSON cannot say.
    """
    assert session.track is not None
    extra, pending = session.extra, session.pending
    state: State = {
        "version": VERSION,
        "protocol": session.protocol,
        "id": session.id,
        "user": session.user,
        "claimed": session.claimed,
        "welcomed": session.welcomed,
        "held": session.phase == HELD,
        "positions": {
            type: [session.track[type].epoch, session.track[type].seq]
            for type in session.group.types
        },
        "batch": session.group.batch,
        "times": times,
        "exported_at": exported_at,
        "reader": _dump_reader(session.reader, payload) if session.reader is not None else None,
        "unsent": [payload.add(one) for one in pending.chunks] if pending is not None else [],
        "offset": pending.offset if pending is not None else 0,
        "headless": pending is not None and pending.headless,
        "inbox": [],
        "pages": [],
        "expires_at": None,
        "wishes": None,
    }
    if extra is not None:
        state |= _dump_extra(extra, payload)
    if session.deflate is not None:
        state["deflate"] = session.deflate
    if not _NEWER.isdisjoint(state):
        state["version"] = NEWER_VERSION
    assert isinstance(session, ProtocolSession)
    if not session.context.verifier.enabled:
        state["tokenless"] = True
    addresses = session.context.addresses
    if addresses is not None:
        state["address"] = addresses.of(session)
    if isinstance(session, SocketIOSession):
        state["socketio"] = _dump_socketio(session, payload)
    return state


def _dump_extra(extra: Extra, payload: Payload) -> State:
    """What few sessions have."""
    state: State = {
        "inbox": [_dump_message(one, payload) for one in extra.inbox],
        "pages": [_dump_page(page) for page in extra.pages],
        "expires_at": extra.expires_at,
        "wishes": _dump_options(extra.options) if extra.options else None,
    }
    if extra.allowed is not None:
        state["allowed"] = sorted(extra.allowed)
    if extra.listed != frozenset():
        state["listed"] = ["all"] if extra.listed is None else sorted(extra.listed)
    return state


def load_session(context: SessionContext, fd: int, state: State) -> Session:
    """Go on with a session, whose connection and claim are counted for this worker already.

    Args:
        context: the parts of this worker.
        fd: its descriptor.
        state: as `check_state` returns it.
    """
    session: PlainSession | SocketIOSession | EventStreamSession
    if state["protocol"] == EventStreamSession.protocol:
        session = EventStreamSession(context, fd, state["id"], state["user"])
    elif state["protocol"] == PlainSession.protocol:
        session = session_class(PlainSession, state.get("deflate"))(
            context, fd, state["id"], state["user"]
        )
    else:
        session = session_class(SocketIOSession, state.get("deflate"))(
            context, fd, state["id"], state["user"]
        )
    session.claimed = state["claimed"]
    positions = {type: Position(*place) for type, place in state["positions"].items()}
    session.group = context.fanout.group(session.codec, frozenset(positions), state["batch"])
    session.track = positions
    if state["reader"] is not None:
        reader_class = FrameReader if session.deflate is None else InflatingReader
        session.reader = reader_class.load(context.hub.max_message, state["reader"])
    if state["unsent"]:
        session.pending = _load_pending(context, state)
    if isinstance(session, SocketIOSession):
        _load_socketio(session, state["socketio"])
    if state["welcomed"]:
        session.phase = HELD if state["held"] else FLOWING
    if state["wishes"] is not None:
        session.need_extra().options = ConnectOptions(**state["wishes"])
    _load_token(session, state)
    if isinstance(session, SocketIOSession) and not session.is_entering:
        context.connect_deadlines.await_connect(session)
    silent, due = state["times"]
    context.hub.attach(session, (silent, due))
    if state["held"] and state["welcomed"]:
        context.welcome.hold(session)
    if state["pages"]:
        session.need_extra().pages.extend(map(_load_page, state["pages"]))
    for message in state["inbox"]:
        session.put_aside(session.need_extra(), message)
    return session


def _load_token(session: ProtocolSession, state: State) -> None:
    """What the token of its user says, or the time to show one."""
    context = session.context
    if "allowed" in state:
        session.need_extra().allowed = context.allowed.of(frozenset(state["allowed"]))
    if "listed" in state:
        names = frozenset(state["listed"])
        session.need_extra().listed = None if "all" in names else names
    if state["expires_at"] is not None:
        session.need_extra().expires_at = state["expires_at"]
        context.expiry.watch(session, handed_over=True)
    elif not session.welcomed and isinstance(session, PlainSession):
        context.expiry.await_token(session)


def check_state(context: SessionContext, packed: Any, chunks: Sequence[bytes] = ()) -> State:
    """Make sure that this worker can take a session; returns its state with the bytes in place.

    Raises:
        CannotPass: it is of another version, malformed, or has what this worker does not know.
    """
    version = packed.get("version") if isinstance(packed, dict) else None
    if version not in (VERSION, NEWER_VERSION, OLD_VERSION) or isinstance(version, bool):
        raise CannotPass(f"state of version {version!r}, not {VERSION}")
    try:
        state = unfold(packed, chunks)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CannotPass(f"the state is malformed: {error!r}") from None
    fault = shape.fault(state)
    if fault is not None:
        raise CannotPass(f"the state is malformed: {fault}")
    if (version == NEWER_VERSION) == _NEWER.isdisjoint(state):
        raise CannotPass("the state is malformed: its version does not fit what it has")
    if state["welcomed"] and state.get("tokenless") and context.verifier.enabled:
        raise CannotPass("it has shown no token, and the service asks for one now")
    unknown = set(state["positions"]) - context.known_types
    unknown |= {page["type"] for page in state["pages"]} - context.known_types
    if unknown:
        raise CannotPass(f"subscribed to types that no longer exist: {', '.join(sorted(unknown))}")
    return state


def _dump_reader(reader: FrameReader, payload: Payload) -> State:
    dumped = reader.dump()
    fragments = dumped["fragments"]
    return dumped | {
        "buffer": payload.add(dumped["buffer"]),
        "fragments": None if fragments is None else payload.add(fragments),
    }


def _load_pending(context: SessionContext, state: State) -> Pending:
    output, tick = context.hub.output, context.hub.wheel.now
    first, *rest = state["unsent"]
    pending = Pending(first, state["offset"], output, tick=tick, headless=state["headless"])
    for chunk in rest:
        pending.append(chunk)
    return pending


def _dump_message(message: str | bytes, payload: Payload) -> list[object]:
    is_text = isinstance(message, str)
    return [payload.add(message.encode() if isinstance(message, str) else message), is_text]


def _dump_page(page: Page) -> State:
    return {
        "type": page.type,
        "limit": page.limit,
        "before": page.before,
        "reply_to": page.request.id,
        "ack": page.request.ack,
        "is_one": page.is_one,
    }


def _load_page(dumped: State) -> Page:
    request = Request("", None, dumped["reply_to"], dumped["ack"])
    return Page(dumped["type"], dumped["limit"], dumped["before"], request, dumped["is_one"])


def _dump_options(options: ConnectOptions) -> dict[str, Any]:
    types = None if options.types is None else sorted(options.types)
    dumped = {"types": types, "batch": options.batch, "resume": options.resume}
    # Left out where it is not wanted: an older version does not know it.
    return dumped if options.history is None else dumped | {"history": options.history}


def _dump_socketio(session: SocketIOSession, payload: Payload) -> State:
    extra = session.need_extra()
    server = session.context.sio
    sids = {MAIN: session.id} if session.phase else {}
    sids |= {namespace: sid for namespace, (sid, _) in extra.namespaces.items()}
    if any(phase != ENTERED for _, phase in extra.namespaces.values()) or session.phase in (
        ENTERING,
        LEAVING,
    ):
        raise CannotPass("it is entering or leaving a namespace")
    packet = server.incomplete.get(session)
    rooms = [list(key) for key in extra.rooms]
    if not _is_json([extra.session, extra.environ, rooms]):
        raise CannotPass("the session data of the application is not JSON")
    return {
        "namespaces": sids,
        "rooms": rooms,
        "session": extra.session,
        "environ": extra.environ,
        "acks": {sid: server.manager.dump_acks(sid, space) for space, sid in sids.items()},
        "packet": None
        if packet is None
        else {
            "type": packet.packet_type,
            "namespace": packet.namespace,
            "id": packet.id,
            "data": packet.data,
            "count": packet.attachment_count,
            "attachments": [payload.add(part) for part in packet.attachments],
        },
    }


def _load_socketio(session: SocketIOSession, state: State) -> None:
    server = session.context.sio
    manager = server.manager
    for namespace, sid in state["namespaces"].items():
        manager.adopt(session, namespace, sid)
        manager.load_acks(sid, state["acks"][sid])
    if state["session"] or state["environ"] or state["rooms"]:
        extra = session.need_extra()
        extra.session = state["session"]
        if state["environ"] is not None:
            session.keep_environ(state["environ"])
        for namespace, room in state["rooms"]:
            manager.join_room(session, namespace, room)
    packet = state["packet"]
    if packet is not None:
        made = server.packet_class(
            packet["type"], packet["data"], packet["namespace"], packet["id"], binary=False
        )
        made.attachment_count = packet["count"]
        made.attachments = list(packet["attachments"])
        server.incomplete[session] = made
        extra = session.need_extra()
        extra.packet_size = getsizeof(made.data) + sum(map(len, made.attachments))
        session.hub.input.keep(session, extra.packet_size)


def _is_json(value: Any) -> bool:
    """Whether a value comes back from JSON as it was; a tuple or a number as a key would not."""
    try:
        return bool(decode_json(encode_json(value)) == value)
    except (TypeError, ValueError, ClientError):
        return False
