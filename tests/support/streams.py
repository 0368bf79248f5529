"""Many cheap clients of both protocols, each of which checks that its sequence is complete.

A `Stream` stands for one user of the service: when its connection ends it comes back and
recovers, and its sequence goes on over all its connections.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.support.client import upgrade_request
from tests.support.envelopes import flatten
from tests.support.raw import CLOSE, PING, PONG, TEXT, encode
from tests.support.service import TOKEN, Service
from tests.support.waiting import until
from workers.shared import paths
from workers.shared.slots import Row, SlotTable

TYPE = "status"


class Stream(asyncio.Protocol):
    """One client of one stream.

    Args:
        service: where it connects to.
        socketio: which protocol it speaks.
        user: the name that it gives.
    """

    host = "x"
    """What its requests say is the server's name."""

    def __init__(self, service: Service, *, socketio: bool, user: str = "") -> None:
        self.service = service
        self.socketio = socketio
        self.user = user
        self.id = ""
        self.last: int | None = None
        """Where it stands: the newest `seq`, or the end of a gap."""
        self.epoch = ""
        self.faults: list[str] = []
        """Holes, repeated messages and messages in the wrong order."""
        self.gaps: list[dict[str, Any]] = []
        self.ids: dict[str, int] = {}
        """`seq` of each message by its id."""
        self.recovered: list[bool] = []
        """Of each time that it came back."""
        self.replies: list[Any] = []
        """Answers and acks, in order."""
        self.refusals: list[str] = []
        """Why it was not let in, each time."""
        self.closes: list[tuple[int, str]] = []
        """Close code and reason of each connection that has ended; 1006 without a frame."""
        self.closed_at = 0.0
        self.beats: list[float] = []
        """When pings came, in monotonic seconds."""
        self.pauses: list[float] = []
        """Seconds between messages."""
        self.paused = False
        self.on_closed: Callable[[Stream], None] = lambda _: None
        self._pid: str | None = None
        self._offset: str | None = None
        self._came_at = 0.0
        self._reset()

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._upgraded = False
        self._close: tuple[int, str] | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    # Life cycle

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    @property
    def port(self) -> int:
        assert self._transport is not None
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    async def open(self) -> Self:
        """Connect; a client that was connected before recovers."""
        self._reset()
        path = "/ws/realtime/?EIO=4&transport=websocket"
        if not self.socketio:
            wish = TYPE if self.last is None else ""
            name = f"&user={self.user}" if self.user else ""
            path = f"/ws/realtime?types={wish}{name}"
        transport = await self.dial()
        try:
            transport.write(upgrade_request(path, self.host))
            await asyncio.wait_for(self._ready, 30)
        except BaseException:
            transport.abort()  # its socket is not left to the collector
            raise
        return self

    async def dial(self) -> asyncio.Transport:
        """Make the connection, before any byte."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self.service.port)
        return transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.closed_at = time.monotonic()
        if not self._ready.done():
            self._ready.set_exception(ConnectionResetError("closed in the handshake"))
        if self._upgraded:
            self.closes.append(self._close or (1006, str(error)))
            if not self._ready.cancelled() and self._ready.exception() is None:
                self.on_closed(self)

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        assert self._transport is not None
        self.paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self.paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    # Sending

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        assert self._transport is not None, f"closed: {self.closes}"
        self._transport.write(data)

    def send(self, text: str) -> None:
        """Send a text frame."""
        self.write(encode(TEXT, text.encode()))

    def request(self, number: int, payload: Any = None) -> str:
        """The text of a ping request whose reply bears `number`."""
        if self.socketio:
            return f'42{number}["ping",{json.dumps(payload)}]'
        return json.dumps({"id": str(number), "action": "ping", "payload": payload})

    # Receiving

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._upgraded:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 101"):
                self._refused(buffer[:500].decode())
                return
            self._upgraded = True
            del buffer[: end + 4]
            if not self.socketio:
                self.send(self._hello())
        at = 0
        while len(buffer) - at >= 2:
            size, start = buffer[at + 1], at + 2
            if size == 126:
                if len(buffer) < at + 4:
                    break
                (size,) = struct.unpack_from("!H", buffer, at + 2)
                start = at + 4
            elif size == 127:
                if len(buffer) < at + 10:
                    break
                (size,) = struct.unpack_from("!Q", buffer, at + 2)
                start = at + 10
            if len(buffer) < start + size:
                break
            if buffer[at] & 0x80 == 0 or buffer[at + 1] & 0x80:
                self.faults.append(f"broken frame {bytes(buffer[at : at + 8])!r}")
            self._frame(buffer[at] & 0x0F, bytes(buffer[start : start + size]))
            at = start + size
        del buffer[:at]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.beats.append(time.monotonic())
            self.write(encode(PONG, payload))
        elif opcode == CLOSE:
            self._close = (int.from_bytes(payload[:2], "big"), payload[2:].decode())
            self.write(encode(CLOSE, payload[:2]))
        elif opcode == TEXT:
            if self.socketio:
                self._packet(payload)
            else:
                self._envelope(json.loads(payload))
        else:
            self.faults.append(f"a frame of kind {opcode}: {payload[:40]!r}")

    def _packet(self, payload: bytes) -> None:
        if payload.startswith(b"42"):
            event, *arguments = json.loads(payload[2:])
            if event == "offset":
                self._offset = arguments[0]
            else:
                self._envelope(arguments[0])
        elif payload == b"2":
            self.beats.append(time.monotonic())
            self.send("3")
        elif payload.startswith(b"43"):
            digits = payload[2 : payload.index(b"[")]
            self.replies.append((int(digits), json.loads(payload[2 + len(digits) :])[0]))
        elif payload.startswith(b"40"):
            answer = json.loads(payload[2:])
            if self._pid is not None:
                self.recovered.append(answer["pid"] == self._pid and answer["sid"] == self.id)
            self.id, self._pid = answer["sid"], answer["pid"]
        elif payload.startswith(b"44"):
            self._refused(payload.decode())
        elif payload.startswith(b"0"):
            auth = {"pid": self._pid, "offset": self._offset} if self._pid else {}
            if self.user:
                auth["user"] = self.user
            self.send("40" + json.dumps(auth))
        else:
            self.faults.append(f"an unknown packet {payload[:40]!r}")

    def _refused(self, why: str) -> None:
        self.refusals.append(why)
        if not self._ready.done():
            self._ready.set_exception(ConnectionRefusedError(why))
        self.abort()

    def _hello(self) -> str:
        if self.last is None:
            return json.dumps({"action": "ping", "id": "hello"})
        recover = {TYPE: {"epoch": self.epoch, "seq": self.last}}
        payload = {"types": [TYPE], "recover": recover}
        return json.dumps({"action": "subscribe", "id": "hello", "payload": payload})

    def _envelope(self, envelope: dict[str, Any]) -> None:
        event = envelope["event"]
        if event == "connected":
            self.id = envelope["data"]["connectionId"]
            if self.socketio and not self._ready.done():
                self._ready.set_result(None)
            return
        if envelope.get("replyTo") == "hello":
            if event == "subscribed":
                self.recovered.append(envelope["data"]["types"][TYPE]["recovered"])
            if not self._ready.done():
                self._ready.set_result(None)
            return
        if "replyTo" in envelope:
            self.replies.append((int(envelope["replyTo"]), envelope))
            return
        for one in flatten([envelope]):
            self._message(one)

    def _message(self, message: dict[str, Any]) -> None:
        if message["type"] != TYPE:
            return
        if message["event"] == "gap":
            data = message["data"]
            self.gaps.append(data)
            if (
                self.last is not None
                and data["reason"] != "epoch"
                and data["first"] != self.last + 1
            ):
                self.faults.append(f"gap {data} after {self.last}")
            self.last, self.epoch = data["last"], data["epoch"]
            return
        seq = message["seq"]
        if self.last is not None and seq != self.last + 1:
            self.faults.append(f"seq {seq} after {self.last}")
        if self.epoch and message["epoch"] != self.epoch:
            self.faults.append(f"another epoch at {seq}")
        self.last, self.epoch = seq, message["epoch"]
        self.ids[message["id"]] = seq
        now = time.monotonic()
        if self._came_at:
            self.pauses.append(now - self._came_at)
        self._came_at = now


class Fleet:
    """Streams, every other one of Socket.IO.

    Args:
        service: where they connect to.
        back: whether those that are closed come back and recover.
        kind: makes a stream; takes what `Stream` takes.
    """

    def __init__(
        self, service: Service, *, back: bool = False, kind: Callable[..., Stream] = Stream
    ) -> None:
        self.service = service
        self.kind = kind
        self.streams: list[Stream] = []
        self.back = back
        self._returning: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._returning:
            task.cancel()
        await asyncio.gather(*self._returning, return_exceptions=True)
        self.back = False
        for stream in self.streams:
            stream.abort()
        await asyncio.sleep(0)

    async def open(self, count: int) -> Self:
        """Add so many streams."""
        for at in range(0, count, 50):
            some = [
                self.kind(self.service, socketio=bool(n % 2))
                for n in range(at, min(at + 50, count))
            ]
            self.streams += some  # they are aborted with the fleet, also if one of them fails
            async with asyncio.TaskGroup() as group:
                for stream in some:
                    group.create_task(stream.open())
            for stream in some:
                stream.on_closed = self._on_closed
        return self

    async def add(self, *, socketio: bool, user: str = "") -> None:
        """Add one stream."""
        stream = await self.kind(self.service, socketio=socketio, user=user).open()
        stream.on_closed = self._on_closed
        self.streams.append(stream)

    def _on_closed(self, stream: Stream) -> None:
        if self.back:
            task = asyncio.get_running_loop().create_task(self._come_back(stream))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)

    @staticmethod
    async def _come_back(stream: Stream) -> None:
        await asyncio.sleep(0.2)
        while True:
            try:
                await stream.open()
            except OSError:
                await asyncio.sleep(0.2)
            else:
                return

    @property
    def closes(self) -> list[tuple[int, str]]:
        """How connections ended, all together."""
        return [close for stream in self.streams for close in stream.closes]

    @property
    def longest_pause(self) -> float:
        """Longest time between two messages at any client."""
        return max(max(stream.pauses, default=0.0) for stream in self.streams)

    async def all_at(self, seq: int, timeout: float = 40.0) -> None:
        """Wait until every stream has come to `seq`, and none has a fault."""

        def arrived() -> bool:
            return all(stream.is_open and (stream.last or 0) >= seq for stream in self.streams)

        try:
            await until(arrived, f"all at {seq}", timeout)
        except AssertionError:
            behind = [s for s in self.streams if not s.is_open or (s.last or 0) < seq]
            raise AssertionError(
                f"{len(behind)} of {len(self.streams)} are not at {seq}:"
                f" {[(s.socketio, s.is_open, s.last, s.closes) for s in behind[:5]]}"
            ) from None
        finally:
            self.check_faults()

    def check_faults(self) -> None:
        """Assert that no sequence has a hole that was not announced to its client."""
        faults = [(n, s.socketio, s.faults[:3]) for n, s in enumerate(self.streams) if s.faults]
        assert not faults, f"{len(faults)} streams with faults: {faults[:5]}"

    def check_untouched(self) -> None:
        """Assert that no client has noticed anything."""
        self.check_faults()
        assert not self.closes, f"{len(self.closes)} closed: {self.closes[:5]}"
        gaps = [gap for stream in self.streams for gap in stream.gaps]
        assert not gaps, f"{len(gaps)} gaps: {gaps[:5]}"


class Ticker:
    """Publishes at an even pace; a call that fails is repeated with the same id.

    Args:
        service: where it publishes.
        interval: seconds between messages.
        size: characters of each.
        session: a HTTP client that finds the service elsewhere; it is closed at the end.
    """

    def __init__(
        self,
        service: Service,
        interval: float = 0.05,
        size: int = 100,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self.accepted: dict[str, int] = {}
        """`seq` by id, of all that was answered with 200."""
        self._service = service
        self._interval = interval
        self._data = "x" * size
        self._stopping = False
        self._given = session

    async def __aenter__(self) -> Self:
        self._session = self._given or aiohttp.ClientSession(
            self._service.base, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._stopping = True
        if error is not None:
            self._task.cancel()
        result = (await asyncio.gather(self._task, return_exceptions=True))[0]
        await self._session.close()
        if error is None and result is not None:
            raise result

    @property
    def last(self) -> int:
        """The newest `seq` that was answered."""
        return max(self.accepted.values(), default=0)

    def check(self, streams: Iterable[Stream]) -> None:
        """Assert that each stream got every message since its first, with the promised `seq`."""
        for stream in streams:
            if not stream.ids or stream.gaps:
                continue
            first = min(stream.ids.values())
            wrong = {
                id: (seq, stream.ids.get(id))
                for id, seq in self.accepted.items()
                if first <= seq <= (stream.last or 0) and stream.ids.get(id) != seq
            }
            assert not wrong, f"{len(wrong)} messages did not come as answered: {wrong}"

    async def _run(self) -> None:
        while not self._stopping:
            id = str(uuid.uuid4())
            body = {"type": TYPE, "event": "tick", "data": self._data, "id": id}
            while True:
                try:
                    async with self._session.post("/ws/broadcast", json=body) as response:
                        if response.status == 200:
                            self.accepted[id] = (await response.json())["seq"]
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.02)
            await asyncio.sleep(self._interval)


_tables: dict[tuple[Path, int], SlotTable] = {}


def table(service: Service) -> SlotTable:
    """The slot table of a service, to look at without asking a worker.

    A table keeps its descriptor for good: each file is opened once.
    """
    path = paths.slots_file(service.data_dir)
    key = path, path.stat().st_ino
    if key not in _tables:
        _tables[key] = SlotTable(path)
    return _tables[key]


def spread_of(service: Service) -> dict[int, int]:
    """Connections of each worker by pid."""
    return {row.pid: row.connections for row in table(service).rows()}


async def row_where(
    slots: SlotTable, condition: Callable[[Row], bool], timeout: float = 30.0
) -> Row:
    """Wait for a row of which something is so, looking all the time."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for row in slots.rows():
            if condition(row):
                return row
        await asyncio.sleep(0)
    raise AssertionError("no such worker")
