"""Two workers on one Valkey with both ends of their handoffs, and clients on socket pairs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from app.backplane.worker_names import Place
from app.config import Settings
from app.main import Reached, make_parts
from app.protocol.envelope import new_id
from app.protocol.requests import ConnectOptions
from app.sessions.handoff.transfer import SessionBatch, Transfer
from app.sessions.plain import PlainSession
from app.sessions.session import Session
from app.sessions.socketio.server import RealtimeServer
from app.sessions.socketio.session import SocketIOSession
from app.worker import Worker
from tests.support.backplane import MakeNode
from tests.support.valkeys import ValkeyProcess
from tests.support.waiting import until
from workers.shared.slots import SlotTable
from workers.shared.worker_slots import WorkerSlots

SECRET = "a secret of thirty-two characters"


class Client:
    """The other end of a session's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.parser = Protocol(Side.CLIENT, max_size=None)
        self.texts: list[str] = []
        self.binaries: list[bytes] = []
        self.closed = False

    def read(self) -> list[str]:
        """All text messages so far."""
        try:
            while data := self.sock.recv(1 << 20):
                self.parser.receive_data(data)
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        assert self.parser.parser_exc is None, self.parser.parser_exc
        for frame in self.parser.events_received():
            if frame.opcode is Opcode.TEXT:  # type: ignore[union-attr]
                self.texts.append(bytes(frame.data).decode())  # type: ignore[union-attr]
            elif frame.opcode is Opcode.BINARY:  # type: ignore[union-attr]
                self.binaries.append(bytes(frame.data))  # type: ignore[union-attr]
            else:
                self.closed = frame.opcode is Opcode.CLOSE  # type: ignore[union-attr]
        return self.texts

    def frame(
        self, content: str | bytes, *, opcode: Opcode = Opcode.TEXT, fin: bool = True
    ) -> bytes:
        body = content.encode() if isinstance(content, str) else content
        return Frame(opcode, body, fin).serialize(mask=True)

    def say(self, text: str) -> None:
        self.sock.sendall(self.frame(text))

    def ask(self, action: str, payload: Any = None, id: str = "q") -> None:
        self.say(json.dumps({"action": action, "payload": payload, "id": id}))

    async def wait(self, wanted: Callable[[str], bool]) -> str:
        """The first text for which this is so; waits for it."""
        await until(lambda: any(map(wanted, self.read())))
        return next(text for text in self.texts if wanted(text))

    async def event(self, name: str, count: int = 1) -> Any:
        """The `count`-th envelope with this event."""
        await until(lambda: len(self.named(name)) >= count)
        return self.named(name)[count - 1]

    def named(self, name: str) -> list[Any]:
        """Envelopes with this event so far, of either protocol."""
        found = []
        for text in self.read():
            if text.startswith("{"):
                found.append(json.loads(text))
            elif text.startswith('42["'):
                found.append(json.loads(text[2:])[1])
        return [one for one in found if isinstance(one, dict) and one.get("event") == name]

    def seqs(self) -> list[int]:
        return [one["seq"] for one in self.named("tick")]


class Workplace:
    """One worker, its row, and both ends of its handoffs."""

    def __init__(self, worker: Worker, slots: WorkerSlots, table: SlotTable) -> None:
        self.worker = worker
        self.slots = slots
        self.sessions = worker.parts.sessions
        self.transfer = Transfer(self.sessions, worker.parts.history, slots)
        self.generation = next(r.generation for r in table.rows() if r.number == slots.index)

    def session(
        self, socketio: bool, options: ConnectOptions, user: str | None, small: bool
    ) -> Client:
        ours, theirs = socket.socketpair()
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        theirs.setblocking(False)
        assert self.slots.reserve_connection()
        context = self.sessions
        session: PlainSession | SocketIOSession
        if socketio:
            session = SocketIOSession(context, ours.detach(), new_id(), user)
        else:
            session = PlainSession(context, ours.detach(), new_id(), user)
        context.hub.attach(session)
        if isinstance(session, SocketIOSession):
            session.begin(options)
        else:
            session.begin(None, options)
        return Client(theirs)

    def takes(self, states: Sequence[Any], chunks: Sequence[bytes]) -> list[bool]:
        """Which of these states this worker would go on with."""
        return [state is not None for state in self.transfer.judge(states, chunks)]

    @property
    def only(self) -> Any:
        """The one session of this worker."""
        [session] = self.sessions.registry.by_id.values()
        return session


