"""Sessions over socket pairs, with all parts of a worker that they use and their clients."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from app.broadcast.catchup import CatchUp
from app.config import Settings
from app.metrics import Metrics
from app.protocol.requests import ConnectOptions
from app.sessions.assembly import SessionNeeds, make_context
from app.sessions.auth import TokenVerifier
from app.sessions.names import Names
from app.sessions.plain import PlainSession
from app.sessions.rates import Limits, Rates
from app.types import Gap, Message, Position, Subscribers
from tests.support.delivery import Bench
from tests.support.slots import TableSlots
from tests.support.waiting import until
from workers.shared.slots import SlotTable


class SlowHistory:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.items: list[Message] = []

    def recent(self, type: str, epoch: str, seq: int) -> Sequence[Message]:
        return [item for item in self.items if item.type == type and item.seq > seq]

    async def after(self, type: str, epoch: str, seq: int, limit: int) -> Sequence[Message | Gap]:
        return self.recent(type, epoch, seq)

    async def newest(self, type: str, limit: int, before: int | None) -> tuple[list[Message], bool]:
        await self.open.wait()
        return list(self.recent(type, "e1", 0))[-limit:], False


class Worker(Bench):
    """What sessions need of a worker; history is a list, and the backplane is left out.

    Args:
        table: the slot table, where several workers share one.
        changes: of the settings.
    """

    def __init__(self, table: SlotTable | None = None, **changes: Any) -> None:
        types = ("status", "stats")
        self.settings = Settings(message_types=types, default_subscriptions=("status",), **changes)
        self.rates = Rates(Limits.of(self.settings))
        super().__init__(meter=self.rates)
        self.history = SlowHistory()
        self.catchup = CatchUp(self.fanout, self.history, frozenset())
        self.slots = TableSlots(self.settings, table=table)
        self.sockets: list[socket.socket] = []

        async def nothing(*_: object) -> None: ...

        history: Any = self.history
        self.context = make_context(
            SessionNeeds(
                settings=self.settings,
                key=b"k" * 32,
                hub=self.hub,
                rates=self.rates,
                fanout=self.fanout,
                catchup=self.catchup,
                history=history,
                slots=self.slots,
                claims=None,
                verifier=TokenVerifier(self.settings),
                metrics=Metrics(types),
                subscribers=lambda _: Subscribers(3, 2),
                names=Names(frozenset({"status"}), needs_claim=False, read=self.read_names),
                control_position=Position("c", 0),
                send_control=nothing,
                publish=nothing,
                note_unreadable=lambda: None,
            )
        )

    async def deliver(self, *items: Message | Gap) -> None:
        """What a worker does with what it has read."""
        await self.fanout.deliver(items)
        for session in self.fanout.take_awaiting():
            self.context.catchup.start(session)

    async def read_names(self, type: str, after: str, limit: int) -> tuple[int, dict[str, int]]:
        names = [name for name in ("ann", "bob", "zoe") if name > after]
        return 3, dict.fromkeys(names[:limit], 1)

    def descriptor(self, *, small: bool = False) -> tuple[int, socket.socket]:
        """The end of a connection for a session, and that of its client.

        Args:
            small: whether the kernel takes little that is not read.
        """
        ours, theirs = socket.socketpair()
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        theirs.setblocking(False)
        self.sockets.append(theirs)
        assert self.slots.reserve_connection()
        return ours.detach(), theirs

    def client(
        self, id: str = "c1", options: ConnectOptions | None = None, user: str | None = None
    ) -> Client:
        """A client of the plain protocol that has just connected."""
        fd, theirs = self.descriptor()
        session = PlainSession(self.context, fd, id, user)
        self.hub.attach(session)
        session.begin(None, options or ConnectOptions())
        return Client(session, theirs)

    def close(self) -> None:
        super().close()
        for sock in self.sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()


class Client:
    """The other end of a plain session; it answers pings once `answer_pings` is called."""

    def __init__(self, session: PlainSession, sock: socket.socket) -> None:
        self.session = session
        self.sock = sock
        self.parser = Protocol(Side.CLIENT, max_size=None)
        self.frames: list[Any] = []

    def ask(self, action: str, payload: Any = None, id: Any = None) -> None:
        self.say(json.dumps({"action": action, "payload": payload, "id": id}))

    def say(self, *texts: str) -> None:
        self.sock.sendall(
            b"".join(Frame(Opcode.TEXT, text.encode()).serialize(mask=True) for text in texts)
        )

    def read(self) -> list[Any]:
        try:
            while data := self.sock.recv(1 << 20):
                self.parser.receive_data(data)
        except BlockingIOError:
            pass
        self.frames += self.parser.events_received()
        return self.frames

    def answer_pings(self) -> None:
        """Answer each ping from now on, as soon as it comes."""

        def answer() -> None:
            self.read()
            self.sock.sendall(b"".join(self.parser.data_to_send()))

        asyncio.get_running_loop().add_reader(self.sock, answer)

    async def event(self) -> dict[str, Any]:
        await until(self.read)
        envelope: dict[str, Any] = json.loads(self.frames.pop(0).data)
        return envelope

    async def events(self, count: int) -> list[str]:
        return [(await self.event())["event"] for _ in range(count)]

    async def close_code(self) -> int:
        await until(lambda: any(frame.opcode is Opcode.CLOSE for frame in self.read()))
        return int.from_bytes(self.frames[-1].data[:2], "big")
