"""The conversation that hands descriptors over, on real Unix sockets."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import until
from workers.handoff import channel as handoff
from workers.handoff.channel import BATCH, Broken, MessageSocket
from workers.handoff.giver import Conversation
from workers.handoff.successor import OfferListener
from workers.shared.processes import start_time

REPO = Path(__file__).parents[2]


class Successor:
    """Remembers what it took."""

    def __init__(self, path: Path) -> None:
        self.accepts: Callable[[Any], bool] = lambda state: True
        self.taken: list[tuple[Any, int]] = []
        self.listener = OfferListener(path, self.judge, self.take, self.is_alive)

    def judge(self, offer: dict[str, Any]) -> list[Any]:
        return [state if self.accepts(state) else None for state in offer["states"]]

    async def take(
        self, offer: dict[str, Any], states: Sequence[Any], descriptors: Sequence[int]
    ) -> None:
        self.taken += zip(states, descriptors, strict=True)

    @staticmethod
    def is_alive(offer: dict[str, Any]) -> bool:
        return start_time(offer["pid"]) == offer["born"]


class Pairs:
    """Connections: our end is what is handed over, the other one is the client's."""

    def __init__(self, count: int) -> None:
        made = [socket.socketpair() for _ in range(count)]
        self.ours = [pair[0].detach() for pair in made]
        self.clients = [pair[1] for pair in made]

    def closed(self) -> list[bool]:
        """Of each client, whether no process holds its other end any more."""
        found = []
        for client in self.clients:
            try:
                found.append(client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"")
            except BlockingIOError:
                found.append(False)
        return found


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="yj-") as directory:
        yield Path(directory) / "successor.sock"


@pytest.fixture
async def successor(path: Path) -> AsyncIterator[Successor]:
    made = Successor(path)
    made.listener.start()
    yield made
    await made.listener.stop()
    for _, fd in made.taken:
        os.close(fd)


@pytest.fixture
def connections() -> Iterator[Callable[[int], Pairs]]:
    made: list[Pairs] = []

    def make(count: int) -> Pairs:
        made.append(Pairs(count))
        return made[-1]

    yield make
    for pairs in made:
        handoff.close_all(pairs.ours)
        for client in pairs.clients:
            client.close()


Make = Callable[[int], Pairs]


def conversation(path: Path, timeout: float = handoff.TIMEOUT) -> Conversation:
    return Conversation(path, timeout)


async def accept(listener: socket.socket) -> MessageSocket:
    """The other end of the next conversation."""
    connection, _ = await asyncio.to_thread(listener.accept)
    return MessageSocket(connection)


def offer_of(count: int, pid: int = 0) -> dict[str, Any]:
    pid = pid or os.getpid()
    return {"pid": pid, "born": start_time(pid), "states": list(range(count))}


Open = set[tuple[int, str]]


def descriptors() -> Open:
    """What this process has open: each descriptor with what it leads to, as numbers are used again."""
    found: Open = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


async def opened(before: Open, count: int) -> None:
    """Wait until this process has so many descriptors open that it had not before.

    What tests before this one have left may be closed meanwhile.
    """
    await until(lambda: len(descriptors() - before) == count)


async def to_end(peer: socket.socket) -> None:
    """Wait until the other side has ended a conversation in which we say nothing more."""
    peer.shutdown(socket.SHUT_WR)
    peer.settimeout(30)
    with contextlib.suppress(ConnectionResetError):  # it has not read all
        while await asyncio.to_thread(peer.recv, 4096):
            pass


async def test_a_full_batch(path: Path, successor: Successor, connections: Make) -> None:
    pairs = connections(BATCH)
    giver = conversation(path)
    assert await giver.offer(offer_of(BATCH), pairs.ours) == [True] * BATCH
    assert successor.taken == []  # nothing before the commit
    await giver.commit()
    handoff.close_all(pairs.ours)
    pairs.ours = []
    assert [state for state, _ in successor.taken] == list(range(BATCH))
    for number, (_, fd) in enumerate(successor.taken):
        os.write(fd, b"%d" % number)
        assert pairs.clients[number].recv(100) == b"%d" % number
    giver.close()


async def test_several_batches_in_one_conversation(
    path: Path, successor: Successor, connections: Make
) -> None:
    giver = conversation(path)
    for _ in range(3):
        pairs = connections(5)
        assert await giver.offer(offer_of(5), pairs.ours) == [True] * 5
        await giver.commit()
    assert [state for state, _ in successor.taken] == [0, 1, 2, 3, 4] * 3
    giver.close()


async def test_a_conversation_takes_no_thread(
    path: Path, successor: Successor, connections: Make
) -> None:
    threads = threading.active_count()
    pairs = connections(3)
    with contextlib.closing(conversation(path)) as giver:
        assert await giver.offer(offer_of(3), pairs.ours) == [True] * 3
        await giver.commit()
        assert threading.active_count() == threads


