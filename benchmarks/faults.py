"""Faults that are too heavy for the tests: `python -m benchmarks --only faults`.

Each scenario prints a line per promise, PASS or FAIL. Clients count the `seq` of every message:
what is missing without a `gap` event, or comes twice, fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.procs import HEADERS, BenchmarkError, LoadClient, Server, service
from benchmarks.scenarios import PLAIN, say

_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


class Checks:
    """Prints and counts the outcome of each promise."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, promise: str, kept: bool, seen: object = "") -> None:
        """Note whether a promise was kept, and what was seen."""
        self.failed += not kept
        print(f"{'PASS' if kept else 'FAIL'} {promise}  [{seen}]", flush=True)


@dataclass(frozen=True, slots=True)
class Published:
    """The answers to the publishers of a flood."""

    accepted: list[int]
    """The `seq` of each message that was taken."""
    refused: Counter[str]
    """Codes of those that were not."""
    slowest: float
    """Seconds until the last answer."""


def _messages(first: int, many: int, pad: int) -> list[dict[str, Any]]:
    return [
        {"type": "status", "event": "status_update", "data": {"n": n, "pad": "x" * pad}}
        for n in range(first, first + many)
    ]


async def _flood(
    server: Server, posts: int, size: int, *, at_once: int, pad: int = 60
) -> Published:
    """POST `posts` arrays of `size` messages, `at_once` of them at a time."""
    accepted: list[int] = []
    refused: Counter[str] = Counter()
    slowest = 0.0
    turn = asyncio.Semaphore(at_once)
    url = f"http://127.0.0.1:{server.port}/ws/broadcast"

    async def post(number: int) -> None:
        nonlocal slowest
        async with turn:
            begin = time.monotonic()
            body = _messages(number * size, size, pad)
            async with session.post(url, json=body, headers=HEADERS) as answer:
                result = await answer.json()
            slowest = max(slowest, time.monotonic() - begin)
        items = result if isinstance(result, list) else [result] * size
        for item in items:
            if "seq" in item:
                accepted.append(item["seq"])
            else:
                refused[str(item.get("code"))] += 1

    connector = aiohttp.TCPConnector(limit=at_once)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(post(number) for number in range(posts)))
    return Published(accepted, refused, slowest)


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _flood_while_stopped(server: Server, pid: int, seconds: float) -> Published:
    with _stopped(pid):
        flood = asyncio.create_task(_flood(server, 100, 100, at_once=100))
        await asyncio.sleep(seconds)
    return await flood


def _open(load: LoadClient, server: Server, clients: int, **options: int) -> None:
    result = load("connect", port=server.port, path=PLAIN, wire="json", clients=clients, **options)
    if result["ready"] != clients:
        raise BenchmarkError(f"only {result} of {clients} connected:\n{server.log()}")


def _backplane_stopped(check: Checks, quick: bool, seconds: float) -> None:
    clients = 50 if quick else 500
    with service() as server, LoadClient("--key", "seq") as load:
        _open(load, server, clients)
        time.sleep(1.5)
        (valkey,) = server.find("valkey-server")
        load.begin("wait", received=10_001, seconds=seconds + 10)
        flood = asyncio.run(_flood_while_stopped(server, valkey, seconds))
        resumed = time.monotonic()
        last = asyncio.run(_flood(server, 1, 1, at_once=1))
        back = time.monotonic() - resumed
        load.result()
        final = last.accepted[0] if last.accepted else 0
        seen = load("wait", received=final, seconds=5)
        status = server.get("/status")[1]["status"]
    answered = len(flood.accepted) + flood.refused.total()
    check("each of 10 000 messages was answered", answered == 10_000, answered)
    if seconds < 5:
        check("all were taken", not flood.refused, dict(flood.refused))
    else:
        codes = set(flood.refused)
        check(
            "refusals have the right code", codes == {"BACKPLANE_UNAVAILABLE"}, dict(flood.refused)
        )
    check("no publisher waited over 7 s", flood.slowest < 7, f"{flood.slowest:.1f} s")
    check("no seq was given twice", len(set(flood.accepted)) == len(flood.accepted))
    check("a new message was taken at once", bool(last.accepted) and back < 3, f"{back:.1f} s")
    check("all clients stayed", seen["open"] == clients and not seen["lost"], seen["open"])
    check("each client has every message of the stream", seen["least"] == final, seen)
    check("none came twice or out of order", not seen["repeated"] and not seen["missing"])
    check("the service reports that it is healthy again", status == "ok", status)


