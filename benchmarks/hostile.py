"""Clients that ask for as much as they can, in one process, driven by JSON lines on stdin.

`attack` runs one kind of them for some seconds and answers with what became of them. A client that
is closed comes back after a while, as an attacker would. Nothing of what they receive is looked at.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import math
import os
import re
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TYPES = ("status", "stats", "health", "config", "system")
PLAIN = "/ws/realtime"
SOCKETIO = "/ws/realtime/?EIO=4&transport=websocket"
BACK_SECONDS = 0.2
"""Seconds after which a client that was closed comes back."""
TICK = 0.05
"""Seconds between two portions of a kind that stays below the rate limit."""
CHUNK = 64 * 1024
"""Bytes that are offered to a socket at once."""
MOST_LEFT = 5000
"""Connections that are left open at once."""
IDLE_GROUP = Path("/sys/fs/cgroup/cpu/yujian-hostile")
"""Control group of this process, where that is allowed (version 1, as root)."""


def frame(payload: bytes, opcode: int = 1, *, final: bool = True) -> bytes:
    """A frame of a client, masked with zeroes."""
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def request(action: str, payload: object) -> bytes:
    """A request of the plain protocol, as a frame."""
    return frame(json.dumps({"action": action, "payload": payload}).encode())


def _http(method: str, path: str, headers: str = "", body: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{length}\r\n{body}".encode()


def _subsets() -> Iterator[bytes]:
    for number in itertools.count(1):
        types = [name for bit, name in enumerate(TYPES) if (number * 7 % 31) >> bit & 1]
        yield request("subscribe", {"types": types or ["status"], "batch": bool(number & 1)})
        yield request("unsubscribe", {"types": [*TYPES]})


def _histories() -> Iterator[bytes]:
    for number in itertools.count(1):
        payload = {"type": TYPES[number % 2], "limit": 100, "before": 100 + number % 97}
        yield request("get_history", payload)


def _replays() -> Iterator[bytes]:
    """All that history holds of two types, again and again."""
    start = {name: {"epoch": _epochs[name], "seq": 1} for name in TYPES[:2]}
    yield request("unsubscribe", {"types": [*TYPES]})
    while True:
        yield request("subscribe", {"types": [*TYPES[:2]], "recover": start})
        yield request("unsubscribe", {"types": [*TYPES]})


def _repeat(*frames: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.cycle(frames)


def _nothing() -> Iterator[bytes]:
    return iter(())


_token = [""]
"""With which `WAVES` publish."""
_epochs: dict[str, str] = {}
"""Of the first two types, as any client may ask for them."""
_AHEAD = {name: {"epoch": "x" * 16, "seq": 1} for name in TYPES}
_LISTS = b'{"action":"ping","payload":[' + b"[]," * 340_000 + b"0]}"
_LONG_QUERIES = [
    _http("GET", "/history?" + "&".join(f"a{i}={n}" for i in range(2000)))
    for n in (1, 10, 100, 1000)  # the first one fits into the largest request line
]
_PAST = request("subscribe", {"types": [*TYPES], "history": 100})
_SMALL_HEADERS = "".join(f"a{n}: {n}\r\n" for n in range(3000))
_CHUNKS = _http("POST", "/ws/broadcast", "Transfer-Encoding: chunked\r\n") + b"1\r\nx\r\n" * 20_000
_PREFLIGHT = (
    "Origin: http://localhost\r\nAccess-Control-Request-Method: POST\r\n"
    "Access-Control-Request-Headers: authorization, content-type\r\n"
)
_PLACEHOLDERS = b'451-["x",{"_placeholder":true,"num":0}]'
_RESUME = re.compile(rb'"resume":"([^"]+)"')
_NEAR = b'{"action":"ping","payload":[' + b"{}," * 240 + b'"' + b"\\u00e9" * 2400 + b'"]}'


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of being hostile.

    With `path` a client upgrades and sends `frames`; with `requests` it sends requests over HTTP,
    each when the one before is answered.
    """

    path: str = ""
    first: bytes = b""
    frames: Callable[[], Iterator[bytes]] = _nothing
    rate: float = 0.0
    """Frames a second; 0: as many as the socket takes."""
    requests: Callable[[int], bytes] | None = None
    hangs_up: Literal["", "sent", "answered"] = ""
    """It disconnects when its request has left, or when the first bytes of an answer have come."""
    behind: bytes = b""
    """Frames in the same segment as the request for the upgrade."""
    piece: int = CHUNK
    """Bytes that are offered to a socket at once."""
    resumes: bool = False
    """It leaves each connection open, unread, and asks to resume it with another one."""
    once: bool = False
    """It does not come back: all of them together are a wave of ordinary clients."""


