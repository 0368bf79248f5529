"""`yujian-realtime` against the real service: recovery, reloads, gaps, tokens, drains, publishing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.support import REPO
from tests.support.plain import PlainClient
from tests.support.python_client import PAUSE, SECRET, collect, data
from tests.support.service import TOKEN, Service
from tests.support.waiting import until
from yujian_realtime import (
    ConnectionClosed,
    Draft,
    Gap,
    Message,
    Publisher,
    Realtime,
    RealtimeError,
    State,
    Stored,
    connect,
)
from yujian_realtime.client import Transport

pytestmark = pytest.mark.timeout(120)


def states(lab: Realtime) -> list[State]:
    seen: list[State] = []
    lab.on("state", seen.append)
    return seen


async def test_the_newest_state_comes_first(service: Service) -> None:
    for number in range(3):
        await service.publish("config", "tick", f"first {number}")
    async with connect(service.base, pause=PAUSE) as lab:
        subscription = lab.subscribe("config")
        first = await anext(subscription)
        assert (first.data, first.origin) == ("first 2", "history")
        sent = await service.publish("config", "tick", "first 3")
        second = await anext(subscription)
        assert (second.seq, second.epoch, second.origin) == (sent["seq"], sent["epoch"], "live")
        # Another one has the newest message at once, and an answer is for its caller only.
        with lab.subscribe("config") as late:
            assert (await anext(late)).origin == "history"
            page = await lab.history("config", 2)
            assert data(page.messages) == ["first 2", "first 3"]
            assert page.more
            await service.publish("config", "tick", "first 4")
            assert (await anext(late)).data == "first 4"
        assert (await anext(subscription)).data == "first 4"
        assert set(await lab.presence("config")) == {"connections", "users"}
        assert await lab.ping() > 0
        with pytest.raises(RealtimeError) as caught:
            await lab.history("nope")
        assert caught.value.code == "INVALID_TYPE"
    assert lab.state.cause == "left"
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)
    with pytest.raises(ConnectionClosed):
        await lab.ping()


async def test_a_token_that_the_service_does_not_ask_for(service: Service) -> None:
    async with connect(service.base, token=lambda: "unused", pause=PAUSE) as lab:
        seen, errors = states(lab), [""]
        lab.on("error", lambda error: errors.append(error.code))
        subscription = lab.subscribe("config", history=0)
        for number in range(5):
            mark = f"unused {number}"
            await lab.ping()
            await service.publish("config", "tick", mark)
            await collect(subscription, mark)
        assert errors[1:] == ["TOKEN_UNUSED"]
        assert {state.name for state in seen} <= {"connecting", "open"}
        assert lab.counts.reconnects == 0


async def test_users_by_name() -> None:
    async with Service(WORKERS=1, PRESENCE_NAMES="config") as service:
        names = [f"user{number:03}" for number in range(105)]
        clients = [await PlainClient.open(service, types="config", user=name) for name in names]
        async with connect(service.base, pause=PAUSE) as lab:

            async def are_listed() -> bool:
                return [row["user"] async for row in lab.users("config")] == names

            await until(are_listed, "all are listed, over two pages")
            page = await lab.presence("config", 2, "user003")
            assert page["names"] == [{"user": name, "connections": 1} for name in names[4:6]]
            assert (page["total"], page["more"]) == (105, True)
        for client in clients:
            await client.close()


async def test_all_stands_for_every_type_and_unused_subscriptions_end(service: Service) -> None:
    async with connect(service.base, history=0) as lab:
        everything = lab.subscribe("all")
        await lab.ping()
        for type in ("config", "system"):
            mark = uuid.uuid4().hex
            await service.publish(type, "tick", mark)
            assert (await collect(everything, mark))[-1].type == type
        everything.close()
        for _ in range(20):
            if (await lab.presence("system"))["connections"] == 0:
                break
            await asyncio.sleep(0.1)
        assert (await lab.presence("system"))["connections"] == 0


async def test_kill_9_loses_nothing_and_repeats_nothing(service: Service) -> None:
    async with (
        connect(service.base, pause=PAUSE) as lab,
        Publisher(service.base, TOKEN, attempts=60, pause=(0.1, 0.5)) as publisher,
    ):
        subscription = lab.subscribe("config")
        seen = states(lab)
        await publisher.publish("config", "tick", 100)
        await collect(subscription, 100)
        for victim in service.worker_pids():
            service.kill_worker(victim)
        for number in range(101, 110):
            await publisher.publish("config", "tick", number)
        messages = await collect(subscription, 109)
        assert data(messages) == list(range(101, 110))
        assert any(state.name == "waiting" for state in seen)
        assert lab.counts.reconnects >= 1
        assert (lab.counts.missed, lab.counts.gaps) == (0, 0)
    stored = [one["data"] for one in await service.history("config", limit=9)]
    assert stored == list(range(101, 110)), "each is stored once"


async def test_a_reload_is_not_noticed(service: Service) -> None:
    async with connect(service.base, pause=PAUSE) as lab:
        subscription = lab.subscribe("config")
        await lab.ping()
        seen = states(lab)
        await service.hup()
        await service.publish("config", "tick", "reloaded")
        await collect(subscription, "reloaded")
        assert seen == []


async def test_a_subscription_in_an_outage_of_the_backplane_flows_after_it() -> None:
    message = {"type": "config", "event": "tick", "data": 1, "id": "after"}

    async def is_published() -> bool:
        return (await service.post("/ws/broadcast", message)).status == 200

    async with Service(WORKERS=1) as service, connect(service.base, ping=4.0) as lab:
        await lab.opened()
        valkey = service.valkey_pid()
        os.kill(valkey, signal.SIGSTOP)
        try:
            errors: list[str] = []
            lab.on("error", lambda error: errors.append(error.code))
            subscription = lab.subscribe("config")
            await until(lambda: "BACKPLANE_UNAVAILABLE" in errors, "a refusal", 60)
        finally:
            with contextlib.suppress(ProcessLookupError):  # its supervisor may have replaced it
                os.kill(valkey, signal.SIGCONT)
        await until(is_published, "published", 60)
        async with asyncio.timeout(60):
            assert (await anext(subscription)).data == 1
        assert lab.counts.reconnects == 0


async def test_a_gap_is_announced() -> None:
    async with (
        Service(HISTORY_SIZE=5, RECOVERY_WINDOW=0, WORKERS=1) as service,
        connect(service.base, pause=(60.0, 60.0)) as lab,
    ):
        subscription = lab.subscribe("config")
        gaps: list[Gap] = []
        lab.on("gap", gaps.append)
        await service.publish("config", "tick", 0)
        await collect(subscription, 0)
        # While the client waits, more comes than the history holds; twice, since what a worker
        # still has in memory it would replay.
        victim = service.kill_worker()
        await service.replaced(victim)
        for number in range(1, 21):
            await service.publish("config", "tick", number)
        victim = service.kill_worker()
        await service.replaced(victim)
        assert lab.state.name == "waiting"
        lab.reconnect()
        messages = await collect(subscription, 20)
        (gap,) = gaps
        assert gap.reason == "history"
        lost = gap.last - gap.first + 1
        assert data(messages) == list(range(1 + lost, 21))
        assert (lab.counts.gaps, lab.counts.missed) == (1, lost)


def token(seconds: float, **claims: object) -> str:
    return jwt.encode({"sub": "ann", "exp": time.time() + seconds} | claims, SECRET)


@pytest.fixture(scope="module")
def guarded() -> Any:
    running = Service(AUTH_SECRET=SECRET).start()
    yield running
    running.stop()


async def test_tokens_are_renewed(guarded: Service) -> None:
    # The first is refused, the second ends within the minute of the warning.
    tokens = [token(-60), token(55), token(600)]
    renewed = asyncio.Event()

    async def get() -> str:
        if len(tokens) == 1:
            renewed.set()
            return tokens[0]
        return tokens.pop(0)

    async with connect(guarded.base, token=get, pause=PAUSE) as lab:
        subscription = lab.subscribe("config")
        seen = states(lab)
        async with asyncio.timeout(60):
            await renewed.wait()
        await guarded.publish("config", "tick", "renewed")
        await collect(subscription, "renewed")
        assert [state.name for state in seen if state.name != "connecting"] == ["waiting", "open"]
        assert lab.connected["user"] == "ann"


@pytest.mark.parametrize(("given", "said"), [(None, ""), ("nonsense", "not a valid JSON Web")])
async def test_a_wrong_token_is_final_until_another_one_comes(
    guarded: Service, given: str | None, said: str
) -> None:
    async with connect(guarded.base, token=given) as lab:
        subscription = lab.subscribe("config", history=0)
        with pytest.raises(ConnectionClosed) as caught:
            await anext(subscription)
        assert (caught.value.cause, caught.value.close_code) == ("token", 4401)
        assert said in caught.value.message
        with pytest.raises(ConnectionClosed):
            await lab.ping()
        lab.reconnect(token=token(600))
        assert await lab.ping() > 0


async def test_a_token_that_cannot_be_had_is_asked_for_again(guarded: Service) -> None:
    answers: Iterator[str | ValueError] = iter([ValueError("no issuer"), token(600)])

    def get() -> str:
        answer = next(answers)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    async with connect(guarded.base, token=get, pause=PAUSE) as lab:
        seen = states(lab)
        assert await lab.ping() > 0
        assert ["no issuer" in state.message for state in seen if state.name == "waiting"] == [True]


async def test_a_user_with_too_many_connections_gets_the_code() -> None:
    async with (
        Service(MAX_CONNECTIONS_PER_USER=1) as service,
        connect(service.base, user="ann") as first,
    ):
        await first.ping()
        async with connect(service.base, user="ann", pause=PAUSE) as second:
            seen = states(second)
            with pytest.raises(RealtimeError):
                await second.request("ping", timeout=5)
            assert {state.cause for state in seen if state.cause} <= {"user-limit", "full"}
            assert any(state.cause for state in seen)


async def test_a_full_server_is_waited_for() -> None:
    async with (
        Service(MAX_TOTAL_CONNECTIONS=1, WORKERS=1) as service,
        connect(service.base) as first,
    ):
        await first.ping()
        second = connect(service.base, pause=PAUSE)
        refused = asyncio.Event()

        def look(state: State) -> None:
            if state.cause == "full" and "503" in state.message:
                refused.set()

        second.on("state", look)
        async with second:
            async with asyncio.timeout(20):
                await refused.wait()
            await first.close()
            await service.wait_connections(0)
            second.reconnect()
            assert await second.ping() > 0


async def test_a_drain_says_when_to_come_back(tmp_path: Path) -> None:
    first = Service(data_dir=tmp_path / "data", DRAIN_SECONDS=1)
    await first.__aenter__()
    try:
        async with connect(first.base, pause=(30.0, 30.0)) as lab:
            subscription = lab.subscribe("config")
            seen = states(lab)
            await first.publish("config", "tick", 1)
            await collect(subscription, 1)
            await asyncio.to_thread(first.stop)
            (waiting, *_) = [state for state in seen if state.name == "waiting"]
            assert (waiting.code, waiting.cause) == (1012, "restart")
            # Not after the thirty seconds of its own.
            assert waiting.pause is not None
            assert waiting.pause < 15
            async with Service(data_dir=first.data_dir, port=first.port) as second:
                lab.reconnect()
                await second.publish("config", "tick", 2)
                assert data(await collect(subscription, 2)) == [2]
    finally:
        await asyncio.to_thread(first.destroy)


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_type_that_is_removed_keeps_no_other_from_flowing(
    tmp_path: Path, transport: Transport
) -> None:
    first = Service(data_dir=tmp_path / "data", MESSAGE_TYPES="lab", DRAIN_SECONDS=1, WORKERS=1)
    await first.__aenter__()
    try:
        async with connect(first.base, pause=PAUSE, transport=transport) as lab:
            errors: list[str] = []
            lab.on("error", lambda error: errors.append(error.code))
            subscription = lab.subscribe("lab", "config")
            await first.publish("config", "tick", 1)
            await collect(subscription, 1)
            await first.publish("lab", "tick", 2)
            await collect(subscription, 2)
            await asyncio.to_thread(first.stop)
            async with Service(data_dir=first.data_dir, port=first.port, WORKERS=1) as second:
                await second.publish("config", "tick", 3)
                assert data(await collect(subscription, 3)) == [3]
                # The type that is no more is asked for alone, after the others.
                await until(lambda: errors, "the refusal has come")
                assert set(errors) == {"INVALID_TYPE"}
    finally:
        await asyncio.to_thread(first.destroy)


async def test_batches_and_presence(service: Service) -> None:
    async with Publisher(service.base, TOKEN) as publisher:
        drafts = [Draft("config", "tick", number) for number in range(50)]
        results = await publisher.publish_many([*drafts, Draft("nope", "tick")])
        assert [isinstance(result, Stored) for result in results] == [True] * 50 + [False]
        seqs = [result.seq for result in results if isinstance(result, Stored)]
        assert seqs == list(range(seqs[0], seqs[0] + 50))
        again = await publisher.publish_many(drafts)
        assert again == results[:50], "the same ids are stored once"
        await publisher.set_presence("working", "Testing")
        status = await publisher.get("/status")
        assert (status["presence"]["state"], status["presence"]["task"]) == ("working", "Testing")


async def test_a_client_that_is_left_leaves_nothing(service: Service) -> None:
    async def stream() -> AsyncIterator[Message]:
        async with connect(service.base) as lab:
            async for message in lab.subscribe("config"):
                yield message

    before = set(asyncio.all_tasks())
    messages = stream()
    assert await anext(messages)
    await messages.aclose()  # type: ignore[attr-defined]
    assert set(asyncio.all_tasks()) == before


@pytest.mark.parametrize(
    ("page", "language"), [("clients/python/README.md", "python"), ("docs/CLIENTS.md", "py")]
)
async def test_the_first_message_as_the_papers_have_it(
    service: Service, page: str, language: str
) -> None:
    found = re.search(
        rf"^```{language}\n(.*?)^```", (REPO / page).read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    await service.publish("status", "greeting", {"page": page})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", found[1].replace("http://127.0.0.1:3001", service.base)),
        env=dict(os.environ) | {"PYTHONPATH": str(REPO / "clients/python/src")},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
    finally:
        process.kill()
        await process.communicate()
    assert line.decode() == f"greeting {{'page': '{page}'}}\n"
