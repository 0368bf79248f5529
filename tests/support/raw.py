"""A client that can break every rule: frames byte by byte, masked, cut and closed as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tests.support.client import Client, dial, upgrade_request
from tests.support.envelopes import Envelope
from tests.support.service import Service
from tests.support.waiting import DEADLINE

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


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


class RawClient(Client):
    """A WebSocket on a bare socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
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
        sock = await dial(service.port, receive_buffer)
        # A small limit of the reader, so that what is not read stays in the kernel.
        limit = 4096 if receive_buffer else 2**20
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        client = cls(reader, writer)
        writer.write(upgrade_request(path, f"127.0.0.1:{service.port}", headers) + early)
        async with asyncio.timeout(DEADLINE):
            answer = await reader.readuntil(b"\r\n\r\n")
        first, *rest = answer.decode().split("\r\n")
        client.status = int(first.split()[1])
        client.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in rest if line)
        }
        return client

    async def close(self) -> None:
        """Drop the connection without a close frame."""
        await super().close()
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def abort(self) -> None:
        """As `close`; what many tests call it."""
        await self.close()

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
