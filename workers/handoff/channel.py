"""Live sockets between workers: descriptors by SCM_RIGHTS, what belongs to them as JSON.

A conversation on a Unix socket, one batch of at most `BATCH` connections at a time::

    giver                                taker
    offer   states + descriptors  -->
            <--                          answer   what it would take
    commit  what it really lets go -->
            <--                          done

The taker touches nothing before the commit, so a giver without an answer still has its
connections whole. If the conversation breaks before the commit, the taker closes its
duplicates; unless the giver is dead, for then they are the last ones and it takes them.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

log = logging.getLogger(__name__)

BATCH = 64
"""Descriptors in one message: the kernel refuses more than 253."""
LISTENERS = "listeners"
"""Kind of a request that is no offer: it is answered with the worker's listening sockets."""
TIMEOUT = 5.0
"""Seconds for each step of the conversation."""
ACCEPT_PAUSE = 0.1
"""Seconds until an heir that could not accept a conversation tries again."""
DEATH_SECONDS = 0.5
"""How long a process that was killed may look alive after its sockets are closed."""
MAX_SIZE = 256 * 1024 * 1024
"""Bytes of one message; a batch with nothing unsent has some 30 KB."""

_LENGTH = struct.Struct("!I")
_CONVERSATIONS = 512
"""At one time: lanes of all workers that leave."""
_threads = ThreadPoolExecutor(_CONVERSATIONS, "handoff")

T = TypeVar("T")

Offer = dict[str, Any]
Answer = list[bool]


class Broken(Exception):
    """The conversation broke off; the giver keeps what was not committed."""


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


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """Receive what `send` has sent; blocks.

    Returns:
        The value, and the descriptors, which are the caller's. They are fewer than were sent
        when this process may open no more.

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
        return json.loads(body), descriptors
    except BaseException:
        close_all(descriptors)
        raise


def _to_memory(chunks: Sequence[bytes]) -> int:
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


def _from_memory(descriptor: int, sizes: Any) -> list[bytes]:
    """The chunks that `_to_memory` has written.

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
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


async def _in_thread(work: Callable[..., T], *args: Any) -> T:
    """Run what blocks. Each conversation waits in a thread, so the loop's few would not do."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *args)


class Giver:
    """The giver's end of a conversation with one heir.

    Args:
        path: where the heir listens.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: socket.socket | None = None

    async def offer(
        self, offer: Offer, descriptors: Sequence[int], chunks: Sequence[bytes] = ()
    ) -> Answer:
        """Ask which of the offered connections the heir takes.

        Args:
            offer: what goes as JSON.
            descriptors: of the connections.
            chunks: bytes that go beside it; the heir finds them as `chunks` of the offer.

        Raises:
            Broken: it does not answer.
        """
        answer: Answer = await _in_thread(self._offer, offer, descriptors, chunks)
        return answer

    async def commit(self) -> None:
        """Tell the heir that what it accepted is its own now.

        An answer means that it serves them. None at all may mean the same, so this raises
        nothing: who has let go does not take back.
        """
        await _in_thread(self._commit)

    def close(self) -> None:
        """End the conversation."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _offer(self, offer: Offer, descriptors: Sequence[int], chunks: Sequence[bytes]) -> Answer:
        memory: list[int] = []
        try:
            if self._connection is None:
                self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._connection.settimeout(TIMEOUT)
                self._connection.connect(str(self._path))
            if chunks:
                memory = [_to_memory(chunks)]
                offer = offer | {"payload": [len(chunk) for chunk in chunks]}
            send(self._connection, offer, [*descriptors, *memory])
            answer, strays = receive(self._connection)
            close_all(strays)
        except (OSError, EOFError, ValueError) as error:
            self._abandon()
            raise Broken(str(error)) from error
        finally:
            close_all(memory)
        if not isinstance(answer, list) or len(answer) != len(descriptors):
            self._abandon()
            raise Broken("the answer makes no sense")
        return [bool(taken) for taken in answer]

    def _abandon(self) -> None:
        """End the conversation in a way that an heir which is late can tell from a death."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                send(self._connection, "abort")
        self.close()

    def _commit(self) -> None:
        assert self._connection is not None
        try:
            send(self._connection, "commit")
            receive(self._connection)
        except (OSError, EOFError, ValueError) as error:
            log.warning("An heir did not confirm what it took over: %s", error)
            self.close()


