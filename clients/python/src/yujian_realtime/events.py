"""Server-sent events behind the interface of a WebSocket: for networks that let no WebSocket through."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from yujian_realtime.addresses import base_url
from yujian_realtime.errors import RealtimeError
from yujian_realtime.http import HttpClient
from yujian_realtime.protocol import Flow

EVENTS_PATH = "/events"

_LARGEST_EVENT = 64 * 2**20
"""Bytes of an event that are taken, the line that is being read included; as of a message over WebSocket."""
_LARGEST_REFUSAL = 4096
"""Bytes of the answer of a refusal that are read."""
_QUEUED = 16
"""Events that wait to be read; then the stream is not read on."""
_QUIET = 45.0
"""Seconds without a byte, of which the service sends some every 15, after which a stream has ended."""
_CONNECT_TIMEOUT = 15.0
_LINE_END = re.compile(rb"\r\n|\r|\n")


class StreamRefused(Exception):
    """The service has answered the request for a stream with an error.

    Args:
        status: of the HTTP answer.
        retry_after: its header.
        code: as in `RealtimeError`; empty: it names none.
        message: the cause, for people.
    """

    def __init__(self, status: int, retry_after: str, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.code = code
        self.message = message


class Event(NamedTuple):
    """What stands between two empty lines."""

    data: str
    id: str
    """The last one that the stream has named, here or before."""


class EventParser:
    """Makes events of the bytes of a stream.

    Event names are not read, since the service uses none; nor is `retry`: when to come back stands
    in `connection_closing`.

    Args:
        limit: bytes of an event, and of a line.
    """

    def __init__(self, limit: int = _LARGEST_EVENT) -> None:
        self._limit = limit
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0
        self._id = b""
        self._after_return = False
        self._begun = False

    def feed(self, chunk: bytes) -> list[Event]:
        """Events that end in these bytes.

        Raises:
            ValueError: an event is larger than the limit, or is not in UTF-8.
        """
        events: list[Event] = []
        if self._after_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_return = False
        if not chunk:
            return events
        self._after_return = chunk.endswith(b"\r")
        *ended, rest = _LINE_END.split(chunk)
        for piece in ended:
            self._add(piece)
            line = b"".join(self._line)
            self._line.clear()
            self._size -= len(line)
            event = self._take(line)
            if event is not None:
                events.append(event)
        self._add(rest)
        return events

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise ValueError(f"An event is larger than {self._limit} bytes.")
        if piece:
            self._line.append(piece)

    def _take(self, line: bytes) -> Event | None:
        if not self._begun:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._begun = True
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            # The line end that joins it to the next one counts: empty lines of data are not free.
            self._size += len(value) + 1
            self._data.append(value)
        elif name == b"id" and b"\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> Event | None:
        if not self._data:
            return None
        data = b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        return Event(data.decode(), self._id.decode())


class EventSocket:
    """A stream of server-sent events that is used as a WebSocket.

    Requests are answered here: a subscription opens the stream anew behind the last event of the one
    before, the past and pings are HTTP calls. What only the service could answer over a connection
    is refused.

    Args:
        session: to call with.
        url: of the service, for a WebSocket; its `user` names the client.
        ping: seconds between pings.
    """

    def __init__(self, session: aiohttp.ClientSession, url: URL, ping: float) -> None:
        self._session = session
        self._base = str(url.with_query(None))
        self._address = events_url(url).update_query(
            {name: value for name, value in url.query.items() if name == "user"}
        )
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=max(2 * ping, _QUIET)
        )
        self._incoming: asyncio.Queue[aiohttp.WSMessage | Exception | None] = asyncio.Queue(_QUEUED)
        self._types: set[str] = set()
        self._places: dict[str, tuple[str, int]] = {}
        self._histories: dict[str, int] = {}  # newest messages that are to come first, by type
        self._failures: dict[
            str, RealtimeError
        ] = {}  # of those, until the subscription is answered
        self._supported: frozenset[str] = frozenset()
        self._token = ""
        self._greeted = asyncio.Event()
        self._moved = asyncio.Event()
        self._busy = 0  # subscriptions that are waited for before the stream is opened anew
        self._stream: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._closed = False

    # As of a WebSocket

    async def receive(self, timeout: float) -> aiohttp.WSMessage:
        """The next message, or the close frame that the end of the stream stands for.

        Args:
            timeout: seconds of silence; comments of the service count as well.

        Raises:
            TimeoutError: nothing came in time.
            StreamRefused: there is no stream, or no other one after a subscription.
            aiohttp.ClientError, OSError: the network has failed.
            ValueError, KeyError, TypeError: an event cannot be read.
        """
        while True:
            async with asyncio.timeout(timeout):
                item = await self._incoming.get()
            if isinstance(item, Exception):
                raise item
            if item is not None:
                return item

    async def send_str(self, frame: str) -> None:
        """Begin to answer a request.

        Raises:
            ConnectionResetError: it is closed.
        """
        if self._closed:
            raise ConnectionResetError("The stream is closed.")
        task = asyncio.create_task(self._answer(json.loads(frame)))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def close(self) -> None:
        """End the stream, and the answers that are waited for."""
        self._closed = True
        tasks = {*self._answers, *([self._stream] if self._stream is not None else ())}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Requests

    async def _answer(self, request: Mapping[str, Any]) -> None:
        try:
            answer = await self._perform(request["action"], request["payload"])
        except RealtimeError as error:
            answer = _error(error.code, error.message)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            answer = _error("INVALID_PAYLOAD", f"The payload cannot be read: {error!r}.")
        await self._say({**answer, "replyTo": request["id"]})

    async def _perform(self, action: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        match action:
            case "auth":
                self._token = str(payload["token"])
                self._open()
                return _config("authenticated", {})
            case "ping":
                if self._stream is None:
                    self._open()
                    await self._greeted.wait()
                else:
                    await self._http().call("HEAD", EVENTS_PATH)
                return _config("pong", {})
            case "subscribe":
                return _config("subscribed", {"types": await self._subscribe(payload)})
            case "unsubscribe":
                for type in self._named(payload):
                    self._types.discard(type)
                    self._places.pop(type, None)
                    self._histories.pop(type, None)
                self._open()
                return _config("unsubscribed", {"types": sorted(self._types)})
            case "get_history":
                names = ("type", "limit", "before")
                query = {name: payload[name] for name in names if payload.get(name) is not None}
                return await self._page(query)
        raise RealtimeError("INVALID_ACTION", f"'{action}' needs a WebSocket.")

    def _named(self, payload: Mapping[str, Any]) -> list[str]:
        types: list[str] = payload["types"]
        return sorted(self._supported) if "all" in types else types

    async def _subscribe(self, payload: Mapping[str, Any]) -> dict[str, Flow]:
        """Open the stream with more types; returns where each of them goes on."""
        types = self._named(payload)
        recover = payload.get("recover") or {}
        self._busy += 1
        try:
            for type in types:
                if type not in self._supported:
                    # The service would refuse the stream, with all other types.
                    message = f"'{type}' is no type that this client may subscribe to."
                    raise RealtimeError("INVALID_TYPE", message)
                known = recover.get(type)
                if known is not None:
                    self._places[type] = (str(known["epoch"]), int(known["seq"]))
                elif payload.get("history"):
                    self._histories[type] = int(payload["history"])
                self._types.add(type)
        finally:
            self._busy -= 1
            if not self._busy:
                self._open()
        # Without a place, what a cut takes of a type that has had no message yet could not be recovered.
        while any(type in self._types and self._is_awaited(type) for type in types):
            self._moved.clear()
            await self._moved.wait()
        for type in types:
            error = self._failures.pop(type, None)
            if error is not None:
                raise error
        return {
            type: _flow(*self._places[type], recovered=type in recover)
            for type in types
            if type in self._types
        }

    def _is_awaited(self, type: str) -> bool:
        return type not in self._places or type in self._histories

    async def _bring(self, type: str, place: tuple[str, int]) -> None:
        """The newest messages of a type up to the place behind which the stream goes on."""
        page = None
        try:
            if place[1]:
                limit, before = self._histories[type], place[1] + 1
                page = await self._page({"type": type, "limit": limit, "before": before})
        except RealtimeError as error:
            self._failures[type] = error
        if page is not None and page["data"]["messages"]:
            await self._say(page)
        self._places[type] = place
        self._histories.pop(type, None)

    async def _page(self, query: Mapping[str, str | int]) -> dict[str, Any]:
        page = await self._http().get("/history", query)
        return {"event": "history_data", "type": query.get("type", ""), "data": page}

    def _http(self) -> HttpClient:
        return HttpClient(self._base, self._token, attempts=1, session=self._session)

    # The stream

    def _open(self) -> None:
        """Open the stream, in place of the one that there is."""
        if self._closed:
            return
        before = self._stream
        if before is not None:
            before.cancel()
        self._stream = asyncio.create_task(self._run(before))

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        end: aiohttp.WSMessage | Exception
        try:
            code, reason = await self._read()
            end = aiohttp.WSMessage(aiohttp.WSMsgType.CLOSE, code, reason)
        except (StreamRefused, aiohttp.ClientError, OSError) as error:
            end = error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            end = ValueError(str(error))
        await self._incoming.put(end)

    async def _read(self) -> tuple[int, str]:
        """Read a stream to its end; returns close code and reason."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        types = sorted(self._types)
        places = [(type, *self._places[type]) for type in types if type in self._places]
        if places:
            words = ";".join(f"{type},{epoch},{seq}" for type, epoch, seq in places)
            headers["Last-Event-ID"] = f"yj1;{words}"
        async with self._session.get(
            self._address.update_query(types=",".join(types)),
            headers=headers,
            timeout=self._timeout,
            allow_redirects=False,
            raise_for_status=False,
        ) as response:
            try:
                if response.status != 200:
                    raise await _refusal(response)
                if response.content_type != "text/event-stream":
                    raise aiohttp.ClientError("The answer is no stream of events.")
                parser = EventParser()
                async for chunk in response.content.iter_any():
                    events = parser.feed(chunk)
                    for event in events:
                        closing = await self._take(event)
                        if closing is not None:
                            return closing
                    if not events and self._incoming.empty():
                        self._incoming.put_nowait(None)  # it lives
            finally:
                response.close()
        return 1006, ""

    async def _take(self, event: Event) -> tuple[int, str] | None:
        """Pass an event on; returns close code and reason if it is the last one."""
        message = json.loads(event.data)
        data = message.get("data")
        if message["event"] == "connection_closing":
            delay = data.get("retryAfter")
            reason = data.get("reason", "") if delay is None else json.dumps({"retryAfter": delay})
            return data["code"], reason
        places = dict(_places(event.id))
        for type in [type for type in self._histories if type in places]:
            await self._bring(type, places[type])
        is_first = message["event"] == "connected" and not self._greeted.is_set()
        if is_first:
            self._supported = frozenset(data["supportedTypes"])
        if is_first or message["event"] != "connected":
            await self._incoming.put(aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, event.data, None))
        # Only what is passed on counts: another stream may take the place of this one at any await.
        self._places |= {type: at for type, at in places.items() if type in self._types}
        self._moved.set()
        if is_first:
            self._greeted.set()
        return None

    async def _say(self, message: Mapping[str, Any]) -> None:
        frame = aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, json.dumps(message), None)
        await self._incoming.put(frame)


