"""Publishers and scrapers that keep their connections do not notice a reload."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.caddy import Caddy, address, behind_caddy
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.publishers import Scraper, at_work, check_stored, of_all_kinds
from tests.support.service import TOKEN, Service
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]

RELOADS = 10


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    async with Service(GRACEFUL_TIMEOUT=20) as running:
        yield running


async def test_publishers_do_not_notice_ten_reloads() -> None:
    port = free_port()
    service = behind_caddy(port, WORKERS=2, RATE_LIMIT=0, COLLECTOR=0)
    async with service:
        with Caddy(address(service), https_port=port) as caddy:
            publishers = of_all_kinds(
                f"{service.base}/ws/broadcast",
                f"{caddy.api}/ws/broadcast",
                caddy.root_certificate,
            )
            scrapers = [Scraper(f"{service.base}{path}", 10) for path in ("/status", "/metrics")]
            reader = await PlainClient.open(service, types="status")
            async with at_work([*publishers, *scrapers]):
                for _ in range(RELOADS):
                    await service.hup()
            last = await service.publish("status", data={"by": "test", "n": 0})
            await reader.wait_seq("status", last["seq"])
            ticks = [got["data"] for got in reader.received if got.get("event") == "tick"]
            check_stored(publishers, ticks)
            await reader.close()


class Kept:
    """A connection whose bytes a test sends one by one."""

    def __init__(self, service: Service) -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.port), 10)
        self.socket.settimeout(30)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next answer; b"" when the service has closed."""
        head = b""
        while b"\r\n\r\n" not in head:
            if not (part := self.socket.recv(1)):
                return 0, head, b""
            head += part
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = b""
        while len(body) < length:
            body += self.socket.recv(length - len(body))
        return int(head.split()[1]), head, body

    def is_closed(self) -> bool:
        """Whether the service has ended the connection."""
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        finally:
            self.socket.settimeout(30)

    def close(self) -> None:
        self.socket.close()


def post(number: int, *, chunked: bool = False) -> bytes:
    """A request that publishes, as bytes."""
    body = json.dumps({"type": "status", "event": "tick", "data": {"n": number}}).encode()
    head = f"POST /ws/broadcast HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    if chunked:
        head += "Transfer-Encoding: chunked\r\n\r\n"
        return head.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


STATUS = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Case:
    """What is sent before a reload, and after the new workers serve."""

    def __init__(self, before: list[bytes], answers: int, after: bytes) -> None:
        self.before = before
        self.answers = answers
        self.after = after


