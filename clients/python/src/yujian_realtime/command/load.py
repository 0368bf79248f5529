"""`yujian load`: many clients for a server on this machine, and what they see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from yujian_realtime.addresses import socket_url
from yujian_realtime.command.exits import Exit, Failure, reporting
from yujian_realtime.command.settings import Connection
from yujian_realtime.publisher import Publisher

EVENT = "load_test"
"""Event of the messages that it publishes."""
SPARE_FILES = 100
"""File descriptors that are needed beside those of the clients."""
_CONNECT_TIMEOUT = 30.0
_LATENCIES_KEPT = 200_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do."""

    clients: int
    rate: float
    """Connects per second."""
    seconds: float
    """How long all stay."""
    types: tuple[str, ...]
    publish: float
    """Messages per second, of the first type."""
    size: int
    """Bytes of padding in each of them."""


@dataclass(slots=True)
class Seen:
    """What the clients saw."""

    connect_times: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    received_bytes: int = 0
    missed: int = 0
    latencies: list[float] = field(default_factory=list)
    published: int = 0
    open: int = 0


async def load(connection: Connection, plan: Plan, *, as_json: bool) -> Exit:
    """Connect, stay, and print what was seen.

    Raises:
        Failure: the server is on another machine, or the limit of open files is too low.
    """
    url = socket_url(connection.url)
    await _require_own(url)
    _raise_limit(plan.clients)
    publish_token = connection.require_publish_token() if plan.publish else ""
    seen = Seen()
    leave = asyncio.Event()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        progress = asyncio.create_task(_report(seen, plan))
        clients: list[asyncio.Task[None]] = []
        settled = [asyncio.Event() for _ in range(plan.clients)]
        began = time.monotonic()
        for number, event in enumerate(settled):
            pause = began + number / plan.rate - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            token = _token(connection, number)
            client = _Client(session, url, token, seen)
            clients.append(asyncio.create_task(client.run(plan, event, leave)))
        await asyncio.gather(*(event.wait() for event in settled))
        connected_after = time.monotonic() - began
        messages_before, staying = seen.messages, time.monotonic()
        try:
            with reporting(connection.url):
                await _stay(connection, plan, publish_token, seen)
        finally:
            stayed = time.monotonic() - staying
            leave.set()
            progress.cancel()
            await asyncio.wait([progress, *clients])
    result = _result(seen, plan, connected_after, seen.messages - messages_before, stayed)
    _print(result, as_json=as_json)
    return Exit.MISSED if seen.failures or seen.closed or seen.missed else Exit.OK


def _token(connection: Connection, number: int) -> str:
    if connection.token:
        return connection.token
    if connection.settings.get("AUTH_SECRET"):
        return connection.sign(f"load-{number}", 86_400)
    return ""


async def _stay(connection: Connection, plan: Plan, token: str, seen: Seen) -> None:
    if not plan.publish:
        await asyncio.sleep(plan.seconds)
        return
    end = time.monotonic() + plan.seconds
    padding = "x" * plan.size
    async with Publisher(connection.url, token) as publisher:
        for number in range(round(plan.seconds * plan.publish)):
            pause = end - plan.seconds + number / plan.publish - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            if time.monotonic() > end:
                break
            data = {"sent": time.time(), "padding": padding}
            await publisher.publish(plan.types[0], EVENT, data)
            seen.published += 1
    await asyncio.sleep(0.5)  # for what is on its way


