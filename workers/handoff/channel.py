"""Live sockets between workers: descriptors by SCM_RIGHTS, what belongs to them as JSON.

A conversation on a Unix socket, one batch of at most `BATCH` connections at a time::

    giver                                successor
    offer   states + descriptors  -->
            <--                          answer   what it would take
    commit  what it really lets go -->
            <--                          done

The successor touches nothing before the commit, so a giver without an answer still has its
connections. If the conversation breaks before the commit, the successor closes its duplicates;
unless the giver is dead, for then they are the last ones and it takes them. The giver's end is in
`giver.py`, the other one in `successor.py`.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

BATCH = 64
"""Descriptors in one message: the kernel refuses more than 253."""
LISTENERS = "listeners"
"""Kind of a request that is no offer: it is answered with the worker's listening sockets."""
TIMEOUT = 5.0
"""Seconds for each step of the conversation."""
DEATH_SECONDS = 0.5
"""How long a process that was killed may look alive after its sockets are closed."""
MAX_SIZE = 256 * 1024 * 1024
"""Bytes of one message; a batch with nothing unsent has some 30 KB."""

_LENGTH = struct.Struct("!I")

T = TypeVar("T")

Offer = dict[str, Any]
Answer = list[bool]


class Broken(Exception):
    """The conversation broke off; the giver keeps what was not committed."""


class Received(NamedTuple):
    """One message."""

    value: Any
    descriptors: list[int]
    """Of the caller. They are fewer than were sent when this process may open no more."""


class MessageSocket:
    """One end of a conversation: JSON values with descriptors. It waits on the loop: a step takes no thread.

    Args:
        connection: a Unix socket, which it closes in the end.
        timeout: seconds for which it waits until something can be written or read.
    """

    def __init__(self, connection: socket.socket, timeout: float = TIMEOUT) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._timeout = timeout

    @classmethod
    def connect(cls, path: Path, timeout: float = TIMEOUT) -> Self:
        """Begin a conversation with the worker that listens there.

        Raises:
            OSError: none does, or too many conversations wait to be accepted.
        """
        made = cls(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), timeout)
        try:
            made._connection.connect(str(path))
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """End the conversation."""
        self._connection.close()

    async def send(self, value: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a JSON value, with descriptors.

        Raises:
            OSError: the other side is gone or does not read.
        """
        body = json.dumps(value, separators=(",", ":")).encode()
        view = memoryview(_LENGTH.pack(len(body)) + body)
        rights = array.array("i", descriptors)
        while view:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            sent = await self._call(self._connection.sendmsg, [view], ancillary, writes=True)
            view, rights = view[sent:], rights[:0]

    async def receive(self) -> Received:
        """Receive what `send` has sent.

        Raises:
            EOFError: the other side has closed.
            OSError: nothing came in time.
            ValueError: it is no JSON.
        """
        descriptors: list[int] = []
        try:
            head = b""
            while len(head) < _LENGTH.size:
                head += await self._receive_head(_LENGTH.size - len(head), descriptors)
            (size,) = _LENGTH.unpack(head)
            if size > MAX_SIZE:
                raise OSError(f"a message of {size} bytes")
            body = bytearray(size)
            view = memoryview(body)
            while view:
                count = await self._call(self._connection.recv_into, view)
                if not count:
                    raise EOFError("closed")
                view = view[count:]
            return Received(json.loads(body), descriptors)
        except BaseException:
            close_all(descriptors)
            raise

    async def _receive_head(self, size: int, descriptors: list[int]) -> bytes:
        """The next bytes of a head; descriptors that come with them are added to the list."""
        space = socket.CMSG_SPACE((BATCH + 1) * array.array("i").itemsize)
        part, ancillary, _, _ = await self._call(self._connection.recvmsg, size, space)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                rights = array.array("i")
                rights.frombytes(data[: len(data) - len(data) % rights.itemsize])
                descriptors += rights
        if not part:
            raise EOFError("closed")
        return part

    async def _call(self, call: Callable[..., T], *args: Any, writes: bool = False) -> T:
        """The result of a system call, as soon as it would not block.

        Raises:
            TimeoutError: it would still block when the time is up; a process that was stopped
                meanwhile finds what has come.
        """
        in_time = True
        while True:
            try:
                return call(*args)
            except BlockingIOError:
                if not in_time:
                    raise TimeoutError("timed out") from None
            in_time = await self._is_ready(writes=writes)

    async def _is_ready(self, *, writes: bool) -> bool:
        """Wait until the socket can be written to, or read from; False when the time is up."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        add, remove = (
            (loop.add_writer, loop.remove_writer)
            if writes
            else (loop.add_reader, loop.remove_reader)
        )
        descriptor = self._connection.fileno()
        add(descriptor, _resolve, ready)
        try:
            async with asyncio.timeout(self._timeout):
                await ready
        except TimeoutError:
            return False
        finally:
            remove(descriptor)
        return True


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def to_memory(chunks: Sequence[bytes]) -> int:
    """A descriptor of memory with chunks one after the other, which is the caller's.

    Raises:
        OSError: there is no descriptor or no memory left.
    """
    descriptor = os.memfd_create("handoff")
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def from_memory(descriptor: int, sizes: Any) -> list[bytes]:
    """The chunks that `to_memory` has written.

    Raises:
        ValueError: these are not their sizes, or it is no memory.
        OSError: it cannot be read.
    """
    if not isinstance(sizes, list) or not all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes
    ):
        raise ValueError("the sizes of chunks are counts")
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size != sum(sizes) or found.st_size > MAX_SIZE:
        raise ValueError("the payload is not as long as its chunks")
    chunks, place = [], 0
    for size in sizes:
        chunk = os.pread(descriptor, size, place)
        if len(chunk) != size:
            raise ValueError("the payload ends early")
        chunks.append(chunk)
        place += size
    return chunks


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that are not needed."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
