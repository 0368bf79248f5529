"""Clients that come back get what they missed: unchanged clients, any worker, any number of times."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.backplane.history import TAIL_MESSAGES
from tests.support.envelopes import walk
from tests.support.node import Node, script
from tests.support.plain import PlainClient
from tests.support.raw import TEXT, RawClient
from tests.support.service import Service
from tests.support.sioclient import packet, raw_socketio, sio_clients
from tests.support.streams import Fleet, Stream, spread_of
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

Line = dict[str, Any]


@asynccontextmanager
async def recovering(node: Path, service: Service, **options: Any) -> AsyncIterator[Node]:
    """A socket.io-client that reconnects by itself."""
    path = node / "recover.mjs"
    async with script(path, BASE=service.base, OPTIONS=json.dumps(options)) as peer:
        yield peer


async def connect(peer: Node) -> tuple[str, bool]:
    """The id of the next connection, and whether it was recovered."""
    while "connect" not in (line := await peer.line()):
        pass
    return line["connect"], line["recovered"]


async def seqs(peer: Node, event: str, last: int) -> list[int]:
    """`seq` of each message with this event, up to `last`."""
    found: list[int] = []
    while not found or found[-1] < last:
        found.append((await peer.until("event", event))["seq"])
    return found


# The unchanged client of Node.


async def test_node_recovers_many_times(service: Service, node: Path) -> None:
    """From the first time on, before any event, and to whichever worker it comes."""
    async with recovering(node, service) as peer:
        ident, recovered = await connect(peer)
        assert recovered is False
        for _ in range(6):
            await peer.until("event", "connected")
            await peer.tell(cut=True)
            await peer.until("disconnect", "transport close")
            assert await connect(peer) == (ident, True)
        sent = await service.publish("status", "tick")
        assert await seqs(peer, "tick", sent["seq"]) == [sent["seq"]]
        for _ in range(6):
            await peer.tell(cut=True)
            await peer.until("disconnect", "transport close")
            missed = [(await service.publish("status", "tick"))["seq"] for _ in range(5)]
            assert await connect(peer) == (ident, True)
            assert await seqs(peer, "tick", missed[-1]) == missed


async def test_node_recovers_on_another_worker_after_a_kill(node: Path) -> None:
    async with Service(allow_traceback=True) as service, recovering(node, service) as peer:
        ident, _ = await connect(peer)
        await peer.until("event", "connected")
        for number in range(2):
            if number:
                sent = await service.publish("status", "tick")
                await seqs(peer, "tick", sent["seq"])
            await service.wait_connections(1)
            victim = next(pid for pid, count in spread_of(service).items() if count)
            service.kill_worker(victim)
            missed = await publish_through_storm(service, 5)
            assert await connect(peer) == (ident, True)
            assert await seqs(peer, "tick", missed[-1]) == missed
            await service.replaced(victim)


async def publish_through_storm(service: Service, count: int) -> list[int]:
    """Publish while a worker has just died."""

    async def one(number: int) -> int | None:
        try:
            return int((await service.publish("status", "tick", number))["seq"])
        except OSError:
            return None

    return [await until(lambda n=number: one(n), "published") for number in range(count)]  # type: ignore[arg-type]


async def test_node_recovers_after_a_restart_of_everything(node: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="yj-data-") as directory:
        first = Service(data_dir=Path(directory) / "data")
        await asyncio.to_thread(first.start)
        async with recovering(node, first) as peer:
            ident, _ = await connect(peer)
            sent = await first.publish("status", "tick")
            await seqs(peer, "tick", sent["seq"])
            await asyncio.to_thread(first.stop)
            second = Service(data_dir=Path(directory) / "data")
            second.port, second.settings["BIND"] = first.port, first.settings["BIND"]
            async with second:
                missed = [(await second.publish("status", "tick"))["seq"] for _ in range(3)]
                assert await connect(peer) == (ident, True)
                # What came before its own return was missed; nothing comes twice.
                assert await seqs(peer, "tick", missed[-1]) == missed


async def test_node_is_informed_when_it_cannot_recover(node: Path) -> None:
    async with (
        Service(HISTORY_SIZE=10, RECOVERY_WINDOW="0.1s") as service,
        recovering(node, service, reconnection=False) as peer,
    ):
        ident, _ = await connect(peer)
        sent = await service.publish("status", "tick")
        await seqs(peer, "tick", sent["seq"])
        await peer.tell(cut=True)

        async def is_lost() -> bool:
            # More than a worker keeps in memory: what it holds is recovered, trimmed or not.
            await service.publish_all(
                {"type": "status", "event": "bulk", "data": n} for n in range(TAIL_MESSAGES + 1)
            )
            return not await service.history("status", before=sent["seq"] + 2)

        await until(is_lost, "a history that has lost the next message")
        await peer.tell(open=True)
        again, recovered = await connect(peer)
        assert recovered is False
        assert again != ident
        gap = await peer.until("event", "gap")
        assert gap["data"]["first"] == sent["seq"] + 1
        assert gap["data"]["reason"] == "history"


async def test_an_event_that_ends_in_a_string(service: Service, node: Path) -> None:
    """socket.io-client takes the string for its offset; the next one repairs it."""
    async with recovering(node, service) as peer, sio_clients(service) as [sayer]:
        ident, _ = await connect(peer)
        sent = await service.publish("status", "tick")
        await seqs(peer, "tick", sent["seq"])
        for text in ("just a text", "", "yj1;status,e,1"):
            await sayer.call("say", {"event": "said", "data": text, "to": ident})
            await peer.until("event", "said")
            await peer.tell(cut=True)
            await peer.until("disconnect", "transport close")
            missed = (await service.publish("status", "tick"))["seq"]
            assert await connect(peer) == (ident, True)
            assert await seqs(peer, "tick", missed) == [missed]


# python-socketio's client, as it comes.


async def test_handlers_with_one_argument(service: Service) -> None:
    """Every message has one argument, and the offset is an event of its own."""
    import socketio

    client = socketio.AsyncClient(reconnection=False)
    got: list[tuple[str, Any]] = []
    offsets: list[str] = []

    @client.event
    async def tick(envelope: Any) -> None:
        got.append(("tick", envelope["seq"]))

    @client.event
    async def offset(text: Any) -> None:
        offsets.append(text)

    await client.connect(
        service.base, transports=["websocket"], socketio_path="/ws/realtime", auth={"user": "p"}
    )
    sent = [await service.publish("status", "tick") for _ in range(3)]
    await until(lambda: len(got) == 3, "three messages")
    assert [seq for _, seq in got] == [one["seq"] for one in sent]
    await until(lambda: bool(offsets) and f",{sent[-1]['seq']}" in offsets[-1], "its offset")
    assert all(isinstance(text, str) for text in offsets)
    await client.disconnect()
    await client.wait()


# On the wire.


class SioWire:
    """Socket.IO on a bare socket: what CONNECT says, and what follows."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.answer: Line = {}

    @classmethod
    async def open(cls, service: Service, auth: Line | None = None) -> SioWire:
        wire = cls(await raw_socketio(service))
        await wire.client.frame()
        await wire.client.send(TEXT, b"40" + json.dumps(auth or {}).encode())
        head, wire.answer = packet((await wire.client.frame()).payload)
        assert head == "40", (head, wire.answer)
        return wire

    async def event(self, name: str) -> Any:
        """The first argument of the next event with this name."""
        while True:
            head, content = packet((await self.client.frame()).payload)
            if head == "42" and content[0] == name:
                return content[1]


