"""Reloads that no client notices: live connections change their worker, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.copies import CopiedService
from tests.support.plain import PlainClient
from tests.support.raw import BINARY, CONTINUATION, TEXT, encode
from tests.support.service import Service
from tests.support.sioclient import sio_clients
from tests.support.streams import Fleet, Stream, Ticker, row_where, spread_of, table
from tests.support.waiting import until
from workers.shared.slots import READY

pytestmark = pytest.mark.timeout(150)

HANDLERS = "tests.integration.handoff_handlers"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One service for all tests that leave it intact."""
    running = Service(HANDLERS=HANDLERS).start()
    yield running
    running.stop()


@pytest_asyncio.fixture
async def fleet(service: Service) -> AsyncIterator[Fleet]:
    """Two hundred clients of both protocols."""
    async with Fleet(service) as streams:
        yield await streams.open(200)
    await service.wait_connections(0)


def signal_master(service: Service, signum: signal.Signals) -> None:
    assert service.process is not None
    service.process.send_signal(signum)


async def settled(service: Service, old: set[int], workers: int | None = None) -> None:
    """Wait until only new workers run, and serve."""
    count = workers or service.workers

    def done() -> bool:
        rows = table(service).rows()
        pids = {row.pid for row in rows}
        return not pids & old and len(pids) == count and all(row.state == READY for row in rows)

    await until(done, "new workers only, all ready", 60)


@contextlib.asynccontextmanager
async def unnoticed(
    service: Service, fleet: Fleet, interval: float = 0.05
) -> AsyncIterator[Ticker]:
    """A stream of messages within; in the end all clients have all of it, on the same connections.

    Args:
        service: which they are connected to.
        fleet: the clients.
        interval: seconds between two messages.
    """
    async with Ticker(service, interval) as ticker:
        yield ticker
        await fleet.all_at(ticker.last)
    fleet.check_untouched()
    ticker.check(fleet.streams)
    assert sum(spread_of(service).values()) == len(fleet.streams)


# Nothing is noticed.


async def test_hup_under_a_steady_stream(service: Service) -> None:
    clients = 2000
    async with Fleet(service) as fleet, Ticker(service) as ticker:
        await fleet.open(clients)
        ids = [stream.id for stream in fleet.streams]
        await until(lambda: ticker.last > 20, "a running stream")
        counted: list[int] = []
        slots = table(service)

        async def count() -> None:
            while True:
                counted.append(sum(row.connections for row in slots.rows()))
                await asyncio.sleep(0.002)

        counting = asyncio.create_task(count())
        old = set(service.worker_pids())
        before = len(service.log)
        await service.hup()
        counting.cancel()
        last = ticker.last
        await until(lambda: ticker.last > last + 5, "the stream goes on")
        await fleet.all_at(ticker.last)
        fleet.check_untouched()
        ticker.check(fleet.streams)
        assert [stream.id for stream in fleet.streams] == ids
        assert set(counted) == {clients}
        shares = spread_of(service)
        assert not set(shares) & old
        assert sum(shares.values()) == clients
        assert max(shares.values()) - min(shares.values()) <= 0.2 * clients / 2, shares
        reports = re.findall(r"Handed (\d+) connections over .*; (\d+) are ", service.log[before:])
        assert sum(int(passed) for passed, _ in reports) == clients
        assert {left for _, left in reports} == {"0"}
    await service.wait_connections(0)


async def test_ten_hups_in_a_row(service: Service, fleet: Fleet) -> None:
    async with unnoticed(service, fleet, 0.02) as ticker:
        for _ in range(10):
            old = set(spread_of(service))
            signal_master(service, signal.SIGHUP)
            await settled(service, old)
            await fleet.all_at(ticker.last)


async def test_two_hups_at_once(service: Service, fleet: Fleet) -> None:
    async with unnoticed(service, fleet):
        old = set(spread_of(service))
        signal_master(service, signal.SIGHUP)
        slots = table(service)
        await row_where(slots, lambda row: row.pid not in old)
        old |= {row.pid for row in slots.rows()}
        signal_master(service, signal.SIGHUP)
        await settled(service, old)


