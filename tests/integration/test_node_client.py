"""Clients of Node: socket.io-client as it comes, and the deployment report's own snippet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.node import script
from tests.support.service import Service
from tests.support.sioclient import sio_clients


def client(node: Path, service: Service, namespace: str = "/", **options: Any) -> Any:
    """A socket.io-client of the service."""
    return script(
        node / "socketio.mjs",
        BASE=service.base,
        NAMESPACE=namespace,
        OPTIONS=json.dumps(options),
    )


async def test_snippet_of_the_report_works_as_written(service: Service, node: Path) -> None:
    base = f"ws://127.0.0.1:{service.port}"
    async with script(node / "run_snippet.mjs", BASE=base) as browser:
        said: list[Any] = []
        while not any(one[0] == "收到消息:" and one[1]["event"] == "subscribed" for one in said):
            said.append(await browser.line())
        assert ["连接成功"] in said
        events = [one[1]["event"] for one in said if one[0] == "收到消息:"]
        assert events == ["connected", "subscribed"]
        sent = await service.publish("health", "from_the_test", {"v": "值"})
        title, message = await browser.line()
        assert title == "收到消息:"
        assert (message["event"], message["seq"]) == ("from_the_test", sent["seq"])
        assert message["data"] == {"v": "值"}


async def test_connect_events_and_acks(service: Service, node: Path) -> None:
    async with client(node, service, auth={"user": "nora"}) as peer:
        await peer.until("event", ":connect")
        connected = await peer.until("event", "connected")
        assert connected["args"][0]["data"]["user"] == "nora"
        got = await peer.call("subscribe", {"types": ["config"]})
        assert got["event"] == "subscribed"
        assert await peer.call("echo", {"n": [1, "二"]}) == {"n": [1, "二"]}
        assert await peer.call("echo", binary="00ff10") == {"binary": "00ff10"}
        sent = await service.publish("config", "setting_changed", 5)
        line = await peer.until("event", "setting_changed")
        assert len(line["args"]) == 1
        assert line["args"][0]["seq"] == sent["seq"]


async def test_server_calls_a_node_client(service: Service, node: Path) -> None:
    async with client(node, service) as peer, sio_clients(service) as [asker]:
        sid = (await peer.until("event", ":connect"))["args"][0]
        body = {"event": "question", "data": {"n": 1}, "sid": sid}
        assert await asker.call("ask", body) == {"answered": [{"n": 1}]}
        say = {"event": "raw", "data": b"\x01\x02", "to": sid}
        await asker.call("say", say)
        assert (await peer.until("event", "raw"))["args"] == [{"binary": "0102"}]


async def test_namespace(service: Service, node: Path) -> None:
    async with client(node, service, "/app") as peer:
        await peer.until("event", ":connect")
        assert await peer.call("echo", 1) == 1


async def test_disconnect_from_either_side(service: Service, node: Path) -> None:
    async with sio_clients(service) as [watcher]:
        await watcher.call("enter", {"room": "watchers"})
        async with client(node, service, auth={"name": "kicked"}) as peer:
            sid = (await peer.until("event", ":connect"))["args"][0]
            await watcher.call("kick", sid)
            line = await peer.until("event", ":disconnect")
            assert line["args"] == ["io server disconnect"]
        async with client(node, service, auth={"name": "leaver"}) as peer:
            await peer.until("event", ":connect")
            await peer.tell(close=True)
            line = await peer.until("event", ":disconnect")
            assert line["args"] == ["io client disconnect"]
        await watcher.wait_event("gone", 2)
        reasons = {one["name"]: one["reason"] for (one,) in watcher.named("gone")}
        assert reasons == {"kicked": "server disconnect", "leaver": "client disconnect"}


async def test_refused(service: Service, node: Path) -> None:
    async with client(node, service, auth={"refuse": True}) as peer:
        line = await peer.until("event", ":connect_error")
        assert line["args"] == ["not you", {"why": "asked for it"}]


async def test_polling_is_refused_clearly(service: Service, node: Path) -> None:
    async with client(node, service, transports=["polling"]) as peer:
        await peer.until("event", ":connect_error")
    answer = await service.get("/ws/realtime/", EIO=4, transport="polling")
    assert answer.status == 400
    assert "websocket" in answer.body["error"].lower()


async def test_user_cap(service: Service, node: Path) -> None:
    auth = {"user": "nico"}
    async with sio_clients(service, 3, auth=auth), client(node, service, auth=auth) as peer:
        _, data = (await peer.until("event", ":connect_error"))["args"]
        assert data["code"] == "MAX_CONNECTIONS_EXCEEDED"
