"""python-socketio's client manager over all workers.

An `emit` to a subscription is a message of its stream. Every other emit, and what concerns
clients of other workers, goes through the control stream and is carried out when it is read
back, on the sender too, so that all workers see one order.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from socketio import packet as sio_packet
from socketio.async_pubsub_manager import AsyncPubSubManager

from app.protocol.envelope import decode_json
from app.sessions.sio_rooms import MAIN, RoomManager
from app.transport.connection import OPEN
from app.types import Message, Position

if TYPE_CHECKING:
    from app.sessions.sio_session import SocketIOSession

logger = logging.getLogger("realtime.socketio")

READ_BACK_SECONDS = 5.0
"""How long an emit waits to be read back; it is in the stream by then and will be delivered."""


class StreamManager(AsyncPubSubManager, RoomManager):
    """Rooms over all workers, through the control stream.

    Args:
        send_control: stores a message in the control stream.
        publish: stores a message in the stream of a type: type, event, data.
    """

    name = "stream"

    def __init__(
        self,
        send_control: Callable[[dict[str, Any]], Awaitable[None]],
        publish: Callable[[str, str, Any], Awaitable[object]],
    ) -> None:
        super().__init__()
        self._send_control = send_control
        self._publish_message = publish
        self._numbers = itertools.count()
        self._unread: dict[int, asyncio.Future[None]] = {}
        self._replacing: asyncio.Task[None] | None = None
        self._to_replace: list[str] = []
        self.position = Position("", 0)
        """The last message of the control stream that was carried out."""
        self._only: frozenset[SocketIOSession] | None = None
        self._ahead: dict[SocketIOSession, int] = {}
        """Sessions that another worker has served up to a later message than `position`."""

    def initialize(self) -> None:
        """Nothing to start: the worker's reader calls `handle_control`."""

    async def emit(
        self,
        event: str,
        data: Any,
        namespace: str | None = None,
        room: Any = None,
        skip_sid: str | list[str] | None = None,
        callback: Callable[..., Any] | None = None,
        to: Any = None,
        **kwargs: Any,
    ) -> None:
        """Emit on all workers, as python-socketio documents it.

        Returns when the event has been handed to the connections of this worker.

        Raises:
            BackplaneUnavailable, QueueOverflow: it may not have been sent.
        """
        namespace = namespace or MAIN
        room = to or room
        if kwargs.get("ignore_queue"):
            await RoomManager.emit(
                self, event, data, namespace, room=room, skip_sid=skip_sid, callback=callback
            )
            return
        binary = sio_packet.Packet.data_is_binary(list(data) if isinstance(data, tuple) else data)
        if (
            isinstance(room, str)
            and self._is_subscription(namespace, room)
            and not (skip_sid or callback or binary or isinstance(data, tuple))
        ):
            await self._publish_message(room, event, data)
            return
        awaited = None
        if callback is not None:
            if room is None:
                raise ValueError("Cannot use callback without a room set.")
            awaited = (room, namespace, self._generate_ack_id(room, callback))
        arguments: Any = list(data) if isinstance(data, tuple) else [data]
        if binary:
            arguments, attachments = sio_packet.Packet.deconstruct_binary(arguments)
            arguments = [arguments, *[base64.b64encode(a).decode() for a in attachments]]
        await self.send_and_read_back(
            {
                "method": "emit",
                "event": event,
                "data": arguments,
                "binary": binary,
                "namespace": namespace,
                "room": room,
                "skip_sid": skip_sid,
                "callback": awaited,
            }
        )

    async def send_and_read_back(self, message: dict[str, Any]) -> None:
        """Store a message for all workers, and wait until this one has carried it out.

        Raises:
            BackplaneUnavailable, QueueOverflow: it may not have been stored.
        """
        number = next(self._numbers)
        read = asyncio.get_running_loop().create_future()
        self._unread[number] = read
        try:
            await self._send_control({**message, "host_id": self.host_id, "n": number})
            async with asyncio.timeout(READ_BACK_SECONDS):
                await read
        except TimeoutError:
            logger.warning("an emit was stored but not read back yet")
        finally:
            self._unread.pop(number, None)

    async def _publish(self, data: dict[str, Any]) -> None:
        await self._send_control(data)

    async def _return_callback(
        self, host_id: str, sid: str, namespace: str, callback_id: int, *args: Any
    ) -> None:
        """Bring an acknowledgement to the worker that waits for it, attachments as base64."""
        if host_id == self.host_id:
            await self.trigger_callback(sid, callback_id, args)
            return
        answer, attachments = sio_packet.Packet.deconstruct_binary(list(args))
        await self._publish(
            {
                "method": "callback",
                "host_id": host_id,
                "sid": sid,
                "namespace": namespace,
                "id": callback_id,
                "args": answer,
                "attachments": [base64.b64encode(part).decode() for part in attachments],
            }
        )

    async def _handle_callback(self, message: dict[str, Any]) -> None:
        attachments = [base64.b64decode(part) for part in message["attachments"]]
        args = sio_packet.Packet.reconstruct_binary(message["args"], attachments)
        await super()._handle_callback({**message, "args": args})

    async def handle_control(self, item: Message) -> None:
        """Carry out what came through the control stream, in the order of the stream."""
        self.position = Position(item.epoch, item.seq)
        message = decode_json(item.body)
        await self._carry_out(message)
        if message.get("host_id") == self.host_id:
            read = self._unread.get(message.get("n", -1))
            if read is not None and not read.done():
                read.set_result(None)
        if self._ahead:
            self._ahead = {s: seq for s, seq in self._ahead.items() if seq > item.seq}

    def receives(self, session: SocketIOSession) -> bool:
        """Not those that another worker has given this message to already."""
        if self._only is not None:
            return session in self._only
        return self._ahead.get(session, 0) < self.position.seq

    def skip(self, sessions: Iterable[SocketIOSession], position: Position) -> None:
        """Deliver nothing up to `position` to sessions that have had it elsewhere."""
        if position.epoch == self.position.epoch and position.seq > self.position.seq:
            self._ahead.update(dict.fromkeys(sessions, position.seq))

    async def replay(
        self, messages: Iterable[dict[str, Any]], sessions: Iterable[SocketIOSession]
    ) -> None:
        """Deliver what was missed to sessions that were on their way meanwhile."""
        self._only = frozenset(sessions)
        sids = {sid for session in self._only for sid in self._sids(session)}
        try:
            for message in messages:
                if message.get("method") == "emit" or message.get("sid") in sids:
                    await self._carry_out(message)
        finally:
            self._only = None

    @staticmethod
    def _sids(session: SocketIOSession) -> list[str]:
        extra = session.extra
        named = [sid for sid, _ in extra.namespaces.values()] if extra is not None else []
        return [session.id, *named]

    def let_go(self, session: SocketIOSession) -> None:
        """Forget a session that another worker has taken, but for the answers awaited here."""
        self.server._binary_packet.pop(session, None)
        sids = self._sids(session)
        extra = session.extra
        if extra is not None:
            for key in list(extra.rooms):
                self._leave(session, key)
            for namespace, (sid, _) in extra.namespaces.items():
                del self._clients[namespace][sid]
                if not self._clients[namespace]:
                    del self._clients[namespace]
        for sid in sids:
            self.keep_home_acks(sid)

    async def _carry_out(self, message: dict[str, Any]) -> None:
        method = message.get("method")
        try:
            if method == "emit":
                await self._handle_emit(message)
            elif method == "enter_room":
                await self._handle_enter_room(message)
            elif method == "leave_room":
                await self._handle_leave_room(message)
            elif method == "close_room" and message.get("host_id") != self.host_id:
                await self._handle_close_room(message)
            elif method == "replace":
                for sid in message["sids"]:
                    self._replace(sid)
            elif method == "callback":
                # These run handlers of the application, which may emit and so wait for us.
                self.server.start_task(self._handle_callback(message))
            elif method == "disconnect":
                self.server.start_task(self._handle_disconnect(message))
        except Exception:
            logger.exception("control message failed: %s", method)

    async def replace_elsewhere(self, id: str) -> None:
        """End a session on whatever worker has it; its client has a newer connection here.

        Thousands of clients may come back at once, so those of one moment share a message.

        Raises:
            BackplaneUnavailable, QueueOverflow: it may hang on.
        """
        if self._replacing is None or not self._to_replace:
            self._replacing = asyncio.create_task(self._send_replacements(self._replacing))
        self._to_replace.append(id)
        await asyncio.shield(self._replacing)

    async def _send_replacements(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        ids, self._to_replace = self._to_replace, []
        await self.send_and_read_back({"method": "replace", "sids": ids})

    def _replace(self, sid: str) -> None:
        session: Any = self.realtime.sessions.get(sid)
        # One that came from a worker which was ahead of this one is the replacement itself.
        if session is not None and self.position.seq > self._ahead.get(session, 0):
            self.realtime.replace(session)

    # Acknowledgements that cross workers.

    def dump_acks(self, sid: str, namespace: str) -> dict[str, Any] | None:
        """Which acknowledgements of a client are awaited, and where the answers belong."""
        callbacks = self.callbacks.get(sid)
        if callbacks is None:
            return None
        homes = {}
        for id, callback in callbacks.items():
            if id == 0:
                continue
            if self._is_from_elsewhere(callback):
                homes[str(id)] = list(callback.args)
            else:
                homes[str(id)] = [self.host_id, sid, namespace, id]
        return {"next": next(callbacks[0]), "homes": homes}

    def load_acks(self, sid: str, dumped: dict[str, Any] | None) -> None:
        """Await what another worker has awaited; the answers go to where they belong."""
        if dumped is None:
            return
        self.callbacks[sid] = {0: itertools.count(dumped["next"])}
        for id, home in dumped["homes"].items():
            self.callbacks[sid][int(id)] = partial(self._return_callback, *home)

    def awaits_answers(self) -> bool:
        """Whether some client, here or elsewhere, has yet to answer a handler of this worker."""
        return any(len(callbacks) > 1 for callbacks in self.callbacks.values())

    def keep_home_acks(self, sid: str) -> bool:
        """Keep the callbacks of this worker's own for a client that was handed over.

        Returns whether there are any; the answers come through the control stream.
        """
        callbacks = self.callbacks.get(sid)
        if callbacks is None:
            return False
        for id, callback in list(callbacks.items()):
            if id and self._is_from_elsewhere(callback):
                del callbacks[id]
        if len(callbacks) == 1:
            del self.callbacks[sid]
        return len(callbacks) > 1

    def _is_from_elsewhere(self, callback: Any) -> bool:
        """Whether an acknowledgement goes on to the worker whose handler waits for it."""
        return isinstance(callback, partial) and callback.func == self._return_callback

    async def can_disconnect(self, sid: str, namespace: str) -> bool:
        """Whether the client is here; otherwise its own worker is told."""
        session = self._find(sid, namespace)
        if session is not None:
            return self.is_connected(sid, namespace) and session.state == OPEN
        await self._publish(
            {"method": "disconnect", "sid": sid, "namespace": namespace, "host_id": self.host_id}
        )
        return False
