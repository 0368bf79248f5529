"""Garbage and spoilt offers on the sockets by which workers hand their connections over."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import random
import socket
import struct
from pathlib import Path

import pytest

from tests.support.handoff import MakeBench
from tests.support.mutations import seed_of_day, spoil_bytes, spoil_value
from tests.support.service import Service
from tests.torture import watch
from tests.torture.watch import scaled
from workers.handoff.channel import Broken
from workers.handoff.giver import Conversation
from workers.shared import paths

pytestmark = pytest.mark.timeout(600)

CONVERSATIONS = scaled(600, 8_000)
_LENGTH = struct.Struct("!I")


class Recorded:
    """An offer as a giver has written it: sessions of both protocols, in every state."""

    def __init__(self, written: bytes) -> None:
        (size,) = _LENGTH.unpack_from(written)
        self.value = json.loads(written[4 : 4 + size])
        self.behind = written[4 + size :]
        """What follows the JSON, if anything does."""

    def spoilt(self, rng: random.Random) -> bytes:
        """The offer with something wrong."""
        value = self.value
        for _ in range(rng.choice((0, 1, 1, 2, 5))):
            value = spoil_value(rng, value)
        body = json.dumps(value, separators=(",", ":")).encode()
        if rng.random() < 0.15:
            body = spoil_bytes(rng, body)
        size = len(body)
        if rng.random() < 0.1:
            size = rng.choice((0, 1, size - 1, size + 1, 2 * size, 1 << 20, 1 << 31, (1 << 32) - 1))
        written = _LENGTH.pack(max(0, size)) + body + self.behind
        if rng.random() < 0.1:
            written = spoil_bytes(rng, written)
        if rng.random() < 0.05:
            written = written[: rng.randrange(len(written) + 1)]
        return written


async def record_offer(make: MakeBench, directory: Path) -> Recorded:
    """Let a real giver offer real sessions to a socket that keeps what it writes."""
    bench = await make()
    plain = bench.connect(user="ann")
    await plain.event("connected")
    plain.sock.sendall(plain.frame("x" * 300)[:150])  # a frame under way
    await bench.socketio("/app", auth={"user": "bob"})
    slow = bench.connect(small=True)
    await slow.event("connected")
    await bench.tick(20, size=3000)  # so something is unsent
    await asyncio.sleep(0.2)
    batch = await bench.pack()
    assert len(batch.states) == 3
    path = directory / "recorder.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(10)

    def keep() -> bytes:
        connection, _ = listener.accept()
        connection.settimeout(0.5)
        kept = b""
        with connection, contextlib.suppress(TimeoutError):
            while data := connection.recv(1 << 20):
                kept += data
        return kept

    kept = asyncio.create_task(asyncio.to_thread(keep))
    giver = Conversation(path)
    offer = {
        "giver": {"row": 100, "generation": 1_000_000, "pid": 1, "born": 1},
        "control": [batch.control.epoch, batch.control.seq],
        "states": batch.states,
    }
    with pytest.raises(Broken):
        await giver.offer(offer, batch.descriptors)
    giver.close()
    listener.close()
    await bench.giver.transfer.take_back(batch, batch.sessions, stay=False)
    return Recorded(await kept)


def converse(path: Path, rng: random.Random, recorded: Recorded) -> None:
    """One conversation with a worker, wrong in some way, as a giver or a stranger would have it."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    ours: list[int] = []
    theirs: list[socket.socket] = []
    for _ in range(rng.choice((0, 1, 3, 3, 3, 64, 100))):
        match rng.randrange(8):
            case 0:
                ours.append(os.open("/dev/null", os.O_RDWR))
            case 1:
                ours += os.pipe()
            case _:
                one, other = socket.socketpair()
                ours.append(one.detach())
                theirs.append(other)
    try:
        connection.connect(str(path))
        _send(connection, recorded.spoilt(rng), ours[:120])
        if rng.random() < 0.3:
            return
        if rng.random() < 0.8:
            connection.settimeout(0.5)
            connection.recv(65536)
        word = rng.choice(
            (b'"commit"', b'"commit"', b'"commit"', b'"abort"', b"null", b"[]", b"{", b"")
        )
        _send(connection, _LENGTH.pack(len(word)) + word, ours[:2] if rng.random() < 0.2 else ())
        if rng.random() < 0.5:
            connection.recv(65536)
        for peer in theirs:
            if rng.random() < 0.3:
                peer.sendall(rng.randbytes(20))
    except OSError:
        pass  # it is the worker's right to hang up
    finally:
        connection.close()
        for fd in ours:
            os.close(fd)
        for peer in theirs:
            peer.close()


def _send(connection: socket.socket, data: bytes, descriptors: list[int] | tuple[int, ...]) -> None:
    if not descriptors or not data:
        connection.sendall(data)
        return
    rights = array.array("i", descriptors)
    sent = connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    connection.sendall(data[sent:])


async def test_garbage_on_the_sockets_of_handoffs(make: MakeBench, tmp_path: Path) -> None:
    recorded = await record_offer(make, tmp_path)
    seed = seed_of_day()
    print(f"TORTURE_SEED={seed}")
    settings = {
        "HANDLERS": "tests.torture.handlers",
        # The library's client gives up five seconds after a ping that is late.
        "HEARTBEAT_INTERVAL": "5s",
    }
    async with Service(allow_traceback=True, **settings) as service:  # type: ignore[arg-type]
        directory = paths.runtime_dir(service.data_dir)
        sockets = {pid: directory / f"heir-{pid}.sock" for pid in service.worker_pids()}
        async with watch.witnesses(service) as seen:
            before = await watch.at_rest(service)

            def all_of(lane: int) -> None:
                for number in range(lane, CONVERSATIONS, 4):
                    rng = random.Random(f"handoff {seed} {number}")
                    converse(rng.choice(list(sockets.values())), rng, recorded)

            await asyncio.gather(*(asyncio.to_thread(all_of, lane) for lane in range(4)))
            assert frozenset(service.worker_pids()) == before.pids
            assert "CRITICAL" not in service.log
            await watch.back_at_rest(service, before)
            seen.check()
        # They still hand over what is right.
        async with watch.witnesses(service) as seen:
            await service.hup()
        seen.check()
