"""`yujian-realtime` where no WebSocket passes: server-sent events against the real service."""

from __future__ import annotations

import asyncio
import time

import jwt
import pytest

from tests.support.blocking import BlockingProxy, Way
from tests.support.python_client import PAUSE, SECRET, collect, data
from tests.support.service import TOKEN, Service
from tests.support.waiting import until
from yujian_realtime import Gap, Realtime, RealtimeError, State, connect

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("way", ["refused", "stripped", "dropped"])
async def test_two_websockets_that_do_not_open_are_enough(service: Service, way: Way) -> None:
    await service.publish("config", "tick", f"{way} before")
    async with (
        BlockingProxy(service.base, way) as proxy,
        connect(proxy.base, pause=PAUSE) as lab,
    ):
        subscription = lab.subscribe("config")
        first = await asyncio.wait_for(anext(subscription), 30)
        assert (first.data, first.origin) == (f"{way} before", "history")
        assert (lab.state.name, lab.counts.reconnects) == ("open", 2)
        assert proxy.upgrades >= 2  # the HTTP library repeats a request that was dropped
        sent = await service.publish("config", "tick", f"{way} after")
        second = await asyncio.wait_for(anext(subscription), 30)
        assert (second.seq, second.epoch, second.origin) == (sent["seq"], sent["epoch"], "live")


async def test_a_cut_and_a_reload_lose_nothing_and_repeat_nothing(service: Service) -> None:
    gaps: list[Gap] = []
    seen: list[State] = []
    async with (
        BlockingProxy(service.base, "stripped") as proxy,
        connect(proxy.base, pause=PAUSE) as lab,
    ):
        lab.on("gap", gaps.append)
        subscription = lab.subscribe("config", "health", history=0)
        await asyncio.wait_for(lab.opened(), 30)
        lab.on("state", seen.append)
        await until(lambda: proxy.paths.count("GET /events") > 1, "the stream with the types")
        await service.wait_connections(1)
        await service.publish("config", "tick", "live")
        assert data(await collect(subscription, "live")) == ["live"]

        proxy.cut()
        await until(lambda: lab.state.name == "waiting", "the client notices the cut")
        assert lab.state.cause == "network"
        for number in range(3):
            await service.publish("config", "tick", f"cut {number}")
        await service.hup()
        await service.publish("health", "tick", "reloaded")
        proxy.is_cut = False
        messages = await collect(subscription, "reloaded")
        await service.publish("config", "tick", "end of the cut")
        messages += await collect(subscription, "end of the cut")
        got = [one.data for one in messages if one.type == "config"]
        assert got == ["cut 0", "cut 1", "cut 2", "end of the cut"]
        assert [one.data for one in messages if one.type == "health"] == ["reloaded"]

        # While the stream is there, a reload is not noticed.
        seen.clear()
        await service.hup()
        await service.publish("config", "tick", "after the reload")
        assert data(await collect(subscription, "after the reload")) == ["after the reload"]
        assert seen == []
        assert (gaps, lab.counts.gaps, lab.counts.missed) == ([], 0, 0)
        assert proxy.upgrades == 2


async def test_requests_over_a_stream(service: Service) -> None:
    for number in range(3):
        await service.publish("config", "tick", f"past {number}")
    async with connect(service.base, pause=PAUSE, transport="sse") as lab:
        subscription = lab.subscribe("config", history=2)
        assert data(await collect(subscription, "past 2")) == ["past 1", "past 2"]
        page = await lab.history("config", 2)
        assert data(page.messages) == ["past 1", "past 2"]
        older = await lab.history("config", 1, before=page.messages[0].seq)
        assert data(older.messages) == ["past 0"]
        assert await lab.ping() > 0
        with pytest.raises(RealtimeError, match="'presence' needs a WebSocket") as refused:
            await lab.presence("config")
        assert refused.value.code == "INVALID_ACTION"
        with pytest.raises(RealtimeError, match="'nothing'") as unknown:
            await lab.request("subscribe", {"types": ["nothing"]})
        assert unknown.value.code == "INVALID_TYPE"
        # Another type comes and goes, and this one goes on where it stood.
        with lab.subscribe("health", history=0):
            await service.publish("config", "tick", "with another")
            assert data(await collect(subscription, "with another")) == ["with another"]
        await service.publish("config", "tick", "without it")
        assert data(await collect(subscription, "without it")) == ["without it"]
        assert (lab.state.name, lab.counts.reconnects, lab.counts.gaps) == ("open", 0, 0)


async def test_tokens_are_renewed_and_the_end_of_a_stream_says_why() -> None:
    def token(seconds: float) -> str:
        return jwt.encode({"sub": "ann", "exp": time.time() + seconds}, SECRET)

    async with Service(AUTH_SECRET=SECRET) as service:
        # The first is refused, the second ends within the minute of the warning.
        tokens = [token(-60), token(55), token(600)]
        seen: list[State] = []

        async def get() -> str:
            return tokens.pop(0) if len(tokens) > 1 else tokens[0]

        async with Realtime(service.base, token=get, pause=PAUSE, transport="sse") as lab:
            lab.on("state", seen.append)
            await asyncio.wait_for(lab.opened(), 30)
            assert lab.connected["user"] == "ann"
            assert [(one.name, one.cause) for one in seen] == [
                ("connecting", None),
                ("waiting", "token"),
                ("connecting", "token"),
                ("open", None),
            ]
            subscription = lab.subscribe("config")
            await until(lambda: len(tokens) == 1, "the renewal of the token")
            await service.publish("config", "tick", "renewed")
            await collect(subscription, "renewed")
            await service.wait_connections(1)
            assert [one.name for one in seen[3:]] == ["open"]
            closed = await service.request("DELETE", "/connections?user=ann", token=TOKEN)
            assert closed.status == 200, closed
            await until(lambda: lab.state.name == "closed", "the operator's close")
            assert (lab.state.cause, lab.state.code) == ("operator", 4403)