def _refusal(port: int) -> tuple[int, str | None, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", PLAIN, headers=_UPGRADE)
        answer = connection.getresponse()
        hint = answer.getheader("Retry-After")
        return answer.status, hint, json.loads(answer.read() or b"{}")


def _count(server: Server, wanted: int) -> int:
    """Connections that the service counts, once they are `wanted` or 5 s have passed."""
    deadline = time.monotonic() + 5
    while True:
        total: int = server.get("/ws/stats")[1]["totalConnections"]
        if total == wanted or time.monotonic() > deadline:
            return total
        time.sleep(0.1)


def connect_storm(check: Checks, quick: bool) -> None:
    """5 000 connects at once against a cap of 1 000."""
    cap, storm = (200, 1000) if quick else (1000, 5000)
    options: dict[str, Any] = {"path": PLAIN, "wire": "json"}
    with (
        service(2, pinned=False, MAX_TOTAL_CONNECTIONS=str(cap)) as server,
        LoadClient("--key", "seq") as load,
    ):
        options["port"] = server.port
        first = load("connect", clients=storm, inflight=storm, **options)
        check(f"exactly {cap} of {storm} got in", first["ready"] == cap, first)
        refused = {"503+Retry-After": storm - cap}
        check("all others got 503 with Retry-After", first["refused"] == refused, first["refused"])
        status, hint, body = _refusal(server.port)
        known = status == 503 and hint is not None and "code" in body
        check("the refusal has a code", known, (status, hint, body))
        total = _count(server, cap)
        check("the service counts as many", total == cap, total)
        asyncio.run(_flood(server, 1, 1, at_once=1))
        seen = load("wait", received=1, seconds=5)
        check("all of them get a message", seen["least"] == seen["most"] == 1, seen)
        load("close", clients=cap // 10)
        total = _count(server, cap - cap // 10)
        check("clients that leave are not counted", total == cap - cap // 10, total)
        second = load("connect", clients=cap // 5, inflight=cap // 5, **options)
        check("as many get in as left", second["ready"] == cap // 10, second)


def _stalled(check: Checks, quick: bool, history: str) -> None:
    clients, stalled, posts = (200, 20, 40) if quick else (1000, 100, 60)
    total = posts * 50
    with service(HISTORY_BYTES=history) as server, LoadClient("--key", "seq") as load:
        _open(load, server, stalled, buffer=4096)
        time.sleep(1.5)
        load("stall", clients=stalled)
        _open(load, server, clients - stalled)
        time.sleep(1.5)
        before = server.own_pss()
        answered = load("publish", posts=posts, size=50, headers=HEADERS, pad=900, pause=0)
        seen = load("report")
        grown = (server.own_pss() - before) / 1e6
        check("all messages were taken", not answered["failed"], answered["answer"])
        check("readers have each one in time", not answered["late"], answered["received"])
        check("readers have no gap", seen["least"] == total and _complete(seen), seen)
        # The history of one type, its tail in the worker, and 256 KB for each that does not read.
        limit = 40 + stalled * 0.256
        check("memory stayed bounded", grown < limit, f"{grown:.0f} of {limit:.0f} MB")
        load("resume")
        seen = load("wait", received=total, seconds=60)
    check(
        "stalled clients get each one or a gap for it", seen["least"] == seen["most"] == total, seen
    )
    check("none is missing unannounced", _complete(seen), seen)
    if history == "1MB":
        check("what the history lost was announced", seen["announced"] > 0, seen["announced"])
    else:
        check("the history held everything", seen["announced"] == 0, seen["announced"])


def _complete(seen: dict[str, Any]) -> bool:
    return not (seen["missing"] or seen["repeated"] or seen["lost"])


def history_outrun(check: Checks, quick: bool) -> None:
    """Publishers fill the history faster than the fan-out takes from it."""
    clients, posts = (200, 60) if quick else (1000, 60)
    total = posts * 50
    with service(HISTORY_BYTES="1MB") as server, LoadClient("--key", "seq") as load:
        _open(load, server, clients)
        time.sleep(1.5)
        load("stall", clients=clients)  # from here on they read frame by frame
        load("resume")
        load.begin("wait", received=total, seconds=90)
        answered = asyncio.run(_flood(server, posts, 50, at_once=4, pad=900))
        seen = load.result()
    check("all messages were taken", len(answered.accepted) == total, dict(answered.refused))
    check("each client gets each one or a gap for it", seen["least"] == seen["most"] == total, seen)
    check("none is missing unannounced", _complete(seen), seen)


FAULTS: dict[str, Callable[[Checks, bool], None]] = {
    "backplane-3s": lambda check, quick: _backplane_stopped(check, quick, 3),
    "backplane-10s": lambda check, quick: _backplane_stopped(check, quick, 10),
    "connect-storm": connect_storm,
    "stalled": lambda check, quick: _stalled(check, quick, "16MB"),
    "stalled-trimmed": lambda check, quick: _stalled(check, quick, "1MB"),
    "history-outrun": history_outrun,
}


def run(names: list[str], *, quick: bool) -> bool:
    """Run faults; returns whether every promise was kept."""
    check = Checks()
    for name in names:
        say(f"fault: {name}")
        FAULTS[name](check, quick)
    return not check.failed
