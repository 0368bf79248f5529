"""Conversations of real clients with a service, recorded as the bytes that the clients send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import jwt
import socketio
from websockets.asyncio.client import ClientConnection, connect

from tests.support.mutations import Frame
from tests.support.service import TOKEN, Service

SECRET = "a secret of thirty-two characters"
"""AUTH_SECRET of the service that takes tokens."""
BINARY_EVENT = b"\x00\x01binary\xff" * 20


@dataclass(frozen=True)
class Recording:
    """What one client has sent over one connection."""

    request: bytes
    """The upgrade request."""
    frames: tuple[Frame, ...]


def token(user: str = "torturer") -> str:
    """A token that the service takes for an hour."""
    now = 4_000_000_000
    return jwt.encode({"sub": user, "exp": now}, SECRET, "HS256")


class Recorder:
    """A proxy that keeps what clients send, a connection each."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.sent: list[bytearray] = []
        self.port = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Recorder]:
        """Pass connections on, from a port of its own."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = bytearray()
        self.sent.append(kept)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)

        async def pump(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bytearray | None
        ) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if keep is not None:
                        keep += data
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, up_writer, kept), pump(up_reader, writer, None))

    def recordings(self) -> list[Recording]:
        """Every connection that was upgraded."""
        return [
            Recording(bytes(head) + b"\r\n\r\n", tuple(split_frames(bytes(frames))))
            for head, mark, frames in (sent.partition(b"\r\n\r\n") for sent in self.sent)
            if mark and b"websocket" in head.lower()
        ]


def split_frames(data: bytes) -> list[Frame]:
    """The frames of a well-behaved client."""
    frames, place = [], 0
    while place < len(data):
        first, size = data[place], data[place + 1] & 0x7F
        start = place + 2
        if size == 126:
            (size,) = struct.unpack_from("!H", data, start)
            start += 2
        elif size == 127:
            (size,) = struct.unpack_from("!Q", data, start)
            start += 8
        mask, start = data[start : start + 4], start + 4
        payload = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data[start : start + size]))
        frames.append(Frame(first & 0x0F, payload, bool(first & 0x80)))
        place = start + size
    return frames


async def record(service: Service) -> list[Recording]:
    """What clients of both protocols send to a service: every action, event, ack and reconnect."""
    auth = {"token": token()} if "AUTH_SECRET" in service.settings else {"user": "torturer"}
    clients: list[Callable[[int, Mapping[str, str]], Awaitable[None]]]
    clients = [_plain, _socketio, _namespaces, _recovery]
    if "token" in auth:
        clients.append(_plain_with_token)
    found: list[Recording] = []
    for client in clients:
        recorder = Recorder(service.port)
        async with recorder.listen():
            await client(recorder.port, auth)
        found += recorder.recordings()
    assert len(found) >= 6
    return found


async def _plain(port: int, auth: Mapping[str, str]) -> None:
    resume = ""
    for _ in range(2):
        name, value = next(iter(auth.items()))
        url = f"ws://127.0.0.1:{port}/ws/realtime?types=status&batch=1&{name}={value}"
        if resume:
            url += f"&resume={resume}"
        async with connect(url, compression=None, proxy=None) as client:
            greeting = json.loads(await client.recv())
            resume = greeting["data"]["resume"]
            requests: list[tuple[str, Any]] = [
                ("subscribe", {"types": ["stats", "health"], "history": 5, "batch": True}),
                ("get_history", {"type": "status", "limit": 3, "before": 1000}),
                ("presence", {"type": "status"}),
                ("ping", {"x": "ping " * 40, "n": [1, 2.5, None, True]}),
                ("ack", {"id": "a1b2"}),
                ("unsubscribe", {"types": ["stats"]}),
                ("ping", "x" * 3000),
            ]
            for number, (action, payload) in enumerate(requests):
                envelope = {"id": f"r{number}", "type": "config", "timestamp": 1, "action": action}
                await client.send(json.dumps(envelope | {"payload": payload}))
            await client.ping()
            await _until(client, '"replyTo":"r6"')
            seq = {"epoch": "e", "seq": 1}
            await client.send(
                json.dumps(
                    {
                        "action": "subscribe",
                        "payload": {"types": ["config"], "recover": {"config": seq}},
                    }
                )
            )
            await _until(client, '"subscribed"')


async def _plain_with_token(port: int, auth: Mapping[str, str]) -> None:
    url = f"ws://127.0.0.1:{port}/ws/realtime"
    async with connect(url, compression=None, proxy=None) as client:
        await client.send(json.dumps({"action": "auth", "id": 1, "payload": dict(auth)}))
        await _until(client, '"connected"')
        await client.send(json.dumps({"action": "auth", "id": 2, "payload": dict(auth)}))
        await _until(client, '"replyTo":2')


async def _socketio(port: int, auth: Mapping[str, str]) -> None:
    client = socketio.AsyncClient(reconnection=False)

    async def question(*args: Any) -> Any:
        return {"answer": list(args)[:2], "bytes": BINARY_EVENT}

    client.on("question", question)
    await client.connect(
        f"http://127.0.0.1:{port}",
        auth=dict(auth),
        transports=["websocket"],
        socketio_path="/ws/realtime",
    )
    calls: list[tuple[str, Any]] = [
        ("subscribe", {"types": ["status", "stats"], "history": 5, "batch": True}),
        ("get_history", {"type": "status", "limit": 3}),
        ("presence", {"type": "status"}),
        ("ping", {"x": "ping"}),
        ("echo", ({"a": [1, 2, {"b": BINARY_EVENT}]}, BINARY_EVENT, "text")),
        ("enter", "room"),
        ("relay", {"said": "hello " * 20}),
        ("relay", {"said": BINARY_EVENT}),
        ("keep", {"kept": [1, "two"]}),
        ("ask", ({"question": 1}, BINARY_EVENT)),
        ("ask", "text"),
        ("tell", ("reply", {"x": 1})),
        ("leave", "room"),
        ("unsubscribe", {"types": ["stats"]}),
    ]
    for event, data in calls:
        await client.call(event, data, timeout=10)
    await client.emit("echo", {"without": "ack"})
    await client.emit("slow")
    await client.call("ping", None, timeout=10)
    await client.disconnect()
    await client.wait()


async def _namespaces(port: int, auth: Mapping[str, str]) -> None:
    client = socketio.AsyncClient(reconnection=False)
    await client.connect(
        f"http://127.0.0.1:{port}",
        auth=dict(auth),
        transports=["websocket"],
        namespaces=["/", "/app"],
        socketio_path="/ws/realtime",
    )
    for namespace in ("/", "/app"):
        await client.call("echo", {"in": namespace}, namespace=namespace, timeout=10)
        await client.call("enter", "room", namespace=namespace, timeout=10)
        await client.call("relay", BINARY_EVENT, namespace=namespace, timeout=10)
    await client.disconnect()
    await client.wait()


async def _recovery(port: int, auth: Mapping[str, str]) -> None:
    url = f"ws://127.0.0.1:{port}/ws/realtime/?EIO=4&transport=websocket"
    known: dict[str, str] = {}
    for _ in range(2):
        async with connect(url, compression=None, proxy=None) as client:
            await client.send("40" + json.dumps({**auth, **known}))
            answer = await _until(client, '40{"sid"')
            known = {"pid": json.loads(answer[2:])["pid"]}
            await client.send('421["subscribe",{"types":["status","health"]}]')
            offset = json.loads((await _until(client, '42["offset"'))[2:])[1]
            known["offset"] = offset
            await client.send("3")
            await client.send("41")


async def _until(client: ClientConnection, mark: str) -> str:
    async with asyncio.timeout(10):
        while True:
            text = await client.recv()
            if isinstance(text, str) and mark in text:
                return text


def http_requests(port: int) -> list[bytes]:
    """Right requests for every route."""
    host = f"Host: 127.0.0.1:{port}\r\n"
    bearer = f"Authorization: Bearer {TOKEN}\r\n"

    def post(path: str, body: Any, head: str = bearer) -> bytes:
        data = json.dumps(body).encode()
        length = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        return f"POST {path} HTTP/1.1\r\n{host}{head}{length}\r\n".encode() + data

    message = {"type": "config", "event": "noise", "data": {"x": [1, 2, "three"]}, "id": "n1"}
    alert = {
        "status": "firing",
        "labels": {"alertname": "Noise", "severity": "warning"},
        "annotations": {"summary": "noise", "value": "1.5"},
        "startsAt": "2026-11-26T10:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "0123456789abcdef",
    }
    upgrade = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    origin = "Origin: http://localhost\r\n"
    return [
        *(
            f"GET {path} HTTP/1.1\r\n{host}\r\n".encode()
            for path in (
                "/",
                "/status",
                "/stats",
                "/history?type=status&limit=10&before=5",
                "/metrics",
                "/ws/stats",
                "/ws/queue",
                "/ws/realtime",
                "/nothing?here=1",
            )
        ),
        f"HEAD /status HTTP/1.1\r\n{host}\r\n".encode(),
        f"OPTIONS /status HTTP/1.1\r\n{host}{origin}Access-Control-Request-Method: GET\r\n\r\n".encode(),
        post("/ws/broadcast", message),
        post("/ws/broadcast", [message, message | {"priority": "low", "id": "n2"}]),
        post("/ws/broadcast", message, "X-Publish-Token: wrong\r\n"),
        post("/ws/broadcast", message, bearer + "Expect: 100-continue\r\n"),
        post("/status", {"state": "busy", "task": "noise"}),
        post("/hooks/alertmanager", {"version": "4", "alerts": [alert, alert]}),
        f"GET /ws/realtime?types=status&user=h HTTP/1.1\r\n{host}{upgrade}\r\n".encode(),
        f"GET /ws/realtime/?EIO=4&transport=websocket HTTP/1.1\r\n{host}{origin}{upgrade}\r\n".encode(),
    ]