async def test_one_that_was_stopped_past_its_time_finds_what_has_come() -> None:
    """As a worker in a virtual machine that halts: its connections are not to be drained."""
    ours, theirs = socket.socketpair()
    with contextlib.closing(MessageSocket(ours, 0.05)) as connection, theirs:
        receiving = asyncio.create_task(connection.receive())
        await asyncio.sleep(0)
        theirs.sendall(b"\0\0\0\4")
        await asyncio.sleep(0.01)
        theirs.sendall(b"true")
        time.sleep(0.1)
        assert (await receiving).value is True
        with pytest.raises(TimeoutError):
            await connection.receive()


async def test_a_large_state(path: Path, successor: Successor, connections: Make) -> None:
    """Far more than a socket's buffer."""
    pairs = connections(1)
    giver = conversation(path)
    state = "x" * 20_000_000
    assert await giver.offer({**offer_of(0), "states": [state]}, pairs.ours) == [True]
    await giver.commit()
    assert successor.taken[0][0] == state
    giver.close()


async def test_what_is_refused_is_closed_by_the_successor(
    path: Path, successor: Successor, connections: Make
) -> None:
    successor.accepts = lambda state: state % 3 == 0
    pairs = connections(9)
    giver = conversation(path)
    before = descriptors()
    answer = await giver.offer(offer_of(9), pairs.ours)
    assert answer == [True, False, False] * 3
    # Three duplicates and the two ends of the conversation.
    await opened(before, 3 + 2)
    await giver.commit()
    assert [state for state, _ in successor.taken] == [0, 3, 6]
    assert not any(pairs.closed())
    giver.close()


async def test_giver_that_closes_before_the_commit(
    path: Path, successor: Successor, connections: Make
) -> None:
    """It lives, so it keeps its connections: the successor's duplicates go."""
    pairs = connections(3)
    before = descriptors()
    giver = conversation(path)
    assert await giver.offer(offer_of(3), pairs.ours) == [True] * 3
    giver.close()
    await opened(before, 0)
    assert successor.taken == []
    assert not any(pairs.closed())