def events_url(url: URL) -> URL:
    """The address of the stream beside that of the WebSocket."""
    return base_url(str(url.with_query(None))).joinpath(EVENTS_PATH.removeprefix("/"))


async def answers_http(session: aiohttp.ClientSession, url: URL, timeout: float) -> bool | None:
    """Whether the service would open a stream; None: it refuses that one too.

    Args:
        session: to call with.
        url: of the service, for a WebSocket; its `user` names the client.
        timeout: seconds.
    """
    address = events_url(url).update_query(
        {name: value for name, value in url.query.items() if name in {"user", "types"}}
    )
    try:
        async with session.head(
            address,
            timeout=aiohttp.ClientTimeout(total=timeout),
            allow_redirects=False,
            raise_for_status=False,
        ) as response:
            # A token is asked for: the client has not shown its own here.
            return True if response.status in {200, 401} else None
    except (aiohttp.ClientError, OSError):
        return False


async def _refusal(response: aiohttp.ClientResponse) -> StreamRefused:
    text = await response.content.read(_LARGEST_REFUSAL)
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    said = body if isinstance(body, dict) else {}
    message = f"The stream was refused with HTTP status {response.status}."
    return StreamRefused(
        response.status,
        response.headers.get("Retry-After", ""),
        str(said.get("code") or ""),
        str(said.get("error") or message),
    )


def _places(offset: str) -> Iterator[tuple[str, tuple[str, int]]]:
    for place in offset.split(";")[1:]:
        type, _, rest = place.partition(",")
        epoch, _, seq = rest.partition(",")
        if seq:
            yield type, (epoch, int(seq))


def _flow(epoch: str, seq: int, *, recovered: bool) -> Flow:
    return {"epoch": epoch, "seq": seq, "recovered": recovered, "from": seq + 1}


def _config(event: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"event": event, "type": "config", "data": data}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"event": "error", "type": "error", "data": {"code": code, "message": message}}