@pytest.mark.parametrize(
    "offset",
    [
        "garbage",
        "",
        17,
        None,
        ["yj1;"],
        "yj1;nosuchtype,e,5",
        "yj1;status,another-epoch,5",
        "yj1;" + "x" * 20_000,
        "yj1;status,%s,999999999999999999",
    ],
)
async def test_offset_that_is_garbage(service: Service, offset: Any) -> None:
    """Falls back to `pid`, then to a new beginning with the newest state; never to an error."""
    sent = await service.publish("status", "tick")
    first = await SioWire.open(service)
    await first.event("connected")
    await first.client.abort()
    missed = await service.publish("status", "tick")
    if isinstance(offset, str) and "%s" in offset:
        offset = offset % sent["epoch"]
    pid = first.answer["pid"]
    second = await SioWire.open(service, {"pid": pid, "offset": offset})
    understood = isinstance(offset, str) and offset.startswith("yj1;") and len(offset) < 9000
    assert (second.answer["pid"] == pid) is not understood
    assert (second.answer["sid"] == first.answer["sid"]) is not understood
    if "nosuchtype" not in str(offset):
        assert (await second.event("tick"))["seq"] == missed["seq"]
    await second.client.abort()


@pytest.mark.parametrize("pid", ["garbage", "", 17, None, "a|yj1;|null.0123", "é" * 100, "."])
async def test_pid_that_is_garbage(service: Service, pid: Any) -> None:
    wire = await SioWire.open(service, {"pid": pid, "offset": "yj1;"})
    await wire.event("connected")
    sent = await service.publish("status", "tick")
    assert (await wire.event("tick"))["seq"] == sent["seq"]
    assert wire.answer["pid"] != pid
    await wire.client.abort()


