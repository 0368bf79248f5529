"""Sends spoilt recordings to a running service, in a process of its own.

`python -m tests.torture.sender FILE SEED FIRST COUNT` reads a `Job` from a file and prints what
became of its inputs as JSON. Each input depends on the seed and its number only, so one that fails
is sent again alone: with its number as FIRST, and 1 as COUNT.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import re
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.mutations import cut, spoil_bytes, spoil_conversation, spoil_request
from tests.torture.recordings import Recording

PATIENCE = 20.0
"""Seconds within which a service ends a connection whose client has ended its sending."""
QUIET = 0.03
"""Seconds after which a client that has sent everything, and was answered, ends its sending."""
WAIT = 0.3
"""Seconds that clients wait for an answer, and that some stay."""
_AT_ONCE = 48
_LARGE = 1 << 20
_STATUS_LINE = re.compile(rb"HTTP/\d+\.\d+ \d{3} ")
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Job:
    """What is spoilt, and where it is sent."""

    kind: str
    """`sockets` or `http`."""
    port: int
    recordings: Sequence[Recording] = ()
    requests: Sequence[bytes] = ()


@dataclass
class Outcome:
    """What became of the inputs."""

    inputs: int = 0
    """Frames, or requests."""
    connections: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """Statuses of HTTP, and how connections ended."""
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Input:
    """What one connection sends."""

    pieces: list[bytes]
    count: int
    ending: str
    """`eof`: ends its sending after `QUIET` and reads to the end; `reset`: is gone;
    `wait`: reads for a moment and is gone."""
    address: str
    """Of the client, on the loopback."""
    waits: bool = False
    """It sends the second piece once the first one is answered."""


def make_socket_input(job: Job, seed: int, number: int) -> Input:
    """The spoilt conversation with this number."""
    rng = random.Random(f"sockets {seed} {number}")
    recording = rng.choice(job.recordings)
    others = [other.frames for other in job.recordings]
    frames = spoil_conversation(rng, recording.frames, others)
    request = recording.request
    if rng.random() < 0.05:
        request = spoil_request(rng, request, job.requests)
    data = b"".join(frame.encode(rng) for frame in frames)
    if rng.random() < 0.1:
        data = spoil_bytes(rng, data)
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    early = rng.random() < 0.15
    pieces = cut(rng, request + data) if early else [request, *cut(rng, data)]
    return Input(pieces, max(1, len(frames)), _ending(rng), _address(rng), waits=not early)


def make_http_input(job: Job, seed: int, number: int) -> Input:
    """The spoilt requests with this number."""
    rng = random.Random(f"http {seed} {number}")
    count = rng.choice((1, 1, 1, 2, 3, 8))
    requests = [
        spoil_request(rng, rng.choice(job.requests), job.requests)
        if rng.random() < 0.8
        else rng.choice(job.requests)
        for _ in range(count)
    ]
    return Input(cut(rng, b"".join(requests)), count, _ending(rng), _address(rng))


def _ending(rng: random.Random) -> str:
    return rng.choice(("eof", "eof", "eof", "eof", "reset", "wait"))


def _address(rng: random.Random) -> str:
    return f"127.{rng.randrange(1, 250)}.{rng.randrange(250)}.{rng.randrange(1, 250)}"


class Exchange:
    """One connection: sends its pieces one after the other while it reads."""

    def __init__(self, port: int, sent: Input, number: int) -> None:
        self.number = number
        self.input = sent
        self.received = bytearray()
        self.ended = ""
        self._pieces = list(reversed(sent.pieces))
        self._piece = b""
        self._half_closed = False
        self._began = self._wrote_at = time.monotonic()
        self.sock = socket.socket()
        self.sock.bind((sent.address, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)

    @property
    def wants_to_write(self) -> bool:
        """Whether there is something to send now."""
        if self._piece:
            return True
        if not self._pieces:
            return False
        is_first = len(self._pieces) == len(self.input.pieces)
        return is_first or not self.input.waits or bool(self.received)

    def write(self) -> None:
        """Send what the kernel takes of the next piece."""
        if not self._piece:
            self._piece = self._pieces.pop()
        try:
            self._piece = self._piece[self.sock.send(self._piece) :]
        except BlockingIOError:
            pass
        except OSError:
            # It has closed; what it said before may still be read.
            self._pieces.clear()
            self._piece = b""
        self._wrote_at = time.monotonic()

    def _end_sending(self) -> None:
        self._half_closed = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def read(self) -> None:
        """Read what is there."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            self.ended = "cut"
            return
        self.received += data
        if not data:
            self.ended = "closed"
        if len(self.received) > _LARGE:
            # Some answers are long, and it is their first part that says what they are.
            del self.received[_LARGE // 2 :]

    def look_at_clock(self) -> None:
        """End what is to end by now."""
        now = time.monotonic()
        if now > self._began + PATIENCE:
            self.ended = "not closed by the service"
        elif self._pieces or self._piece:
            if not self.wants_to_write and now > self._wrote_at + WAIT:
                self._pieces.clear()  # there is no answer to wait for
        elif self.input.ending == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self.ended = "reset"
        elif self.input.ending == "wait":
            if now > self._wrote_at + WAIT:
                self.ended = "left"
        elif not self._half_closed and now > self._wrote_at + (QUIET if self.received else WAIT):
            self._end_sending()


def judge(kind: str, exchange: Exchange) -> tuple[str, str | None]:
    """A word for the answer, and what is wrong with it if anything is."""
    received = bytes(exchange.received)
    fault = None
    if exchange.ended == "not closed by the service":
        fault = exchange.ended
    if b"Traceback (most" in received or b'File "/' in received:
        fault = "a traceback"
    if b"INTERNAL_ERROR" in received:
        fault = "INTERNAL_ERROR"
    word = exchange.ended
    if received:
        if _STATUS_LINE.match(received):
            status = received.split(b" ", 2)[1]
            word = status.decode()
            if status == b"500":
                fault = "HTTP 500"
        else:
            fault = f"an answer that is no HTTP: {received[:60]!r}"
    return word, fault


def send(job: Job, seed: int, first: int, count: int) -> Outcome:
    """Send inputs by their numbers, some at a time."""
    make: Callable[[Job, int, int], Input]
    make = make_socket_input if job.kind == "sockets" else make_http_input
    outcome = Outcome()
    numbers = iter(range(first, first + count))
    live: dict[int, Exchange] = {}
    poll = select.poll()

    def begin() -> bool:
        number = next(numbers, None)
        if number is None:
            return False
        sent = make(job, seed, number)
        exchange = Exchange(job.port, sent, number)
        live[exchange.sock.fileno()] = exchange
        poll.register(exchange.sock, select.POLLIN | select.POLLOUT)
        outcome.inputs += sent.count
        outcome.connections += 1
        return True

    def finish(fd: int, exchange: Exchange) -> None:
        poll.unregister(fd)
        exchange.sock.close()
        del live[fd]
        word, fault = judge(job.kind, exchange)
        outcome.answers[word] += 1
        if fault and len(outcome.faults) < 20:
            outcome.faults.append(f"{job.kind} {seed} {exchange.number}: {fault}")

    more = True
    while more or live:
        while more and len(live) < _AT_ONCE:
            more = begin()
        for fd, event in poll.poll(10):
            exchange = live[fd]
            if event & ~select.POLLOUT:
                exchange.read()
            if event & select.POLLOUT and exchange.wants_to_write and not exchange.ended:
                exchange.write()
        for fd, exchange in list(live.items()):
            if not exchange.ended:
                exchange.look_at_clock()
            if exchange.ended:
                finish(fd, exchange)
            else:
                writing = select.POLLOUT if exchange.wants_to_write else 0
                poll.modify(fd, select.POLLIN | writing)
    return outcome


def main(file: str, seed: str, first: str, count: str) -> None:
    """Send the inputs of a file's job, and print the outcome."""
    job: Job = pickle.loads(Path(file).read_bytes())
    outcome = send(job, int(seed), int(first), int(count))
    print(
        json.dumps(
            {
                "inputs": outcome.inputs,
                "connections": outcome.connections,
                "answers": dict(outcome.answers),
                "faults": outcome.faults,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
