"""One connection that comes back by itself: newest state first, recovery, requests."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import logging
import random as _random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Self, cast, overload

import aiohttp
from yarl import URL

from yujian_realtime.addresses import DEFAULT, socket_url
from yujian_realtime.closing import Backoff, Ending
from yujian_realtime.errors import ConnectionClosed, RealtimeError, RequestTimeout
from yujian_realtime.events import EventSocket, StreamRefused, answers_http
from yujian_realtime.failures import describe
from yujian_realtime.ledger import Ledger
from yujian_realtime.messages import Counts, Gap, History, Message, State
from yujian_realtime.protocol import (
    ActionName,
    Connected,
    ConnectedUser,
    HistoryPage,
    Subscribers,
)
from yujian_realtime.session import SessionUser

logger = logging.getLogger("yujian_realtime")

Token = str | Callable[[], str | Awaitable[str | None] | None]
"""A JSON Web Token, or a function that gets one, or None where there is none."""

Transport = Literal["auto", "websocket", "sse"]
"""What carries the messages."""

QUEUE_LIMIT = 1000
"""Messages that a subscription holds while it is not read; then the oldest is dropped."""

_LARGEST_FRAME = 64 * 2**20
"""Bytes of a message that are taken: the service's own limit is far below."""
_PAGE = 100
"""Users that one request brings."""
_OPEN_TIMEOUT = 15.0
_CLOSE_TIMEOUT = 2.0
_LOOK_TIMEOUT = 5.0
_BLOCKED = 2
"""WebSockets that do not open while HTTP works, in a row, before server-sent events are used."""
_EVENTS = ("state", "message", "gap", "error", "rtt")
_UNUSED = "The service asks for no token, and has refused this one: the client goes on without it."


