"""The Caddyfile, by a real Caddy: TLS of its own authority in front of real services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
import socketio
import websockets

from tests.support import REPO
from tests.support.caddy import API, SITE, Caddy, address, behind_caddy
from tests.support.events import Event, EventParser
from tests.support.ports import free_port
from tests.support.service import TOKEN, Service
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def stack() -> Iterator[tuple[Caddy, Service]]:
    port = free_port()
    service = behind_caddy(port, WORKERS=2).start()
    try:
        with Caddy(address(service), https_port=port) as caddy:
            yield caddy, service
    finally:
        service.stop()


@pytest.fixture
def caddy(stack: tuple[Caddy, Service]) -> Caddy:
    return stack[0]


@pytest.fixture
def service(stack: tuple[Caddy, Service]) -> Service:
    return stack[1]


async def publish(caddy: Caddy, data: Any, token: str = TOKEN) -> dict[str, Any]:
    body = {"type": "status", "event": "tick", "data": data}
    async with (
        caddy.session() as http,
        http.post(
            f"{caddy.api}/ws/broadcast", json=body, headers={"Authorization": f"Bearer {token}"}
        ) as answer,
    ):
        assert answer.status == 200, await answer.text()
        result: dict[str, Any] = await answer.json()
        return result


async def get(
    caddy: Caddy, url: str, **headers: str
) -> tuple[int, aiohttp.typedefs.LooseHeaders, str]:
    async with caddy.session(auto_decompress=True) as http, http.get(url, headers=headers) as got:
        return got.status, got.headers, await got.text()


# The configuration itself


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"BACKENDS": "a:3001 b:3001", "PAGES": "proxy", "TLS_ISSUER": "acme"},
        {"API_DOMAIN": "api.example.org", "SITE_DOMAIN": "www.example.org"},
    ],
)
def test_caddy_itself_finds_no_fault(settings: dict[str, str]) -> None:
    checking = Caddy("127.0.0.1:1", **settings)  # type: ignore[arg-type]
    try:
        done = checking.command("validate", "--config", "Caddyfile", "--adapter", "caddyfile")
        assert done.returncode == 0, done.stderr
        assert "Valid configuration" in done.stdout + done.stderr
        assert '"level":"warn"' not in done.stderr.replace(" ", ""), done.stderr
    finally:
        checking.stop()


def test_defaults_are_the_two_sites_of_the_report() -> None:
    checking = Caddy()
    try:
        for name in ("API_DOMAIN", "SITE_DOMAIN", "BACKENDS", "HTTPS_PORT", "TLS_ISSUER"):
            del checking.environ[name]
        done = checking.command("adapt", "--config", "Caddyfile", "--adapter", "caddyfile")
        assert done.returncode == 0, done.stderr
        for text in ("api.yujian.team", "lab.yujian.team", '"backend:3001"'):
            assert text in done.stdout
    finally:
        checking.stop()


def test_the_file_is_formatted() -> None:
    checking = Caddy()
    try:
        assert checking.command("fmt", "--diff", "Caddyfile").returncode == 0
    finally:
        checking.stop()


def test_the_socket_route_is_made_for_long_lived_connections() -> None:
    checking = Caddy("127.0.0.1:1")
    try:
        done = checking.command("adapt", "--config", "Caddyfile", "--adapter", "caddyfile")
    finally:
        checking.stop()
    proxies = [
        found for found in _objects(json.loads(done.stdout)) if "stream_buffer_size" in found
    ]
    assert len(proxies) == 1
    proxy = proxies[0]
    assert proxy["stream_buffer_size"] <= 8192
    assert proxy["flush_interval"] == -1
    # All that are left are closed at one moment, so this must not come.
    assert proxy["stream_close_delay"] >= 30 * 24 * 3600 * 10**9
    assert proxy["transport"]["compression"] is False
    assert proxy["health_checks"]["active"]["uri"] == "/status"


def test_connections_to_the_service_end_here_first_and_are_given_up_in_time() -> None:
    """Against the service's own keep-alive, and against what Caddy itself waits for another."""
    found = re.search(r"^keepalive = (\d+)", (REPO / "gunicorn.conf.py").read_text(), re.MULTILINE)
    assert found is not None
    second = 10**9
    checking = Caddy("127.0.0.1:1")
    try:
        done = checking.command("adapt", "--config", "Caddyfile", "--adapter", "caddyfile")
    finally:
        checking.stop()
    proxies = [one for one in _objects(json.loads(done.stdout)) if "health_checks" in one]
    assert len(proxies) == 2
    for proxy in proxies:
        transport = proxy["transport"]
        assert 0 < transport["keep_alive"]["idle_timeout"] < int(found[1]) * second
        assert 2 * transport["dial_timeout"] < proxy["load_balancing"]["try_duration"]
        passive = proxy["health_checks"]["passive"]
        assert passive["max_fails"] > 1, "one cut request must not take a backend away"
        assert passive["fail_duration"] < proxy["load_balancing"]["try_duration"]
        assert proxy["health_checks"]["active"]["fails"] > 1


