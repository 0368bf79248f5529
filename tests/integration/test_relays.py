"""What handlers pass on must be readable by every worker, and by clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.integration.relay_handlers import ODD_ROOMS
from tests.support.plain import PlainClient
from tests.support.raw import TEXT, RawClient
from tests.support.service import Service
from tests.support.sioclient import SioClient, on_two_workers, packet, raw_socketio, sio_clients
from tests.support.valkeys import Starter
from tests.support.waiting import until

HANDLERS = "tests.integration.relay_handlers"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Two workers with handlers that relay."""
    running = Service(HANDLERS=HANDLERS, allow_traceback=True).start()
    yield running
    running.stop()


def nested(levels: int) -> str:
    """JSON of so many arrays in each other."""
    return "[" * levels + "]" * levels


async def raw(service: Service) -> RawClient:
    """A Socket.IO client on a bare socket, connected to the main namespace."""
    client = await raw_socketio(service)
    await client.send(TEXT, b"40")
    await packet_of(client, "40")
    return client


async def packet_of(client: RawClient, head: str) -> Any:
    """The JSON of the next packet that begins so; a close frame fails the test."""
    while True:
        _, frame = await client.until_frame(TEXT)
        kind, value = packet(frame.payload)
        if kind == head:
            return value


async def survives(service: Service, pids: list[int], *clients: SioClient) -> None:
    """All workers are those that they were, and all clients are served."""
    assert sorted(service.worker_pids()) == sorted(pids)
    for client in clients:
        assert await client.call("echo", 1) == 1
        assert client.reasons == []
    assert "cannot go on" not in service.log


@asynccontextmanager
async def in_a_room(*services: Service) -> AsyncIterator[list[SioClient]]:
    """Clients in the room `r`, two of each service."""
    async with AsyncExitStack() as stack:
        clients = []
        for each in services:
            clients += await stack.enter_async_context(sio_clients(each, 2))
        for client in clients:
            assert await client.call("join", "r") == "joined"
        yield clients


async def test_a_value_that_is_too_deep_is_refused_at_the_emit(service: Service) -> None:
    pids = service.worker_pids()
    async with in_a_room(service) as clients, await raw(service) as hostile:
        for levels in (125, 126, 127):
            await hostile.send(TEXT, f'421["relay",{nested(levels)}]'.encode())
        await hostile.send(TEXT, b'422["relay",1]')
        assert await packet_of(hostile, "432") == ["relayed"]
        for client in clients:
            await client.wait_event("said", 2)
            assert client.named("said")[-1] == ({"text": 1},)
            assert client.named("said")[0] == ({"text": json.loads(nested(125))},)
        await survives(service, pids, *clients)
    assert "nested too deeply" in service.log


async def test_an_integer_that_is_too_long_is_refused_at_the_emit(service: Service) -> None:
    pids = service.worker_pids()
    async with in_a_room(service) as clients:
        for digits in (309, 400, 5000):
            await clients[0].sio.emit("relay_number", digits)
        # The longest that a client of python-socketio takes.
        assert await clients[0].call("relay_number", 100) == "relayed"
        for client in clients:
            assert await client.wait_event("said") == ({"text": 10**99},)
        await survives(service, pids, *clients)
    assert "more than 308 digits" in service.log


