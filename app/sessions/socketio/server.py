"""python-socketio's server over detached connections.

Messages, events, acks, `call`, sessions and binary reassembly are the library's; replaced are
how a client gets in (caps, `pid`, `connected`) and how it leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from socketio import exceptions
from socketio import packet as sio_packet

from app.errors import ClientError, CloseCode, ErrorCode, NoRoomNow
from app.log_limit import LogLimit
from app.protocol.envelope import RESERVED_ON_WIRE, decode_json, encode_ascii
from app.protocol.requests import Request
from app.sessions.retry import retry_reason
from app.sessions.session import ENTERED, Extra, Work
from app.sessions.socketio.client import MAIN, SocketIOClient
from app.sessions.socketio.engine import DetachedEngine, message_frame
from app.sessions.socketio.manager import StreamManager
from app.sessions.socketio.private import SocketServer
from app.transport.connection import OPEN

logger = logging.getLogger("realtime.socketio")

_TEMPORARY = {
    ErrorCode.BACKPLANE_UNAVAILABLE,
    ErrorCode.QUEUE_OVERFLOW,
    ErrorCode.SERVICE_UNAVAILABLE,
}
REJECTED = {"message": "Connection rejected by server"}
_SHOWN_NAME = 64
"""Characters of the name of a namespace that an error repeats."""
CATCH_ALL = "*"
"""Names the handlers of all other events; as the name of an event it would reach them with
arguments that are not theirs."""


class StrictJson:
    """The JSON module of python-socketio: what a browser cannot parse is neither taken nor sent."""

    loads = staticmethod(decode_json)

    @staticmethod
    def dumps(value: Any, **_options: Any) -> str:
        """Encode a value; raises as `encode_ascii`."""
        return encode_ascii(value)


class EnvironView(dict[SocketIOClient, dict[str, Any]]):
    """Answers for `environ`, which lives on the few connections that have one."""

    def __getitem__(self, session: SocketIOClient) -> dict[str, Any]:
        extra = session.extra
        return (extra.environ or {}) if extra is not None else {}

    def get(self, session: SocketIOClient | None, default: Any = None) -> Any:
        """The environ of a connection; `default` for None, which python-socketio asks for by an unknown id."""
        return default if session is None else self[session]

    def __contains__(self, session: object) -> bool:
        return False


class RealtimeServer(SocketServer):
    """The Socket.IO server of one worker; applications see plain python-socketio."""

    manager: StreamManager
    engine_class = DetachedEngine

    def __init__(self, manager: StreamManager, max_message_size: int) -> None:
        super().__init__(
            client_manager=manager,
            json=StrictJson,
            async_mode="aiohttp",
            logger=logging.getLogger("socketio.server"),
            engineio_logger=logging.getLogger("engineio.server"),
            monitor_clients=False,
            transports=["websocket"],
            cors_allowed_origins=[],
            max_http_buffer_size=max_message_size,
        )
        self.environ = EnvironView()
        self.manager_initialized = True
        self._tasks: set[asyncio.Task[Any]] = set()
        # A client can make a handler fail as often as it likes.
        self._log_limit = LogLimit(most=20)

    def start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside the connection's own messages."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._log_limit.allows(type(error).__name__):
            logger.error("Handler failed", exc_info=error)

    def instrument(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: the admin page wants a table of sockets and environs, which is not kept.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Socket.IO's admin page is not supported; see GET /ws/stats")

    # Coming in.

    def connect(self, session: SocketIOClient, namespace: str, data: Any) -> Work | None:
        """Let a connection into a namespace; returns what remains to be awaited."""
        known = (
            namespace in self.handlers
            or namespace in self.namespace_handlers
            or self.namespaces == "*"
            or namespace in self.namespaces
        )
        sid = self.manager.enter(session, namespace) if known else None
        if sid is None:
            name = repr(namespace[:_SHOWN_NAME])
            message = f"Already in the namespace {name}." if known else f"Unknown namespace {name}."
            error = ClientError(ErrorCode.INVALID_PAYLOAD, message)
            self.refuse_connect(session, namespace, error)
            return None
        try:
            work = None
            if namespace == MAIN:
                work = session.identify(data)
            else:
                session.authenticate(data)
        except ClientError as error:
            session.note_refusal(error)
            self._refuse(session, sid, namespace, _described(error))
            return None
        if work is None and not self.has_handler("connect", namespace):
            return self._accept(session, sid, namespace)
        return self._connect_slowly(session, sid, namespace, data, work)

    def refuse_connect(self, session: SocketIOClient, namespace: str, error: ClientError) -> None:
        """Answer a CONNECT that is too large, cannot be read, or is for a namespace that it cannot enter."""
        session.note_refusal(error)
        self._send_now(session, sio_packet.CONNECT_ERROR, namespace, _described(error))

    async def _connect_slowly(
        self, session: SocketIOClient, sid: str, namespace: str, data: Any, work: Work | None
    ) -> None:
        reason: Any = REJECTED
        refusal: ClientError | None = None
        try:
            if work is not None:
                await work
            if namespace == MAIN:
                sid = session.id  # a client that recovers has got its own one back
            accepted = await self._call_connect_handler(session, sid, namespace, data)
        except ClientError as error:
            accepted, reason, refusal = False, _described(error), error
            # A CONNECT_ERROR would keep the client away for good.
            if isinstance(error, NoRoomNow):
                session.end(CloseCode.TRY_AGAIN_LATER, error.close_reason)
            elif error.code in _TEMPORARY:
                session.end(CloseCode.RESTART, retry_reason())
        except exceptions.ConnectionRefusedError as error:
            accepted, reason = False, error.error_args
        except ConnectionRefusedError:
            accepted, reason = False, {"message": "Connection refused by server"}
        except Exception as error:
            # A handler may well fail on a client that went away meanwhile.
            level = logging.ERROR if session.state == OPEN else logging.DEBUG
            if level == logging.DEBUG or self._log_limit.allows("connect"):
                logger.log(
                    level,
                    "Connect handler failed",
                    extra={"connection": session.id},
                    exc_info=error,
                )
            accepted = False
        if not accepted:
            session.note_refusal(refusal)
            self._refuse(session, sid, namespace, reason)
        elif session.state == OPEN:
            past = self._accept(session, sid, namespace)
            if past is not None:
                await past
        else:
            # It was gone before the handler was done; its disconnect handler comes now.
            self.manager.set_phase(session, namespace, ENTERED)

    async def _call_connect_handler(
        self, session: SocketIOClient, sid: str, namespace: str, data: Any
    ) -> bool:
        environ = self.environ[session]
        if data:
            result = await self.trigger("connect", namespace, sid, environ, data)
        else:
            # A handler may or may not take the client's `auth`; see python-socketio's own.
            try:
                result = await self.trigger("connect", namespace, sid, environ, None)
            except TypeError as first:
                try:
                    result = await self.trigger("connect", namespace, sid, environ)
                except TypeError:
                    raise first from None
        return result is not False

    def _accept(self, session: SocketIOClient, sid: str, namespace: str) -> Work | None:
        if namespace == MAIN:
            session.send(message_frame(f"{sio_packet.CONNECT}{session.connect_answer()}"))
            session.phase = ENTERED
        else:
            self._send_now(session, sio_packet.CONNECT, namespace, {"sid": sid})
            self.manager.set_phase(session, namespace, ENTERED)
        return session.accepted(namespace)

    def _refuse(self, session: SocketIOClient, sid: str, namespace: str, reason: Any) -> None:
        try:
            self._send_now(session, sio_packet.CONNECT_ERROR, namespace, reason)
        except (ValueError, TypeError, RecursionError) as error:
            if self._log_limit.allows("refusal"):
                logger.error(
                    "The reason for which a connect handler refuses a client cannot be sent: %s",
                    error,
                    extra={"connection": session.id},
                )
            self._send_now(session, sio_packet.CONNECT_ERROR, namespace, REJECTED)
        session.take_held(namespace)
        self.manager.basic_disconnect(sid, namespace)

    def _send_now(self, session: SocketIOClient, kind: int, namespace: str, data: Any) -> None:
        session.send_packet(self.packet_class(kind, namespace=namespace, data=data))

    # Messages.

    def dispatch(self, session: SocketIOClient, packet: Any, size: int) -> Work | None:
        """Carry out a complete packet; returns what the next ones must wait for.

        Args:
            session: it came from.
            packet: with its attachments.
            size: bytes of memory that it takes until its handler is done.
        """
        kind, namespace = packet.packet_type, packet.namespace or MAIN
        if kind == sio_packet.CONNECT:
            return self.connect(session, namespace, packet.data)
        if kind == sio_packet.DISCONNECT:
            return self.leave_namespace(session, namespace, self.reason.CLIENT_DISCONNECT)
        if kind in (sio_packet.EVENT, sio_packet.BINARY_EVENT):
            sid = self.manager.sid_from_eio_sid(session, namespace)
            if sid is None or not self.manager.is_connected(sid, namespace):
                logger.debug("Event before CONNECT", extra={"connection": session.id})
                return None
            if packet.data[0] in RESERVED_ON_WIRE or packet.data[0] == CATCH_ALL:
                raise ClientError(
                    ErrorCode.INVALID_PAYLOAD, f"The event name {packet.data[0]!r} is reserved."
                )
            if not self.has_handler(packet.data[0], namespace):
                raise ClientError(
                    ErrorCode.INVALID_ACTION,
                    f"No handler is registered for event {packet.data[0][:64]!r}.",
                )
            extra = session.need_extra()
            extra.handlers += 1
            session.hub.input.keep(session, size)
            self.start_task(
                self._run_handler(sid, session, packet.data, namespace, packet.id)
            ).add_done_callback(lambda _: _handler_done(session, extra, size))
            return None
        if kind in (sio_packet.ACK, sio_packet.BINARY_ACK):
            return self.take_ack(session, namespace, packet.id, packet.data)
        raise ClientError(ErrorCode.PARSE_ERROR, "Clients must not send packets of this type.")

    async def _run_handler(
        self, sid: str, session: SocketIOClient, data: list[Any], namespace: str, id: int | None
    ) -> None:
        """Run the handler of an event, and acknowledge the event with what it returns."""
        result = await self.trigger(data[0], namespace, sid, *data[1:])
        if result is self.not_handled or id is None:
            return
        answer = [] if result is None else list(result) if isinstance(result, tuple) else [result]
        try:
            packet = self.packet_class(sio_packet.ACK, namespace=namespace, id=id, data=answer)
            encoded = packet.encode()
        except (ValueError, TypeError, RecursionError) as error:
            if self._log_limit.allows("acknowledgement"):
                logger.error(
                    "What the handler of the event %r returns cannot be sent: %s",
                    data[0][:64],
                    error,
                    extra={"connection": session.id},
                )
            if namespace == MAIN:
                failed = "The acknowledgement failed; the log of the server has details."
                session.send_error(
                    ClientError(ErrorCode.INTERNAL_ERROR, failed), Request("", None, None, id)
                )
            return
        for part in encoded if isinstance(encoded, list) else [encoded]:
            session.send(message_frame(part))

    # Leaving.

    def lost(self, session: SocketIOClient, reason: str) -> None:
        """Tell the application that a connection is gone, after what is still running for it."""
        extra = session.extra
        if extra is None and not self.has_handler("disconnect", MAIN):
            self.manager.forget_ended(session)
        elif extra is not None and extra.task is not None and not extra.task.done():
            extra.task.add_done_callback(lambda _: self._leave_all(session, reason))
        else:
            self._leave_all(session, reason)

    def _leave_all(self, session: SocketIOClient, reason: str) -> None:
        session.drop_packet()
        namespaces = [MAIN] if session.phase else []
        if session.extra is not None:
            namespaces += session.extra.namespaces
        informed = [space for space in namespaces if self.has_handler("disconnect", space)]
        if informed:
            self.start_task(self._leave_slowly(session, namespaces, reason))
        else:
            for namespace in namespaces:
                self._forget(session, namespace)
            session.forget()

    async def _leave_slowly(
        self, session: SocketIOClient, namespaces: list[str], reason: str
    ) -> None:
        try:
            for namespace in namespaces:
                sid = self.manager.sid_from_eio_sid(session, namespace)
                if sid is None:
                    continue
                try:
                    if self.manager.is_connected(sid, namespace):
                        await self.leave_namespace(session, namespace, reason)
                except Exception:
                    if self._log_limit.allows("disconnect"):
                        logger.exception(
                            "Disconnect handler failed", extra={"connection": session.id}
                        )
                self._forget(session, namespace)
        finally:
            session.forget()

    def _forget(self, session: SocketIOClient, namespace: str) -> None:
        sid = self.manager.sid_from_eio_sid(session, namespace)
        if sid is not None:
            self.manager.basic_disconnect(sid, namespace)


def _handler_done(session: SocketIOClient, extra: Extra, size: int) -> None:
    extra.handlers -= 1
    session.hub.input.keep(session, -size)
    if extra.inbox:
        session.go_on()


def _described(error: ClientError) -> dict[str, Any]:
    return {"message": error.message, "data": {"code": error.code}}