async def test_caddys_own_metrics() -> None:
    with Caddy("127.0.0.1:1") as caddy:
        await get(caddy, f"{caddy.api}/ws/stats")
        url = f"http://{caddy.environ['CADDY_ADMIN']}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            assert "caddy_http_requests_total" in await answer.text()
        port = caddy.command(
            "adapt", "--config", "Caddyfile", "--adapter", "caddyfile", METRICS="port"
        )
        assert '":2020"' in port.stdout


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _objects(inner)


# The socket


async def test_plain_json_over_wss(caddy: Caddy) -> None:
    client = await caddy.plain(query="?types=")
    async with client:
        reply = await client.request("subscribe", {"types": ["status"]})
        assert reply["event"] == "subscribed"
        sent = await publish(caddy, {"n": 1})
        message = await client.expect("tick")
        assert (message["seq"], message["epoch"]) == (sent["seq"], sent["epoch"])
        # It was asked for, and neither Caddy nor the service compresses the socket.
        assert client.socket.response is not None
        assert "Sec-WebSocket-Extensions" not in client.socket.response.headers


async def test_socketio_over_wss(caddy: Caddy) -> None:
    got: asyncio.Queue[Any] = asyncio.Queue()
    async with caddy.session() as http:
        sio = socketio.AsyncClient(reconnection=False, http_session=http)
        sio.on("tick", got.put)
        await sio.connect(caddy.api, transports=["websocket"], socketio_path="/ws/realtime")
        try:
            reply = await sio.call("subscribe", {"types": ["status"]}, timeout=10)
            assert reply["event"] == "subscribed"
            sent = await publish(caddy, {"n": 2})
            async with asyncio.timeout(10):
                while (await got.get())["seq"] != sent["seq"]:
                    pass
        finally:
            await sio.disconnect()
            await sio.wait()


async def test_only_the_pages_origin_may_connect(caddy: Caddy) -> None:
    allowed = await caddy.socket(origin=caddy.site)
    await allowed.close()
    with pytest.raises(websockets.InvalidStatus) as refused:
        await caddy.socket(origin="https://evil.example")
    assert refused.value.response.status_code == 403
    status, headers, _ = await get(caddy, f"{caddy.api}/ws/stats", Origin=caddy.site)
    assert status == 200
    assert headers["Access-Control-Allow-Origin"] == caddy.site  # type: ignore[index]


