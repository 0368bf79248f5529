"""Every private name of python-socketio and python-engineio that this service uses, and no other module.

They are no interface of the libraries, so this module makes sure of them when it is imported: a
worker does not start with a version that has others. tests/unit/test_private_names.py says what is
expected of what they do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import engineio
import socketio
from socketio.async_manager import AsyncManager
from socketio.async_pubsub_manager import AsyncPubSubManager
from socketio.base_server import BaseServer

_METHODS: dict[type, dict[str, str]] = {
    engineio.AsyncServer: {"_get_socket": "(self, sid)"},
    socketio.AsyncServer: {
        "_engineio_server_class": "(self)",
        "_get_event_handler": "(self, event, namespace, args)",
        "_get_namespace_handler": "(self, namespace, args)",
        "_handle_ack": "(self, eio_sid, namespace, id, data)",
        "_handle_disconnect": "(self, eio_sid, namespace, reason=None)",
        "_trigger_event": "(self, event, namespace, *args)",
    },
    AsyncManager: {"_generate_ack_id": "(self, sid, callback)"},
    AsyncPubSubManager: {
        "_handle_callback": "(self, message)",
        "_handle_close_room": "(self, message)",
        "_handle_disconnect": "(self, message)",
        "_handle_emit": "(self, message)",
        "_handle_enter_room": "(self, message)",
        "_handle_leave_room": "(self, message)",
        "_publish": "(self, data)",
        "_return_callback": "(self, host_id, sid, namespace, callback_id, *args)",
    },
}
"""By class: its private methods and their arguments."""

_ATTRIBUTES: dict[type, tuple[str, ...]] = {BaseServer: ("_binary_packet",)}
"""By class: private attributes that its constructor sets."""


def check(
    methods: dict[type, dict[str, str]] = _METHODS,
    attributes: dict[type, tuple[str, ...]] = _ATTRIBUTES,
) -> None:
    """Make sure that the libraries have the names.

    Raises:
        ImportError: one of them is gone, or takes other arguments.
    """
    wrong = [
        f"{owner.__name__}.{name}"
        for owner, names in methods.items()
        for name, arguments in names.items()
        if not hasattr(owner, name) or str(inspect.signature(getattr(owner, name))) != arguments
    ]
    wrong += [
        f"{owner.__name__}.{name}"
        for owner, names in attributes.items()
        for name in names
        if name not in owner.__init__.__code__.co_names  # type: ignore[misc]
    ]
    if wrong:
        raise ImportError(
            f"python-socketio {_version(socketio)} with python-engineio {_version(engineio)} is not"
            f" supported: {', '.join(wrong)} is missing or takes other arguments"
        )


def _version(library: Any) -> str:
    return str(getattr(library, "__version__", "of an unknown version"))


check()


class EngineServer(engineio.AsyncServer):
    """python-engineio's server; `find_socket` is asked for what stands for a session id."""

    def find_socket(self, sid: Any) -> Any:
        """What stands for a session id; raises KeyError."""
        raise NotImplementedError

    def _get_socket(self, sid: Any) -> Any:
        return self.find_socket(sid)


class SocketServer(socketio.AsyncServer):
    """python-socketio's server, with public names for what is used of it.

    `engine_class` is the class of its Engine.IO server.
    """

    engine_class: type[engineio.AsyncServer] = EngineServer

    def _engineio_server_class(self) -> type[engineio.AsyncServer]:
        return self.engine_class

    @property
    def incomplete(self) -> dict[Any, Any]:
        """Packets that wait for their attachments, by session."""
        packets: dict[Any, Any] = self._binary_packet
        return packets

    def has_handler(self, event: str, namespace: str) -> bool:
        """Whether the application wants an event."""
        if not (self.handlers or self.namespace_handlers):
            return False
        return (
            self._get_event_handler(event, namespace, ())[0] is not None
            or self._get_namespace_handler(namespace, ())[0] is not None
        )

    # These are no coroutines of their own: that would cost one more for each event.

    def trigger(self, event: str, namespace: str, *args: Any) -> Coroutine[Any, Any, Any]:
        """Call the handlers of an event; `not_handled` where there are none."""
        work: Coroutine[Any, Any, Any] = self._trigger_event(event, namespace, *args)
        return work

    def leave_namespace(
        self, session: Any, namespace: str, reason: str
    ) -> Coroutine[Any, Any, None]:
        """Call the disconnect handlers of a session and forget it in a namespace."""
        work: Coroutine[Any, Any, None] = self._handle_disconnect(session, namespace, reason)
        return work

    def take_ack(
        self, session: Any, namespace: str, id: int, data: list[Any]
    ) -> Coroutine[Any, Any, None]:
        """Hand what a client acknowledges to what awaits it."""
        work: Coroutine[Any, Any, None] = self._handle_ack(session, namespace, id, data)
        return work


class ClientManager(AsyncManager):
    """python-socketio's client manager of one process."""

    def new_ack_id(self, sid: str, callback: Callable[..., Any]) -> int:
        """The id of an acknowledgement that is awaited from now on."""
        id: int = super()._generate_ack_id(sid, callback)
        return id

    def _generate_ack_id(self, sid: str, callback: Callable[..., Any]) -> int:
        return self.new_ack_id(sid, callback)


class PubSubManager(AsyncPubSubManager):
    """python-socketio's client manager over several processes.

    `send_to_all` and `return_ack` are asked to send something to all workers.
    """

    async def send_to_all(self, message: dict[str, Any]) -> None:
        """Store a message for all processes."""
        raise NotImplementedError

    async def return_ack(
        self, host_id: str, sid: str, namespace: str, callback_id: int, *args: Any
    ) -> None:
        """Bring an acknowledgement to the process that waits for it."""
        raise NotImplementedError

    def returning(self, *home: Any) -> partial[Any]:
        """A callback that brings an acknowledgement home: host, sid, namespace and id."""
        return partial(self._return_callback, *home)

    def is_returning(self, callback: Any) -> bool:
        """Whether a callback is such a one, of this class or of the library's own making."""
        return isinstance(callback, partial) and callback.func == self._return_callback

    async def take_emit(self, message: dict[str, Any]) -> None:
        """Carry out an emit of some process."""
        await self._handle_emit(message)

    async def take_room_change(self, message: dict[str, Any]) -> None:
        """Carry out `enter_room`, `leave_room` or `close_room` of some process."""
        method = message["method"]
        if method == "enter_room":
            await self._handle_enter_room(message)
        elif method == "leave_room":
            await self._handle_leave_room(message)
        else:
            await self._handle_close_room(message)

    async def take_disconnect(self, message: dict[str, Any]) -> None:
        """Carry out a disconnect that some process asks for."""
        await self._handle_disconnect(message)

    async def _publish(self, data: dict[str, Any]) -> None:
        await self.send_to_all(data)

    async def _return_callback(
        self, host_id: str, sid: str, namespace: str, callback_id: int, *args: Any
    ) -> None:
        await self.return_ack(host_id, sid, namespace, callback_id, *args)