async def test_an_acknowledgement_that_belongs_to_another_worker() -> None:
    async with Service(HANDLERS=HANDLERS) as service:
        pids = service.worker_pids()
        asker, other = await on_two_workers(service)
        there = (await other.call("whoami"))["pid"]
        hostile = await raw(service)
        while service.worker_of(hostile.port) != there:
            hostile = await raw(service)
        await hostile.send(TEXT, b'420["whoami"]')
        sid = (await packet_of(hostile, "430"))[0]["sid"]
        for answer in (nested(128), '[{"_placeholder":true,"num":5}]', "[1]"):
            await asker.sio.emit("ask", {"sid": sid, "event": "question", "data": 0})
            (head, _) = await question(hostile)
            await hostile.send(TEXT, f"43{head[2:]}{answer}".encode())
            if answer == nested(128):
                _, error = await packet_of(hostile, "42")
                assert error["data"]["code"] == "INVALID_PAYLOAD"
        # Acknowledgements that nothing awaits: the library keeps its counter under 0.
        for head in ("430", "439999", "430"):
            await hostile.send(TEXT, f"{head}[1]".encode())
        body = {"sid": sid, "event": "question", "data": 0}
        asking = asyncio.create_task(asker.call("ask", body))
        (head, _) = await question(hostile)
        await hostile.send(TEXT, f'43{head[2:]}["fine"]'.encode())
        assert await asking == "fine"
        await survives(service, pids, asker, other)
        for client in (asker, other):
            await client.close()


async def question(client: RawClient) -> tuple[str, Any]:
    """The next event that asks for an acknowledgement."""
    while True:
        _, frame = await client.until_frame(TEXT)
        head, value = packet(frame.payload)
        if head.startswith("42") and len(head) > 2:
            return head, value


async def test_two_machines_survive_what_a_client_relays(start_valkey: Starter) -> None:
    url = start_valkey("--appendonly", "yes")
    async with (
        Service(WORKERS=2, BACKPLANE_URL=url, HANDLERS=HANDLERS, allow_traceback=True) as one,
        Service(WORKERS=2, BACKPLANE_URL=url, HANDLERS=HANDLERS, allow_traceback=True) as two,
    ):
        pids = one.worker_pids() + two.worker_pids()
        async with in_a_room(one, two) as clients, await raw(one) as hostile:
            for text in (nested(126), nested(127), nested(128)):
                await hostile.send(TEXT, f'421["relay",{text}]'.encode())
            await clients[0].sio.emit("relay_number", 400)
            assert await clients[0].call("relay", "honest") == "relayed"
            for client in clients:
                await client.wait_event("said")
                assert client.named("said") == [({"text": "honest"},)]
                assert client.reasons == []
        assert sorted(one.worker_pids() + two.worker_pids()) == sorted(pids)


@pytest.mark.parametrize("levels", [127, 5000])
async def test_a_value_that_is_too_deep_for_this_worker_alone(
    service: Service, levels: int
) -> None:
    async with sio_clients(service) as (client,):
        assert "nested too deeply" in await client.call("relay_here", levels)
        assert await client.call("relay_here", 100) == "relayed"
        assert await client.call("echo", 1) == 1


MOST_LINES = 20
"""Of one kind in ten seconds."""


async def test_callbacks_that_fail_do_not_fill_the_log(service: Service) -> None:
    before, times = service.log.count("Request failed"), 2 * MOST_LINES
    async with await raw(service) as client:
        await client.send(TEXT, f'427["ask_in_vain",{times}]'.encode())
        for _ in range(times):
            question = await client.packet("42")
            while '"question"' not in question:
                question = await client.packet("42")
            await client.send(TEXT, f"43{question[2 : question.index('[')]}[1]".encode())
        await client.send(TEXT, b'428["echo",1]')
        assert await packet_of(client, "438") == [1]
    assert 0 < service.log.count("Request failed") - before <= MOST_LINES


async def test_failing_handlers_of_connects_and_disconnects_do_not_fill_the_log(
    service: Service,
) -> None:
    async with await raw(service) as client:
        for _ in range(2 * MOST_LINES):
            await client.send(TEXT, b"40/failing,")
            assert await packet_of(client, "44/failing,") == {
                "message": "Connection rejected by server"
            }

    async def come_and_go() -> None:
        async with await raw(service) as client:
            await client.send(TEXT, b'40/failing,{"in":1}')
            await client.packet("40/failing,")

    calls = 4 * MOST_LINES
    await asyncio.gather(*(come_and_go() for _ in range(calls)))
    await until(lambda: service.log.count("a disconnect handler is called") == calls)
    for kind, workers in (("connect", 1), ("disconnect", 2)):
        count = service.log.count(f" {kind.title()} handler failed")
        assert 0 < count <= workers * MOST_LINES, (kind, count)