class Heir:
    """Takes connections that other workers offer.

    Args:
        path: where to listen.
        judge: says which states of an offer this worker takes; [] before it is ready.
        take: serves connections: the offer, the accepted states, their descriptors.
        is_alive: whether the worker of an offer is still there.
        requests: by the kind of what is no offer, the descriptors that answer it; they are
            closed when they were sent.
    """

    def __init__(
        self,
        path: Path,
        judge: Callable[[Offer], Answer],
        take: Callable[[Offer, Sequence[Any], Sequence[int]], Awaitable[None]],
        is_alive: Callable[[Offer], bool],
        requests: Mapping[str, Callable[[], list[int]]] = MappingProxyType({}),
    ) -> None:
        self._requests = requests
        self._path = path
        self._judge = judge
        self._take = take
        self._is_alive = is_alive
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def listening(self) -> bool:
        """Whether this worker takes connections over."""
        return self._listener is not None

    def listen_anew(self) -> None:
        """Listen on a new socket in place of one that was removed; talks go on."""
        old, accepting = self._listener, self._accepting
        if old is not None and accepting is not None:
            # Not before: its number would be the new one's, which the loop then forgets with it.
            accepting.add_done_callback(lambda _: old.close())
            accepting.cancel()
        self.start()

    def start(self) -> None:
        """Listen from now on."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(128)
        listener.setblocking(False)
        self._listener = listener
        self._accepting = self._begin(self._accept(listener))

    async def stop(self) -> None:
        """Take nothing more; a conversation under way is ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except Exception as error:  # noqa: BLE001 (too many open files, as a rule)
                log.error("No conversation about a handoff: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            connection.settimeout(TIMEOUT * 4)
            self._begin(self._converse(connection))

    async def _converse(self, connection: socket.socket) -> None:
        try:
            while True:
                offer, descriptors = await _in_thread(receive, connection)
                await self._consider(connection, offer, descriptors)
        except EOFError:
            pass
        except (OSError, ValueError) as error:
            log.warning("A handoff broke off: %s", error)
        except Exception:
            log.exception("A handoff broke off")
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
            connection.close()

    async def _consider(
        self, connection: socket.socket, offer: Any, descriptors: list[int]
    ) -> None:
        mine = descriptors
        try:
            if not isinstance(offer, dict) or not isinstance(offer.get("kind", ""), str):
                raise ValueError("an offer is a JSON object")
            request = self._requests.get(offer.get("kind", ""))
            if request is not None:
                close_all(mine)
                mine = []
                mine = request()
                await _in_thread(send, connection, len(mine), mine)
                return
            states = offer.get("states")
            if not isinstance(states, list):
                raise ValueError("an offer has a list of states")
            if "payload" in offer and len(mine) == len(states) + 1:
                memory = mine.pop()
                try:
                    chunks = await _in_thread(_from_memory, memory, offer["payload"])
                finally:
                    close_all([memory])
                offer = {**offer, "chunks": chunks}
            else:
                offer.pop("chunks", None)
            if len(states) != len(mine):
                log.error("No descriptors left for connections of another worker")
                answer = [False] * len(states)
            elif not all(map(_is_socket, mine)):
                raise ValueError("an offer has descriptors of sockets only")
            else:
                answer = self._judge(offer)
            refused = mine
            mine = [fd for fd, taken in zip(mine, answer, strict=False) if taken]
            close_all([fd for fd in refused if fd not in mine])
            accepted = [state for state, taken in zip(states, answer, strict=True) if taken]
            try:
                await _in_thread(send, connection, answer)
                word, strays = await _in_thread(receive, connection)
                close_all(strays)
                if word != "commit":
                    return
            except (OSError, EOFError):
                if await self._lives_on(offer):
                    raise
            taken, mine = mine, []
        finally:
            close_all(mine)
        await self._take(offer, accepted, taken)
        with contextlib.suppress(OSError):
            await _in_thread(send, connection, "done")

    async def _lives_on(self, offer: Offer) -> bool:
        """Whether the giver is there still, and not just about to end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + DEATH_SECONDS
        while self._is_alive(offer):
            if loop.time() >= until:
                return True
            await asyncio.sleep(0.01)
        return False