CHILD = """
import asyncio, os, sys
from pathlib import Path
from workers.handoff.giver import Conversation
from workers.shared.processes import start_time

async def main():
    giver = Conversation(Path(sys.argv[1]))
    fds = [int(word) for word in sys.argv[2].split(",")]
    pid = os.getpid()
    offer = {"pid": pid, "born": start_time(pid), "states": list(range(len(fds)))}
    print(await giver.offer(offer, fds), flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


@pytest.mark.parametrize("attempt", range(3))
async def test_giver_killed_before_the_commit(
    path: Path, successor: Successor, connections: Make, attempt: int
) -> None:
    """No other process has these connections any more, so the successor serves them."""
    pairs = connections(4)
    words = ",".join(map(str, pairs.ours))
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(path),
        words,
        cwd=REPO,
        pass_fds=pairs.ours,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    handoff.close_all(pairs.ours)
    pairs.ours = []
    assert child.stdout is not None
    assert await child.stdout.readline() == b"[True, True, True, True]\n"
    assert successor.taken == []
    child.send_signal(signal.SIGKILL)
    await child.wait()
    await until(lambda: len(successor.taken) == 4)
    assert not any(pairs.closed())
    for number, (state, fd) in enumerate(successor.taken):
        assert state == number
        os.write(fd, b"still here")
        assert pairs.clients[number].recv(100) == b"still here"
    assert child.stdin is not None
    child.stdin.close()


async def test_no_successor_listens(path: Path, connections: Make) -> None:
    pairs = connections(2)
    giver = conversation(path)
    with pytest.raises(Broken):
        await giver.offer(offer_of(2), pairs.ours)
    assert not any(pairs.closed())


async def test_successor_that_dies_before_it_answers(path: Path, connections: Make) -> None:
    """The giver has everything still, and nothing of the conversation stays open."""
    pairs = connections(2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        before = descriptors()
        giver = conversation(path)
        offering = asyncio.create_task(giver.offer(offer_of(2), pairs.ours))
        connection = await accept(listener)
        _, got = await connection.receive()
        handoff.close_all(got)
        connection.close()
        with pytest.raises(Broken):
            await offering
        assert not descriptors() - before
    assert not any(pairs.closed())


async def test_successor_that_is_silent(path: Path, connections: Make) -> None:
    pairs = connections(1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(Broken):
            await conversation(path, timeout=0.1).offer(offer_of(1), pairs.ours)
    assert not any(pairs.closed())


@pytest.mark.parametrize("answer", [[True], {}, "yes", None, 7])
async def test_answer_that_makes_no_sense(path: Path, connections: Make, answer: Any) -> None:
    pairs = connections(2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        offering = asyncio.create_task(conversation(path).offer(offer_of(2), pairs.ours))
        with contextlib.closing(await accept(listener)) as connection:
            _, got = await connection.receive()
            handoff.close_all(got)
            await connection.send(answer)
            with pytest.raises(Broken):
                await offering


async def test_no_confirmation_of_the_commit(path: Path, connections: Make) -> None:
    """What was committed is gone, whatever the successor says."""
    pairs = connections(1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        giver = conversation(path)
        offering = asyncio.create_task(giver.offer(offer_of(1), pairs.ours))
        connection = await accept(listener)
        _, got = await connection.receive()
        await connection.send([True])
        assert await offering == [True]
        connection.close()
        await giver.commit()
        handoff.close_all(got)


def raw_message(body: bytes, fds: Sequence[int], length: int | None = None) -> Any:
    rights = array.array("i", fds)
    head = struct.pack("!I", len(body) if length is None else length)
    return [head + body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []


GARBAGE = [
    (b"{", None),
    (b"\xff\xfe", None),
    (b"[]", None),
    (b"17", None),
    (b'{"states": 5}', None),
    (b'{"no": "states"}', None),
    (b'{"states": [1', 4000),
    (b"", handoff.MAX_SIZE + 1),
    (json.dumps({"states": [1, 2, 3]}).encode(), None),
]


@pytest.mark.parametrize(("body", "length"), GARBAGE)
async def test_garbage(
    path: Path,
    successor: Successor,
    connections: Make,
    caplog: pytest.LogCaptureFixture,
    body: bytes,
    length: int | None,
) -> None:
    """It takes nothing, keeps nothing open, and goes on with the next one."""
    pairs = connections(2)
    before = descriptors()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        peer.sendmsg(*raw_message(body, pairs.ours, length))
        await to_end(peer)
    await opened(before, 0)
    assert successor.taken == []
    assert not any(pairs.closed())
    giver = conversation(path)
    assert await giver.offer(offer_of(2), pairs.ours) == [True, True]
    await giver.commit()
    assert len(successor.taken) == 2
    giver.close()


async def test_judge_that_fails(
    path: Path, successor: Successor, connections: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> bool:
        raise KeyError("state")

    successor.accepts = fail
    pairs = connections(2)
    before = descriptors()
    with pytest.raises(Broken):
        await conversation(path).offer(offer_of(2), pairs.ours)
    await opened(before, 0)
    assert "A handoff broke off" in caplog.text


async def test_stop_does_not_wait_for_a_silent_giver(path: Path, connections: Make) -> None:
    successor = Successor(path)
    successor.listener.start()
    giver = conversation(path)
    pairs = connections(1)
    assert await giver.offer(offer_of(1), pairs.ours) == [True]
    await giver.commit()
    # The thread that waits for the next offer must end as well, or the process could not.
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        await successor.listener.stop()
        await loop.shutdown_default_executor()
    assert not path.exists()
    with contextlib.suppress(RuntimeError):
        giver.close()
    for _, fd in successor.taken:
        os.close(fd)


FULL = """
import asyncio, os, resource, sys
from pathlib import Path
from workers.handoff.successor import OfferListener

async def take(offer, states, descriptors):
    print("took", len(descriptors), flush=True)

async def main():
    listener = OfferListener(Path(sys.argv[1]), lambda offer: offer["states"], take,
                             lambda offer: True)
    listener.start()
    def limit():
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
    await asyncio.to_thread(limit)  # the thread exists by then
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


async def test_full_descriptor_table(path: Path, connections: Make) -> None:
    """The kernel hands over some and drops the rest: the complete batch is refused."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        FULL,
        str(path),
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert await child.stdout.readline() == b"ready\n"
    giver = conversation(path)
    pairs = connections(BATCH)
    for _ in range(3):  # what did come is closed again, so it does not get worse
        assert await giver.offer(offer_of(BATCH), pairs.ours) == [False] * BATCH
        await giver.commit()
    few = connections(5)
    assert await giver.offer(offer_of(5), few.ours) == [True] * 5
    await giver.commit()
    took = [await child.stdout.readline() for _ in range(4)]
    assert took == [b"took 0\n"] * 3 + [b"took 5\n"]
    giver.close()
    child.stdin.close()
    await child.wait()
    assert not any(pairs.closed())


async def test_successor_that_had_no_descriptor_for_a_conversation(
    path: Path, successor: Successor, connections: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = connections(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    giver = conversation(path)
    # The giver's socket takes the last one.
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1, hard))
    try:
        offering = asyncio.create_task(giver.offer(offer_of(1), pairs.ours))
        await until(lambda: "No conversation" in caplog.text)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await offering == [True]
    await giver.commit()
    assert len(successor.taken) == 1
    giver.close()