@pytest.mark.parametrize("event", ["nan", "infinite", "thing"])
async def test_an_acknowledgement_that_is_not_json(service: Service, event: str) -> None:
    async with await raw(service) as client:
        await client.send(TEXT, f'429["{event}"]'.encode())
        (answer,) = await packet_of(client, "439")
        assert (answer["event"], answer["data"]["code"]) == ("error", "INTERNAL_ERROR")
        await client.send(TEXT, b'428["echo",1]')
        assert await packet_of(client, "438") == [1]
    assert f"What the handler of the event '{event}' returns cannot be sent" in service.log


async def test_a_refusal_that_is_not_json(service: Service) -> None:
    async with await raw(service) as client:
        await client.send(TEXT, b"40/refusing,")
        refused = await packet_of(client, "44/refusing,")
        assert refused == {"message": "Connection rejected by server"}
        await client.send(TEXT, b'428["echo",1]')
        assert await packet_of(client, "438") == [1]


@pytest.mark.parametrize(
    "event", ["*", "connect", "disconnect", "connect_error", "disconnecting", "newListener"]
)
@pytest.mark.parametrize("binary", [False, True])
async def test_an_event_that_no_client_may_name(service: Service, event: str, binary: bool) -> None:
    async with await raw(service) as client:
        if binary:
            part = '{"_placeholder":true,"num":0}'
            await client.send(TEXT, f'451-7["{event}","VICTIM-SID",{part}]'.encode())
            await client.send(2, b"attachment")
        else:
            await client.send(TEXT, f'427["{event}","VICTIM-SID",1]'.encode())
        (answer,) = await packet_of(client, "437")
        assert answer["data"]["code"] == "INVALID_PAYLOAD"
        # A catch-all handler gets all others, with the id of their sender.
        await client.send(TEXT, b'428["other","VICTIM-SID"]')
        (got,) = await packet_of(client, "438")
        assert got["event"] == "other"
        assert got["sid"] != "VICTIM-SID"
        assert got["args"] == ["VICTIM-SID"]


async def test_rooms_that_can_be_none(service: Service) -> None:
    pids = service.worker_pids()
    async with in_a_room(service) as clients:
        for how in ("enter", "enter elsewhere", "leave elsewhere", "close", "emit"):
            for room in ODD_ROOMS:
                answer = await clients[0].call("odd_room", {"how": how, "room": room})
                assert "The name of a room" in answer, (how, room, answer)
        for how in ("disconnect", "skip"):
            for room in ("dict", "bytes", "float", "true", "long", "object"):
                answer = await clients[0].call("odd_room", {"how": how, "room": room})
                assert "The id of a client" in answer, (how, room, answer)
        for room in ("dict", "nested", "bytes", "float", "true", "object"):
            answer = await clients[0].call("odd_room", {"how": "event", "room": room})
            assert "The name of an event" in answer, (room, answer)
            answer = await clients[0].call("odd_room", {"how": "namespace", "room": room})
            assert "The name of a namespace" in answer, (room, answer)
        await survives(service, pids, *clients)


async def test_an_event_in_a_stream_that_cannot_be_stored_harms_no_other(service: Service) -> None:
    pids = service.worker_pids()
    async with in_a_room(service) as clients:
        reader = await PlainClient.open(service, types="status")
        await reader.barrier()
        hostile = await raw(service)
        for event, data in (("\\ud800", "1"), ("connect", "1"), ("deep", nested(126))):
            await hostile.send(
                TEXT, f'421["publish",{{"event":"{event}","data":[[{data}]]}}]'.encode()
            )
        assert await clients[0].call("publish", {"event": "fine", "data": 1}) == "published"
        assert (await reader.expect("fine"))["data"] == 1
        await survives(service, pids, *clients)
        await reader.close()
