"""Clients of the plain protocol: one that behaves, one that can break every rule.

`PlainClient` is the `websockets` library with an inbox. `RawClient` writes frames byte by
byte on a socket; it masks, fragments and closes only as its test says.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
import uuid
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.integration.harness import DEADLINE, Service

Envelope = dict[str, Any]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def endpoint(service: Service, **query: str | int) -> str:
    """URL of the socket endpoint of a service."""
    mark = "?" if query else ""
    return f"ws://127.0.0.1:{service.port}/ws/realtime{mark}{urlencode(query)}"


class PlainClient:
    """One connection of the plain protocol, with everything it ever received."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.received: list[Envelope] = []
        self._taken: set[int] = set()
        self._news = asyncio.Event()
        self._closed = False
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls, service: Service, *, headers: Mapping[str, str] | None = None, **query: str | int
    ) -> Self:
        """Connect; the query is that of PROTOCOL.md."""
        opened = await connect(
            endpoint(service, **query),
            additional_headers=headers,
            compression=None,
            max_size=None,
            max_queue=None,
            open_timeout=DEADLINE,
            ping_interval=None,
            close_timeout=5,
            proxy=None,
        )
        return cls(opened)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close, as a client that is done does."""
        await self.socket.close()
        await self._reader

    async def _read(self) -> None:
        try:
            async for text in self.socket:
                self.received.append(json.loads(text))
                self._news.set()
        except websockets.ConnectionClosed:
            pass
        finally:
            self._closed = True
            self._news.set()

    @property
    def port(self) -> int:
        """Our own port of this connection."""
        port: int = self.socket.local_address[1]
        return port

    async def send(self, action: str, payload: object = None, **more: object) -> str:
        """Send a request, and return its id."""
        ident = str(uuid.uuid4())
        body = {"id": ident, "type": "config", "timestamp": 0, "action": action, **more}
        if payload is not None:
            body["payload"] = payload
        await self.socket.send(json.dumps(body))
        return ident

    async def request(self, action: str, payload: object = None) -> Envelope:
        """Send a request, and return its answer."""
        ident = await self.send(action, payload)
        return await self.expect(lambda got: got.get("replyTo") == ident, f"an answer to {action}")

    async def expect(
        self, wanted: Callable[[Envelope], bool] | str, what: str = "", timeout: float = DEADLINE
    ) -> Envelope:
        """The first message that fits and was not returned before; waits for it.

        Args:
            wanted: a condition, or the name of an event.
        """
        match = wanted if callable(wanted) else (lambda got: got["event"] == wanted)
        name = what or (wanted if isinstance(wanted, str) else "the message")
        index = await self._find(match, name, timeout, self._taken)
        self._taken.add(index)
        return self.received[index]

    async def _find(
        self,
        match: Callable[[Envelope], bool],
        name: str,
        timeout: float,
        skipped: Container[int] = (),
    ) -> int:
        """Index of the first message that fits; waits for it."""
        checked = 0
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self._news.clear()
                    for index in range(checked, len(self.received)):
                        if index not in skipped and match(self.received[index]):
                            return index
                    checked = len(self.received)
                    if self._closed:
                        raise AssertionError(
                            f"closed with {self.socket.close_code} before {name} came; "
                            f"got {summary(self.received)}"
                        )
                    await self._news.wait()
        except TimeoutError:
            got = summary(self.received)
            raise AssertionError(f"{name} did not come in {timeout:g} s; got {got}") from None

    async def barrier(self) -> None:
        """Wait until everything sent to us before now has come: a ping of the protocol."""
        await self.request("ping", {})

    async def wait_closed(self, timeout: float = DEADLINE) -> int:
        """Wait for the other side to close, and return its code."""
        async with asyncio.timeout(timeout):
            await self._reader
        assert self.socket.close_code is not None
        return self.socket.close_code

    def events(self, name: str) -> list[Envelope]:
        """All messages with this event so far."""
        return [got for got in self.received if got["event"] == name]

    async def wait_seq(self, type: str, seq: int, timeout: float = DEADLINE) -> None:
        """Wait until the message `seq` of a type has come, or a gap that covers it.

        Takes nothing away from `expect`: one batch may bring several types to their ends.
        """
        await self._find(lambda got: reaches(got, type, seq), f"{type} up to {seq}", timeout)


def summary(received: list[Envelope]) -> str:
    """Messages as a short line for a failed assertion."""
    short = [
        f"{got.get('event')}:{got.get('type')}:{got.get('seq', '')}{got['data'] if 'code' in str(got.get('data')) else ''}"
        for got in received[-12:]
    ]
    return f"{len(received)} messages, the last: {short}"


def flatten(received: Iterable[Envelope]) -> list[Envelope]:
    """Messages in order, those in a `batch_update` unpacked."""
    flat: list[Envelope] = []
    for got in received:
        flat += got["data"]["messages"] if got["event"] == "batch_update" else [got]
    return flat


def reaches(got: Envelope, type: str, seq: int) -> bool:
    """Whether this message, or one in this batch, brings a client to `seq` of a type."""
    for one in flatten([got]):
        if one["type"] != type:
            continue
        if one.get("seq", 0) >= seq:
            return True
        if one["event"] == "gap" and one["data"]["last"] >= seq:
            return True
    return False


@dataclass
class Walk:
    """What a client knows of one stream after a walk over its messages."""

    seqs: list[int]
    """Every `seq` that came, in order."""
    gaps: list[Envelope]
    last: int
    """Where the client stands: the last message or the end of the last gap."""
    epoch: str


def walk(received: Iterable[Envelope], type: str) -> Walk:
    """Assert that `seq` of a type rose by one, or a gap said why not; promise 3."""
    seqs: list[int] = []
    gaps: list[Envelope] = []
    last: int | None = None
    epoch = ""
    for got in flatten(received):
        if got["type"] != type:
            continue
        if got["event"] == "gap":
            data = got["data"]
            gaps.append(got)
            if data["reason"] != "epoch" and last is not None:
                assert data["first"] == last + 1, f"gap {data} after seq {last} of {type}"
            last, epoch = data["last"], data["epoch"]
        elif "seq" in got:
            if last is not None:
                assert got["seq"] == last + 1, f"{type}: seq {got['seq']} after {last}"
                assert got["epoch"] == epoch, f"{type}: another epoch without a gap"
            last, epoch = got["seq"], got["epoch"]
            seqs.append(got["seq"])
    return Walk(seqs, gaps, last or 0, epoch)


async def spread(service: Service, count: int = 2, **query: str | int) -> list[PlainClient]:
    """Clients on `count` different workers; the kernel chooses, so ask until it does.

    Those of a named user come one after another, for the sake of the cap per user.
    """
    found: dict[int, PlainClient] = {}
    at_once = 1 if "user" in query else 8
    for _ in range(320 // at_once):
        opened = await asyncio.gather(*(PlainClient.open(service, **query) for _ in range(at_once)))
        spare = []
        for client in opened:
            pid = await asyncio.to_thread(service.worker_of, client.port)
            if pid in found or len(found) == count:
                spare.append(client)
            else:
                found[pid] = client
        await asyncio.gather(*(client.close() for client in spare))
        if len(found) == count:
            return list(found.values())
    raise AssertionError(f"320 connections met only {len(found)} workers")


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    @property
    def close_code(self) -> int:
        """Code of a close frame; 1005 when it has none."""
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else 1005


def encode(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    mask: bool = True,
    rsv: int = 0,
    length: int | None = None,
) -> bytes:
    """A frame of a client; `length` may lie in the header."""
    size = len(payload) if length is None else length
    head = bytearray([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    if size < 126:
        head.append(bit | size)
    elif size < 65536:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    if not mask:
        return bytes(head) + payload
    key = os.urandom(4)
    repeated = key * (len(payload) // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[: len(payload)], "big")
    return bytes(head) + key + masked.to_bytes(len(payload), "big")


def text(action: str, payload: object = None, **more: object) -> bytes:
    """A request of the plain protocol as the payload of a text frame."""
    return json.dumps({"action": action, "payload": payload, **more}).encode()


_open: set[RawClient] = set()


async def abort_all() -> None:
    """Drop every raw connection that a failed test has left open."""
    for client in list(_open):
        await client.abort()


class RawClient:
    """A WebSocket on a bare socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(
        cls,
        service: Service,
        path: str = "/ws/realtime",
        *,
        early: bytes = b"",
        headers: Mapping[str, str] | None = None,
        receive_buffer: int = 0,
    ) -> Self:
        """Connect and upgrade.

        Args:
            early: bytes sent together with the upgrade request.
            receive_buffer: size of the socket's receive buffer, to be slow with; 0: default.
        """
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", service.port))
        # A small limit of the reader, so that what is not read stays in the kernel.
        limit = 4096 if receive_buffer else 2**20
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        client = cls(reader, writer)
        _open.add(client)
        head = {
            "Host": f"127.0.0.1:{service.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
        } | dict(headers or {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode() + early)
        async with asyncio.timeout(DEADLINE):
            answer = await reader.readuntil(b"\r\n\r\n")
        first, *rest = answer.decode().split("\r\n")
        client.status = int(first.split()[1])
        client.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in rest if line)
        }
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.abort()

    async def abort(self) -> None:
        """Drop the connection without a close frame."""
        _open.discard(self)
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    @property
    def port(self) -> int:
        """Our own port of this connection."""
        port: int = self.writer.get_extra_info("sockname")[1]
        return port

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def send(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        """Send one frame; options as of `encode`."""
        await self.write(encode(opcode, payload, **options))

    async def ask(self, action: str, payload: object = None, **more: object) -> None:
        """Send a request of the plain protocol."""
        await self.send(TEXT, text(action, payload, **more))

    async def frame(self, timeout: float = DEADLINE) -> Frame:
        """The next frame, whatever it is.

        Raises:
            asyncio.IncompleteReadError: the connection has ended.
        """
        async with asyncio.timeout(timeout):
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            assert not second & 0x80, "a server must not mask"
            payload = await self.reader.readexactly(size)
        return Frame(first & 0x0F, payload, bool(first & 0x80), first >> 4 & 7)

    async def until_frame(self, opcode: int) -> tuple[list[Frame], Frame]:
        """Frames up to the next one with `opcode`, and that one."""
        before: list[Frame] = []
        while (frame := await self.frame()).opcode != opcode:
            before.append(frame)
        return before, frame

    async def envelope(self, event: str) -> Envelope:
        """The next message with this event; others before it are dropped."""
        while True:
            _, frame = await self.until_frame(TEXT)
            got: Envelope = json.loads(frame.payload)
            if got["event"] == event:
                return got

    async def packet(self, start: str) -> str:
        """The next text message that starts like this; others before it are dropped."""
        while True:
            _, frame = await self.until_frame(TEXT)
            text = frame.payload.decode()
            if text.startswith(start):
                return text

    async def to_close(self) -> tuple[list[Envelope], int]:
        """Read to the close frame: messages before it, and its code."""
        before, frame = await self.until_frame(CLOSE)
        return [json.loads(one.payload) for one in before if one.opcode == TEXT], frame.close_code

    async def to_end(self) -> None:
        """Read until the server has closed the TCP connection."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE):
                while await self.reader.read(65536):
                    pass
