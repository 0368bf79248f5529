"""Clients of server-sent events, and a parser written from html.spec.whatwg.org (9.2.6)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from tests.support.client import ReadingClient, dial
from tests.support.envelopes import Envelope
from tests.support.service import Service
from tests.support.waiting import DEADLINE


@dataclass(frozen=True)
class Event:
    """One event as a page gets it."""

    name: str
    data: str
    last_id: str

    @cached_property
    def envelope(self) -> Envelope:
        """Its data."""
        value: Envelope = json.loads(self.data)
        return value


class EventParser:
    """Bytes of a stream in, events out."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry: int | None = None
        self.comments = 0
        self.ids: list[str] = []
        self._rest = b""
        self._data: list[str] = []
        self._name = ""
        self._id = ""

    @property
    def is_between_events(self) -> bool:
        """Whether nothing of an event is left that has not ended."""
        return not (self._rest or self._data or self._name)

    def feed(self, data: bytes) -> list[Event]:
        """The events that have become complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = [self._line(line.decode().removesuffix("\r")) for line in lines]
        return [event for event in events if event is not None]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name and colon:
            self.comments += 1
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id" and "\0" not in value:
            self._id = value
            self.ids.append(value)
        elif name == "retry" and value.isdecimal():
            self.retry = int(value)
        else:
            raise AssertionError(f"a line that means nothing: {line!r}")
        return None

    def _dispatch(self) -> Event | None:
        self.last_id = self._id
        data, name = self._data, self._name
        self._data, self._name = [], ""
        return Event(name or "message", "\n".join(data), self.last_id) if data else None


class EventClient(ReadingClient):
    """A client over a socket of its own; reads in the background.

    Args:
        head: the answer's.
        reader: what comes behind it.
        writer: the socket.
    """

    def __init__(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in lines if line)
        }
        self.parser = EventParser()
        self.events: list[Event] = []
        self.body = b""
        """What has come, where it is no stream of events."""
        self.reader = reader
        self.writer = writer
        super().__init__()

    @classmethod
    async def open(
        cls,
        service: Service,
        target: str = "/events",
        *,
        headers: dict[str, str] | None = None,
        last_id: str | None = None,
        method: str = "GET",
        port: int | None = None,
        behind: bytes = b"",
        receive_buffer: int = 0,
    ) -> Self:
        """Connect and read the head of the answer.

        Args:
            service: it.
            target: path and query.
            headers: more of the request.
            last_id: the `Last-Event-ID`.
            method: of the request.
            port: another one than the service's.
            behind: bytes that are sent with the request.
            receive_buffer: bytes of the kernel's buffer, if small.
        """
        sock = await dial(port or service.port, receive_buffer)
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
        sent = {"Host": f"127.0.0.1:{port or service.port}", "Accept": "text/event-stream"}
        sent |= headers or {}
        if last_id is not None:
            sent["Last-Event-ID"] = last_id
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in sent.items()), "", ""]
        try:
            writer.write("\r\n".join(lines).encode() + behind)
            async with asyncio.timeout(DEADLINE):
                return cls(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        except BaseException:
            writer.transport.abort()  # as in `dial`
            raise

    async def close(self) -> None:
        """Close the socket."""
        await super().close()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self.writer.transport.abort()
        await asyncio.sleep(0)

    @property
    def port(self) -> int:
        """Of its end."""
        number: int = self.writer.get_extra_info("sockname")[1]
        return number

    @property
    def last_id(self) -> str:
        """What a browser would send when it connects again."""
        return self.parser.last_id

    def named(self, event: str) -> list[Envelope]:
        """Envelopes with this event."""
        return [one.envelope for one in self.events if one.envelope["event"] == event]

    def messages(self, type: str | None = None) -> list[Envelope]:
        """Envelopes of streams, gaps among them, of one type or all."""
        found = [one.envelope for one in self.events]
        return [
            one
            for one in found
            if ("seq" in one or one["event"] == "gap") and type in (None, one["type"])
        ]

    def seqs(self, type: str) -> list[int]:
        """Numbers of the messages of a type; no gap among them."""
        assert not [one for one in self.messages(type) if one["event"] == "gap"]
        return [one["seq"] for one in self.messages(type)]

    async def event(self, name: str, count: int = 1) -> Envelope:
        """The `count`-th envelope with this event; waits for it."""
        await self.until(lambda: len(self.named(name)) >= count, name)
        return self.named(name)[count - 1]

    async def until_seq(self, type: str, seq: int) -> None:
        """Wait for a message."""
        await self.until(
            lambda: any(one.get("seq") == seq for one in self.messages(type)), f"{type} {seq}"
        )

    async def until_end(self) -> None:
        """Wait until the stream ends."""
        await self.until(lambda: self.ended, "the end")

    def _got(self) -> str:
        return f"the last: {[event.data[:200] for event in self.events[-3:]]}"

    async def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self.reader.read(2**16):
                if self.headers.get("content-type") == "text/event-stream":
                    self.events += self.parser.feed(data)
                else:
                    self.body += data
                self._note()