def _paced(frames: Callable[[], Iterator[bytes]]) -> Kind:
    return Kind(PLAIN, frames=frames, rate=95)


KINDS: dict[str, Kind] = {
    # The control: what as many further subscribers cost that send nothing.
    "silence": Kind(PLAIN, rate=1),
    "presence": _paced(_repeat(request("presence", {"type": "status"}))),
    "near every limit": _paced(_repeat(frame(_NEAR))),
    "history": _paced(_histories),
    "subscriptions": _paced(_subsets),
    "recover": _paced(_repeat(request("subscribe", {"types": [*TYPES], "recover": _AHEAD}))),
    "too many requests": Kind(PLAIN, frames=_repeat(request("ping", 0)), rate=900),
    "1 MB of JSON": Kind(PLAIN, frames=_repeat(frame(_LISTS))),
    "empty pings": Kind(PLAIN, frames=_repeat(frame(b"", 9) * 1000)),
    "fragments": Kind(
        PLAIN, frame(b"", 1, final=False), _repeat(frame(b"x", 0, final=False) * 1000)
    ),
    "Engine.IO pongs": Kind(SOCKETIO, frame(b"40"), _repeat(frame(b"3") * 1000)),
    "connects": Kind(PLAIN, hangs_up="answered"),
    "connects for history": Kind(
        PLAIN,
        behind=request("get_history", {"type": "status", "limit": 100}),
        hangs_up="answered",
    ),
    "resumes": Kind(PLAIN, resumes=True),
    "single bytes": Kind(PLAIN, frames=_repeat(request("ping", 0)), piece=1),
    "single bytes of heads": Kind(
        requests=lambda _: _http("GET", "/status", f"A: {'a' * 15_000}\r\n"), piece=1
    ),
    "half heads": Kind(requests=lambda _: b"GET /status HTTP/1.1\r\nHost: lo", hangs_up="sent"),
    "replays": _paced(_replays),
    "subscriptions with history": _paced(
        _repeat(_PAST, request("unsubscribe", {"types": [*TYPES]}))
    ),
    "events": Kind(
        SOCKETIO, frame(b"40"), _repeat(frame(b'421["x",' + b"[]," * 500 + b"0]")), rate=95
    ),
    "binary events": Kind(
        SOCKETIO, frame(b"40"), _repeat(frame(_PLACEHOLDERS) + frame(b"x" * 1000, 2)), rate=95
    ),
    "GET /history": Kind(
        requests=lambda n: _http("GET", f"/history?type=status&limit=100&before={100 + n % 97}")
    ),
    "GET /metrics": Kind(requests=lambda _: _http("GET", "/metrics")),
    "GET /ws/stats": Kind(requests=lambda _: _http("GET", "/ws/stats")),
    "GET /status": Kind(requests=lambda _: _http("GET", "/status")),
    "wrong tokens": Kind(
        requests=lambda n: _http(
            "POST", "/ws/broadcast", f"Authorization: Bearer wrong{n}\r\n", '{"type":"status"}'
        )
    ),
    "events over HTTP": Kind(
        requests=lambda n: _http("GET", f"/events?history={1 + n % 100}"),
        hangs_up="answered",
    ),
    "preflights": Kind(requests=lambda _: _http("OPTIONS", "/ws/broadcast", _PREFLIGHT)),
    "many headers": Kind(requests=lambda _: _http("GET", "/status", _SMALL_HEADERS)),
    "pipelining": Kind(requests=lambda _: _http("GET", "/status") * 1000),
    "small chunks": Kind(requests=lambda _: _CHUNKS),
    "no HTTP": Kind(requests=lambda _: b"\x16\x03\x01" * 20 + b"\r\n\r\n"),
    "long queries": Kind(requests=lambda n: _LONG_QUERIES[n % len(_LONG_QUERIES)]),
}
_MESSAGE = '{"type":"config","event":"wave","data":{"n":1}}'
"""None of the connected clients wants it: what is measured are the calls, not further deliveries."""
WAVES: dict[str, Kind] = {
    "wave of GET /status": Kind(
        requests=lambda _: _http("GET", "/status"), hangs_up="answered", once=True
    ),
    "wave of GET /ws/stats": Kind(
        requests=lambda _: _http("GET", "/ws/stats"), hangs_up="answered", once=True
    ),
    "wave of publishes": Kind(
        requests=lambda _: _http(
            "POST", "/ws/broadcast", f"Authorization: Bearer {_token[0]}\r\n", _MESSAGE
        ),
        hangs_up="answered",
        once=True,
    ),
}
"""One request each of many ordinary clients at once."""