@dataclass(slots=True)
class _Client:
    """One of many: connects, reads, and counts what it sees."""

    session: aiohttp.ClientSession
    url: URL
    token: str
    seen: Seen

    async def run(self, plan: Plan, settled: asyncio.Event, leave: asyncio.Event) -> None:
        """Connect, set `settled` once that has succeeded or failed, and stay until `leave` is set."""
        try:
            socket = await self._connect(plan)
        finally:
            settled.set()
        if socket is None:
            return
        seen = self.seen
        seen.open += 1
        leaving = asyncio.create_task(leave.wait())
        reading = asyncio.create_task(_read(socket, seen))
        await asyncio.wait({leaving, reading}, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            seen.closed[str(socket.close_code or 1006)] += 1
        seen.open -= 1
        for task in (leaving, reading):
            task.cancel()
        await asyncio.wait({leaving, reading})
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(2):
                await socket.close()

    async def _connect(self, plan: Plan) -> aiohttp.ClientWebSocketResponse | None:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = self.url.update_query({"types": ",".join(plan.types)})
        failures = self.seen.failures
        began = time.monotonic()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                socket = await self.session.ws_connect(url, headers=headers, max_msg_size=0)
                first = await socket.receive()
        except aiohttp.WSServerHandshakeError as error:
            failures[f"HTTP {error.status}"] += 1
        except TimeoutError:
            failures["no answer in time"] += 1
        except (aiohttp.ClientError, OSError) as error:
            failures[getattr(error, "strerror", None) or type(error).__name__] += 1
        else:
            if first.type is aiohttp.WSMsgType.TEXT:
                self.seen.connect_times.append(time.monotonic() - began)
                return socket
            failures[f"closed with {socket.close_code}"] += 1
        return None


async def _read(socket: aiohttp.ClientWebSocketResponse, seen: Seen) -> None:
    last: dict[str, tuple[str, int]] = {}
    async for frame in socket:
        if frame.type is not aiohttp.WSMsgType.TEXT:
            continue
        message = json.loads(frame.data)
        seen.received_bytes += len(frame.data)
        seq = message.get("seq")
        if seq is None:
            continue
        seen.messages += 1
        type, epoch = message["type"], message["epoch"]
        before = last.get(type)
        if before is not None and before[0] == epoch and seq > before[1] + 1:
            seen.missed += seq - before[1] - 1
        last[type] = (epoch, seq)
        if message["event"] == EVENT and len(seen.latencies) < _LATENCIES_KEPT:
            seen.latencies.append(time.time() - message["data"]["sent"])


async def _require_own(url: URL) -> None:
    """Only what is on this machine may be loaded.

    Raises:
        Failure: the address belongs to another machine, or to none.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Failure(Exit.UNREACHABLE, f"{url.host}: {error.strerror or error}") from None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0, *address[2:]))
            except OSError:
                raise Failure(
                    Exit.USAGE,
                    f"{url.host} is not this machine: load only a server of your own, from where it runs.",
                ) from None


def _raise_limit(clients: int) -> None:
    needed = clients + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise Failure(
            Exit.USAGE, f"{clients} clients need {needed} open files: ulimit -n is {hard}."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _report(seen: Seen, plan: Plan) -> None:
    if not sys.stderr.isatty():
        return
    while True:
        line = f"{seen.open} of {plan.clients} connected, {seen.messages} messages"
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
        try:
            await asyncio.sleep(0.5)
        finally:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def percentile(values: Iterable[float], share: float) -> float | None:
    """The value below which a share of the values lies; None without values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else None


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value * 1000, 2)


def _result(
    seen: Seen, plan: Plan, connected_after: float, messages: int, stayed: float
) -> dict[str, Any]:
    return {
        "clients": plan.clients,
        "connected": len(seen.connect_times),
        "failed": dict(seen.failures),
        "closed": dict(seen.closed),
        "connectSeconds": round(connected_after, 2),
        "connectMs": {
            "p50": _ms(percentile(seen.connect_times, 0.5)),
            "p99": _ms(percentile(seen.connect_times, 0.99)),
        },
        "stayedSeconds": round(stayed, 2),
        "published": seen.published,
        "messages": messages,
        "messagesPerSecond": round(messages / stayed, 1) if stayed else 0.0,
        "missed": seen.missed,
        "latencyMs": {
            "p50": _ms(percentile(seen.latencies, 0.5)),
            "p99": _ms(percentile(seen.latencies, 0.99)),
            "max": _ms(max(seen.latencies, default=None)),
        },
    }


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
        return
    connect, latency = result["connectMs"], result["latencyMs"]
    rows = [
        ("connected", f"{result['connected']} of {result['clients']}"),
        ("", f"in {result['connectSeconds']} s; p50 {connect['p50']} ms, p99 {connect['p99']} ms"),
        *(("failed", f"{count}: {why}") for why, count in result["failed"].items()),
        *(("closed", f"{count}: close code {code}") for code, count in result["closed"].items()),
        ("messages", f"{result['messages']} in {result['stayedSeconds']} s"),
        ("", f"{result['messagesPerSecond']} a second, {result['missed']} missed"),
    ]
    if result["published"]:
        figures = f"p50 {latency['p50']} ms, p99 {latency['p99']} ms, max {latency['max']} ms"
        rows += [("published", str(result["published"])), ("delivered in", figures)]
    for name, text in rows:
        print(f"{name:<14}{text}", flush=True)
