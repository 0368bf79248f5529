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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

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
_CONVERSATIONS = 512
"""At one time: lanes of all workers that leave."""

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


class Threads:
    """Runs what blocks: each conversation waits in a thread, so the few of the loop would not do.

    A thread is started when one is needed.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_CONVERSATIONS, "handoff")

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Wait for the result of a call."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def close(self) -> None:
        """Start no more of them; those that work end by themselves."""
        self._pool.shutdown(wait=False)


def send(connection: socket.socket, value: Any, descriptors: Sequence[int] = ()) -> None:
    """Send a JSON value, with descriptors; blocks.

    Raises:
        OSError: the other side is gone or does not read.
    """
    body = json.dumps(value, separators=(",", ":")).encode()
    head = _LENGTH.pack(len(body))
    if descriptors:
        rights = array.array("i", descriptors)
        sent = connection.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        connection.sendall(head[sent:])
    else:
        connection.sendall(head)
    connection.sendall(body)


def receive(connection: socket.socket) -> Received:
    """Receive what `send` has sent; blocks.

    Raises:
        EOFError: the other side has closed.
        OSError: nothing came in time.
    """
    descriptors: list[int] = []
    head = b""
    try:
        while len(head) < _LENGTH.size:
            part, ancillary, _, _ = connection.recvmsg(
                _LENGTH.size - len(head), socket.CMSG_SPACE((BATCH + 1) * array.array("i").itemsize)
            )
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    rights = array.array("i")
                    rights.frombytes(data[: len(data) - len(data) % rights.itemsize])
                    descriptors += rights
            if not part:
                raise EOFError("closed")
            head += part
        (size,) = _LENGTH.unpack(head)
        if size > MAX_SIZE:
            raise OSError(f"a message of {size} bytes")
        body = bytearray(size)
        view = memoryview(body)
        while view:
            count = connection.recv_into(view)
            if not count:
                raise EOFError("closed")
            view = view[count:]
        return Received(json.loads(body), descriptors)
    except BaseException:
        close_all(descriptors)
        raise


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
