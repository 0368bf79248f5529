"""python-socketio's client manager over all workers.

An `emit` to a subscription is a message of its stream. Every other emit, and what concerns
clients of other workers, goes through the control stream and is carried out when it is read
back, on the sender too, so that all workers see one order.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any

from socketio import packet as sio_packet

from app.errors import ClientError, ErrorCode
from app.log_limit import LogLimit
from app.ports import Slots
from app.protocol.envelope import TOO_DEEP
from app.sessions import control, roster
from app.sessions.control import (
    Control,
    Unreadable,
    check_event,
    check_namespace,
    check_room,
    check_rooms,
    check_sid,
    check_skipped,
    count_placeholders,
)
from app.sessions.probing import Prober
from app.sessions.registry import Registry
from app.sessions.roster import Roster
from app.sessions.session import Session
from app.sessions.socketio.client import MAIN, SocketIOClient
from app.sessions.socketio.private import PubSubManager
from app.sessions.socketio.rooms import RoomManager
from app.sessions.subscriptions import Subscriptions
from app.transport.connection import OPEN
from app.types import Message, Position

logger = logging.getLogger("realtime.socketio")

READ_BACK_SECONDS = 5.0
"""How long an emit waits to be read back; it is in the stream by then and will be delivered."""


class StreamManager(PubSubManager, RoomManager):
    """Rooms over all workers, through the control stream.

    Args:
        registry: the sessions of this worker.
        subscriptions: what rooms named like a type stand for.
        known_types: the types that there are.
        slots: tell how many other workers there are on this machine.
        is_alone: there are no workers on other machines.
        host: the name of this machine.
        position: of the control stream, from which on its messages are carried out.
        send_control: stores a message in the control stream.
        publish: stores a message in the stream of a type: type, event, data.
        note_unreadable: counts a control message that cannot be read.
    """

    name = "stream"

    def __init__(
        self,
        registry: Registry,
        subscriptions: Subscriptions,
        known_types: frozenset[str],
        *,
        slots: Slots,
        is_alone: bool,
        host: str = "",
        position: Position,
        send_control: Callable[[dict[str, Any]], Awaitable[None]],
        publish: Callable[[str, str, Any], Awaitable[object]],
        note_unreadable: Callable[[], None],
    ) -> None:
        super().__init__()
        self._registry = registry
        self._subscriptions = subscriptions
        self._known_types = known_types
        self._note_unreadable = note_unreadable
        self._log_limit = LogLimit()
        self._send_control = send_control
        self._publish_message = publish
        self._numbers = itertools.count()
        """Of control messages that this worker waits to read back."""
        self._unread: dict[int, asyncio.Future[None]] = {}
        """What waits for each of these, by number."""
        self.prober = Prober(self, registry, slots, is_alone=is_alone)
        self.roster = Roster(self, registry, slots, is_alone=is_alone, host=host)
        self.position = position
        """The last message of the control stream that was carried out."""
        self._only: frozenset[SocketIOClient] | None = None
        """Sessions that a message is carried out for, where it was carried out for the others already."""
        self._ahead: dict[Session, int] = {}
        """Sessions that another worker has served up to a later message than `position`."""

    def start_task(self, work: Coroutine[Any, Any, Any]) -> object:
        """Run something beside what the stream brings."""
        return self.server.start_task(work)

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
            ValueError, TypeError: it cannot be sent; the message says why.
        """
        check_event(event)
        namespace = check_namespace(namespace or MAIN)
        room = check_rooms(to or room)
        skip_sid = check_skipped(skip_sid)
        try:
            if kwargs.get("ignore_queue"):
                await RoomManager.emit(
                    self, event, data, namespace, room=room, skip_sid=skip_sid, callback=callback
                )
                return
            arguments: Any = list(data) if isinstance(data, tuple) else [data]
            binary = sio_packet.Packet.data_is_binary(arguments)
        except RecursionError:
            raise ValueError(TOO_DEEP) from None
        if (
            isinstance(room, str)
            and self._is_subscription(namespace, room)
            and not (skip_sid or callback or binary or isinstance(data, tuple))
        ):
            await self._publish_message(room, event, data)
            return
        with self._awaiting_ack(room, namespace, callback) as awaited:
            await self.send_and_read_back(
                {
                    "method": "emit",
                    "event": event,
                    "data": _as_text(arguments) if binary else arguments,
                    "binary": binary,
                    "namespace": namespace,
                    "room": room,
                    "skip_sid": skip_sid,
                    "callback": awaited,
                }
            )

    @contextlib.contextmanager
    def _awaiting_ack(
        self, room: Any, namespace: str, callback: Callable[..., Any] | None
    ) -> Iterator[list[Any] | None]:
        """Keep what an answer calls, unless the block fails.

        Gives room, namespace and id, by which it is found; None: no answer is awaited.

        Raises:
            ValueError: it is for no room, or for several.
        """
        if callback is None:
            yield None
            return
        if room is None or isinstance(room, list):
            raise ValueError("Cannot use callback without a room set, or with several.")
        id = self.new_ack_id(room, callback)
        try:
            yield [room, namespace, id]
        except Exception:
            callbacks = self.callbacks.get(room, {})
            callbacks.pop(id, None)
            if len(callbacks) == 1:
                del self.callbacks[room]
            raise

    async def enter_room(
        self, sid: str, namespace: str, room: str, eio_sid: SocketIOClient | None = None
    ) -> None:
        """Add a client of any worker to a room.

        Raises:
            ValueError: there can be no such client or room.
        """
        check_sid(sid)
        check_room(room)
        await super().enter_room(sid, check_namespace(namespace), room, eio_sid)

    async def leave_room(self, sid: str, namespace: str, room: str) -> None:
        """Take a client of any worker out of a room; raises as `enter_room`."""
        check_sid(sid)
        check_room(room)
        await super().leave_room(sid, check_namespace(namespace), room)

    async def close_room(self, room: str, namespace: str | None = None) -> None:
        """Remove all clients from a room, on all workers; raises as `enter_room`."""
        check_room(room)
        await super().close_room(room, check_namespace(namespace or MAIN))

    async def send_and_read_back(self, message: dict[str, Any]) -> None:
        """Store a message for all workers, and wait until this one has carried it out.

        Raises: as `send_to_all`.
        """
        number = next(self._numbers)
        read = asyncio.get_running_loop().create_future()
        self._unread[number] = read
        try:
            await self.send_to_all({**message, "host_id": self.host_id, "n": number})
            async with asyncio.timeout(READ_BACK_SECONDS):
                await read
        except TimeoutError:
            logger.warning("An emit was stored but not read back yet")
        finally:
            self._unread.pop(number, None)

    async def send_to_all(self, message: dict[str, Any]) -> None:
        """Store a message for all workers.

        Raises:
            BackplaneUnavailable, QueueOverflow: it may not have been stored.
            ValueError, TypeError: no worker could read it.
        """
        control.check_message(message)
        await self._send_control(message)

    async def return_ack(
        self, host_id: str, sid: str, namespace: str, callback_id: int, *args: Any
    ) -> None:
        """Bring an acknowledgement to the worker that waits for it, attachments as base64."""
        if host_id == self.host_id:
            await self.trigger_callback(sid, callback_id, args)
            return
        answer, attachments = sio_packet.Packet.deconstruct_binary(list(args))
        try:
            await self.send_to_all(
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
        except ValueError as error:
            raise ClientError(
                ErrorCode.INVALID_PAYLOAD, f"This acknowledgement cannot be passed on: {error}."
            ) from None

    async def _take_ack(self, message: Control) -> None:
        if message["host_id"] != self.host_id:
            return
        args = message["args"]
        if message["attachments"]:
            attachments = [base64.b64decode(part) for part in message["attachments"]]
            args = sio_packet.Packet.reconstruct_binary(args, attachments)
        await self.trigger_callback(message["sid"], message["id"], args)

    async def trigger_callback(self, sid: str, id: int, data: Iterable[Any]) -> None:
        """Call what awaits an acknowledgement; others are ignored.

        Under the id 0 the library keeps the counter of the ids, which is no callback.
        """
        callback = self.callbacks.get(sid, {}).pop(id, None) if id else None
        if callback is None:
            logger.debug("Unexpected acknowledgement")
            return
        result = callback(*data)
        if inspect.isawaitable(result):
            await result

    def reach(self, position: Position) -> None:
        """All messages of the control stream up to a position are carried out, or lost."""
        self.position = position

    async def handle_control(self, item: Message) -> None:
        """Carry out what came through the control stream, in the order of the stream."""
        self.position = item.position
        try:
            message = self.parse(item)
            await self._carry_out(message)
        except Unreadable:
            return
        if message.get("host_id") == self.host_id:
            read = self._unread.get(message.get("n", -1))
            if read is not None and not read.done():
                read.set_result(None)
        if self._ahead:
            self._ahead = {s: seq for s, seq in self._ahead.items() if seq > item.seq}

    def parse(self, item: Message) -> Control:
        """The control message of an entry.

        Raises:
            Unreadable: it is none; that is counted and logged.
        """
        try:
            message = control.parse(item.body)
        except Unreadable as error:
            self._note_unreadable()
            if self._log_limit.allows("unreadable"):
                logger.warning("Control message %d is skipped: %s", item.seq, error)
            raise
        if message["method"] not in control.METHODS and self._log_limit.allows("unknown"):
            logger.warning(
                "Control message %d is skipped: this version does not know the method %r",
                item.seq,
                message["method"][:64],
            )
        return message

    def receives(self, session: SocketIOClient) -> bool:
        """Not those that another worker has given this message to already."""
        if self._only is not None:
            return session in self._only
        return self._ahead.get(session, 0) < self.position.seq

    def skip(self, sessions: Iterable[SocketIOClient], position: Position) -> None:
        """Deliver nothing up to `position` to sessions that have had it elsewhere."""
        if position.epoch == self.position.epoch and position.seq > self.position.seq:
            self._ahead.update(dict.fromkeys(sessions, position.seq))

    async def replay(
        self, messages: Iterable[dict[str, Any]], sessions: Iterable[SocketIOClient]
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
    def _sids(session: SocketIOClient) -> list[str]:
        extra = session.extra
        named = [sid for sid, _ in extra.namespaces.values()] if extra is not None else []
        return [session.id, *named]

    def let_go(self, session: SocketIOClient) -> None:
        """Forget a session that another worker has taken, but for the answers awaited here."""
        self.server.incomplete.pop(session, None)
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
                await self.take_emit(message)
            elif method in {"enter_room", "leave_room"} or (
                method == "close_room" and message.get("host_id") != self.host_id
            ):
                await self.take_room_change(message)
            elif method == "replace":
                self._replace(message)
            elif method == "probe" and message["host_id"] != self.host_id:
                self.prober.on_probe(message)
            elif method in {"held", "alive"}:
                self.prober.on_answer(message)
            elif method in roster.METHODS:
                self.roster.take(message)
            elif method == "callback":
                # These run handlers of the application, which may emit and so wait for us.
                self.start_task(self._take_ack(message))
            elif method == "disconnect":
                self.start_task(self.take_disconnect(message))
        except ValueError as error:
            # Such as a room that is a client's own, or attachments that are not base64.
            if self._log_limit.allows(method):
                logger.warning("Control message %r cannot be carried out: %s", method, error)
        except Exception:
            if self._log_limit.allows(method):
                logger.exception("Control message failed: %s", method)

    def _replace(self, message: dict[str, Any]) -> None:
        if message.get("host_id") == self.host_id:
            return  # it has looked at its own before it asked the others
        sessions = []
        for sid in message["sids"]:
            session = self._registry.by_id.get(sid)
            # One that came from a worker which was ahead of this one is the replacement itself.
            if session is not None and self.position.seq > self._ahead.get(session, 0):
                sessions.append(session)
        self.prober.on_replace(message, sessions)

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
            if self.is_returning(callback):
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
            self.callbacks[sid][int(id)] = self.returning(*home)

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
            if id and self.is_returning(callback):
                del callbacks[id]
        if len(callbacks) == 1:
            del self.callbacks[sid]
        return len(callbacks) > 1

    async def can_disconnect(self, sid: str, namespace: str) -> bool:
        """Whether the client is here; otherwise the request is sent to its own worker."""
        session = self._find(check_sid(sid), namespace)
        if session is not None:
            return self.is_connected(sid, namespace) and session.state == OPEN
        await self.send_to_all(
            {"method": "disconnect", "sid": sid, "namespace": namespace, "host_id": self.host_id}
        )
        return False


def _as_text(arguments: Any) -> list[Any]:
    """Arguments with placeholders for what is binary, and that behind them, in base64.

    Raises:
        ValueError: an object among them looks like a placeholder.
    """
    arguments, attachments = sio_packet.Packet.deconstruct_binary(arguments)
    if count_placeholders(arguments) != len(attachments):
        raise ValueError(
            "An object with '_placeholder' and 'num' cannot be sent together with"
            " binary data, since it means an attachment to clients."
        )
    return [arguments, *[base64.b64encode(one).decode() for one in attachments]]