class Realtime(SessionUser):
    """A client of the plain protocol. `async with` connects in the background and leaves at the end.

    Args:
        url: of the service, `http(s)` or `ws(s)`, with the path under which it is served.
        token: a JWT, or a function (it may be async) that gets one, or None where there is none: for
            each connection, and a minute before one expires, again and again where it raises, which
            the event `error` reports. It goes into the first message, never into the address.
        user: name of the client, where the service asks for no token.
        history: newest messages of each type that come first, 0 to 100.
        ping: seconds between pings; twice as much silence ends a connection.
        pause: shortest and longest pause before a reconnect, in seconds; half of it is random.
        transport: `websocket`, `sse` (server-sent events), or `auto`: those once two WebSockets in a
            row have not opened although the service answers over HTTP. They stay until `reconnect`.
            `presence` is not available over them.
        session: to connect with, for proxies and certificates; by default one of its own.
        random: a number from 0 to 1.

    Raises:
        ValueError: `url` is no address, or `transport` is none of those.
    """

    def __init__(
        self,
        url: str = DEFAULT,
        *,
        token: Token | None = None,
        user: str | None = None,
        history: int = 1,
        ping: float = 15.0,
        pause: tuple[float, float] = (0.5, 15.0),
        transport: Transport = "auto",
        session: aiohttp.ClientSession | None = None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        super().__init__(session)
        if transport not in {"auto", "websocket", "sse"}:
            raise ValueError(f"{transport!r} is no transport: write auto, websocket or sse")
        self._transport = transport
        self._blocked = 0
        self._url = socket_url(url)
        self._token = token
        self._user = user
        self._history = history
        self._ping_every = ping
        self._backoff = Backoff(*pause, random)
        self._ledger = Ledger()
        self._state = State("connecting")
        self._connected = cast("Connected", {})
        self._clock_offset = 0.0
        self._subscriptions: list[Subscription] = []
        self._handlers: dict[str, list[Callable[[Any], object]]] = {name: [] for name in _EVENTS}
        self._pending: dict[str, asyncio.Future[Message]] = {}
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[Ending] | None = None
        self._socket: aiohttp.ClientWebSocketResponse | EventSocket | None = None
        self._ended: asyncio.Future[Ending] | None = None
        self._last_error: RealtimeError | None = None
        self._token_tried = False
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._final = asyncio.Event()
        self.rtt: float | None = None
        """Last round trip in seconds."""

    # Life

    async def __aenter__(self) -> Self:
        if self._loop_task is not None:
            raise RuntimeError("A client connects once; make another one.")
        self._open_session()
        self._loop_task = asyncio.create_task(self._run())
        return self

    async def close(self) -> None:
        """Leave for good. Iterators end at once, requests that wait raise `ConnectionClosed`."""
        try:
            if self._loop_task is not None:
                self._loop_task.cancel()
                await asyncio.wait({self._loop_task})
        finally:
            self._finish(State("closed", "left", 1000))
            for task in [*self._tasks]:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await super().close()

    def reconnect(self, *, token: Token | None = None) -> None:
        """Connect now, also after what is final; not after `close`.

        Args:
            token: in place of the present one.
        """
        if self._state.cause == "left":
            return
        if token is not None:
            self._token = token
        self._token_tried = False
        self._blocked = 0
        self._backoff.succeeded()
        self._final.clear()
        self._wake.set()
        self._interrupt()

    def _interrupt(self) -> None:
        """End the present attempt; one that closes its socket already is left alone."""
        if self._ended is not None:
            self._end(Ending(1000))
        elif self._attempt is not None:
            self._attempt.cancel()

    async def opened(self) -> None:
        """Wait until the connection is open.

        Raises:
            ConnectionClosed: it has ended for good.
            RuntimeError: it was never begun.
        """
        if self._ready.is_set():
            return
        self._require_begun()
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._final)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._ready.is_set():
            raise self._closed()

    # What is known

    @property
    def state(self) -> State:
        """State of the connection; `on("state", ...)` tells of changes."""
        return self._state

    @property
    def counts(self) -> Counts:
        """What has happened so far."""
        return self._ledger.counts

    @property
    def connected(self) -> Connected:
        """Data of `connected`: `connectionId`, `user`, `supportedTypes`, limits; at first empty."""
        return self._connected

    @property
    def clock_offset(self) -> float:
        """Seconds by which the service's clock is ahead of this one."""
        return self._clock_offset

    # Messages

    def subscribe(
        self, *types: str, history: int | None = None, limit: int = QUEUE_LIMIT
    ) -> Subscription:
        """Messages of one or more types, as an asynchronous iterator; the newest come first.

        Args:
            types: names; `all` stands for every type.
            history: newest messages of each that come first; by default that of the client.
            limit: messages that are held while it is not read; then the oldest is dropped, counted
                and reported as a gap with the reason `slow`.
        """
        if not types:
            raise ValueError("Name a type, or 'all'.")
        chosen = self._history if history is None else history
        subscription = Subscription(self, frozenset(types), chosen, limit)
        for message in self._ledger.newest():
            if subscription.wants(message.type):
                subscription.put(message, again=True)
        self._subscriptions.append(subscription)
        if self._ready.is_set():
            self._spawn(self._follow())
        return subscription

    @overload
    def on(
        self, event: Literal["state"], handler: Callable[[State], object]
    ) -> Callable[[], None]: ...
    @overload
    def on(
        self, event: Literal["message"], handler: Callable[[Message], object]
    ) -> Callable[[], None]: ...
    @overload
    def on(self, event: Literal["gap"], handler: Callable[[Gap], object]) -> Callable[[], None]: ...
    @overload
    def on(
        self, event: Literal["error"], handler: Callable[[RealtimeError], object]
    ) -> Callable[[], None]: ...
    @overload
    def on(
        self, event: Literal["rtt"], handler: Callable[[float], object]
    ) -> Callable[[], None]: ...
    def on(self, event: str, handler: Callable[[Any], object]) -> Callable[[], None]:
        """Call a function at each `state`, `message`, `gap`, `error` or `rtt` (in seconds).

        Returns:
            A function that ends it.
        """
        handlers = self._handlers[event]
        handlers.append(handler)

        def remove() -> None:
            if handler in handlers:
                handlers.remove(handler)

        return remove

    # Requests

    async def request(
        self,
        action: ActionName | str,
        payload: Mapping[str, Any] | None = None,
        *,
        timeout: float = 15.0,
    ) -> Message:
        """Ask the service; waits for a connection.

        Args:
            action: of the protocol.
            payload: its argument.
            timeout: seconds until the answer, the wait for a connection included.

        Raises:
            RealtimeError: the service answered with an error.
            ConnectionClosed: the connection ended before the answer.
            RequestTimeout: no answer came in time.
        """
        try:
            async with asyncio.timeout(timeout):
                await self.opened()
                return await self._ask(action, payload or {})
        except TimeoutError:
            raise RequestTimeout(f"No answer to '{action}' in {timeout:g} seconds.") from None

    async def history(self, type: str, limit: int = 50, before: int | None = None) -> History:
        """Older messages of a type, the newest last; raises like `request`."""
        payload: dict[str, Any] = {"type": type, "limit": limit}
        if before is not None:
            payload["before"] = before
        data: HistoryPage = (await self.request("get_history", payload)).data
        return History([Message.of(one, "history") for one in data["messages"]], data["more"])

    async def presence(self, type: str, limit: int | None = None, after: str = "") -> Subscribers:
        """How many are subscribed to a type, and which users; raises like `request`.

        Args:
            type: of messages.
            limit: users that are named, 1 to 100; None: none are.
            after: with a limit: only users behind this one.
        """
        payload: dict[str, Any] = {"type": type}
        if limit is not None:
            payload |= {"limit": limit, "after": after}
        data: Subscribers = (await self.request("presence", payload)).data
        return data

    async def users(self, type: str) -> AsyncIterator[ConnectedUser]:
        """All users that are subscribed to a type, by name, page after page; raises like `request`."""
        after = ""
        while True:
            page = await self.presence(type, _PAGE, after)
            names = page.get("names", [])
            for row in names:
                yield row
            if not names or not page.get("more"):
                return
            after = names[-1]["user"]

    async def ping(self) -> float:
        """Round trip in seconds; raises like `request`."""
        began = time.monotonic()
        await self.request("ping")
        return self._note_rtt(began)

    # The connection

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self._ended = None
            self._become(State("connecting", self._state.cause, self._state.code))
            self._attempt = asyncio.create_task(self._connect())
            try:
                await asyncio.wait({self._attempt})
            except asyncio.CancelledError:
                self._interrupt()
                await asyncio.wait({self._attempt})
                raise
            attempt, self._attempt = self._attempt, None
            if self._wake.is_set():
                continue  # `reconnect`
            if error := attempt.exception():
                logger.error("The connection failed", exc_info=error)
                ending = Ending(message=str(error))
            else:
                ending = attempt.result()
            await self._pause(ending)

    async def _pause(self, ending: Ending) -> None:
        cause, back = ending.meaning
        # An address that was right is so again: a proxy may answer 404 while the service restarts.
        if ending.status == 404 and self._connected:
            back = True
        # A token that the service refuses may be old: one that is got anew has another chance.
        if cause == "token" and callable(self._token) and not self._token_tried:
            self._token_tried = back = True
        if not back:
            self._finish(State("closed", cause, ending.code, ending.message))
            await self._wake.wait()
            return
        pause = self._backoff.pause(ending)
        self._ledger.counts.reconnects += 1
        self._become(State("waiting", cause, ending.code, ending.message, pause))
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _connect(self) -> Ending:
        """One connection, from the handshake to its end."""
        query = {"types": ""}
        if self._user is not None:
            query["user"] = self._user
        resume = self._connected.get("resume")
        if isinstance(resume, str):
            query["resume"] = resume
        self._last_error = None
        socket = await self._open_socket(self._url.update_query(query))
        if isinstance(socket, Ending):
            return socket
        self._socket = socket
        self._ended = asyncio.get_running_loop().create_future()
        helpers = [
            asyncio.create_task(self._read(socket)),
            asyncio.create_task(self._authenticate()),
            asyncio.create_task(self._beat()),
        ]
        try:
            return await self._ended
        finally:
            self._socket = None
            self._ready.clear()
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
            self._fail_pending()
            closing = asyncio.create_task(socket.close())
            await asyncio.wait({closing}, timeout=_CLOSE_TIMEOUT)
            closing.cancel()

    async def _open_socket(
        self, url: URL
    ) -> aiohttp.ClientWebSocketResponse | EventSocket | Ending:
        session = self._session
        assert session is not None
        if self._transport == "sse" or self._blocked >= _BLOCKED:
            return EventSocket(session, url, self._ping_every)
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT):
                socket = await session.ws_connect(url, max_msg_size=_LARGEST_FRAME, autoping=True)
        except aiohttp.WSServerHandshakeError as error:
            after = error.headers.get("Retry-After", "") if error.headers else ""
            ending = Ending(
                status=error.status, retry_after=after, message=_refusal(url, error.status)
            )
        except TimeoutError:
            ending = Ending(message="The service did not answer the handshake in time.")
        except (aiohttp.ClientError, OSError) as error:
            ending = Ending(message=describe(error))
        else:
            self._blocked = 0
            return socket
        # With a time to come back, or without a valid token, it is the service that refuses.
        if self._transport == "websocket" or ending.retry_after or ending.status == 401:
            return ending
        answers = await answers_http(session, url, _LOOK_TIMEOUT)
        if answers:
            self._blocked += 1
            return Ending(message=ending.message)  # it is the network that refuses: not for good
        if answers is False:
            self._blocked = 0  # a service that is down says nothing about WebSockets
        return ending

    def _end(self, ending: Ending) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(ending)

    async def _read(self, socket: aiohttp.ClientWebSocketResponse | EventSocket) -> None:
        code, reason, message = 1006, "", ""
        try:
            while True:
                # Pings of the service count as well: the limit is for each frame.
                frame = await socket.receive(timeout=2 * self._ping_every)
                if frame.type is aiohttp.WSMsgType.TEXT:
                    await self._receive(json.loads(frame.data))
                    continue
                if frame.type is aiohttp.WSMsgType.CLOSE:
                    code, reason = frame.data or 1006, frame.extra or ""
                elif frame.type is aiohttp.WSMsgType.ERROR:
                    message = str(frame.data)
                break
        except StreamRefused as error:
            self._end(
                Ending(
                    status=error.status,
                    retry_after=error.retry_after,
                    error=error.code,
                    message=error.message,
                )
            )
            return
        except TimeoutError:
            message = "Nothing was received in time."
        except (aiohttp.ClientError, OSError) as error:
            message = describe(error)
        except Exception as error:
            logger.exception("A message of the service cannot be read")
            message = f"A message of the service cannot be read: {error!r}"
        last = self._last_error
        self._end(
            Ending(
                code,
                reason,
                error=last.code if last else "",
                message=last.message if last else message,
            )
        )

    async def _authenticate(self) -> None:
        """Show the token, if there is one, in the first frame; else make the first round trip.

        Where a token is needed, a request without one is refused at once. Where none is, the
        token is refused, and the connection is as good as one without it.
        """
        if self._token is None:
            began = time.monotonic()
            try:
                await self._ask("ping", {})
            except RealtimeError as error:
                if error.code == "UNAUTHORIZED":
                    self._end(Ending(4401, error=error.code, message=error.message))
                return
            self._note_rtt(began)
            return
        refusal = await self._show_token()
        if refusal is None:
            return
        if refusal.code == "UNAUTHORIZED" and self._ready.is_set():
            self._emit("error", RealtimeError("TOKEN_UNUSED", _UNUSED))
            return
        code = 4401 if refusal.code == "UNAUTHORIZED" else 1006
        self._end(Ending(code, error=refusal.code, message=refusal.message))

    async def _renew(self) -> None:
        """Show a new token. One that cannot be had is asked for again: the old one is valid still."""
        socket = self._socket
        while self._socket is socket:
            refusal = await self._show_token()
            if refusal is None:
                self._backoff.succeeded()
                return
            if refusal.code == "UNAUTHORIZED":
                self._end(Ending(4401, error=refusal.code, message=refusal.message))
                return
            self._emit("error", refusal)
            await asyncio.sleep(self._backoff.pause(Ending()))

    async def _show_token(self) -> RealtimeError | None:
        """Show the token on this connection.

        Returns:
            Why there is none, or why it was refused; None where it was accepted, or the connection
            has ended.
        """
        socket = self._socket
        try:
            value = self._token() if callable(self._token) else self._token
            token = await value if inspect.isawaitable(value) else value
        except Exception as error:  # noqa: BLE001 - whatever the caller's function raises
            return RealtimeError("TOKEN", f"No token: {error!r}")
        if self._socket is not socket:
            return None
        try:
            # Without a token it is a ping that the service refuses where it needs one.
            await (self._ask("ping", {}) if token is None else self._ask("auth", {"token": token}))
        except ConnectionClosed:
            pass
        except RealtimeError as error:
            return error
        return None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._ping_every)
            if self._ready.is_set():
                self._spawn(self._follow())  # what was refused for now is asked for again
            began = time.monotonic()
            try:
                async with asyncio.timeout(2 * self._ping_every):
                    await self._ask("ping", {})
            except (RealtimeError, TimeoutError):
                continue  # silence is noticed where frames are read
            self._note_rtt(began)

    async def _ask(self, action: str, payload: Mapping[str, Any], id: str | None = None) -> Message:
        socket = self._socket
        if socket is None:
            raise self._closed()
        id = id or self._new_id()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[id] = answer
        try:
            await socket.send_str(json.dumps({"id": id, "action": action, "payload": payload}))
            return await answer
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise ConnectionClosed("network", 1006, str(error)) from None
        finally:
            self._pending.pop(id, None)

    async def _follow(self) -> None:
        """Subscribe to what is wanted and does not flow yet."""
        requests = self._ledger.missing(self._wanted(), self._supported)
        await asyncio.gather(*(self._subscribe(payload) for payload in requests))

    async def _subscribe(self, payload: Mapping[str, Any]) -> None:
        try:
            await self._ask("subscribe", payload)
        except ConnectionClosed:
            pass
        except RealtimeError as error:
            if error.retryable:
                self._ledger.refused(payload["types"])
            self._emit("error", error)

    async def _unsubscribe(self, types: list[str], id: str) -> None:
        with suppress(RealtimeError):
            await self._ask("unsubscribe", {"types": types}, id)

    @property
    def _supported(self) -> Sequence[str]:
        """Types that the service has for this client."""
        return self._connected.get("supportedTypes", ())

    def _wanted(self) -> dict[str, int]:
        wanted: dict[str, int] = {}
        for subscription in self._subscriptions:
            named = subscription.types
            for type in self._supported if "all" in named else sorted(named):
                wanted[type] = max(wanted.get(type, 0), subscription.history)
        return wanted

    async def _receive(self, envelope: dict[str, Any]) -> None:
        event: str = envelope["event"]
        data: Any = envelope.get("data")
        answered = envelope.get("replyTo") or ""
        asked = self._pending.pop(answered, None)
        self._ledger.answered(answered)
        if event == "batch_update":
            for one in data["messages"]:
                await self._receive(one)
            return
        if event == "connected":
            await self._welcomed(data)
        elif event == "subscribed":
            self._ledger.subscribed(data["types"])
        elif event == "history_data" and asked is None:
            for message in self._ledger.past(envelope["type"], data["messages"]):
                self._deliver(message)
        elif event == "gap":
            gap = self._ledger.gap(envelope["type"], data)
            if gap is not None:
                self._emit("gap", gap)
        elif event == "token_expiring" and callable(self._token):
            self._spawn(self._renew())
        elif event == "error":
            self._refused(RealtimeError(data["code"], data["message"]), asked)
        if "seq" in envelope:
            live = self._ledger.live(envelope)
            if live is not None:
                self._deliver(live)
        if asked is not None and not asked.done():
            asked.set_result(Message.of(envelope, "live"))

    async def _welcomed(self, data: Connected) -> None:
        self._connected = data
        self._clock_offset = data["serverTime"] / 1000 - time.time()
        self._backoff.succeeded()
        self._token_tried = False
        self._ledger.connected()
        self._ready.set()
        self._become(State("open"))
        self._spawn(self._follow())
        await asyncio.sleep(0)  # what is subscribed to is asked for before other requests

    def _refused(self, error: RealtimeError, asked: asyncio.Future[Message] | None) -> None:
        if asked is None:
            self._last_error = error
            self._emit("error", error)
        elif not asked.done():
            asked.set_exception(error)

    # Helpers

    def _deliver(self, message: Message) -> None:
        for subscription in [*self._subscriptions]:
            if subscription.wants(message.type):
                lost = subscription.put(message)
                if lost is not None:
                    self.counts.gaps += 1
                    self.counts.missed += 1
                    self._emit("gap", lost)
        self._emit("message", message)

    def _drop(self, subscription: Subscription) -> None:
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        gone = self._ledger.unwanted(self._wanted(), self._supported)
        if gone and self._ready.is_set():
            id = self._new_id()
            self._ledger.ends(gone, id)
            self._spawn(self._unsubscribe(gone, id))

    def _emit(self, event: str, value: object) -> None:
        for handler in [*self._handlers[event]]:
            if handler not in self._handlers[event]:
                continue  # another one has ended it
            try:
                handler(value)
            except Exception:
                logger.exception("A handler of %r failed", event)

    def _become(self, state: State) -> None:
        self._state = state
        self._emit("state", state)

    def _finish(self, state: State) -> None:
        if self._final.is_set() and self._state.cause == "left":
            return
        self._ready.clear()
        self._become(state)
        self._final.set()
        self._fail_pending()
        for subscription in self._subscriptions:
            subscription.wake()

    def _require_begun(self) -> None:
        if self._loop_task is None:
            raise RuntimeError("Connect first: 'async with connect(url) as lab'.")

    def _closed(self) -> ConnectionClosed:
        state = self._state
        said = state.message or f"The connection has ended ({state.cause or 'network'})."
        return ConnectionClosed(state.cause or "network", state.code or 1006, said)

    def _fail_pending(self) -> None:
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(self._closed())
                answer.exception()  # the caller may be gone
        self._pending.clear()

    def _new_id(self) -> str:
        return f"p{next(self._ids)}"

    def _note_rtt(self, began: float) -> float:
        self.rtt = time.monotonic() - began
        self._emit("rtt", self.rtt)
        return self.rtt

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refusal(url: URL, status: int) -> str:
    """What a refused handshake means, for people."""
    if status == 404:
        return f"No service answers at {url.with_query(None)} (HTTP status 404)."
    return f"The handshake was refused with HTTP status {status}."


