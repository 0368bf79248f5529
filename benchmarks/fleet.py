"""Clients that come back: thousands in one process, each of which recovers when it is closed.

Commands are JSON lines on stdin and answers are JSON lines on stdout, as in `benchmarks.load`, but
the clients read on between the commands. A connection that ends is tried again at once, and after
a failure every 100 to 200 ms. While they flow, messages are not parsed: `"seq":<n>`, and over
Socket.IO the newest offset, are found in the bytes. Pings are not answered: servers run with long
heartbeats.
"""

from __future__ import annotations

import errno
import gc
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.scan import Scanner, Track, frame_end

_PATHS = {
    "sio": "/ws/realtime/?EIO=4&transport=websocket",
    "json": "/ws/realtime?types=status",
    "back": "/ws/realtime?types=",  # `recover` names the types
}
_EPOCH = b'"epoch":"'
_OFFSET = b'["offset","'
_EVENTS = 20_000
"""So many at once that a round serves all that is ready."""
_FIRST_CONNECTS = 100
"""How many of the first connects are under way at once."""


class Client:
    """One user of the service, over all its connections."""

    __slots__ = (
        "at",
        "back",
        "epoch",
        "fresh",
        "lost_at",
        "offset",
        "pause",
        "pid",
        "recovered",
        "sock",
        "state",
        "track",
        "wire",
    )

    def __init__(self, wire: str) -> None:
        self.wire = wire
        self.state = "new"
        self.sock: socket.socket
        self.track = Track()
        self.epoch = ""
        self.pid = ""
        self.offset = ""
        self.at = 0.0
        """When the newest message came."""
        self.pause = 0.0
        """The longest time between two reads with messages."""
        self.lost_at = 0.0
        """When its connection ended; it retries at once."""
        self.back = 0.0
        """Seconds from there to the first message of its new connection; 0 before it."""
        self.recovered: bool | None = None
        self.fresh = False
        """Nothing has come yet on a connection after the first."""


