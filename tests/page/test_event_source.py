"""A browser's own EventSource against a real service: it comes back by itself, and misses nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.page.browser import Browser, Tab
from tests.support import REPO
from tests.support.service import Service
from tests.support.streams import Ticker
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

SEQS = "window.got.filter((one) => 'seq' in one).map((one) => one.seq)"


async def listen(tab: Tab, url: str, options: str = "{}") -> None:
    """The three lines of the README, and a list of what came."""
    await tab.value(
        "window.got = []; window.errors = 0;"
        f"window.events = new EventSource('{url}', {options});"
        "window.events.onmessage = (event) => window.got.push(JSON.parse(event.data));"
        "window.events.onerror = () => (window.errors += 1); 0"
    )


async def connected(tab: Tab, times: int = 1) -> None:
    await tab.wait(f"window.got.filter((one) => one.event === 'connected').length >= {times}")


class EmptyPage(BaseHTTPRequestHandler):
    """Answers every path with the same page."""

    def do_GET(self) -> None:
        body = b"<!doctype html><title>elsewhere</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing of it is of interest."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The origin of an empty page, which may connect to anything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def service(elsewhere: str) -> Iterator[Service]:
    """One that pages of another origin may use."""
    running = Service(WORKERS=1, ALLOWED_ORIGINS=elsewhere).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def killed(elsewhere: str) -> Iterator[Service]:
    """One like it, whose workers tests kill and renew."""
    running = Service(WORKERS=2, ALLOWED_ORIGINS=elsewhere).start()
    yield running
    running.stop()


async def test_it_comes_back_after_a_kill_and_a_reload_without_a_gap(
    browser: Browser, killed: Service
) -> None:
    service = killed
    async with await browser.open(f"{service.base}/") as tab:
        await listen(tab, "/events?types=status")
        await connected(tab)
        async with Ticker(service):
            await tab.wait(f"{SEQS}.length > 10")
            for pid in service.worker_pids():
                service.kill_worker(pid)
            await connected(tab, 2)
            await until(lambda: len(service.worker_pids()) == 2, "two workers")
            await service.hup()
        last = await service.publish("status", "last")
        await tab.wait(f"{SEQS}.includes({last['seq']})")
        seqs = await tab.value(SEQS)
        assert seqs == list(range(seqs[0], last["seq"] + 1))
        assert await tab.value("window.got.filter((one) => one.event === 'gap').length") == 0
        assert await tab.value("window.got.filter((one) => one.event === 'connected').length") == 2


async def test_it_comes_back_when_there_is_room_again(browser: Browser, elsewhere: str) -> None:
    """A status other than 200 would end it for good."""
    async with (
        Service(WORKERS=1, MAX_TOTAL_CONNECTIONS=1, ALLOWED_ORIGINS=elsewhere) as service,
        await browser.open(elsewhere) as tab,
        await browser.open(elsewhere) as other,
    ):
        await listen(other, f"{service.base}/events?types=status")
        await connected(other)
        await listen(tab, f"{service.base}/events?types=status", "{withCredentials: true}")
        full = "(one) => one.event === 'error' && one.data.code === 'MAX_CONNECTIONS_EXCEEDED'"
        await tab.wait(f"window.got.some({full})")
        await other.value("window.events.close(); 0")
        await connected(tab)


async def test_a_refusal_that_stays_ends_it(
    browser: Browser, service: Service, elsewhere: str
) -> None:
    async with await browser.open(elsewhere) as tab:
        await listen(tab, f"{service.base}/events?types=nope")
        await tab.wait("window.events.readyState === EventSource.CLOSED")
        assert "reason=types" in service.log


@pytest.mark.parametrize("options", ["{}", "{withCredentials: true}"])
async def test_a_page_of_another_origin(
    browser: Browser, service: Service, elsewhere: str, options: str
) -> None:
    async with await browser.open(elsewhere) as tab:
        await listen(tab, f"{service.base}/events?types=status", options)
        await connected(tab)
        sent = await service.publish("status", "tick")
        await tab.wait(f"{SEQS}.includes({sent['seq']})")


# The client library over server-sent events.


async def use_client(tab: Tab, service: Service, options: str) -> None:
    """Load the built library into the page and subscribe to `status`."""
    code = (REPO / "clients/js/dist/index.js").read_text()
    await tab.value(
        "(async () => {"
        f"const file = new Blob([{json.dumps(code)}], {{type: 'text/javascript'}});"
        "const { connect } = await import(URL.createObjectURL(file));"
        f"window.lab = connect('{service.base}', {{pause: [50, 500], ...{options}}});"
        "window.got = []; window.gaps = 0;"
        "window.lab.on('gap', () => (window.gaps += 1));"
        "window.lab.subscribe('status', (one) => window.got.push(one));"
        "return 0; })()"
    )


NO_WEBSOCKETS = """{WebSocket: class {
  constructor() { setTimeout(() => this.onclose?.({code: 1006, reason: ''}), 10); }
  close() {}
}}"""


@pytest.mark.parametrize("options", ["{transport: 'sse'}", NO_WEBSOCKETS], ids=["asked", "blocked"])
async def test_the_client_misses_nothing_over_a_kill_and_a_reload(
    browser: Browser, killed: Service, elsewhere: str, options: str
) -> None:
    service = killed
    async with await browser.open(elsewhere) as tab:
        first = await service.publish("status", "first")
        await use_client(tab, service, options)
        await tab.wait(f"{SEQS}.includes({first['seq']})")
        # The first message came by HTTP, on a stream without types, which one of `status` replaces.
        second = await service.publish("status", "second")
        await tab.wait(f"{SEQS}.includes({second['seq']})")
        await service.wait_connections(1)
        async with Ticker(service):
            await tab.wait(f"{SEQS}.length > 10")
            for pid in service.worker_pids():
                service.kill_worker(pid)
            await tab.wait("window.lab.counts.reconnects > 0 && window.lab.state.name === 'open'")
            await until(lambda: len(service.worker_pids()) == 2, "two workers")
            await service.hup()
        last = await service.publish("status", "last")
        await tab.wait(f"{SEQS}.includes({last['seq']})")
        assert await tab.value(SEQS) == list(range(first["seq"], last["seq"] + 1))
        assert await tab.value("window.gaps") == 0
        assert (await tab.value("window.lab.history('status', 1)"))["messages"][0]["id"] == last[
            "id"
        ]
