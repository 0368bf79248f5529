"""Publishers that keep their connections between calls, each with another HTTP client."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx
import requests
import urllib3

from tests.support import programs
from tests.support.service import TOKEN

HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
TIMEOUT = 20


class Publisher(ABC, threading.Thread):
    """Publishes `{"by": name, "n": 0, 1, …}` at a rate until `stop` is called.

    Args:
        url: of POST /ws/broadcast.
        rate: calls a second.
    """

    type = "status"
    """Of its messages."""

    def __init__(self, url: str, rate: float) -> None:
        super().__init__(name=f"{type(self).__name__}-{rate:g}", daemon=True)
        self.url = url
        self.pause = 1 / rate
        self.stored = 0
        self.errors: list[str] = []
        self.enough = threading.Event()

    def body(self, number: int) -> bytes:
        data = {"by": self.name, "n": number}
        return json.dumps({"type": self.type, "event": "tick", "data": data}).encode()

    def note(self, number: int, post: Callable[[bytes], int]) -> None:
        """One call, and what came of it."""
        try:
            status = post(self.body(number))
        except Exception as error:  # noqa: BLE001 (each client has errors of its own)
            self.errors.append(f"{number}: {type(error).__name__} {error}")
            return
        if status == 200:
            self.stored += 1
        else:
            self.errors.append(f"{number}: {status}")

    def run(self) -> None:
        post = self.opened()
        try:
            self._publish(post)
        finally:
            self.close()

    def _publish(self, post: Callable[[bytes], int]) -> None:
        number, due = 0, time.monotonic()
        while not self.enough.is_set():
            self.note(number, post)
            number += 1
            due = max(due + self.pause, time.monotonic())
            self.enough.wait(due - time.monotonic())

    @abstractmethod
    def opened(self) -> Callable[[bytes], int]:
        """A function that posts a body and returns the status; sets `close`."""

    def close(self) -> None:
        """End the connection; replaced by `opened`."""


class Requests(Publisher):
    def opened(self) -> Callable[[bytes], int]:
        session = requests.Session()
        session.trust_env = False
        self.close = session.close  # type: ignore[method-assign]
        return lambda body: (
            session.post(self.url, body, headers=HEADERS, timeout=TIMEOUT).status_code
        )


class Httpx(Publisher):
    def opened(self) -> Callable[[bytes], int]:
        client = httpx.Client(timeout=TIMEOUT, trust_env=False, headers=HEADERS)
        self.close = client.close  # type: ignore[method-assign]
        return lambda body: client.post(self.url, content=body).status_code


class Urllib3(Publisher):
    def opened(self) -> Callable[[bytes], int]:
        pool = urllib3.PoolManager(headers=HEADERS, timeout=TIMEOUT, retries=False)
        self.close = pool.clear  # type: ignore[method-assign]
        return lambda body: pool.request("POST", self.url, body=body).status


class HttpClient(Publisher):
    """The standard library's, which sends the head and the body in segments of their own."""

    def opened(self) -> Callable[[bytes], int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT)
        self.close = connection.close  # type: ignore[method-assign]

        def post(body: bytes) -> int:
            try:
                connection.request("POST", parts.path, body, HEADERS)
                answer = connection.getresponse()
                answer.read()
                return answer.status
            except BaseException:
                connection.close()
                raise

        return post


class Aiohttp(Publisher):
    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        number, due = 0, time.monotonic()
        timeout = aiohttp.ClientTimeout(TIMEOUT)
        async with aiohttp.ClientSession(headers=HEADERS, timeout=timeout) as session:
            while not self.enough.is_set():
                try:
                    async with session.post(self.url, data=self.body(number)) as answer:
                        await answer.read()
                        status = answer.status
                    self.note(number, lambda _, status=status: status)  # type: ignore[misc]
                except Exception as error:  # noqa: BLE001
                    self.errors.append(f"{number}: {type(error).__name__} {error}")
                number += 1
                due = max(due + self.pause, time.monotonic())
                await asyncio.sleep(due - time.monotonic())

    def opened(self) -> Callable[[bytes], int]:
        raise NotImplementedError