connect = Realtime
"""`async with connect(url) as lab:` reads well."""


class Subscription(AsyncIterator[Message]):
    """Messages of some types, in order, each once; made by `Realtime.subscribe`.

    Iteration ends when the client is closed, and raises `ConnectionClosed` when the service has
    closed the connection for good (a wrong token, too many connections of the user).
    """

    def __init__(self, client: Realtime, types: frozenset[str], history: int, limit: int) -> None:
        self.types = types
        self.history = history
        self._client = client
        self._messages: deque[Message] = deque()
        self._limit = max(limit, 1)
        self._changed = asyncio.Event()
        self._ended = False

    def wants(self, type: str) -> bool:
        """Whether messages of this type belong to it."""
        return type in self.types or "all" in self.types

    def put(self, message: Message, *, again: bool = False) -> Gap | None:
        """Add a message.

        Args:
            message: the next one.
            again: others have had it; to this subscription it is the past.

        Returns:
            What was dropped for it.
        """
        if again:
            message = Message.of(message.envelope, "history")
        lost = None
        if len(self._messages) >= self._limit:
            old = self._messages.popleft()
            seq = old.seq or 0
            lost = Gap(old.type, seq, seq, old.epoch or "", "slow")
        self._messages.append(message)
        self._changed.set()
        return lost

    def wake(self) -> None:
        """Look at the state of the client again."""
        self._changed.set()

    def close(self) -> None:
        """End it at once; the service sends no more messages that only it wanted."""
        self._ended = True
        self._messages.clear()
        self._changed.set()
        self._client._drop(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __anext__(self) -> Message:
        while True:
            state = self._client.state
            if self._ended or (state.name == "closed" and state.cause == "left"):
                raise StopAsyncIteration
            if self._messages:
                return self._messages.popleft()
            if state.name == "closed":
                raise self._client._closed()
            self._client._require_begun()
            self._changed.clear()
            await self._changed.wait()