class _Client:
    """One connection, or the wish for one."""

    __slots__ = (
        "address",
        "due",
        "frames",
        "head",
        "mask",
        "number",
        "open",
        "query",
        "sent",
        "sock",
        "wait",
    )

    def __init__(self, number: int, address: str) -> None:
        self.number = number
        self.address = address
        self.sock: socket.socket | None = None
        self.open = False
        self.head = b""
        self.wait = b""
        """What the socket has not taken yet."""
        self.frames: Iterator[bytes] = iter(())
        self.query = ""
        self.sent = 0
        self.due = 0.0
        self.mask = 0


def _epoch(port: int, type: str) -> str:
    """The epoch of a type of the service on 127.0.0.1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", f"/history?type={type}&limit=1")
        messages = json.loads(connection.getresponse().read())["messages"]
        return str(messages[0]["epoch"]) if messages else ""


class Attack:
    """Runs clients of one kind.

    Args:
        port: of the service on 127.0.0.1.
        kind: one of `KINDS` or `WAVES`.
        clients: how many.
        addresses: how many addresses they come from, of 127.0.0.0/8.
        token: with which to publish.
    """

    def __init__(self, port: int, kind: str, clients: int, addresses: int, token: str = "") -> None:
        self._kind = (KINDS | WAVES)[kind]
        _token[0] = token
        self._port = port
        self._poll = select.epoll()
        self._by_fd: dict[int, _Client] = {}
        self._clients = [
            _Client(n, f"127.1.{n % addresses // 250}.{n % addresses % 250 + 1}")
            for n in range(clients)
        ]
        self._buffer = bytearray(256 * 1024)
        self._left: deque[socket.socket] = deque()
        self.results: Counter[str] = Counter()
        for type in TYPES[:2]:
            _epochs[type] = _epoch(port, type)

    def run(self, seconds: float) -> dict[str, int]:
        """Attack; returns how often what happened."""
        until = time.monotonic() + seconds
        tick = 0.0
        while (now := time.monotonic()) < until:
            if now >= tick:
                tick = now + TICK
                for client in self._clients:
                    if client.sock is None and client.due <= now:
                        self._connect(client)
                    elif client.open and self._kind.rate:
                        self._portion(client, now)
            for fd, event in self._poll.poll(min(0.01, TICK), 256):
                client = self._by_fd[fd]
                try:
                    if event & select.EPOLLIN:
                        self._read(client)
                    if client.sock is not None and event & select.EPOLLOUT:
                        self._write(client)
                    elif client.sock is not None and event & (select.EPOLLHUP | select.EPOLLERR):
                        raise ConnectionResetError
                except OSError as error:
                    self._lost(client, type(error).__name__)
        for client in self._clients:
            if client.sock is not None:
                client.sock.close()
        for sock in self._left:
            sock.close()
        self._poll.close()
        return dict(self.results)

    def _connect(self, client: _Client) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        client.sock, client.open, client.head = sock, False, b""
        client.frames = self._kind.frames()
        kind = self._kind
        if kind.path:
            client.wait = _http(
                "GET",
                kind.path + client.query,
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            )
            client.wait += kind.behind
        elif kind.requests is not None:
            client.wait = kind.requests(client.number)
        self._by_fd[sock.fileno()] = client
        client.mask = select.EPOLLIN | select.EPOLLOUT
        self._poll.register(sock.fileno(), client.mask)
        try:
            sock.bind((client.address, 0))
            sock.connect(("127.0.0.1", self._port))
        except BlockingIOError:
            pass
        except OSError as error:
            self._lost(client, type(error).__name__)

    def _lost(self, client: _Client, why: str) -> None:
        assert client.sock is not None
        self.results[why] += 1
        del self._by_fd[client.sock.fileno()]
        client.sock.close()
        client.sock, client.open, client.wait = None, False, b""
        client.due = math.inf if self._kind.once else time.monotonic() + BACK_SECONDS

    def _read(self, client: _Client) -> None:
        assert client.sock is not None
        size = client.sock.recv_into(self._buffer)
        if not size:
            self._lost(client, "closed")
            return
        kind = self._kind
        data = bytes(self._buffer[: min(size, 4096)])
        if kind.requests is not None and kind.hangs_up:
            self._lost(client, data[9:12].decode())
            return
        if kind.requests is not None:
            if data.startswith(b"HTTP/1.1 "):
                self.results[data[9:12].decode()] += 1
                client.sent += 1
                client.wait = kind.requests(client.number + client.sent)
                self._watch(client)
            return
        if not client.open:
            client.head += data
            if b"\r\n\r\n" not in client.head:
                return
            self.results[client.head[9:12].decode()] += 1
            if client.head[9:12] != b"101":
                self._lost(client, "refused")
                return
            client.open = True
            if kind.resumes and (found := _RESUME.search(client.head)):
                self._leave(client, found[1].decode())
                return
            if kind.hangs_up:
                self._lost(client, "hung up")
                return
            client.wait = kind.first
            client.due = time.monotonic()
            self._watch(client)
        elif kind.resumes and (found := _RESUME.search(data)):
            self._leave(client, found[1].decode())
        elif size >= 4 and data[0] == 0x88:
            self.results[f"close {int.from_bytes(data[2:4], 'big')}"] += 1
            self._lost(client, "closed")

    def _leave(self, client: _Client, token: str) -> None:
        """Leave a connection as it is; the next one of the client is to resume it."""
        assert client.sock is not None
        self._left.append(client.sock)
        if len(self._left) > MOST_LEFT:
            self._left.popleft().close()
        self._poll.unregister(client.sock.fileno())
        del self._by_fd[client.sock.fileno()]
        client.sock, client.open, client.wait = None, False, b""
        client.query = "?resume=" + token
        client.due = time.monotonic() + BACK_SECONDS
        self.results["left"] += 1

    def _portion(self, client: _Client, now: float) -> None:
        """What a client sends of its frames by now, if it is not behind."""
        if client.wait:
            client.due = now
            return
        count = int((now - client.due) * self._kind.rate)
        if count:
            client.due += count / self._kind.rate
            client.wait = b"".join(itertools.islice(client.frames, min(count, 100)))
            self._write(client)

    def _write(self, client: _Client) -> None:
        assert client.sock is not None
        if not client.wait and client.open and not self._kind.rate:
            client.wait = next(client.frames, b"")
        if client.wait:
            try:
                sent = client.sock.send(memoryview(client.wait)[: self._kind.piece])
                client.wait = client.wait[sent:]
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost(client, type(error).__name__)
                return
            if not client.wait and self._kind.hangs_up == "sent":
                self._lost(client, "hung up")
                return
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        assert client.sock is not None
        mask = select.EPOLLIN
        if client.wait or (client.open and not self._kind.rate and self._kind.requests is None):
            mask |= select.EPOLLOUT
        if mask != client.mask:
            client.mask = mask
            self._poll.modify(client.sock.fileno(), mask)


def _step_back() -> None:
    """Take the lowest priority: these clients stand for other machines, which take nothing from this one.

    They run when a processor is idle, and stop at once when anything else wants it. Where the kernel
    schedules sessions or control groups, that counts only inside of one: so they get an idle group if
    this process may make one, else the lowest value of a session.
    """
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    with contextlib.suppress(OSError):
        IDLE_GROUP.mkdir(exist_ok=True)
        (IDLE_GROUP / "cpu.idle").write_text("1")
        (IDLE_GROUP / "tasks").write_text(str(os.getpid()))


def main() -> None:
    """Obey commands until stdin ends."""
    _step_back()
    for line in sys.stdin:
        command = json.loads(line)
        command.pop("do")
        seconds = command.pop("seconds")
        try:
            result: dict[str, Any] = {"results": Attack(**command).run(seconds)}
        except Exception as error:  # noqa: BLE001 - every failure must reach the benchmark
            result = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