class Curl(Publisher):
    """One curl that makes all its calls over one connection."""

    _MOST = 5000

    def run(self) -> None:
        command = [programs.find("curl"), "--silent", "--rate", f"{1 / self.pause:g}/s"]
        for name, value in HEADERS.items():
            command += ["--header", f"{name}: {value}"]
        command += ["--data-binary", self.body(0).decode().replace('"n": 0', '"n": null')]
        command += ["--output", "/dev/null", "--write-out", "%{stderr}%{http_code} %{errormsg}\n"]
        command += [f"{self.url}?n=[1-{self._MOST}]"]
        # What goes to stdout waits in a buffer.
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            for line in process.stderr:
                status, _, error = line.strip().partition(" ")
                if status == "200":
                    self.stored += 1
                else:
                    self.errors.append(f"{status} {error}")
                if self.enough.is_set():
                    break
            process.terminate()

    def opened(self) -> Callable[[bytes], int]:
        raise NotImplementedError


class Scraper(Publisher):
    """Reads a page that must be well, as health checks of proxies do."""

    def opened(self) -> Callable[[bytes], int]:
        session = requests.Session()
        session.trust_env = False
        self.close = session.close  # type: ignore[method-assign]
        return lambda _: session.get(self.url, timeout=TIMEOUT).status_code


class ThroughCaddy(Publisher):
    """urllib3 over TLS through a Caddy, which keeps connections to the service.

    Args:
        certificate: of the authority to trust; the name is that of the URL, the address the
            loopback's.
    """

    def __init__(self, url: str, rate: float, certificate: Path) -> None:
        super().__init__(url, rate)
        self._certificate = certificate

    def opened(self) -> Callable[[bytes], int]:
        parts = urlsplit(self.url)
        pool = urllib3.HTTPSConnectionPool(
            "127.0.0.1",
            parts.port,
            headers=HEADERS | {"Host": parts.netloc},
            timeout=TIMEOUT,
            retries=False,
            ca_certs=str(self._certificate),
            server_hostname=parts.hostname,
            assert_hostname=parts.hostname,
        )
        self.close = pool.close  # type: ignore[method-assign]
        return lambda body: pool.request("POST", parts.path, body=body).status


CLIENTS: list[type[Publisher]] = [Requests, Httpx, Urllib3, HttpClient, Aiohttp, Curl]
RATES = (1, 5, 20)
"""Calls a second."""


def of_all_kinds(url: str, caddy: str, certificate: Path) -> list[Publisher]:
    """Each client at each rate, and through Caddy.

    Args:
        url: of POST /ws/broadcast.
        caddy: of the same, through Caddy.
        certificate: of the authority that Caddy has.
    """
    direct: list[Publisher] = [kind(url, rate) for kind in CLIENTS for rate in RATES]
    return [*direct, *(ThroughCaddy(caddy, rate, certificate) for rate in RATES)]


@asynccontextmanager
async def at_work(publishers: Sequence[Publisher]) -> AsyncIterator[None]:
    """Let them publish; at the end none has had an error."""
    for one in publishers:
        one.start()
    try:
        yield
    finally:
        for one in publishers:
            one.enough.set()
        await asyncio.to_thread(lambda: [one.join(30) for one in publishers])
    errors = {one.name: one.errors for one in publishers if one.errors}
    assert not errors, errors


def check_stored(publishers: Sequence[Publisher], received: Sequence[dict[str, Any]]) -> None:
    """What was answered with 200 is there, once.

    Args:
        publishers: that have ended.
        received: data of all messages, of others too.
    """
    names = {one.name for one in publishers}
    ours = [data for data in received if data.get("by") in names]
    numbered = Counter((data["by"], data["n"]) for data in ours if data["n"] is not None)
    assert max(numbered.values()) == 1, "stored twice"
    answered = sum(one.stored for one in publishers if not isinstance(one, Curl))
    assert sum(numbered.values()) == answered
    # curl's have no numbers, and the last is on its way when it is ended.
    curls = [one for one in publishers if isinstance(one, Curl)]
    found = len(ours) - answered
    least = sum(one.stored for one in curls)
    assert least <= found <= least + len(curls)
