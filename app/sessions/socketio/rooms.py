"""python-socketio's client manager for the clients of one worker: the members of rooms.

A room named like a message type, in the main namespace, is the subscription to that type.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from socketio import packet as sio_packet

from app.sessions.registry import Registry
from app.sessions.session import ENTERED, ENTERING, LEAVING, OUTSIDE, Phase
from app.sessions.socketio.client import MAIN, SocketIOClient
from app.sessions.socketio.engine import message_frame
from app.sessions.socketio.private import ClientManager
from app.sessions.subscriptions import Subscriptions
from app.transport.connection import MOVING

logger = logging.getLogger("realtime.socketio")

MAX_ROOMS = 1000
"""Rooms of one client beside its subscriptions."""
MAX_ROOM_NAME = 1024
"""Characters in the name of a room."""
MAX_AWAITED_ACKS = 10_000
"""Clients, here and elsewhere, whose acknowledgements are awaited; then the oldest is forgotten."""


class RoomManager(ClientManager):
    """Rooms of the clients of this worker.

    The constructor of a subclass sets the parts below: the library's classes, which stand between
    the two, pass no arguments on.
    """

    _registry: Registry
    """The sessions of this worker."""
    _subscriptions: Subscriptions
    """What rooms named like a type stand for."""
    _known_types: frozenset[str]
    """The types that there are."""

    def __init__(self) -> None:
        super().__init__()
        self._clients: dict[str, dict[str, SocketIOClient]] = {}
        """By namespace and Socket.IO id; the main one's are the service's sessions."""
        self._members: dict[tuple[str, str], dict[SocketIOClient, None]] = {}
        """By (namespace, room), without subscriptions and the room that each client is alone in."""

    # Members.

    def get_namespaces(self) -> list[str]:
        """Namespaces with clients."""
        return [MAIN, *self._clients]

    def _find(self, sid: str, namespace: str) -> SocketIOClient | None:
        if namespace == MAIN:
            found = self._registry.by_id.get(sid)
            session = found if isinstance(found, SocketIOClient) and found.phase else None
        else:
            session = self._clients.get(namespace, {}).get(sid)
        # A client on its way to another worker already belongs to that worker.
        return None if session is None or session.state == MOVING else session

    def phase(self, sid: str, namespace: str) -> Phase:
        """How far a client has come in a namespace."""
        session = self._find(sid, namespace)
        if session is None:
            return OUTSIDE
        return session.phase if namespace == MAIN else session.need_extra().namespaces[namespace][1]

    def set_phase(self, session: SocketIOClient, namespace: str, phase: Phase) -> None:
        """Note how far a client has come in a namespace; OUTSIDE: it is in it no more."""
        if namespace == MAIN:
            session.phase = phase
        elif phase:
            sid = session.need_extra().namespaces[namespace][0]
            session.need_extra().namespaces[namespace] = (sid, phase)
        else:
            del session.need_extra().namespaces[namespace]

    def sid_from_eio_sid(self, eio_sid: SocketIOClient, namespace: str) -> str | None:
        """The Socket.IO id of a connection in a namespace."""
        if namespace == MAIN:
            return eio_sid.id if eio_sid.phase else None
        extra = eio_sid.extra
        if extra is None or namespace not in extra.namespaces:
            return None
        return extra.namespaces[namespace][0]

    def eio_sid_from_sid(self, sid: str, namespace: str) -> SocketIOClient | None:
        """The connection of a Socket.IO id."""
        return self._find(sid, namespace)

    def enter(self, session: SocketIOClient, namespace: str) -> str | None:
        """Register a connection that wants into a namespace; None when it is in already."""
        if namespace == MAIN:
            if session.phase:
                return None
            session.phase = ENTERING
            return session.id
        if self.sid_from_eio_sid(session, namespace) is not None:
            return None
        sid: str = self.server.eio.generate_id()
        session.need_extra().namespaces[namespace] = (sid, ENTERING)
        self._clients.setdefault(namespace, {})[sid] = session
        return sid

    def adopt(self, session: SocketIOClient, namespace: str, sid: str) -> None:
        """Register a client that another worker has handed over as connected."""
        if namespace == MAIN:
            session.phase = ENTERED
        else:
            session.need_extra().namespaces[namespace] = (sid, ENTERED)
            self._clients.setdefault(namespace, {})[sid] = session

    async def pre_connect(self, eio_sid: SocketIOClient, namespace: str) -> str | None:
        """Register a connection that wants into a namespace."""
        return self.enter(eio_sid, namespace)

    async def connect(self, sid: str, namespace: str) -> str:
        """Mark a client as connected."""
        session = self._find(sid, namespace)
        if session is not None:
            self.set_phase(session, namespace, ENTERED)
        return sid

    def is_pre_connected(self, sid: str, namespace: str) -> bool:
        """Whether its connect handler still runs."""
        return self.phase(sid, namespace) == ENTERING

    def is_connected(self, sid: str, namespace: str) -> bool:
        """Whether it is connected and not leaving."""
        return ENTERED <= self.phase(sid, namespace) < LEAVING

    def pre_disconnect(self, sid: str, namespace: str) -> SocketIOClient | None:
        """Mark a client as leaving."""
        session = self._find(sid, namespace)
        if session is not None:
            self.set_phase(session, namespace, LEAVING)
        return session

    def basic_disconnect(self, sid: str, namespace: str, **kwargs: Any) -> None:
        """Forget a client of a namespace."""
        session = self._find(sid, namespace)
        if session is None:
            return
        extra = session.extra
        if extra is not None:
            for key in [key for key in extra.rooms if key[0] == namespace]:
                self._leave(session, key)
            extra.session.pop(namespace, None)
        self.callbacks.pop(sid, None)
        self.set_phase(session, namespace, OUTSIDE)
        if namespace != MAIN:
            clients = self._clients[namespace]
            del clients[sid]
            if not clients:
                del self._clients[namespace]
        session.left(namespace)

    def forget_ended(self, session: SocketIOClient) -> None:
        """Forget a client whose connection has ended, and that has been in the main namespace only.

        So `basic_disconnect` would find nothing else of it: no rooms and no user session.
        """
        self.callbacks.pop(session.id, None)
        session.phase = OUTSIDE
        self._registry.forget(session)

    # Rooms.

    def _is_subscription(self, namespace: str, room: Any) -> bool:
        return namespace == MAIN and room in self._known_types

    def is_sid_room(self, namespace: str, room: Any) -> bool:
        """Whether a room is the one that a client is alone in."""
        return isinstance(room, str) and self._find(room, namespace) is not None

    def basic_enter_room(
        self, sid: str, namespace: str, room: str, eio_sid: SocketIOClient | None = None
    ) -> None:
        """Add a client to a room, or subscribe it.

        Raises:
            ValueError: the client is not connected, the room is another client's own, or the
                client is in too many rooms or the name is too long.
        """
        session = self._find(sid, namespace)
        if session is None:
            raise ValueError("sid is not connected to requested namespace")
        if room == sid:
            return
        if self.is_sid_room(namespace, room):
            raise ValueError("cannot enter a sid room")
        if self._is_subscription(namespace, room):
            self._subscriptions.add(session, room)
            return
        held = session.extra.rooms if session.extra is not None else {}
        if len(held) >= MAX_ROOMS and (namespace, room) not in held:
            raise ValueError(f"a client can be in {MAX_ROOMS} rooms at most")
        if len(str(room)) > MAX_ROOM_NAME:
            raise ValueError(f"the name of a room has {MAX_ROOM_NAME} characters at most")
        self.join_room(session, namespace, room)

    def join_room(self, session: SocketIOClient, namespace: str, room: str) -> None:
        """Put a session into a room that is no subscription."""
        self._members.setdefault((namespace, room), {})[session] = None
        session.need_extra().rooms[(namespace, room)] = None

    def basic_leave_room(self, sid: str, namespace: str, room: str) -> None:
        """Take a client out of a room, or unsubscribe it."""
        session = self._find(sid, namespace)
        if session is None:
            return
        if self._is_subscription(namespace, room):
            self._subscriptions.remove(session, room)
        else:
            self._leave(session, (namespace, room))

    def _leave(self, session: SocketIOClient, key: tuple[str, str]) -> None:
        members = self._members.get(key)
        if members is None or session not in members:
            return
        del members[session]
        del session.need_extra().rooms[key]
        if not members:
            del self._members[key]

    def basic_close_room(self, room: str, namespace: str) -> None:
        """Remove all clients from a room."""
        if self.is_sid_room(namespace, room):
            raise ValueError("cannot close a sid room")
        for sid, _ in list(self.get_participants(namespace, room)):
            self.basic_leave_room(sid, namespace, room)

    @property
    def room_count(self) -> int:
        """Rooms of applications with members on this worker."""
        return len(self._members)

    def get_rooms(self, sid: str, namespace: str) -> list[str]:
        """The rooms of a client, its own and its subscriptions included."""
        session = self._find(sid, namespace)
        if session is None:
            return []
        rooms = [sid]
        if namespace == MAIN:
            rooms += sorted(session.group.types)
        if session.extra is not None:
            rooms += [room for space, room in session.extra.rooms if space == namespace]
        return rooms

    def get_participants(self, namespace: str, room: Any) -> Iterator[tuple[str, SocketIOClient]]:
        """The clients of this worker in a room, a list of rooms, or (None) the namespace."""
        rooms = room if isinstance(room, list | tuple | set) else [room]
        found: dict[SocketIOClient, None] = {}
        for one in rooms:
            found.update(dict.fromkeys(self._in_room(namespace, one)))
        for session in found:
            sid = self.sid_from_eio_sid(session, namespace)
            if sid is not None:
                yield sid, session

    def _in_room(self, namespace: str, room: Any) -> list[SocketIOClient]:
        if room is None:
            if namespace != MAIN:
                return list(self._clients.get(namespace, {}).values())
            return self._main_clients()
        if self._is_subscription(namespace, room):
            return [session for session in self._main_clients() if room in session.group.types]
        session = self._find(room, namespace)
        if session is not None:
            return [session]
        return list(self._members.get((namespace, room), ()))

    def _main_clients(self) -> list[SocketIOClient]:
        sessions = self._registry.by_id.values()
        return [one for one in sessions if isinstance(one, SocketIOClient) and one.phase]

    # Emitting to the clients of this worker.

    def receives(self, session: SocketIOClient) -> bool:
        """Whether a session is one of those that get the event which is being emitted."""
        return True

    async def emit(
        self,
        event: str,
        data: Any,
        namespace: str,
        room: Any = None,
        skip_sid: str | list[str] | None = None,
        callback: Callable[..., Any] | None = None,
        to: Any = None,
        **kwargs: Any,
    ) -> None:
        """Write an event once to each client of this worker that is in the room."""
        arguments = list(data) if isinstance(data, tuple) else [] if data is None else [data]
        skipped = skip_sid if isinstance(skip_sid, list) else [skip_sid]
        packet = self.server.packet_class(
            sio_packet.EVENT, namespace=namespace, data=[event, *arguments]
        )
        frames = b"" if callback else self._frames(packet)
        ends_in_string = namespace == MAIN and bool(arguments) and isinstance(arguments[-1], str)
        for sid, session in self.get_participants(namespace, to or room):
            if sid in skipped or not self.receives(session):
                continue
            if callback:
                packet = self.server.packet_class(
                    sio_packet.EVENT,
                    namespace=namespace,
                    data=[event, *arguments],
                    id=self.new_ack_id(sid, callback),
                )
                frames = self._frames(packet)
            self._write(session, namespace, frames)
            if ends_in_string and session.welcomed:
                # The client takes the string for its offset.
                session.send_offset()

    @staticmethod
    def _frames(packet: sio_packet.Packet) -> bytes:
        encoded = packet.encode()
        parts = encoded if isinstance(encoded, list) else [encoded]
        return b"".join(message_frame(part) for part in parts)

    def _write(self, session: SocketIOClient, namespace: str, frames: bytes) -> None:
        sid = self.sid_from_eio_sid(session, namespace)
        if sid is not None and self.is_pre_connected(sid, namespace):
            # Nothing may come before the CONNECT packet: `accepted` sends these after it.
            session.hold_frames(namespace, frames)
        else:
            session.send(frames)

    def new_ack_id(self, sid: str, callback: Callable[..., Any]) -> int:
        """The id of an acknowledgement that is awaited from now on; there are not too many."""
        if sid not in self.callbacks and len(self.callbacks) >= MAX_AWAITED_ACKS:
            oldest = next(iter(self.callbacks))
            logger.warning("Too many awaited acknowledgements: forgetting those of %s", oldest)
            del self.callbacks[oldest]
        return super().new_ack_id(sid, callback)