async def test_old_connection_that_still_hangs(service: Service) -> None:
    """The client is back before the server has noticed: one of the two is closed, the old one."""
    for _ in range(12):  # on one worker or on two, as the kernel likes
        first = await SioWire.open(service, {"user": "hanna"})
        await first.event("connected")
        auth = {"user": "hanna", "pid": first.answer["pid"]}
        second = await SioWire.open(service, auth)
        assert second.answer["sid"] == first.answer["sid"]
        await first.client.to_end()
        sent = await service.publish("status", "tick")
        assert (await second.event("tick"))["seq"] == sent["seq"]
        await second.client.abort()


async def test_plain_recovers(service: Service) -> None:
    sent = [await service.publish("health", "tick", n) for n in range(12)]
    client = await PlainClient.open(service, types="")
    at = sent[2]
    recover = {"health": {"epoch": at["epoch"], "seq": at["seq"]}}
    answer = await client.request("subscribe", {"types": ["health"], "recover": recover})
    reported = answer["data"]["types"]["health"]
    assert reported["recovered"] is True
    assert reported["from"] == at["seq"] + 1
    live = await service.publish("health", "tick", 12)
    await client.wait_seq("health", live["seq"])
    story = walk(client.received, "health")
    assert story.seqs == list(range(at["seq"] + 1, live["seq"] + 1))
    assert not story.gaps
    events = [got["event"] for got in client.received]
    assert events.index("subscribed") < events.index("tick")
    await client.close()


@pytest.mark.parametrize("reason", ["history", "epoch"])
async def test_plain_is_informed_when_it_cannot_recover(reason: str) -> None:
    async with Service(WORKERS=1, HISTORY_SIZE=10, RECOVERY_WINDOW="0.1s") as service:
        first = await service.publish("health", "tick")
        for number in range(6):
            await service.publish_all(
                {"type": "health", "event": "tick", "data": n} for n in range(50)
            )
            await asyncio.sleep(0.02 * number)
        sent = await service.publish("health", "tick")
        epoch = first["epoch"] if reason == "history" else "an-epoch-of-old"
        client = await PlainClient.open(service, types="")
        recover = {"health": {"epoch": epoch, "seq": first["seq"]}}
        answer = await client.request("subscribe", {"types": ["health"], "recover": recover})
        assert answer["data"]["types"]["health"]["recovered"] is False
        gap = await client.expect("gap")
        assert gap["data"]["reason"] == reason
        assert gap["data"]["last"] == sent["seq"] - 1
        # The newest state, though.
        assert (await client.expect("tick"))["seq"] == sent["seq"]
        await client.close()


# Many at once.


def history_reads(service: Service) -> int:
    """How often Valkey was asked for a stretch of history."""
    import redis

    with redis.Redis(unix_socket_path=service.valkey_socket()) as valkey:
        stats = valkey.info("commandstats")
    return int(stats.get("cmdstat_eval", {"calls": 0})["calls"])


@pytest.fixture
def restarted() -> Iterator[tuple[Service, int]]:
    """A service whose workers have nothing of 900 messages in memory; and the first `seq`."""
    with tempfile.TemporaryDirectory(prefix="yj-data-") as directory:
        data_dir = Path(directory) / "data"
        service = Service(data_dir=data_dir, HISTORY_SIZE=5000).start()

        async def fill() -> int:
            for _ in range(9):
                last = await service.publish_all(
                    {"type": "status", "event": "tick", "data": "x" * 200} for _ in range(100)
                )
            return int(last[-1]["seq"])

        last = asyncio.run(fill())
        service.stop()
        again = Service(data_dir=data_dir, HISTORY_SIZE=5000).start()
        yield again, last
        again.stop()


async def test_many_at_once_read_history_once(restarted: tuple[Service, int]) -> None:
    service, last = restarted
    epoch = (await service.history("status"))[-1]["epoch"]
    before = history_reads(service)
    async with Fleet(service) as fleet:
        fleet.streams = [Stream(service, socketio=False) for _ in range(400)]
        for stream in fleet.streams:
            # All at the same place, as after the loss of a worker.
            stream.last, stream.epoch = 10, epoch
        await asyncio.gather(*(stream.open() for stream in fleet.streams))
        await fleet.all_at(last)
        assert all(stream.recovered == [True] for stream in fleet.streams)
        assert not any(stream.gaps for stream in fleet.streams)
        for stream in fleet.streams:
            assert len(stream.ids) == last - 10
    # Nine stretches of a hundred, each once per worker; some more for where they begin.
    assert history_reads(service) - before < 60
