"""Promises 1 and 2: the caps are exact over workers, storms, reloads and crashes."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter

import pytest
import socketio.exceptions
import websockets

from tests.support.plain import PlainClient, spread
from tests.support.raw import CLOSE, TEXT, RawClient, encode
from tests.support.service import Service
from tests.support.sioclient import SioClient, raw_socketio
from tests.support.waiting import until


async def storm(service: Service, count: int) -> tuple[list[RawClient], list[RawClient]]:
    """So many connections at once: which were accepted, and which were refused."""
    clients = await asyncio.gather(*(RawClient.open(service) for _ in range(count)))
    accepted = [client for client in clients if client.status == 101]
    refused = [client for client in clients if client.status != 101]
    return accepted, refused


async def drop(clients: list[RawClient]) -> None:
    await asyncio.gather(*(client.abort() for client in clients))


async def check_refusal(client: RawClient) -> None:
    """503 before a session exists, with when to come back and why."""
    assert client.status == 503
    assert int(client.headers["retry-after"]) >= 1
    body = await client.reader.readexactly(int(client.headers["content-length"]))
    assert b"MAX_CONNECTIONS_EXCEEDED" in body


async def test_exactly_the_cap_in_a_storm() -> None:
    cap = 120
    async with Service(WORKERS=3, MAX_TOTAL_CONNECTIONS=cap) as service:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, await service.total_connections())

        watching = asyncio.create_task(watch())
        accepted, refused = await storm(service, 500)
        assert len(accepted) == cap
        assert Counter(client.status for client in refused) == {503: 380}
        for client in refused[:20]:
            await check_refusal(client)
        await service.wait_connections(cap)
        # HTTP is served all the same, and one that leaves makes room for one.
        await drop([*refused, *accepted[:10]])
        await service.wait_connections(cap - 10)
        accepted = accepted[10:]
        more, refused = await storm(service, 50)
        assert len(more) == 10
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert most <= cap
        await drop([*accepted, *more, *refused])
        await service.wait_connections(0)


async def test_the_cap_holds_over_kills() -> None:
    """A worker killed with -9 leaks nothing: its row is freed, its places are free."""
    cap = 60
    async with Service(WORKERS=3, MAX_TOTAL_CONNECTIONS=cap) as service:
        for _ in range(2):
            accepted, refused = await storm(service, 150)
            assert len(accepted) == cap
            holders = service.holders()
            victim = holders[accepted[0].port]
            held = sum(holders[client.port] == victim for client in accepted)
            service.kill_worker(victim)
            await service.wait_connections(cap - held)
            again, more = await storm(service, held + 30)
            # A connect that a dying worker had taken from the queue ends without an answer.
            assert len(again) == held
            await drop([*accepted, *refused, *again, *more])
            await service.replaced(victim)
            await service.wait_connections(0)


async def test_the_cap_holds_over_a_reload() -> None:
    cap = 40
    async with Service(MAX_TOTAL_CONNECTIONS=cap) as service:
        accepted, refused = await storm(service, 80)
        assert len(accepted) == cap
        await drop(refused)
        await service.hup()
        total = await service.total_connections()
        assert total <= cap
        more, refused = await storm(service, 80)
        assert len(more) == cap - total
        await drop([*accepted, *more, *refused])
        await service.wait_connections(0)


async def test_more_workers_share_one_cap() -> None:
    """TTIN adds a worker, TTOU takes one: the table and the cap stay."""
    cap = 50
    async with Service(MAX_TOTAL_CONNECTIONS=cap) as service:
        assert service.process is not None
        service.process.send_signal(signal.SIGTTIN)
        await until(lambda: len(service.worker_pids()) == 3, "three workers")
        service.process.send_signal(signal.SIGTTIN)
        await until(lambda: len(service.worker_pids()) == 4, "four workers")
        accepted, refused = await storm(service, 150)
        assert len(accepted) == cap
        await drop(refused)
        service.process.send_signal(signal.SIGTTOU)
        await until(lambda: len(service.worker_pids()) == 3, "three workers again", 60)
        await drop(accepted)
        await service.wait_connections(0)


# Per address


async def test_the_cap_of_an_address_holds_over_workers_reloads_and_kills() -> None:
    cap = 10
    async with Service(
        WORKERS=3, MAX_CONNECTIONS_PER_ADDRESS=cap, TRUSTED_PROXIES="127.0.0.1"
    ) as service:

        async def storm_from(address: str, count: int) -> list[RawClient]:
            header = {"X-Forwarded-For": address}
            clients = await asyncio.gather(
                *(RawClient.open(service, headers=header) for _ in range(count))
            )
            assert {client.status for client in clients} <= {101, 429}
            await drop([client for client in clients if client.status != 101])
            return [client for client in clients if client.status == 101]

        held: list[RawClient] = []

        async def on_several_workers() -> bool:
            await drop(held)
            await service.wait_connections(0)
            held[:] = await storm_from("192.0.2.1", 40)
            assert len(held) == cap
            holders = service.holders()
            return len({holders[client.port] for client in held}) > 1

        await until(on_several_workers, "connections on several workers", 60)
        others = await storm_from("2001:db8::1", 5) + await storm_from("2001:db8::2", 10)
        assert len(others) == cap
        await service.hup()
        assert await service.total_connections() == 2 * cap
        assert await storm_from("192.0.2.1", 20) == []
        holders = service.holders()
        victim = holders[held[0].port]
        left = [client for client in held if holders[client.port] != victim]
        service.kill_worker(victim)
        await service.replaced(victim)
        again = await storm_from("192.0.2.1", 40)
        assert len(left) + len(again) == cap
        await drop([*left, *again, *others])
        await service.wait_connections(0)
        everything = await storm_from("2001:db8::3", 40)
        assert len(everything) == cap
        await drop(everything)


async def test_too_many_handshakes_of_an_address_are_one_line_of_all_workers() -> None:
    async with Service(WORKERS=3, MAX_CONNECTS_PER_ADDRESS=1) as service:
        accepted, refused = await storm(service, 100)
        assert {client.status for client in refused} == {429}
        lines = [line for line in service.log.splitlines() if "MAX_CONNECTS_PER_ADDRESS" in line]
        assert len(lines) == 1, "one line a minute, however many workers refuse"
        await drop([*accepted, *refused])
        await service.wait_connections(0)


# Per user


async def test_three_connections_of_a_user_over_all_workers() -> None:
    async with Service(WORKERS=3) as service:
        opened = await asyncio.gather(*(PlainClient.open(service, user="ann") for _ in range(12)))

        async def verdict(client: PlainClient) -> bool:
            """Whether the client may stay."""
            try:
                await client.barrier()
            except (AssertionError, websockets.ConnectionClosed):
                return False
            return True

        kept = [
            c
            for c, stays in zip(opened, await asyncio.gather(*map(verdict, opened)), strict=False)
            if stays
        ]
        lost = [client for client in opened if client not in kept]
        assert len(kept) == 3
        for client in lost:
            assert await client.wait_closed() == 1008
            got = client.events("error")
            assert [one["data"]["code"] for one in got] == ["MAX_CONNECTIONS_EXCEEDED"]
            assert not client.events("connected")
        await service.wait_connections(3)
        # Others are not concerned; clients without a name count for no user.
        others = [await PlainClient.open(service, user="bob") for _ in range(3)]
        others += [await PlainClient.open(service) for _ in range(5)]
        await asyncio.gather(*(client.barrier() for client in others))
        await kept[0].close()

        async def comes_in() -> bool:
            client = await PlainClient.open(service, user="ann")
            others.append(client)
            return await verdict(client)

        await until(comes_in, "the place of one that left")
        await asyncio.gather(*(client.close() for client in [*kept, *others]))


async def test_both_protocols_count_together(service: Service) -> None:
    plain = [await PlainClient.open(service, user="eve") for _ in range(2)]
    await asyncio.gather(*(client.barrier() for client in plain))
    third = await SioClient().connect(service, {"user": "eve"})
    fourth = SioClient()
    with pytest.raises(socketio.exceptions.ConnectionError):
        await fourth.connect(service, {"user": "eve"})
    assert fourth.refused[0]["data"]["code"] == "MAX_CONNECTIONS_EXCEEDED"
    too_many = await PlainClient.open(service, user="eve")
    assert await too_many.wait_closed() == 1008
    await asyncio.gather(third.close(), fourth.close(), *(one.close() for one in plain))


async def test_a_client_that_recovers_and_leaves_at_once_keeps_no_place() -> None:
    """Its CONNECT and its close frame come in one segment."""
    path = "/ws/realtime?EIO=4&transport=websocket"
    async with Service(WORKERS=1) as service:
        for _ in range(3):
            async with await RawClient.open(service, path) as first:
                await first.send(TEXT, b'40{"user":"lea"}')
                answer = await first.packet('40{"sid"')
                auth = {"user": "lea", "pid": json.loads(answer[2:])["pid"]}
                async with await RawClient.open(service, path) as second:
                    connect = b"40" + json.dumps(auth).encode()
                    await second.write(encode(TEXT, connect) + encode(CLOSE, b"\x03\xe8"))
                    await second.to_end()
        await service.wait_connections(0)

        async def users() -> int:
            return int((await service.get("/ws/stats")).body["uniqueUsers"])

        async def none() -> bool:
            return await users() == 0

        await until(none, "no user is left")
        back = [await PlainClient.open(service, user="lea") for _ in range(3)]
        await asyncio.gather(*(client.barrier() for client in back))
        await asyncio.gather(*(client.close() for client in back))


@pytest.mark.timeout(120)
async def test_users_come_back_after_a_kill() -> None:
    async with Service() as service:
        for _ in range(3):
            one, two = await spread(service, user="kim")
            victim = service.worker_of(one.port)
            service.kill_worker(victim)
            await one.wait_closed()
            back = [two]

            async def full(back: list[PlainClient] = back) -> bool:
                try:
                    client = await PlainClient.open(service, user="kim")
                    await client.barrier()
                except (OSError, EOFError, AssertionError, websockets.WebSocketException):
                    return False
                back.append(client)
                return len(back) == 3

            await until(full, "the places of a killed worker", 15)
            fourth = await PlainClient.open(service, user="kim")
            assert await fourth.wait_closed() == 1008
            await asyncio.gather(*(client.close() for client in back))
            await service.replaced(victim)
            await service.wait_connections(0)


# Users at their cap


async def _dead(service: Service, user: str) -> RawClient:
    """A connection of a user that answers nothing."""
    client = await RawClient.open(service, f"/ws/realtime?types=&user={user}")
    await client.envelope("connected")
    return client


async def test_dead_connections_give_their_places_up(service: Service) -> None:
    """The one that has been silent for the longest, on whatever worker; those that answer stay."""
    dead = [await _dead(service, "ann") for _ in range(2)]
    alive = await PlainClient.open(service, user="ann")
    await alive.barrier()
    fourth = await PlainClient.open(service, user="ann")
    await fourth.expect("connected", timeout=5)
    fifth = await PlainClient.open(service, user="ann")
    await fifth.expect("connected", timeout=5)
    for one in dead:
        _, close = await one.until_frame(CLOSE)
        assert close.close_code == 4408
    # Now all of them answer: waiting cannot help.
    sixth = await PlainClient.open(service, user="ann")
    assert await sixth.wait_closed() == 1008
    await alive.barrier()
    for one in (alive, fourth, fifth):  # type: ignore[assignment]
        await one.close()  # type: ignore[attr-defined]


async def test_a_dead_socketio_client_gives_its_place_up() -> None:
    async with Service(MAX_CONNECTIONS_PER_USER=1) as service, await raw_socketio(service) as dead:
        await dead.send(TEXT, b'40{"user":"ann"}')
        await dead.packet('40{"sid"')
        live = await SioClient().connect(service, {"user": "ann"})
        _, close = await dead.until_frame(CLOSE)
        assert close.close_code == 4408
        await live.close()