async def test_the_clients_address_is_passed_on_and_cannot_be_forged(
    caddy: Caddy, service: Service
) -> None:
    """The service believes Caddy, and Caddy does not believe clients."""
    asked: list[str] = []

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(backend, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        other = await asyncio.to_thread(Caddy(f"127.0.0.1:{port}").start)
        try:
            await get(other, f"{other.api}/stats", **{"X-Forwarded-For": "9.9.9.9"})
        finally:
            await asyncio.to_thread(other.stop)
    finally:
        server.close()
        await server.wait_closed()
    request = next(text for text in asked if text.startswith("GET /stats"))
    assert re.findall(r"(?im)^x-forwarded-for: *(.*?)\r$", request) == ["127.0.0.1"]
    assert re.findall(r"(?im)^x-forwarded-proto: *(.*?)\r$", request) == ["https"]
    assert f"Host: {API}:{other.port}" in request


async def test_a_reload_of_caddy_closes_no_connection(caddy: Caddy, service: Service) -> None:
    clients = await asyncio.gather(*(caddy.plain(query="?types=status") for _ in range(40)))
    try:
        for n in range(2):
            # The second one really changes something of the route of the socket.
            await asyncio.to_thread(caddy.reload, HEALTH_INTERVAL=f"{2 + n}s")
            sent = await publish(caddy, {"reload": n})
            await asyncio.gather(*(one.wait_seq("status", sent["seq"]) for one in clients))
            await asyncio.gather(*(one.barrier() for one in clients))
        assert await service.total_connections() >= 40
        assert not any(one.socket.close_code for one in clients)
    finally:
        await asyncio.gather(*(one.close() for one in clients))


async def test_tokens_do_not_reach_the_log(caddy: Caddy) -> None:
    await get(caddy, f"{caddy.api}/ws/stats?a=1&token=abcdef123&b=2", Authorization="Bearer xyz789")
    await until(lambda: "/ws/stats?a=1" in caddy.log, "the request is in the log")
    assert "token=REDACTED&b=2" in caddy.log
    assert "abcdef123" not in caddy.log
    assert "xyz789" not in caddy.log


async def test_no_secret_of_a_request_that_fails_reaches_the_log() -> None:
    """Errors are logged with the request as well; of both sites, and of the way to https."""

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        if request.startswith("GET /status"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        elif request.startswith("GET /events"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(backend, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    query = "?token=hidden-1&resume=hidden-2"
    headers = {"Referer": f"https://x.example/{query}", "X-Publish-Token": "hidden-3"}
    try:
        caddy = await asyncio.to_thread(Caddy(f"127.0.0.1:{port}").start)
        try:
            assert (await get(caddy, f"{caddy.api}/ws/stats{query}", **headers))[0] == 502
            with pytest.raises(aiohttp.ClientError):
                await get(caddy, f"{caddy.api}/events{query}", **headers)
            await get(caddy, f"{caddy.site}/icon.svg{query}", **headers)
            plain = f"http://{API}:{caddy.environ['HTTP_PORT']}/ws/stats{query}"
            async with caddy.session() as http:
                await http.get(plain, headers=headers, allow_redirects=False)
            for each in ("http.log.error", "incomplete response", "/icon.svg", "Location"):
                await until(lambda each=each: each in caddy.log, each)  # type: ignore[misc]
            assert caddy.log.count("token=REDACTED") >= 4
            assert "hidden-" not in caddy.log
        finally:
            await asyncio.to_thread(caddy.stop)
    finally:
        server.close()
        await server.wait_closed()


# What is public


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/",
        "/METRICS",
        "//metrics",
        "/x/../metrics",
        "/%6detrics",
        "/hooks",
        "/hooks/alertmanager",
        "/hooks//alertmanager",
        "/%68ooks/alertmanager",
    ],
)
async def test_what_is_for_operators_is_not_public(
    caddy: Caddy, service: Service, path: str
) -> None:
    assert (await service.get("/metrics")).status == 200
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", caddy.port, ssl=caddy.tls(), server_hostname=API
    )
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {API}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    assert answer.split(b" ")[1] == b"404", answer
    assert b"realtime_" not in answer


async def test_security_headers(caddy: Caddy) -> None:
    for url in (f"{caddy.api}/status", f"{caddy.site}/"):
        status, headers, _ = await get(caddy, url)
        assert status == 200
        assert "max-age=" in headers["Strict-Transport-Security"]  # type: ignore[index]
        assert headers["X-Content-Type-Options"] == "nosniff"  # type: ignore[index]
        assert headers["X-Frame-Options"] == "DENY"  # type: ignore[index]
        assert "Referrer-Policy" in headers
        assert "Server" not in headers
        assert "Via" not in headers


async def test_http3_is_offered_at_the_port_that_was_asked_for(caddy: Caddy) -> None:
    """In containers Caddy listens on another port than it is published at."""
    for name, url in ((API, f"{caddy.api}/status"), (SITE, f"{caddy.site}/")):
        for host, port in ((f"{name}:9443", 9443), (name, 443)):
            _, headers, _ = await get(caddy, url, Host=host)
            offered = headers["Alt-Svc"]  # type: ignore[index]
            assert offered == f'h3=":{port}"; ma=2592000', host


async def test_plain_http_is_sent_to_https(caddy: Caddy) -> None:
    port = caddy.environ["HTTP_PORT"]
    async with (
        caddy.session() as http,
        http.get(f"http://{API}:{port}/status", allow_redirects=False) as answer,
    ):
        assert answer.status in {301, 308}
        assert answer.headers["Location"].startswith(f"https://{API}")


# The pages


async def test_pages_are_cached_and_compressed(caddy: Caddy) -> None:
    async with caddy.session(auto_decompress=False) as http:
        script = next((REPO / "app/page/assets").glob("*.js")).name
        kept = "public, max-age=31536000, immutable"
        for path, caching in (("/", "no-cache"), (f"/assets/{script}", kept)):
            headers = {"Accept-Encoding": "gzip"}
            async with http.get(caddy.site + path, headers=headers) as first:
                body = await first.read()
                assert first.status == 200
                assert first.headers["Content-Encoding"] == "gzip"
                assert first.headers["Cache-Control"] == caching
                name = path.strip("/") or "index.html"
                assert len(body) < (REPO / "app/page" / name).stat().st_size
                tag = first.headers["Etag"]
            async with http.get(
                caddy.site + path, headers=headers | {"If-None-Match": tag}
            ) as again:
                assert again.status == 304
                assert not await again.read()


async def test_the_page_obeys_its_own_policy(caddy: Caddy) -> None:
    status, headers, page = await get(caddy, f"{caddy.site}/")
    assert status == 200
    policy = headers["Content-Security-Policy"]  # type: ignore[index]
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy
    assert f"wss://{API}:{caddy.port}" in policy
    assert re.search(r"<script(?![^>]*\bsrc=)", page) is None
    assert re.search(r"\son\w+=|<style|\sstyle=", page) is None
    loaded = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    assert any(name.endswith(".js") for name in loaded)
    for name in loaded:
        assert (await get(caddy, f"{caddy.site}{name}"))[0] == 200
    _, headers, config = await get(caddy, f"{caddy.site}/config.json")
    assert json.loads(config) == {"api": caddy.api}
    assert headers["Content-Type"] == "application/json"  # type: ignore[index]


async def test_hidden_files_are_not_served(caddy: Caddy) -> None:
    assert (await get(caddy, f"{caddy.site}/.env"))[0] == 404
    assert (await get(caddy, f"{caddy.site}/../.env"))[0] == 404


# Several backends


async def test_two_backends_share_the_load_and_one_may_die() -> None:
    port = free_port()
    one, two = behind_caddy(port), behind_caddy(port)
    async with one:
        await asyncio.to_thread(two.start)
        try:
            caddy = Caddy(address(one), address(two), https_port=port)
            await asyncio.to_thread(caddy.start)
            try:
                await _check_balance(caddy, one, two)
            finally:
                await asyncio.to_thread(caddy.stop)
        finally:
            two.destroy()


async def _check_balance(caddy: Caddy, one: Service, two: Service) -> None:
    clients = [await caddy.plain() for _ in range(20)]
    try:
        # By the least connections: each takes its half.
        await one.wait_connections(10)
        await two.wait_connections(10)
        two.destroy()
        versions = Counter[int]()
        for _ in range(10):
            status, _, _ = await get(caddy, f"{caddy.api}/status")
            versions[status] += 1
        assert versions == {200: 10}, "requests fail while a backend is dead"
        more = [await caddy.plain() for _ in range(5)]
        clients += more
        await asyncio.gather(*(client.barrier() for client in more))
        await one.wait_connections(15)
    finally:
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)