class Fleet:
    """All clients of this process, and their counts.

    Args:
        commands: descriptor of the lines that `run` hands on.
    """

    def __init__(self, commands: int = 0) -> None:
        self._commands = commands
        self._poll = select.epoll()
        self._poll.register(commands, select.EPOLLIN)
        self._clients: list[Client] = []
        self._by_fd: dict[int, Client] = {}
        self._waiting: list[Client] = []
        self._due: list[tuple[float, int, Client]] = []
        self._opening = 0
        self._scanner = Scanner("seq")
        self._counts = self._scanner.counts
        self._refused: Counter[str] = Counter()
        self._address = ("127.0.0.1", 0)
        self._round = 0.0
        """The longest round of this process: shorter pauses may be its own."""

    # Commands

    def connect(
        self, port: int, wire: str, clients: int, host: str = "127.0.0.1"
    ) -> dict[str, Any]:
        """Open connections; `counts` tells how many are ready.

        Args:
            port: the port of the server.
            wire: `sio` Socket.IO, `json` plain JSON.
            clients: how many.
            host: address of the server.
        """
        self._address = (host, port)
        found = [Client(wire) for _ in range(clients)]
        self._clients += found
        self._waiting += found
        return {}

    def mark(self) -> dict[str, Any]:
        """Count from here on."""
        for client in self._clients:
            client.lost_at = client.back = 0.0
            client.recovered = None
        self._counts.clear()
        self._refused.clear()
        return self.mark_pauses()

    def mark_pauses(self) -> dict[str, Any]:
        """Look for the longest pauses from here on."""
        for client in self._clients:
            client.pause = 0.0
        self._round = 0.0
        return {}

    def counts(self) -> dict[str, Any]:
        """Counts since the mark, without looking at each client."""
        names = ("lost", "returned", "missing", "repeated", "received", "tries", "bytes")
        return {name: self._counts[name] for name in names} | {
            "ready": sum(client.state == "ready" for client in self._clients),
            "states": dict(Counter(client.state for client in self._clients)),
            "refused": dict(self._refused),
        }

    def report(self) -> dict[str, Any]:
        """The same, with where the clients stand, their pauses and their ways back."""
        gone = [client for client in self._clients if client.lost_at]
        begin = min((client.lost_at for client in gone), default=0.0)
        numbers = [client.track.next or 0 for client in self._clients if client.state == "ready"]
        return self.counts() | {
            "least": min(numbers, default=1) - 1,
            "most": max(numbers, default=1) - 1,
            "pause_s": _percentiles([client.pause for client in self._clients]),
            "round_s": self._round,
            "back_s": _percentiles([client.back for client in gone if client.back]),
            "all_back_s": max((c.lost_at + c.back - begin for c in gone if c.back), default=0.0),
            "away": sum(not client.back for client in gone),
            "recovered": sum(client.recovered is True for client in gone),
            "not_recovered": sum(client.recovered is False for client in gone),
        }

    def close(self) -> None:
        """Close all connections."""
        for client in self._by_fd.values():
            client.sock.close()
        self._poll.close()

    # Connecting

    def _start(self, client: Client) -> None:
        sock = client.sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.state = "connecting"
        self._opening += 1
        self._counts["tries"] += 1
        self._by_fd[sock.fileno()] = client
        self._poll.register(sock.fileno(), select.EPOLLOUT)
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            self._failed(client, "connect")

    def _ask(self, client: Client) -> None:
        if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._failed(client, "connect")
            return
        returns = client.wire == "json" and client.epoch
        client.sock.send(
            b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\n\r\n"
            % (_PATHS["back" if returns else client.wire].encode(), self._address[1])
        )
        client.state = "upgrading"
        self._poll.modify(client.sock.fileno(), select.EPOLLIN)

    def _handshake(self, client: Client) -> None:
        data = client.sock.recv(65536)
        track = client.track
        track.rest += data
        if client.state == "upgrading":
            head, end, rest = track.rest.partition(b"\r\n\r\n")
            if end and not head.startswith(b"HTTP/1.1 101"):
                self._failed(client, head.split(b" ", 2)[1].decode())
                return
            if end:
                track.rest = rest
                client.state = "greeting"
                if client.wire == "json" and client.epoch:
                    self._recover(client)
        if not data:
            self._failed(client, "closed")
            return
        while client.state == "greeting" and (payload := frame_end(track.rest, 0)):
            start, stop = payload
            frame, track.rest = track.rest[start:stop], track.rest[stop:]
            (self._greet_sio if client.wire == "sio" else self._greet_json)(client, frame)
        if client.state == "ready" and track.rest:
            rest, track.rest = track.rest, b""
            self._scanner.room[: len(rest)] = rest
            self._take(client, len(rest))

    @staticmethod
    def _recover(client: Client) -> None:
        place = {"epoch": client.epoch, "seq": (client.track.next or 1) - 1}
        payload = {"types": ["status"], "recover": {"status": place}}
        client.sock.send(_masked(json.dumps({"action": "subscribe", "payload": payload})))

    def _greet_json(self, client: Client, frame: bytes) -> None:
        message = json.loads(frame)
        if message["event"] == "subscribed":
            self._ready(client, message["data"]["types"]["status"]["recovered"])
        elif message["event"] == "connected" and not client.epoch:
            self._ready(client)
        elif message["event"] == "error":
            self._failed(client, message["data"]["code"])

    def _greet_sio(self, client: Client, frame: bytes) -> None:
        if frame.startswith(b"0{"):
            auth = {"pid": client.pid, "offset": client.offset} if client.pid else {}
            client.sock.send(_masked("40" + json.dumps(auth)))
        elif frame.startswith(b"40"):
            answer = json.loads(frame[2:])
            pid = answer.get("pid", "")  # stock has none
            recovered = pid == client.pid if client.pid else None
            client.pid = pid
            self._ready(client, recovered)
        elif frame.startswith(b"44"):
            self._failed(client, "CONNECT_ERROR")

    def _ready(self, client: Client, recovered: bool | None = None) -> None:
        self._opening -= 1
        client.state = "ready"
        client.recovered = recovered
        client.fresh = bool(client.lost_at)

    def _failed(self, client: Client, reason: str) -> None:
        """An attempt has come to nothing: try again a little later."""
        self._refused[reason] += 1
        self._opening -= 1
        self._forget(client)
        due = time.monotonic() + random.uniform(0.1, 0.2)
        heapq.heappush(self._due, (due, id(client), client))

    def _lost(self, client: Client) -> None:
        """A connection has ended: try again at once."""
        self._counts["lost"] += 1
        self._forget(client)
        if not client.lost_at:
            client.lost_at = time.monotonic()
        self._start(client)

    def _forget(self, client: Client) -> None:
        self._poll.unregister(client.sock.fileno())
        del self._by_fd[client.sock.fileno()]
        client.sock.close()
        client.state = "away"
        client.track.rest = b""

    # Receiving

    def run(self, answer: Callable[[bytes], bool]) -> None:
        """Read, come back and hand commands to `answer`, until that returns False."""
        lines = b""
        begin = time.monotonic()
        while True:
            while self._waiting and self._opening < _FIRST_CONNECTS:
                self._start(self._waiting.pop())
            while self._due and self._due[0][0] <= begin:
                self._start(heapq.heappop(self._due)[2])
            waits = 0.02 if self._due or self._waiting else 1.0
            events = self._poll.poll(waits, _EVENTS)
            begin = time.monotonic()
            for fd, _ in events:
                if fd in self._by_fd:
                    self._serve(self._by_fd[fd])
            if any(fd == self._commands for fd, _ in events):
                *done, lines = (lines + (os.read(self._commands, 65536) or b"\n")).split(b"\n")
                if not all(map(answer, done)):
                    return
            else:
                self._round = max(self._round, time.monotonic() - begin)

    def _serve(self, client: Client) -> None:
        try:
            if client.state == "ready":
                size = client.sock.recv_into(self._scanner.room)
                if size:
                    self._take(client, size)
                else:
                    self._lost(client)
            elif client.state == "connecting":
                self._ask(client)
            else:
                self._handshake(client)
        except BlockingIOError:
            return
        except OSError as error:
            if client.state == "ready":
                self._lost(client)
            else:
                self._failed(client, type(error).__name__)

    def _take(self, client: Client, size: int) -> None:
        """Count what came: the first `size` bytes of the scanner's room."""
        self._counts["bytes"] += size
        if not self._scanner.scan(client.track, size):
            return
        now = time.monotonic()
        if now - client.at > client.pause and client.at:
            client.pause = now - client.at
        client.at = now
        if client.wire == "sio":
            offset = self._scanner.last_string(_OFFSET, size)
            if offset:
                client.offset = offset.decode()
        elif not client.epoch:
            client.epoch = self._scanner.last_string(_EPOCH, size).decode()
        if client.fresh:
            client.fresh = False
            if client.lost_at and not client.back:
                client.back = now - client.lost_at
                self._counts["returned"] += 1


def _masked(text: str) -> bytes:
    """A text frame of a client, masked with zeroes."""
    data = text.encode()
    if len(data) < 126:
        return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data
    return bytes((0x81, 0xFE)) + len(data).to_bytes(2, "big") + bytes(4) + data


def _percentiles(values: list[float]) -> dict[str, float]:
    """Nearest rank; nothing of nothing."""
    ordered = sorted(values)
    parts = {"p50": 0.5, "p99": 0.99, "max": 1.0} if ordered else {}
    return {name: ordered[max(0, round(part * len(ordered)) - 1)] for name, part in parts.items()}


def main() -> None:
    """Obey commands until stdin ends."""
    gc.disable()
    fleet = Fleet()
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "connect": fleet.connect,
        "mark": fleet.mark,
        "mark_pauses": fleet.mark_pauses,
        "counts": fleet.counts,
        "report": fleet.report,
    }

    def answer(line: bytes) -> bool:
        if not line:
            return False
        command = json.loads(line)
        try:
            result = commands[command.pop("do")](**command)
        except Exception as error:  # noqa: BLE001 - every failure must reach the benchmark
            result = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        return True

    fleet.run(answer)


if __name__ == "__main__":
    main()