HEAD = post(1).index(b"\r\n\r\n") + 4
CASES = {
    "silent": Case([], 0, post(1)),
    "a byte": Case([post(1)[:1]], 0, post(1)[1:]),
    "half a head": Case([post(1)[:40]], 0, post(1)[40:]),
    "an end of line of the head is missing": Case([post(1)[: HEAD - 1]], 0, post(1)[HEAD - 1 :]),
    "no body": Case([post(1)[:HEAD]], 0, post(1)[HEAD:]),
    "half a body": Case([post(1)[:-5]], 0, post(1)[-5:]),
    "half a chunked body": Case([post(1, chunked=True)[:-20]], 0, post(1, chunked=True)[-20:]),
    "idle": Case([STATUS], 1, post(1)),
    "idle after a body": Case([post(7)], 1, post(1)),
    "idle after a body of its own segment": Case([post(7)[:HEAD], post(7)[HEAD:]], 1, post(1)),
    "idle after a chunked body": Case([post(7, chunked=True)], 1, post(1)),
    "half of the second": Case([post(7), post(1)[:30]], 1, post(1)[30:]),
    "pipelined": Case([STATUS + post(1)[:30]], 1, post(1)[30:]),
    "pipelined behind a body": Case([post(7) + post(1)[:30]], 1, post(1)[30:]),
    "after an error": Case([b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"], 1, post(1)),
}


async def test_what_has_begun_before_a_reload_is_answered_after_it(service: Service) -> None:
    assert service.process is not None
    kept = {name: Kept(service) for name in CASES}
    try:
        for name, case in CASES.items():
            for part in case.before:
                kept[name].send(part)
                await asyncio.sleep(0.02)  # a segment of its own
            for _ in range(case.answers):
                await asyncio.to_thread(kept[name].answer)
        old = set(service.worker_pids())
        reload = asyncio.create_task(service.hup())
        served = f"new workers beside {old}"
        await until(lambda: len(service._answering() - old) == service.workers, served)
        await asyncio.sleep(0.5)
        for name, case in CASES.items():
            kept[name].send(case.after)
        for name in CASES:
            status, _, body = await asyncio.to_thread(kept[name].answer)
            assert status == 200, f"{name}: {status} {body!r}"
        await reload
        numbers = Counter(one["data"]["n"] for one in await service.history("status", limit=100))
        assert numbers[1] == len(CASES)
        # All of them go on in the new workers.
        for name in CASES:
            kept[name].send(STATUS)
            assert (await asyncio.to_thread(kept[name].answer))[0] == 200, name
    finally:
        for one in kept.values():
            one.close()


async def test_an_upgrade_that_has_begun_before_a_reload(service: Service) -> None:
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    head = (
        b"GET /ws/realtime?types=status HTTP/1.1\r\nHost: localhost\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    )
    begun, silent = Kept(service), Kept(service)
    try:
        begun.send(head)
        old = set(service.worker_pids())
        reload = asyncio.create_task(service.hup())
        await until(lambda: len(service._answering() - old) == service.workers, "new workers")
        begun.send(key)
        silent.send(head + key)
        await reload
        sent = await service.publish("status", data={"n": 1})
        for one in (begun, silent):
            received = b""
            while f'"seq":{sent["seq"]}'.encode() not in received:
                part = await asyncio.to_thread(one.socket.recv, 65536)
                assert part, received
                received += part
            assert received.startswith(b"HTTP/1.1 101")
    finally:
        begun.close()
        silent.close()


async def test_a_request_that_never_ends_holds_a_reload_for_a_bounded_time() -> None:
    async with Service(GRACEFUL_TIMEOUT=3, DRAIN_SECONDS=1, WORKERS=1) as service:
        half, client = Kept(service), await PlainClient.open(service, types="status")
        half.send(post(1)[:40])
        await service.hup()
        assert half.is_closed()
        sent = await service.publish("status", data={"n": 2})
        await client.wait_seq("status", sent["seq"])
        half.close()
        await client.close()


async def test_a_stop_answers_what_has_begun_and_says_that_it_ends() -> None:
    service = Service(WORKERS=1, DRAIN_SECONDS=3, GRACEFUL_TIMEOUT=20)
    await asyncio.to_thread(service.start)
    try:
        assert service.process is not None
        half, kept = Kept(service), Kept(service)
        clients = [await PlainClient.open(service) for _ in range(100)]  # a drain of a second
        half.send(post(1)[:-5])
        kept.send(STATUS)
        await asyncio.to_thread(kept.answer)
        service.process.terminate()
        await until(lambda: any(one.socket.close_code for one in clients), "the drain began")
        kept.send(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, head, _ = await asyncio.to_thread(kept.answer)
        assert (status, b"connection: close" in head.lower()) == (404, True), head
        half.send(post(1)[-5:])
        status, head, _ = await asyncio.to_thread(half.answer)
        assert (status, b"connection: close" in head.lower()) == (200, True), head
        for one in (half, kept):
            one.close()
        await asyncio.to_thread(service.stop)
    finally:
        await asyncio.gather(*(client.close() for client in clients))
        service.destroy()


async def test_the_pid_file_is_there_all_the_time(service: Service) -> None:
    assert service.process is not None
    path, looking, wrong = service.data_dir / "gunicorn.pid", True, []

    def look() -> None:
        while looking:
            try:
                if int(path.read_text()) != service.process.pid:  # type: ignore[union-attr]
                    wrong.append(path.read_text())
            except (OSError, ValueError) as error:
                wrong.append(str(error))

    looker = asyncio.create_task(asyncio.to_thread(look))
    try:
        for _ in range(3):
            await service.hup()
    finally:
        looking = False
        await looker
    assert wrong == []
    service.process.terminate()
    await asyncio.to_thread(service.process.wait)
    assert not path.exists()
