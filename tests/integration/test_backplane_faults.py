"""The backplane dies, stands still, comes back empty, and fills up (promise 3)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from functools import partial
from typing import Any

import pytest
import redis.asyncio

from tests.support.envelopes import Envelope, flatten, walk
from tests.support.load import Load
from tests.support.plain import PlainClient, spread
from tests.support.service import TOKEN, Service
from tests.support.sioclient import SioClient
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(150)


async def witnesses(service: Service) -> list[PlainClient]:
    """Clients of `status` on both workers, one of them batched."""
    clients = await spread(service, types="status")
    clients.append(await PlainClient.open(service, types="status", batch=1))
    await asyncio.gather(*(client.barrier() for client in clients))
    return clients


async def close_all(clients: list[PlainClient]) -> None:
    await asyncio.gather(*(client.close() for client in clients))


async def progress(load: Load, more: int = 300) -> None:
    """Wait until the load has had so many more messages accepted."""
    goal = load.count + more
    await until(lambda: load.count >= goal, f"{goal} messages accepted", 60)


def has_message(got: Envelope, message: dict[str, Any]) -> bool:
    """Whether a frame brings what was published; `seq` alone repeats in a new epoch."""
    return any(one["id"] == message["id"] for one in flatten([got]))


async def other_valkey(service: Service, old: int) -> None:
    """Wait until another Valkey runs in place of `old`."""

    def started() -> bool:
        return bool(service._valkey_candidates() - {old})

    await until(started, "Valkey started again", 30)


@pytest.mark.parametrize("ids", [True, False])
async def test_kill_9_of_valkey_under_load(ids: bool) -> None:
    """Nothing that was acknowledged is lost, nothing comes twice, no client sees a gap.

    With ids publishers repeat what failed; without, the service's own retries are looked at.
    """
    async with Service() as service:
        clients = await witnesses(service)
        sio = await SioClient().connect(service)
        async with Load(service, ids=ids) as load:
            for _ in range(3):
                await progress(load)
                old = service.kill_valkey()
                await other_valkey(service, old)
            await progress(load)
        end = await service.publish("status", "the_end")
        for client in clients:
            await client.wait_seq("status", end["seq"], 60)
            story = walk(client.received, "status")
            assert not story.gaps
            assert story.last == end["seq"]
            load.check(client.received)
        await sio.wait_event("the_end")
        assert not walk(sio.received, "status").gaps
        load.check(sio.received)
        assert len({epoch for _, epoch in load.accepted.values()} | {end["epoch"]}) == 1
        await close_all(clients)
        await sio.close()

        async def well() -> bool:
            return bool((await service.get("/status")).body["status"] == "ok")

        await until(well, "status ok again")


async def test_connections_to_the_backplane_are_cut_under_load() -> None:
    """Some are cut after a batch is stored and before it is answered: its retry adds nothing."""
    async with Service() as service:
        clients = await witnesses(service)
        valkey = redis.asyncio.Redis(unix_socket_path=service.valkey_socket())
        async with Load(service, ids=False, publishers=32) as load:
            await progress(load)
            for _ in range(80):
                await valkey.client_kill_filter(_type="normal", skipme=True)
                await progress(load, 10)
        await valkey.aclose()
        assert set(load.answers) == {200}, load.answers
        end = await service.publish("status", "the_end")
        for client in clients:
            await client.wait_seq("status", end["seq"], 60)
            assert not walk(client.received, "status").gaps
            load.check(client.received)
        await close_all(clients)


async def test_kill_9_of_a_worker_under_load() -> None:
    """Each message that was answered 2xx is in the stream; clients miss nothing."""
    async with Service() as service:
        one, two = await spread(service, types="status")
        await asyncio.gather(one.barrier(), two.barrier())
        victim = service.worker_of(one.port)
        async with Load(service) as load:
            await progress(load)
            service.kill_worker(victim)
            await one.wait_closed()
            await progress(load)
            await service.replaced(victim)
            # The client of the dead worker returns with its position, to any worker.
            seen = walk(one.received, "status")
            back = await PlainClient.open(service, types="")
            recover = {"status": {"epoch": seen.epoch, "seq": seen.last}}
            answer = await back.request("subscribe", {"types": ["status"], "recover": recover})
            assert answer["data"]["types"]["status"]["recovered"] is True
            await progress(load)
        end = await service.publish("status", "the_end")
        for client in (two, back):
            await client.wait_seq("status", end["seq"], 60)
        assert not walk(two.received, "status").gaps
        load.check(two.received)
        complete = one.received + back.received
        assert not walk(complete, "status").gaps
        load.check(complete)
        await close_all([two, back])


async def test_a_standstill_of_three_seconds_loses_nothing() -> None:
    """10 000 messages published meanwhile wait in the queue and are all accepted."""
    async with Service(HISTORY_SIZE=20_000) as service:
        clients = await witnesses(service)
        first = await service.publish("status", "before")
        valkey = service.valkey_pid()
        os.kill(valkey, signal.SIGSTOP)
        calls = [asyncio.create_task(publish_thousand(service, n)) for n in range(10)]
        await asyncio.sleep(3)
        with_stopped = [task.done() for task in calls]
        os.kill(valkey, signal.SIGCONT)
        answers = await asyncio.gather(*calls)
        assert not any(with_stopped), "answered while the stream could not be written"
        assert [status for status, _ in answers] == [200] * 10
        seqs = sorted(one["seq"] for _, body in answers for one in body)
        assert seqs == list(range(first["seq"] + 1, first["seq"] + 10_001))
        for client in clients:
            await client.wait_seq("status", seqs[-1], 60)
            story = walk(client.received, "status")
            assert not story.gaps
            assert story.seqs[-10_001:] == [first["seq"], *seqs]
        await close_all(clients)


async def test_a_standstill_of_ten_seconds_is_reported_and_makes_no_duplicates() -> None:
    """After five seconds 503; repeated with the same ids, each message is there once."""
    async with Service(HISTORY_SIZE=20_000) as service:
        clients = await witnesses(service)
        valkey = service.valkey_pid()
        os.kill(valkey, signal.SIGSTOP)
        calls = [asyncio.create_task(publish_thousand(service, n, ids=True)) for n in range(10)]
        single = await service.post(
            "/ws/broadcast", {"type": "status", "event": "x", "data": 0, "id": "single"}
        )
        assert single.status == 503, single
        assert single.body["code"] in {"BACKPLANE_UNAVAILABLE", "QUEUE_OVERFLOW"}
        assert int(single.headers["Retry-After"]) >= 1

        async def is_degraded() -> bool:
            return bool((await service.get("/status")).body["status"] != "ok")

        await until(is_degraded, "any worker says that it is not well")
        answers = await asyncio.gather(*calls)
        reported = Counter(one.get("code", "") for _, body in answers for one in body)
        assert reported["BACKPLANE_UNAVAILABLE"] + reported["QUEUE_OVERFLOW"] == 10_000
        await asyncio.sleep(4)
        # The leader may have replaced it meanwhile; it supervises by PING.
        try:
            os.kill(valkey, signal.SIGCONT)
        except ProcessLookupError:
            pass

        async def accepted(number: int) -> list[Any]:
            async def taken() -> list[Any]:
                status, body = await publish_thousand(service, number, ids=True)
                return body if status == 200 else []

            return await until(taken, "accepted after the standstill", 60)

        repeated = [await accepted(number) for number in range(10)]
        seqs = {one["id"]: one["seq"] for body in repeated for one in body}
        assert len(seqs) == 10_000
        assert len(set(seqs.values())) == 10_000
        end = await service.publish("status", "the_end")
        for client in clients:
            await client.wait_seq("status", end["seq"], 60)
            story = walk(client.received, "status")
            assert not story.gaps
            ids = Counter(got["id"] for got in flatten(client.received) if got["event"] == "wave")
            assert ids == Counter(seqs.keys())
        await close_all(clients)


async def publish_thousand(service: Service, number: int, ids: bool = False) -> tuple[int, Any]:
    """One array of a thousand; the HTTP status and the body as a list."""
    messages = [
        {"type": "status", "event": "wave", "data": [number, n]}
        | ({"id": f"wave-{number}-{n}"} if ids else {})
        for n in range(1000)
    ]
    answer = await service.request("POST", "/ws/broadcast", json=messages, token=TOKEN)
    return answer.status, answer.body if isinstance(answer.body, list) else [answer.body]


@pytest.mark.parametrize("way", ["flushed", "files lost"])
async def test_a_backplane_that_comes_back_empty(way: str) -> None:
    """A new epoch and a `gap` that says so, never silence; then messages from 1 again."""
    async with Service() as service:
        clients = await witnesses(service)
        sio = await SioClient().connect(service)
        for _ in range(20):
            old = await service.publish("status", "before")
        for client in clients:
            await client.wait_seq("status", old["seq"])
        if way == "flushed":
            valkey = redis.asyncio.Redis(unix_socket_path=service.valkey_socket())
            await valkey.flushall()
            await valkey.aclose()
        else:
            pid = service.valkey_pid()
            os.kill(pid, signal.SIGSTOP)
            for left in (service.data_dir / "valkey").iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
            os.kill(pid, signal.SIGKILL)
            await other_valkey(service, pid)

        async def stored() -> Any:
            body = {"type": "status", "event": "after", "data": 1}
            answer = await service.post("/ws/broadcast", body)
            return answer.body if answer.status == 200 else None

        new = await until(stored, "published after the loss", 30)
        assert new["epoch"] != old["epoch"]
        for _ in range(5):
            last = await service.publish("status", "after")
        for client in clients:
            await client.expect(
                lambda got: got["event"] == "gap" and got["data"]["epoch"] == new["epoch"],
                "a gap that names the new epoch",
                30,
            )
            await client.expect(partial(has_message, message=last), "the last message")
            story = walk(client.received, "status")
            assert [gap["data"]["reason"] for gap in story.gaps] == ["epoch"]
            assert (story.last, story.epoch) == (last["seq"], new["epoch"])
        await until(
            lambda: any(has_message(got, last) for got in sio.received),
            "the same over Socket.IO",
        )
        assert [gap["data"]["reason"] for gap in walk(sio.received, "status").gaps] == ["epoch"]
        # A client that returns with a position of the lost epoch is informed, too.
        late = await PlainClient.open(service, types="")
        recover = {"status": {"epoch": old["epoch"], "seq": old["seq"]}}
        answer = await late.request("subscribe", {"types": ["status"], "recover": recover})
        assert answer["data"]["types"]["status"]["recovered"] is False
        await close_all([*clients, late])
        await sio.close()


async def test_history_is_bounded_in_bytes() -> None:
    """Filled three times over: the newest stay, without a hole, within HISTORY_BYTES."""
    limit = 2 * 1024 * 1024
    async with Service(WORKERS=1, HISTORY_BYTES=limit, HISTORY_SIZE=100_000) as service:
        reader = await PlainClient.open(service, types="system")
        await reader.barrier()
        for _ in range(60):
            sent = await service.publish_all(
                {"type": "system", "event": "fill", "data": ["x" * 5000, n]} for n in range(20)
            )
        await reader.wait_seq("system", sent[-1]["seq"])
        assert not walk(reader.received, "system").gaps
        kept = await service.full_history("system")
        seqs = [one["seq"] for one in kept]
        assert seqs == list(range(seqs[0], sent[-1]["seq"] + 1))
        size = sum(len(str(one)) for one in kept)
        assert size <= limit * 1.1
        assert size >= limit * 0.5
        # A client that asks for what is gone learns which messages are.
        late = await PlainClient.open(service, types="")
        recover = {"system": {"epoch": sent[0]["epoch"], "seq": 1}}
        await late.request("subscribe", {"types": ["system"], "recover": recover})
        end = await service.publish("system", "the_end")
        await late.wait_seq("system", end["seq"])
        story = walk(late.received, "system")
        assert [gap["data"]["reason"] for gap in story.gaps] == ["history"]
        assert story.gaps[0]["data"]["first"] == 2
        assert story.gaps[0]["data"]["last"] == story.seqs[0] - 1
        await close_all([reader, late])


async def test_a_full_queue_drops_the_lowest_first() -> None:
    """While the backplane stands still, the bound of all workers together holds."""
    # Each worker has at most 256 messages in flight, which cannot be withdrawn.
    async with Service(MAX_QUEUE_SIZE=2000) as service:
        valkey = service.valkey_pid()
        os.kill(valkey, signal.SIGSTOP)
        answers: list[tuple[str, Any]] = []

        async def publish(priority: str) -> None:
            body = [
                {"type": "status", "event": priority, "data": 1, "priority": priority}
                for _ in range(100)
            ]
            answer = await service.post("/ws/broadcast", body)
            answers.extend((priority, one) for one in answer.body)

        low = [asyncio.create_task(publish("low")) for _ in range(20)]

        async def full() -> bool:
            body = (await service.get("/ws/queue")).body
            assert body["length"] <= body["maxSize"] == 2000
            return bool(body["length"] == 2000)

        async def dropped() -> float:
            page = (await service.get("/metrics")).body
            return sum(
                float(line.split()[-1])
                for line in page.splitlines()
                if line.startswith("realtime_queue_dropped_total{")
            )

        async def given_way() -> bool:
            await full()  # never more than that; less for a moment while one takes another's place
            return await dropped() >= 500

        await until(full, "a queue full of low priority")
        high = [asyncio.create_task(publish("high")) for _ in range(5)]
        await until(given_way, "500 of low priority have given way")
        await until(full, "a queue full again")
        os.kill(valkey, signal.SIGCONT)
        await asyncio.gather(*low, *high)
        lost = Counter(name for name, one in answers if one.get("code") == "QUEUE_OVERFLOW")
        kept = Counter(name for name, one in answers if "seq" in one)
        reported = (lost, kept, [one for name, one in answers if name == "high"][:3], len(answers))
        assert lost["high"] == 0, reported
        assert kept["high"] == 500, reported
        assert lost["low"] >= 500
        assert lost["low"] + kept["low"] == 2000
        stored = Counter(one["event"] for one in await service.full_history("status"))
        assert (stored["low"], stored["high"]) == (kept["low"], kept["high"])

        async def counted() -> bool:
            return await dropped() == lost["low"]

        await until(counted, "the dropped ones in /metrics")
