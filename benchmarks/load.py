"""The load: thousands of clients in one process, driven by JSON lines on stdin.

Each line is a command, `{"do": "connect", ...}`; the answer is one JSON line on stdout. Clients
only look for the numbers of messages in the bytes that arrive: `"n0":<n>`, which this process
gives when it publishes, or `"seq":<n>`, which the service gives. Clients that stalled read frame
by frame afterwards, and take `gap` events into account. They answer no pings: servers run with
long heartbeats.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.scan import Scanner, Track

_CONNECT_PACKET = bytes((0x81, 0x82, 0, 0, 0, 0)) + b"40"  # masked with zeroes
_GREETED = {"sio": "opening", "json": "greeted", "sse": "greeted", "bare": "ready"}


class Client:
    """One connection."""

    __slots__ = ("fd", "sock", "state", "track")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.state = "connecting"
        self.track = Track()


class Load:
    """All clients of this process, their publisher and their counts.

    Args:
        key: the number to look for in messages, `n0` or `seq`.
    """

    def __init__(self, key: str) -> None:
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._stalled: list[Client] = []
        self._numbered = key == "n0"
        self._scanner = Scanner(key)
        self._counts = self._scanner.counts
        self._refused: Counter[str] = Counter()
        self._sent: list[float] = []
        self._latency: Counter[int] = Counter()  # in steps of 10 us
        self._address = ("127.0.0.1", 0)
        self._wire = "json"
        self._request = b""
        self._pending = 0
        self._publisher: socket.socket | None = None
        self._answer = b""

    # Commands

    def connect(
        self, port: int, path: str, wire: str, clients: int, inflight: int = 100, buffer: int = 0
    ) -> dict[str, Any]:
        """Open connections.

        Args:
            port: the port of the server on 127.0.0.1.
            path: path and query of the endpoint.
            wire: `sio` Socket.IO, `json` plain JSON, `sse` server-sent events, `bare` no greeting at all.
            clients: how many.
            inflight: how many may be under way at once.
            buffer: size of the receive buffers in bytes; 0 leaves it to the kernel.
        """
        self._address = ("127.0.0.1", port)
        self._wire = wire
        start = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        if wire == "sse":
            self._request = f"{start}Accept: text/event-stream\r\n\r\n".encode()
        else:
            self._request = (
                f"{start}Upgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        counts, refused = self._counts.copy(), self._refused.copy()
        started = 0
        begin = time.monotonic()
        while (started < clients or self._pending) and time.monotonic() < begin + 120:
            while started < clients and self._pending < inflight:
                self._start(buffer)
                started += 1
            self._step(0.05)
        return {
            "ready": self._counts["ready"] - counts["ready"],
            "lost": self._counts["lost"] - counts["lost"],
            "pending": self._pending,
            "refused": dict(self._refused - refused),
            "seconds": time.monotonic() - begin,
        }

    def publish(
        self, posts: int, size: int, headers: dict[str, str], pad: int = 60, pause: float = 0.02
    ) -> dict[str, Any]:
        """POST messages to /ws/broadcast, each request when all clients have the one before.

        Args:
            posts: how many requests.
            size: messages in each: 1 sends an object, more an array.
            headers: headers of the requests.
            pad: bytes of filling in the data of each message.
            pause: seconds between the last delivery and the next request.
        """
        self._latency.clear()
        before = self._counts.copy()
        readers = len(self._clients)
        failed = late = 0  # what comes late ends the run
        for _ in range(posts):
            wanted = self._counts["received"] + readers * size
            self._post(size, headers, pad)
            deadline = time.monotonic() + 60
            while self._counts["received"] < wanted or self._publisher is not None:
                self._step(0.05)
                if time.monotonic() > deadline or self._counts["lost"] > before["lost"]:
                    late = 1
                    break
            failed += not self._answer.startswith(b"HTTP/1.1 200")
            if late:
                break
            time.sleep(pause)
        names = ("received", "bytes", "missing", "repeated", "lost")
        return {
            "expected": posts * size * readers,
            **{name: self._counts[name] - before[name] for name in names},
            "failed": failed,
            "late": late,
            "answer": self._answer[:300].decode(errors="replace") if failed else "",
            "latency_ms": self._percentiles(),
        }

    def stream(
        self, headers: dict[str, str], seconds: float, interval: float, pad: int = 60
    ) -> dict[str, Any]:
        """POST a message every `interval` over one connection, whether or not the clients follow.

        A message that has to wait for the answer to the one before counts from when it was due.
        """
        self._latency.clear()
        before = self._counts.copy()
        readers = len(self._clients)
        publisher = socket.create_connection(self._address, timeout=30)
        self._publisher, self._answer = publisher, b"\n"
        self._poll.register(publisher.fileno(), select.EPOLLIN)
        sent, failed = 0, 0
        begin = due = time.monotonic()
        while (now := time.monotonic()) < begin + seconds:
            if now < due or not self._answer.endswith(b"\n"):
                self._step(max(0.0, min(due - now, 0.05)) if now < due else 0.05)
                continue
            failed += self._answer.startswith(b"HTTP") and b" 200 " not in self._answer[:13]
            self._answer = b""
            publisher.sendall(self._request_of(due, 1, headers, pad, "keep-alive"))
            sent += 1
            due += interval
        deadline = time.monotonic() + 10
        wanted = before["received"] + sent * readers
        while self._counts["received"] < wanted and time.monotonic() < deadline:
            self._step(0.05)
        self._poll.unregister(publisher.fileno())
        publisher.close()
        self._publisher = None
        names = ("received", "missing", "repeated", "lost")
        return {
            "expected": sent * readers,
            "due": round(seconds / interval),
            **{name: self._counts[name] - before[name] for name in names},
            "failed": failed,
            "latency_ms": self._percentiles(),
        }

    def wait(self, received: int, seconds: float) -> dict[str, Any]:
        """Read until each client has `received` messages, or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        check = 0.0
        while (now := time.monotonic()) < deadline:
            self._step(min(0.05, deadline - now))
            if now >= check:
                check = now + 0.1
                if all(client.track.received >= received for client in self._clients.values()):
                    break
        return self.report()

    def stall(self, clients: int) -> dict[str, Any]:
        """Stop reading on the first clients that have not stalled yet."""
        for client in list(self._clients.values())[:clients]:
            self._poll.unregister(client.fd)
            del self._clients[client.fd]
            client.track.rest = b""
            client.state = "strict"
            self._stalled.append(client)
        return {"stalled": len(self._stalled)}

    def resume(self) -> dict[str, Any]:
        """Read again on all clients that were stalled, looking into each frame."""
        for client in self._stalled:
            self._clients[client.fd] = client
            self._poll.register(client.fd, select.EPOLLIN)
        resumed = len(self._stalled)
        self._stalled.clear()
        return {"resumed": resumed}

    def close(self, clients: int = 0) -> dict[str, Any]:
        """Close the first clients, or all of them."""
        leaving = list(self._clients.values())[: clients or None]
        for client in leaving:
            self._forget(client)
        return {"closed": len(leaving)}

    def report(self) -> dict[str, Any]:
        """Counts so far, and the range of what clients received."""
        received = [client.track.received for client in self._clients.values()]
        names = ("lost", "missing", "repeated", "announced")
        return {
            "open": len(self._clients) + len(self._stalled),
            "least": min(received, default=0),
            "most": max(received, default=0),
            **{name: self._counts[name] for name in names},
        }

    # Connecting

    def _start(self, buffer: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            self._counts["lost"] += 1
            sock.close()
            return
        client = Client(sock)
        self._pending += 1
        self._clients[client.fd] = client
        self._poll.register(client.fd, select.EPOLLOUT)

    def _ask(self, client: Client) -> None:
        if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop(client)
            return
        client.sock.send(self._request)
        client.state = "upgrading"
        self._poll.modify(client.fd, select.EPOLLIN)

    def _handshake(self, client: Client) -> None:
        data = client.sock.recv(65536)
        received = client.track.rest + data
        if client.state == "upgrading":
            head, end, rest = received.partition(b"\r\n\r\n")
            if end and not head.startswith((b"HTTP/1.1 101", b"HTTP/1.1 200")):
                self._refuse(client, head.decode("latin-1"))
                return
            if end:
                received = rest
                client.state = _GREETED[self._wire]
        if client.state == "opening" and b"0{" in received:
            client.sock.send(_CONNECT_PACKET)
            client.state = "greeted"
        if client.state == "greeted":
            if b'"connected"' in received:
                client.state = "ready"
            elif self._wire == "sio" and b"44{" in received:
                self._refuse(client, "CONNECT_ERROR")
                return
        client.track.rest = received
        if client.state == "ready":
            client.track.rest = b""
            client.track.next = len(self._sent) if self._numbered else None
            self._pending -= 1
            self._counts["ready"] += 1
        elif not data:
            self._drop(client)

    def _refuse(self, client: Client, head: str) -> None:
        status = head.split(" ", 2)[1] if head.startswith("HTTP") else head
        hint = "+Retry-After" if "\nretry-after:" in head.lower() else ""
        self._refused[status + hint] += 1
        self._pending -= 1
        self._forget(client)

    def _drop(self, client: Client) -> None:
        if client.state not in ("ready", "strict"):
            self._pending -= 1
        self._counts["lost"] += 1
        self._forget(client)

    def _forget(self, client: Client) -> None:
        self._poll.unregister(client.fd)
        del self._clients[client.fd]
        client.sock.close()

    # Receiving

    def _step(self, seconds: float) -> None:
        for fd, _ in self._poll.poll(seconds):
            client = self._clients.get(fd)
            if client is None:
                self._read_answer()
                continue
            try:
                if client.state == "ready":
                    self._scan(client)
                elif client.state == "strict":
                    self._parse(client)
                elif client.state == "connecting":
                    self._ask(client)
                else:
                    self._handshake(client)
            except BlockingIOError:
                continue
            except OSError:
                self._drop(client)

    def _scan(self, client: Client) -> None:
        size = client.sock.recv_into(self._scanner.room)
        if not size:
            self._drop(client)
            return
        self._counts["bytes"] += size
        found = self._scanner.scan(client.track, size)
        if found and self._numbered:
            now = time.monotonic()
            first, last = self._sent[int(found[0])], self._sent[int(found[-1])]
            if first == last:
                self._latency[int((now - first) * 1e5)] += len(found)
            else:
                self._latency.update(int((now - self._sent[int(n)]) * 1e5) for n in found)

    def _parse(self, client: Client) -> None:
        data = client.sock.recv(1 << 20)
        if data:
            self._scanner.parse(client.track, data)
        else:
            self._drop(client)

    def _percentiles(self) -> dict[str, float]:
        total = sum(self._latency.values())
        result: dict[str, float] = {}
        seen = 0
        for step, many in sorted(self._latency.items()):
            seen += many
            for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
                if name not in result and seen >= part * total:
                    result[name] = (step + 1) / 100
        return result

    # Publishing

    def _post(self, size: int, headers: dict[str, str], pad: int) -> None:
        publisher = socket.create_connection(self._address, timeout=30)
        publisher.sendall(self._request_of(time.monotonic(), size, headers, pad, "close"))
        self._answer = b""
        self._publisher = publisher
        self._poll.register(publisher.fileno(), select.EPOLLIN)

    def _request_of(
        self, now: float, size: int, headers: dict[str, str], pad: int, connection: str
    ) -> bytes:
        """A request with messages that count as sent at `now`."""
        first = len(self._sent)
        self._sent.extend([now] * size)
        messages = [
            {
                "type": "status",
                "event": "status_update",
                "data": {"n0": n, "t0": int(now * 1e9), "pad": "x" * pad},
            }
            for n in range(first, first + size)
        ]
        body = json.dumps(messages if size > 1 else messages[0], separators=(",", ":")).encode()
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return (
            b"POST /ws/broadcast HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"
            % (self._address[1], connection.encode(), len(body), head.encode(), body)
        )

    def _read_answer(self) -> None:
        if self._publisher is None:
            return
        data = self._publisher.recv(65536)
        self._answer += data
        if not data:
            self._poll.unregister(self._publisher.fileno())
            self._publisher.close()
            self._publisher = None


def main() -> None:
    """Obey commands until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", choices=("n0", "seq"), default="n0")
    load = Load(parser.parse_args().key)
    gc.disable()
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "connect": load.connect,
        "publish": load.publish,
        "stream": load.stream,
        "wait": load.wait,
        "stall": load.stall,
        "resume": load.resume,
        "close": load.close,
        "report": load.report,
    }
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = commands[command.pop("do")](**command)
        except Exception as error:  # noqa: BLE001 - every failure must reach the benchmark
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