async def test_one_worker_more_and_less(service: Service, fleet: Fleet) -> None:
    async with unnoticed(service, fleet):
        signal_master(service, signal.SIGTTIN)
        await until(lambda: len(spread_of(service)) == 3, "three workers")
        await settled(service, set(), 3)
        signal_master(service, signal.SIGTTOU)
        await until(lambda: len(spread_of(service)) == 2, "two workers")
        assert sum(spread_of(service).values()) == 200


async def test_one_worker_leaves_while_another_lives(service: Service, fleet: Fleet) -> None:
    async with unnoticed(service, fleet):
        victim = next(pid for pid, count in spread_of(service).items() if count)
        os.kill(victim, signal.SIGTERM)
        await settled(service, {victim})
        assert sum(spread_of(service).values()) == 200


async def test_change_of_masters() -> None:
    """USR2, then TERM of the old master: the new one's workers have all connections."""
    async with Service(HANDLERS=HANDLERS) as service:
        async with Fleet(service) as fleet, Ticker(service) as ticker:
            await fleet.open(200)
            old = {row.pid: row.master for row in table(service).rows()}
            signal_master(service, signal.SIGUSR2)
            await until(lambda: len(spread_of(service)) == 4, "workers of both masters")
            await settled(service, set(), 4)
            signal_master(service, signal.SIGTERM)
            await settled(service, set(old))
            masters = {row.master for row in table(service).rows()}
            assert len(masters) == 1
            assert masters.isdisjoint(old.values())
            await fleet.all_at(ticker.last)
            fleet.check_untouched()
            ticker.check(fleet.streams)
            assert sum(spread_of(service).values()) == 200
        os.kill(masters.pop(), signal.SIGTERM)


@pytest.mark.alone
async def test_heartbeats_go_on() -> None:
    async with (
        Service(HANDLERS=HANDLERS, HEARTBEAT_INTERVAL="1s", HEARTBEAT_TIMEOUT="3s") as service,
        Fleet(service) as fleet,
    ):
        await fleet.open(60)
        for _ in range(2):
            await service.hup()
        seen = [len(stream.beats) for stream in fleet.streams]
        await until(
            lambda: all(
                len(stream.beats) > before + 1
                for stream, before in zip(fleet.streams, seen, strict=True)
            ),
            "two more pings for every client",
        )
        fleet.check_untouched()
        for stream in fleet.streams:
            beats = stream.beats
            longest = max(b - a for a, b in itertools.pairwise(beats))
            assert longest < 2.5, f"{longest:.2f} s without a ping"


# What is under way goes on.


LONG_PING = 2_500
"""Letters of two bytes, six each in JSON, that a request has room for."""


