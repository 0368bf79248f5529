"""Upgrade requests that are parsed without aiohttp, beside aiohttp's own parser."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from multidict import MultiMapping

from app.http.request_head import MAX_HEADERS, UpgradeHead, parse_upgrade

ORDINARY = (
    b"GET /ws/realtime?types=status&user=ann HTTP/1.1\r\nHost: lab.example:3001\r\n"
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nOrigin: https://lab.example\r\n\r\n"
)


class Reading:
    """What aiohttp's parser needs of a protocol."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def by_aiohttp(data: bytes) -> list[RawRequestMessage]:
    protocol: Any = Reading()
    messages, _, _ = HttpRequestParser(protocol, asyncio.get_running_loop(), 2**16).feed_data(data)
    return [message for message, _ in messages]


def lowered(headers: MultiMapping[str]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers.items()]


async def agrees(data: bytes) -> UpgradeHead | None:
    """What is parsed here, after a look that aiohttp parses the same."""
    parsed = parse_upgrade(data, "192.0.2.7")
    if parsed is None:
        return None
    (message,) = await by_aiohttp(data.removesuffix(parsed.rest))
    head = parsed.head
    assert (head.method, head.raw_path) == (message.method, message.path)
    assert head.version == message.version
    assert lowered(head.headers) == lowered(message.headers)
    return head


async def test_an_ordinary_request() -> None:
    head = await agrees(ORDINARY + b"behind it")
    assert head is not None
    assert head.remote == "192.0.2.7"
    assert (head.path, head.query_string) == ("/ws/realtime", "types=status&user=ann")
    assert head.headers.getall("upgrade") == ["websocket"]
    assert head.headers.get("Cookie") is None


async def test_what_is_behind_the_request() -> None:
    parsed = parse_upgrade(ORDINARY + ORDINARY, None)
    assert parsed is not None
    assert parsed.rest == ORDINARY


@pytest.mark.parametrize("target", ["/ws/realtime", "/ws/realtime/", "/ws/realtime/?EIO=4&t=%20+"])
async def test_targets(target: str) -> None:
    head = await agrees(ORDINARY.replace(b"/ws/realtime?types=status&user=ann", target.encode()))
    assert head is not None
    assert head.raw_path == target


def test_a_request_that_is_cut_anywhere_is_not_parsed() -> None:
    for length in range(len(ORDINARY)):
        assert parse_upgrade(ORDINARY[:length], None) is None


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        (b"GET ", b"get "),
        (b"GET ", b"POST "),
        (b"GET ", b"\r\nGET "),
        (b" HTTP/1.1", b" HTTP/1.0"),
        (b" HTTP/1.1", b" HTTP/2.0"),
        (b"/ws/realtime?", b"/ws/realtimes?"),
        (b"/ws/realtime?", b"//ws/realtime?"),
        (b"/ws/realtime?", b"http://lab.example/ws/realtime?"),
        (b"user=ann", b"user=ann#part"),
        (b"user=ann", "user=äöü".encode()),
        (b"user=ann", b"user= ann"),
        (b"Host: lab.example:3001\r\n", b""),
        (b"Host: lab.example:3001\r\n", b"Host: a\r\nhost: b\r\n"),
        (b"Connection: keep-alive, Upgrade", b"Connection: keep-alive\r\nConnection: Upgrade"),
        (b"Origin: ", b"Content-Length: 0\r\nOrigin: "),
        (b"Origin: ", b"Transfer-Encoding: chunked\r\nOrigin: "),
        (b"Origin: ", b"expect: 100-continue\r\nOrigin: "),
        (b"Origin: ", b"Origin : "),
        (b"Origin: ", b"Or\xc3\xafgin: "),
        (b"Origin: ", b"Cookie: \xff\r\nOrigin: "),
        (b"Origin: ", b"Cookie: a\x00b\r\nOrigin: "),
        (b"Origin: ", b"Cookie: a\tb\r\nOrigin: "),
        (b"Origin: ", b"Cookie: a\nb: c\r\nOrigin: "),
        (b"Origin: ", b"Cookie: a\r\n b\r\nOrigin: "),
        (b"Origin: ", b"Cookie:\r\nOrigin: "),
        (b"Origin: ", b"Origin:"),
        (b"Origin: ", b"X: 1\r\n" * (MAX_HEADERS + 1) + b"Origin: "),
        (b"\r\n\r\n", b"\n\n"),
    ],
)
def test_what_is_not_ordinary_is_not_parsed(part: bytes, instead: bytes) -> None:
    changed = ORDINARY.replace(part, instead)
    assert changed != ORDINARY
    assert parse_upgrade(changed, None) is None


def test_too_many_headers() -> None:
    lines = b"".join(b"X-%d: 1\r\n" % number for number in range(MAX_HEADERS))
    assert parse_upgrade(ORDINARY.replace(b"Origin: ", lines + b"Origin: "), None) is None


async def test_what_is_parsed_here_means_the_same_to_aiohttp() -> None:
    chosen = random.Random(7)
    pieces = [b"\r\n", b"\n", b" ", b"\t", b":", b": ", b"\x00", b"\x7f", b"\xe4", b",", b";", b"X"]
    parsed = 0
    for _ in range(20_000):
        data = bytearray(ORDINARY)
        for _ in range(chosen.choice((1, 1, 2, 3))):
            at = chosen.randrange(len(data))
            kind = chosen.randrange(3)
            if kind == 0:
                data[at] = chosen.randrange(256)
            elif kind == 1:
                del data[at : at + chosen.randrange(1, 4)]
            else:
                data[at:at] = chosen.choice(pieces)
        try:
            parsed += await agrees(bytes(data)) is not None
        except HttpProcessingError as error:
            pytest.fail(f"aiohttp refuses {bytes(data)!r}: {error}")
    assert parsed > 1000
