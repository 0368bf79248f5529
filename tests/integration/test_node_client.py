"""Clients of Node: socket.io-client as it comes, and the deployment report's own snippet."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.integration.harness import DEADLINE, Service
from tests.integration.sioclient import sio_clients

Line = dict[str, Any]


class Node:
    """A script under Node that talks JSON lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[Any] = []

    async def line(self) -> Any:
        """The next line that the script prints."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            text = await self.process.stdout.readline()
        assert text, f"the script ended; it said {self.lines}"
        self.lines.append(json.loads(text))
        return self.lines[-1]

    async def until(self, key: str, value: str) -> Line:
        """The next line with this value under this key."""
        while True:
            line: Line = await self.line()
            if line.get(key) == value:
                return line

    async def tell(self, **order: object) -> None:
        """Give the script an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.process.stdin.drain()

    async def call(self, event: str, *args: object, **more: object) -> Any:
        """Emit with an ack, and return the ack's argument."""
        await self.tell(emit=event, args=args, ack=event, **more)
        line = await self.until("ack", event)
        assert "error" not in line, line
        return line["args"][0]


@asynccontextmanager
async def script(path: Path, program: str = "node", **environ: str) -> AsyncIterator[Node]:
    """Run a script until the end of the block."""
    process = await asyncio.create_subprocess_exec(
        program,
        str(path),
        env=dict(os.environ) | environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**22,
    )
    try:
        yield Node(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


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
