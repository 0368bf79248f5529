"""Upgrade requests whose fields are known from an earlier one, beside those that are parsed anew."""

from __future__ import annotations

import random

import pytest

from app.config import load as load_settings
from app.http.clients import Clients
from app.http.familiar import MAX_FIELDS, MAX_KNOWN, Familiar
from app.http.request_head import parse_upgrade

KEY, OTHER_KEY = b"dGhlIHNhbXBsZSBub25jZQ==", b"AAECAwQFBgcICQoLDA0ODw=="
REQUEST = (
    b"GET /ws/realtime?types=status HTTP/1.1\r\nHost: lab.example:3001\r\n"
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"User-Agent: Mozilla/5.0\r\nOrigin: https://lab.example\r\n\r\n"
)
PEER = "192.0.2.7"


def make(*requests: bytes, peer: str = PEER, proxies: str = "") -> Familiar:
    """What knows the fields of these requests."""
    familiar = Familiar(Clients(load_settings({"TRUSTED_PROXIES": proxies}).trusted_proxies))
    for request in requests:
        parsed = parse_upgrade(request, peer)
        assert parsed is not None
        familiar.remember(request, parsed.head)
    return familiar


@pytest.mark.parametrize(
    "target", [b"/ws/realtime", b"/ws/realtime/?user=ann&resume=x", b"/ws/realtime?EIO=4&t=%20"]
)
def test_the_next_client_may_have_another_key_and_another_query(target: bytes) -> None:
    request = REQUEST.replace(b"/ws/realtime?types=status", target).replace(KEY, OTHER_KEY)
    assert make().parse(request, PEER) is None
    head = make(REQUEST).parse(request, "192.0.2.8")
    parsed = parse_upgrade(request, "192.0.2.8")
    assert head is not None
    assert parsed is not None
    assert head.handshake.key == OTHER_KEY.decode()
    assert head.raw_path == parsed.head.raw_path == target.decode()
    assert (head.remote, head.method) == ("192.0.2.8", "GET")
    assert head.headers.items() == parsed.head.headers.items()
    assert head.handshake.offers == ["permessage-deflate; client_max_window_bits"]


@pytest.mark.parametrize(
    "changed",
    [
        REQUEST + b"more",
        REQUEST[:-1],
        REQUEST.replace(KEY, KEY + b"A"),
        REQUEST.replace(KEY, KEY[:-1]),
        REQUEST.replace(KEY, b"*" * 24),
        REQUEST.replace(KEY, b"A" * 24),
        REQUEST.replace(b"GET /ws", b"GET //ws"),
        REQUEST.replace(b"types=status", b"types= status"),
        REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"),
        REQUEST.replace(b"lab.example", b"bad.example"),
        REQUEST.replace(b"\r\nUser-Agent", b"\r\nCookie: a\r\nUser-Agent"),
        REQUEST.replace(b"Mozilla", b"Mozilla\r\nSec-WebSocket-Key: " + OTHER_KEY),
        REQUEST.replace(b"Upgrade: ", b"Sec-WebSocket-Key: " + OTHER_KEY + b"\r\nUpgrade: "),
    ],
)
def test_another_request_is_not_familiar(changed: bytes) -> None:
    assert changed != REQUEST
    assert make(REQUEST).parse(changed, PEER) is None


def test_what_is_familiar_is_what_would_be_parsed() -> None:
    familiar, chosen = make(REQUEST), random.Random(5)
    found = 0
    for _ in range(20_000):
        data = bytearray(REQUEST)
        at = chosen.randrange(len(data))
        if chosen.randrange(2):
            data[at] = chosen.randrange(256)
        else:
            data[at : at + chosen.randrange(3)] = chosen.randbytes(chosen.randrange(3))
        head = familiar.parse(bytes(data), PEER)
        if head is not None:
            found += 1
            parsed = parse_upgrade(bytes(data), PEER)
            assert parsed is not None
            assert parsed.rest == b""
            assert parsed.head.raw_path == head.raw_path
            assert parsed.head.headers["Sec-WebSocket-Key"] == head.handshake.key
            assert parsed.head.headers.items() == head.headers.items()
    assert found > 100


@pytest.mark.parametrize(
    "field",
    [
        b"Authorization: Bearer abc",
        b"cookie: a=b",
        b"Sec-WebSocket-Protocol: bearer.abc",
        b"X-Forwarded-For: 192.0.2.9",
        b"x-request-id: 7",
        b"Forwarded: for=192.0.2.9",
        b"Proxy-Authorization: Basic YTpi",
        b"CF-Access-Client-Secret: abc",
        b"CF-Connecting-IP: 192.0.2.9",
        b"True-Client-IP: 192.0.2.9",
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"Accept: " + b"x" * MAX_FIELDS,
    ],
)
def test_what_belongs_to_one_client_is_not_kept(field: bytes) -> None:
    request = REQUEST.replace(b"Origin: ", field + b"\r\nOrigin: ")
    assert make(request).parse(request, PEER) is None
    assert make(request).held == 0


@pytest.mark.parametrize(
    "fields",
    [
        # What Chromium, Firefox, aiohttp, ws and socket.io-client send.
        (
            b"Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Chrome\r\nAccept-Encoding: gzip, br\r\n"
            b"Accept-Language: en"
        ),
        (
            b"Accept: */*\r\nAccept-Language: en\r\nAccept-Encoding: gzip\r\nDNT: 1\r\nSec-GPC: 1\r\n"
            b"Sec-Fetch-Dest: empty\r\nSec-Fetch-Mode: websocket\r\nSec-Fetch-Site: same-origin"
        ),
        b"accept: */*\r\nuser-agent: Python aiohttp",
        b"Origin: https://lab.example",
    ],
)
def test_the_fields_of_common_clients_are_kept(fields: bytes) -> None:
    request = REQUEST.replace(b"User-Agent: Mozilla/5.0\r\nOrigin: https://lab.example", fields)
    assert make(request).parse(request.replace(KEY, OTHER_KEY), PEER) is not None


def test_what_a_proxy_may_ask_for_another_peer_may_not() -> None:
    assert make(REQUEST, proxies="192.0.2.0/24").parse(REQUEST, "198.51.100.1") is None
    assert make(REQUEST, peer="198.51.100.1", proxies="192.0.2.0/24").parse(REQUEST, PEER)


def test_the_memory_is_bounded() -> None:
    familiar = make()
    for number in range(3 * MAX_KNOWN):
        request = REQUEST.replace(b"Mozilla", b"Mozilla %d" % number)
        parsed = parse_upgrade(request, PEER)
        assert parsed is not None
        familiar.remember(request, parsed.head)
        assert familiar.parse(request, PEER) is not None
        assert familiar.held <= MAX_KNOWN