class Bench:
    """A giver and a successor."""

    def __init__(self, giver: Workplace, successor: Workplace, table: SlotTable) -> None:
        self.giver = giver
        self.successor = successor
        self.table = table
        self.clients: list[Client] = []

    def connect(
        self,
        *,
        socketio: bool = False,
        options: ConnectOptions | None = None,
        user: str | None = None,
        small: bool = False,
    ) -> Client:
        """A new connection at the giver."""
        client = self.giver.session(socketio, options or ConnectOptions(), user, small)
        self.clients.append(client)
        return client

    async def socketio(self, *namespaces: str, auth: Any = None) -> Client:
        """A Socket.IO client, in namespaces."""
        client = self.connect(socketio=True)
        client.say("40" + json.dumps(auth or {}))
        await client.event("connected")
        for namespace in namespaces:
            client.say(f"40{namespace},")
            await client.wait(lambda text, space=namespace: text.startswith(f"40{space},"))
        return client

    async def pack(self) -> SessionBatch:
        """What the giver can pass, as soon as all sessions are at rest."""
        transfer = self.giver.transfer

        def rests() -> bool:
            return len(transfer.at_rest(100)) + len(transfer.stay) == len(transfer.left())

        await until(rests)
        return transfer.pack(transfer.at_rest(100))

    async def deliver(self, batch: SessionBatch) -> list[Session]:
        """Over to the successor, by way of JSON and duplicates."""
        states = json.loads(json.dumps(batch.states))
        judged = self.successor.transfer.judge(states, batch.payload.chunks)
        taken = [state for state in judged if state is not None]
        assert len(taken) == len(states)
        fds = [os.dup(fd) for fd in batch.descriptors]
        self.giver.transfer.let_go(batch.sessions)
        origin = Place(self.giver.slots.index, self.giver.generation)
        return await self.successor.transfer.unpack(origin, taken, fds, batch.control)

    async def hand_over(self) -> list[Session]:
        return await self.deliver(await self.pack())

    async def tick(self, count: int = 1, type: str = "status", size: int = 0) -> int:
        """Publish messages; the last one's `seq`."""
        for number in range(count):
            position = await self.giver.worker.parts.publishing.publish(
                type, "tick", [number, "x" * size]
            )
        return position.seq

    def counts(self) -> list[int]:
        rows = {row.number: row.connections for row in self.table.rows()}
        return [rows[self.giver.slots.index], rows[self.successor.slots.index]]


MakeBench = Callable[..., Awaitable[Bench]]


def register(sio: RealtimeServer) -> None:
    """An application's handlers."""
    for namespace in ("/", "/app"):

        @sio.on("keep", namespace=namespace)
        async def keep(sid: str, value: Any, namespace: str = namespace) -> str:
            await sio.save_session(sid, value, namespace=namespace)
            return "kept"

        @sio.on("kept", namespace=namespace)
        async def kept(sid: str, namespace: str = namespace) -> Any:
            return await sio.get_session(sid, namespace=namespace)

        @sio.on("join", namespace=namespace)
        async def join(sid: str, room: str, namespace: str = namespace) -> str:
            await sio.enter_room(sid, room, namespace=namespace)
            return "joined"

        @sio.on("echo", namespace=namespace)
        async def echo(sid: str, *args: Any, namespace: str = namespace) -> Any:
            return args


@pytest.fixture
async def make(
    valkey: ValkeyProcess, make_node: MakeNode, tmp_path: Path
) -> AsyncIterator[MakeBench]:
    """Makes a bench; keyword arguments are settings of both, or of the successor with `successor_`."""
    made: list[Bench] = []
    table = SlotTable(tmp_path / "slots")
    stopping = asyncio.Event()

    async def workplace(**changes: Any) -> Workplace:
        settings = dataclasses.replace(Settings(), **{"rate_limit": 0, **changes})
        types = {"message_types": settings.message_types}
        node = await make_node(**types)
        slots = WorkerSlots(table, table.claim_row(master=1), settings)
        key = await node.backplane.shared_key()
        parts = make_parts(settings, slots, Reached(node.backplane, node.reader, key))
        register(parts.sessions.sio)
        worker = Worker(parts, stopping.is_set)
        worker.start()
        return Workplace(worker, slots, table)

    async def bench(successor: dict[str, Any] | None = None, **changes: Any) -> Bench:
        giver = await workplace(**changes)
        made.append(Bench(giver, await workplace(**{**changes, **(successor or {})}), table))
        return made[-1]

    yield bench
    stopping.set()
    for one in made:
        for client in one.clients:
            client.sock.close()
        for place in (one.giver, one.successor):
            await place.worker.stop()
