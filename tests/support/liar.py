"""A server that lies: between a worker and its Valkey, it gives answers of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

import hiredis

Words = Sequence[bytes]
Lie = Callable[[Words], bytes | None]
"""What to answer a command with; None: what the server says."""

HALF = b""
"""In place of an answer: half of the server's own, and then nothing more."""


def _honest(_: Words) -> bytes | None:
    return None


def end_of_reply(data: bytes, at: int = 0) -> int | None:
    """Where the reply ends that begins at a place; None: it is not complete."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return None
    kind, number = data[at : at + 1], data[at + 1 : line_end]
    end = line_end + 2
    if kind in b"$=!":
        end += int(number) + 2 if int(number) >= 0 else 0
        return end if len(data) >= end else None
    if kind in b"*~>%":
        for _ in range(max(0, int(number)) * (2 if kind == b"%" else 1)):
            found = end_of_reply(data, end)
            if found is None:
                return None
            end = found
    return end


class Liar:
    """Listens on the loopback for connections to a server. Started by `async with`.

    Args:
        target: path of its Unix socket, or host and port.
    """

    def __init__(self, target: str | tuple[str, int]) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self.lie: Lie = _honest
        self.lies = 0
        """Answers that were not the server's."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def be_honest(self) -> None:
        """Tell no lies any more."""
        self.lie = _honest

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._start(self._handle(reader, writer))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = None
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        try:
            with contextlib.suppress(OSError):
                source, upstream = await self._open()
                self._start(self._read(source, writer, answers))
                await self._serve(reader, writer, upstream, answers)
        finally:
            writer.transport.abort()
            if upstream is not None:
                upstream.transport.abort()

    async def _read(
        self,
        source: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.Queue[bytes],
    ) -> None:
        """Cut what the server sends into replies; pushes pass at once."""
        data = b""
        with contextlib.suppress(OSError):
            while more := await source.read(65536):
                data += more
                at = 0
                while (end := end_of_reply(data, at)) is not None:
                    if data[at : at + 1] == b">":
                        writer.write(data[at:end])
                    else:
                        answers.put_nowait(data[at:end])
                    at = end
                data = data[at:]
        writer.transport.abort()

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: asyncio.StreamWriter,
        answers: asyncio.Queue[bytes],
    ) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (words := parser.gets()) is not False:
                upstream.write(hiredis.pack_command(tuple(words)))
                lie = self.lie(words)
                answer = await answers.get()
                if lie is None:
                    writer.write(answer)
                    continue
                self.lies += 1
                writer.write(lie or answer[: max(1, len(answer) // 2)])
                if not lie:
                    await asyncio.sleep(3600)