@pytest.mark.parametrize("socketio", [False, True])
async def test_half_a_frame(service: Service, socketio: bool) -> None:
    """The second half is sent to another worker than the first, at every kind of place."""
    async with Fleet(service) as fleet:
        await fleet.open(24)
        streams = [stream for stream in fleet.streams if stream.socketio is socketio]
        halves = []
        for number, stream in enumerate(streams):
            text = stream.request(number, "ä" * (70 if number % 2 else LONG_PING)).encode()
            if number % 3:
                frame = encode(TEXT, text)
                cut = (1, 3, 7, len(frame) // 2, len(frame) - 1)[number % 5]
            else:
                first = encode(TEXT, text[:37], fin=False)
                frame = first + encode(CONTINUATION, text[37:])
                cut = len(first) + number % 4
            stream.write(frame[:cut])
            halves.append(frame[cut:])
        # A complete request behind it would be read first: so the halves have been.
        await service.publish()
        await fleet.all_at(1)
        await service.hup()
        for stream, half in zip(streams, halves, strict=True):
            stream.write(half)
        await until(lambda: all(stream.replies for stream in streams), "every answer")
        for number, stream in enumerate(streams):
            [(got, envelope)] = stream.replies
            assert got == number
            assert envelope["data"]["payload"] == "ä" * (70 if number % 2 else LONG_PING)
        fleet.check_untouched()
    await service.wait_connections(0)


async def test_half_a_binary_packet(service: Service) -> None:
    """One attachment before the reload, half of another, the rest after it."""
    stream = await Stream(service, socketio=True).open()
    placeholders = [{"_placeholder": True, "num": n} for n in range(2)]
    stream.send("452-7" + json.dumps(["echo", *placeholders]))
    frame = encode(BINARY, b"second" * 100)
    stream.write(encode(BINARY, b"first") + frame[:50])
    await service.hup()
    stream.write(frame[50:])
    await until(lambda: stream.faults, "the answer")
    # A BINARY_ACK with two attachments; the stream knows nothing of binary.
    assert stream.faults[0].startswith("an unknown packet b'462-7[")
    assert stream.faults[1:] == [
        "a frame of kind 2: b'first'",
        f"a frame of kind 2: {(b'second' * 7)[:40]!r}",
    ]
    stream.abort()
    await service.wait_connections(0)


async def test_slow_consumers_and_large_messages() -> None:
    """A client that did not read over the reload gets all of it afterwards, half-sent frames included."""
    async with (
        Service(HANDLERS=HANDLERS, HISTORY_SIZE=5000) as service,
        Fleet(service) as fleet,
        Ticker(service, 0.02, 60_000) as ticker,
    ):
        await fleet.open(40)
        await until(lambda: ticker.last > 3, "a running stream")
        await fleet.all_at(ticker.last)
        slow = fleet.streams[:20]
        for stream in slow:
            stream.pause()
        before = ticker.last
        # More than the sockets of both sides hold.
        await until(lambda: ticker.last > before + 120, "8 MB", 40)
        await service.hup()
        for stream in slow:
            stream.resume()
        after = ticker.last
        await until(lambda: ticker.last > after + 3, "the stream goes on")
        await fleet.all_at(ticker.last)
        fleet.check_untouched()
        ticker.check(fleet.streams)


async def test_acks_of_the_server_in_flight(service: Service) -> None:
    """A handler that still runs when the reload begins is answered."""
    async with sio_clients(service, 8) as clients:
        calls = [
            asyncio.create_task(client.call("slow", 0.2 * number))
            for number, client in enumerate(clients)
        ]
        old = set(spread_of(service))
        await service.hup()
        answers = await asyncio.gather(*calls)
        assert all(set(answer) == {"pid"} for answer in answers)
        assert {answer["pid"] for answer in answers} <= old | set(spread_of(service))
        again = await asyncio.gather(*(client.call("whoami") for client in clients))
        assert {answer["pid"] for answer in again} <= set(spread_of(service))
        assert not any(client.reasons for client in clients)


async def test_acks_of_clients_in_flight(service: Service) -> None:
    """The server has asked before the reload, and is answered after the connection has moved."""
    async with sio_clients(service, 6) as clients:
        go_on = asyncio.Event()
        watcher, asker, *asked = clients
        await watcher.call("enter", {"room": "results"})

        async def answer(number: int) -> int:
            await go_on.wait()
            return number * 10

        for client in asked:

            async def question(number: int) -> int:
                return await answer(number)

            client.sio.on("question", question)
        for number, client in enumerate(asked):
            assert await asker.call("quiz", {"sid": client.sid(), "n": number}) == "asked"
        old = set(spread_of(service))
        signal_master(service, signal.SIGHUP)

        def moved() -> bool:
            held = spread_of(service)
            return sum(count for pid, count in held.items() if pid not in old) == 6

        await until(moved, "all connections at new workers")
        go_on.set()
        await watcher.wait_event("result", 4)
        assert sorted(result["answer"] for (result,) in watcher.named("result")) == [0, 10, 20, 30]
        assert {result["asker"] for (result,) in watcher.named("result")} <= old
        await settled(service, old)
        assert not any(client.reasons for client in clients)


async def test_rooms_namespaces_and_sessions(service: Service) -> None:
    async with sio_clients(service, 6, namespaces=("/", "/app")) as clients:
        before = []
        for number, client in enumerate(clients):
            await client.call("rename", f"name {number}")
            await client.call("rename", f"app {number}", namespace="/app")
            await client.call("enter", {"room": f"room {number % 2}"})
            await client.call("enter", {"room": f"room {number % 3}"}, namespace="/app")
            await client.call("enter", {"room": "config"})
            await client.call("leave", {"room": "stats"})
            before.append([await client.call("whoami", namespace=n) for n in ("/", "/app")])
        await service.hup()
        after = [[await c.call("whoami", namespace=n) for n in ("/", "/app")] for c in clients]
        for old, new in zip(before, after, strict=True):
            for was, now in zip(old, new, strict=True):
                assert was.pop("pid") != now.pop("pid")
                assert sorted(was.pop("rooms")) == sorted(now.pop("rooms"))
                assert was == now
        for namespace, name, members in (("/", "room 1", 3), ("/app", "room 2", 2)):
            say = {"event": name, "data": 1, "room": name}
            await clients[0].call("say", say, namespace=namespace)
            await until(
                lambda name=name, members=members: (
                    sum(len(client.named(name)) for client in clients) == members
                ),
                f"{name} reached its members",
            )
        sent = await service.publish("config", "to_subscribers", 1)
        for client in clients:
            (envelope,) = await client.wait_event("to_subscribers")
            assert envelope["seq"] == sent["seq"]


async def test_claims_of_users_move(service: Service) -> None:
    clients = [await PlainClient.open(service, user="ursula", types="") for _ in range(3)]
    for client in clients:
        await client.barrier()
    await service.hup()
    fourth = await PlainClient.open(service, user="ursula", types="")
    assert await fourth.wait_closed() == 1008
    await clients[0].close()

    async def let_in() -> bool:
        client = await PlainClient.open(service, user="ursula", types="")
        try:
            await client.barrier()
        except AssertionError:
            return False
        clients.append(client)
        return True

    await until(let_in, "room for one more")
    for client in clients[1:]:
        await client.barrier()
        await client.close()
    await service.wait_connections(0)


async def test_the_cap_holds_over_a_reload() -> None:
    async with (
        Service(HANDLERS=HANDLERS, MAX_TOTAL_CONNECTIONS=150) as service,
        Fleet(service) as fleet,
    ):
        await fleet.open(150)
        reloading = asyncio.create_task(service.hup())
        refused = 0
        while not reloading.done():
            with pytest.raises(ConnectionRefusedError, match="503"):
                await Stream(service, socketio=False).open()
            refused += 1
        await reloading
        assert refused > 10
        fleet.check_untouched()


# Something goes wrong.


async def test_new_worker_killed_in_the_middle() -> None:
    async with (
        Service(HANDLERS=HANDLERS, allow_traceback=True) as service,
        Fleet(service, back=True) as fleet,
        Ticker(service) as ticker,
    ):
        await fleet.open(1000)
        old = set(spread_of(service))
        signal_master(service, signal.SIGHUP)
        row = await row_where(
            table(service), lambda row: row.pid not in old and row.connections > 100
        )
        os.kill(row.pid, signal.SIGKILL)
        await settled(service, old | {row.pid})
        await fleet.all_at(ticker.last)
        ticker.check(fleet.streams)
        # Only those that it had taken were closed, by the kernel; all of them recovered.
        assert 0 < len(fleet.closes) < 1000
        assert {code for code, _ in fleet.closes} == {1006}
        assert all(all(stream.recovered) for stream in fleet.streams)
        await service.wait_connections(1000)


async def test_old_worker_killed_in_the_middle(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    async with (
        Service(HANDLERS=HANDLERS, TEST_SWITCH=switch, allow_traceback=True) as service,
        Fleet(service, back=True) as fleet,
        Ticker(service) as ticker,
    ):
        await fleet.open(1000)
        old = spread_of(service)
        switch.write_text("halts")  # the middle lasts until it is seen
        signal_master(service, signal.SIGHUP)
        row = await row_where(
            table(service),
            lambda row: row.pid in old and 0 < row.connections < old[row.pid] - 100,
        )
        os.kill(row.pid, signal.SIGKILL)
        switch.unlink()
        await settled(service, set(old))
        await fleet.all_at(ticker.last)
        ticker.check(fleet.streams)
        assert len(fleet.closes) < old[row.pid]
        assert {code for code, _ in fleet.closes} <= {1006}
        assert all(all(stream.recovered) for stream in fleet.streams)
        await service.wait_connections(1000)


async def check_drained(service: Service) -> None:
    """Reload with successors that take no connection: every client gets 1012, and recovers."""
    async with Fleet(service, back=True) as fleet, Ticker(service) as ticker:
        await fleet.open(200)
        await service.hup()
        await fleet.all_at(ticker.last)
        ticker.check(fleet.streams)
        assert len(fleet.closes) == 200
        for code, reason in fleet.closes:
            assert code == 1012
            assert 500 <= json.loads(reason)["retryAfter"] <= 5000
        assert all(stream.recovered == [True] for stream in fleet.streams)
    await service.wait_connections(0)


async def test_successors_of_another_version(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    async with Service(HANDLERS=HANDLERS, TEST_SWITCH=switch) as service:
        switch.write_text("version")
        await check_drained(service)


async def test_successors_without_descriptors(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    async with (
        Service(HANDLERS=HANDLERS, TEST_SWITCH=switch, allow_traceback=True) as service,
        Fleet(service, back=True) as fleet,
        Ticker(service) as ticker,
    ):
        await fleet.open(400)
        switch.write_text("descriptors")
        await service.hup()
        switch.unlink()
        await fleet.all_at(ticker.last)
        ticker.check(fleet.streams)
        # What did not fit was drained in order, or came back after the successor had recovered.
        assert len(fleet.closes) > 0
        assert {code for code, _ in fleet.closes} <= {1012, 1006}
        assert Counter(code for code, _ in fleet.closes)[1012] > 100
        assert all(all(stream.recovered) for stream in fleet.streams)


async def test_successors_that_die_with_what_they_took(tmp_path: Path) -> None:
    """They take one batch each with them; the old workers keep all others and go on."""
    switch = tmp_path / "switch"
    async with (
        Service(HANDLERS=HANDLERS, TEST_SWITCH=switch, allow_traceback=True) as service,
        Fleet(service, back=True) as fleet,
        Ticker(service) as ticker,
    ):
        await fleet.open(400)
        old = set(spread_of(service))
        switch.write_text("dies")
        signal_master(service, signal.SIGHUP)
        await until(lambda: "goes on serving" in service.log, "the old workers stay", 40)
        switch.unlink()
        await until(lambda: fleet.closes, "clients of what died")
        await fleet.all_at(ticker.last)
        assert len(fleet.closes) < 300
        ticker.check(fleet.streams)
        # The next good reload works.
        old |= set(spread_of(service))
        await service.hup()
        await fleet.all_at(ticker.last)
        assert sum(spread_of(service).values()) == 400
        assert all(all(stream.recovered) for stream in fleet.streams)


async def all_served(fleet: Fleet, ticker: Ticker) -> None:
    """Every client is still there and served."""
    last = ticker.last
    await until(lambda: ticker.last > last + 5, "the stream goes on")
    await fleet.all_at(ticker.last)
    fleet.check_untouched()


async def test_reloads_that_cannot_start_change_nothing() -> None:
    service = CopiedService(allow_traceback=True)
    async with service, Fleet(service) as fleet, Ticker(service) as ticker:
        await fleet.open(60)
        old = set(spread_of(service))
        main = service.root / "app" / "main.py"
        good = main.read_text()

        async def fails_to_reload(sign: str) -> None:
            seen = service.log.count(sign)
            signal_master(service, signal.SIGHUP)
            await until(lambda: service.log.count(sign) > seen, f"{sign} in the log")
            await until(lambda: old <= set(spread_of(service)), "the old workers")
            await all_served(fleet, ticker)

        main.write_text("def broken(:\n")
        await fails_to_reload("SyntaxError")
        main.write_text(good + "\nraise RuntimeError('fails on import')\n")
        await fails_to_reload("fails on import")
        main.write_text(good)
        (service.root / ".env").write_text("HEARTBEAT_INTERVAL=never\n")
        await fails_to_reload("HEARTBEAT_INTERVAL")
        (service.root / ".env").unlink()

        # New code, at last: every client gets it without noticing.
        before = set(spread_of(service))
        init = service.root / "app" / "__init__.py"
        init.write_text(init.read_text().rsplit("=", 1)[0] + '= "9.9.9"\n')
        handlers = service.root / "handlers.py"
        handlers.write_text(
            handlers.read_text().replace('return "entered"', 'return "entered, says the new code"')
        )
        async with sio_clients(service) as [client]:
            assert await client.call("enter", {"room": "a"}) == "entered"
            signal_master(service, signal.SIGHUP)
            await settled(service, before)
            assert await client.call("enter", {"room": "b"}) == "entered, says the new code"
        assert (await service.get("/status")).body["version"] == "9.9.9"
        await all_served(fleet, ticker)
        ticker.check(fleet.streams)


async def test_configuration_that_raises_changes_nothing() -> None:
    service = CopiedService(allow_traceback=True)
    async with service, Fleet(service) as fleet, Ticker(service) as ticker:
        await fleet.open(60)
        configuration = service.root / "gunicorn.conf.py"
        good = configuration.read_text()
        configuration.write_text(good + "\nraise RuntimeError('a configuration that raises')\n")
        signal_master(service, signal.SIGHUP)
        await until(lambda: "a configuration that raises" in service.log, "the error in the log")
        await all_served(fleet, ticker)
        assert service.process is not None
        assert service.process.poll() is None
        configuration.write_text(good)
        await service.hup()
        await all_served(fleet, ticker)


@pytest.mark.alone
async def test_paced_drain_of_the_last_worker() -> None:
    async with (
        Service(WORKERS=1, HANDLERS=HANDLERS) as service,
        Fleet(service, back=True) as fleet,
        Ticker(service) as ticker,
    ):
        await fleet.open(300)
        first = [stream.id for stream in fleet.streams]
        closed: list[float] = []
        for stream in fleet.streams:
            stream.on_closed = lambda s: (closed.append(s.closed_at), fleet._on_closed(s))[0]
        old = set(spread_of(service))
        [last] = old
        os.kill(last, signal.SIGTERM)
        await settled(service, old)
        await until(lambda: len(closed) >= 300, "every client got the close code")
        await fleet.all_at(ticker.last)
        ticker.check(fleet.streams)
        assert {code for code, _ in fleet.closes} == {1012}
        hints = [json.loads(reason)["retryAfter"] for _, reason in fleet.closes]
        assert len(set(hints)) > 100
        assert all(500 <= hint <= 5000 for hint in hints)
        # 100 a second: no third of the time sees much more than a third of them.
        began, ended = closed[0], closed[299]
        assert ended - began > 2
        for third in range(3):
            start = began + (ended - began) * third / 3
            inside = sum(start <= at < start + (ended - began) / 3 for at in closed)
            assert inside < 160, f"{inside} in one third of {ended - began:.1f} s"
        same = [s.id for s in fleet.streams if s.socketio]
        assert same == first[1::2]