# Server-sent events


async def test_events_pass_one_by_one_and_come_back(caddy: Caddy, service: Service) -> None:
    """Neither gathered nor compressed, and `Last-Event-ID` reaches the service."""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip, zstd"}
    target = f"{caddy.api}/events?types=status"
    sent: list[dict[str, Any]] = []
    parser = EventParser()
    events: list[Event] = []
    async with caddy.session() as http:
        async with http.get(target, headers=headers) as stream:
            assert stream.status == 200
            assert stream.headers["Content-Type"] == "text/event-stream"
            assert "Content-Encoding" not in stream.headers
            async with asyncio.timeout(20):
                for number in range(5):
                    sent.append(await publish(caddy, number))
                    while sent[-1]["seq"] not in [one.envelope.get("seq") for one in events]:
                        events += parser.feed(await stream.content.readany())
        missed = await publish(caddy, "missed")
        headers["Last-Event-ID"] = parser.last_id
        async with http.get(target, headers=headers) as stream, asyncio.timeout(20):
            again = EventParser()
            while len(seqs := [e.envelope["seq"] for e in events if "seq" in e.envelope]) < 6:
                events += again.feed(await stream.content.readany())
    assert seqs == [*(one["seq"] for one in sent), missed["seq"]]

    async def gone() -> bool:
        return await service.total_connections() == 0

    await until(gone, "the end of the clients behind Caddy")


async def test_events_go_on_through_a_reload_of_the_service(caddy: Caddy, service: Service) -> None:
    headers = {"Accept": "text/event-stream"}
    parser, events = EventParser(), list[Event]()
    async with (
        caddy.session() as http,
        http.get(f"{caddy.api}/events?types=status", headers=headers) as stream,
    ):
        before = await publish(caddy, "before")
        await service.hup()
        after = await publish(caddy, "after")
        async with asyncio.timeout(20):
            while after["seq"] not in [one.envelope.get("seq") for one in events]:
                events += parser.feed(await stream.content.readany())
    got = [one.envelope["seq"] for one in events if "seq" in one.envelope]
    assert got == list(range(before["seq"], after["seq"] + 1))
