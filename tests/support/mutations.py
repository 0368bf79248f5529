"""What may go wrong with recorded bytes: values, packets, frames, HTTP; all from a seed.

A mutator takes a `random.Random` and what was right, and returns what is sent instead.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


@dataclass(frozen=True)
class Frame:
    """One frame of a client, with what its header may lie about."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    masked: bool = True
    width: int | None = None
    """Bytes of the length, if not the fewest: 2 or 8."""
    length: int | None = None
    """The length that is stated, if not the payload's."""

    def encode(self, rng: random.Random) -> bytes:
        """The frame as bytes."""
        size = len(self.payload) if self.length is None else self.length
        width = self.width or (0 if size < 126 else 2 if size < 65536 else 8)
        head = bytearray([(0x80 if self.fin else 0) | self.rsv << 4 | self.opcode])
        bit = 0x80 if self.masked else 0
        if width == 0:
            head.append(bit | size & 0x7F)
        elif width == 2:
            head += struct.pack("!BH", bit | 126, size & 0xFFFF)
        else:
            head += struct.pack("!BQ", bit | 127, size & (1 << 64) - 1)
        if not self.masked:
            return bytes(head) + self.payload
        mask = rng.randbytes(4)
        repeated = mask * (len(self.payload) // 4 + 1)
        hidden = int.from_bytes(self.payload, "big") ^ int.from_bytes(
            repeated[: len(self.payload)], "big"
        )
        return bytes(head) + mask + hidden.to_bytes(len(self.payload), "big")


# Bytes.

_MAGIC = [b"\x00", b"\xff", b"\x7f", b"\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf",
          b"%s%n", b"\r\n", b"\r\n\r\n", b"{", b"}", b"[", b"]", b'"', b"\\u0000", b"\\ud800",
          b"-", b"0", b"9" * 30, b"NaN", b"Infinity", b"1e999", b"null", b"true", b",", b":", b"/",
          b"?", b"451-", b"2", b"3", b"40", b"41", b"42", b"43", b"44", b"45", b"46", b"5", b"6",
          b"\xef\xbb\xbf", "\u202e".encode(), "\U0010ffff".encode()]  # fmt: skip


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat, move."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.randrange(len(out) + 1)
        end = min(len(out), place + rng.choice((1, 1, 2, 4, 16, 64)))
        match rng.randrange(8):
            case 0 if out:
                out[place % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[place % len(out)] = rng.randrange(256)
            case 2:
                del out[place:end]
            case 3:
                out[place:place] = rng.choice(_MAGIC)
            case 4:
                out[place:end] = rng.choice(_MAGIC)
            case 5:
                out[place:place] = out[place:end] * rng.choice((1, 2, 50))
            case 6:
                out[place:place] = rng.randbytes(rng.choice((1, 4, 30)))
            case _:
                del out[place:]
    return bytes(out)


# JSON.


def odd_value(rng: random.Random) -> Any:
    """A value that is legal JSON and that few programs have in mind."""
    deep: Any = rng.choice((1, [], {}))
    match rng.randrange(26):
        case 0:
            for _ in range(rng.choice((5, 400, rng.randrange(56, 70), rng.randrange(110, 136)))):
                deep = [deep] if rng.random() < 0.7 else {"a": deep}
            return deep
        case 1:
            return rng.choice((10**18, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**400)))
        case 2:
            return rng.choice((-1, 0, -0.0, 1e308, 1.5, 5e-324, -(2**63)))
        case 3:
            return rng.choice((math.nan, math.inf, -math.inf))
        case 4:
            return "x" * rng.choice((1, 127, 128, 129, 300, 5000, 70_000))
        case 5:
            return rng.choice(("\ud800", "a\ud83d", "\x00", "\u202e", "😀" * 40, "é", "\r\n", "%s"))
        case 6:
            return {"_placeholder": True, "num": rng.choice((0, 1, -1, 99, 10**9, "0", None))}
        case 7:
            return [
                {"_placeholder": True, "num": rng.randrange(3)}
                for _ in range(rng.choice((1, 3, 200)))
            ]
        case 8:
            return dict.fromkeys(map(str, range(rng.choice((1, 20, 2000)))), None)
        case 9:
            return list(range(rng.choice((0, 1, 200, 5000))))
        case 10:
            return {rng.choice(("__proto__", "", "\x00", "constructor", "a" * 300)): 1}
        case 11:
            return rng.choice(("all", "error", "status", "stats", "*", "connect", "disconnect", "offset",
                               "connect_error", "message", "__disconnect_final", "/", "/app", ""))  # fmt: skip
        case 12:
            return [rng.choice(("status", "stats", "health", "all", "error", 1, None, [], {}))
                    for _ in range(rng.randrange(5))]  # fmt: skip
        case 13:
            return {rng.choice(("status", "stats", "nope")): {"epoch": rng.choice(("", "x", None, 1)),
                    "seq": rng.choice((0, -1, 1, 2**62, 2**63, 1.5, "1", None, True))}}  # fmt: skip
        case 14:
            return rng.choice((True, False, None))
        case 15:
            return rng.choice((0, 1, 2, 99, 100, 101, 2**31))
        case _:
            return rng.choice((None, "", [], {}, 0, "x", -1, [None], {"a": None}))


def spoil_value(rng: random.Random, value: Any) -> Any:
    """Replace, remove, add or repeat one part of a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        out = dict(value)
        key = rng.choice(list(out))
        match rng.randrange(6):
            case 0:
                del out[key]
            case 1:
                out[key] = odd_value(rng)
            case 2:
                out[rng.choice(("id", "type", "action", "payload", "types", "recover", "history",
                                "batch", "limit", "before", "token", "pid", "offset", "user",
                                "auth", "x"))] = odd_value(rng)  # fmt: skip
            case _:
                out[key] = spoil_value(rng, out[key])
        return out
    if isinstance(value, list) and value and rng.random() < 0.8:
        items = list(value)
        place = rng.randrange(len(items))
        match rng.randrange(6):
            case 0:
                del items[place]
            case 1:
                items.insert(place, odd_value(rng))
            case 2:
                items += [items[place]] * rng.choice((1, 5))
            case 3:
                items[place] = odd_value(rng)
            case _:
                items[place] = spoil_value(rng, items[place])
        return items
    return odd_value(rng)


_PACKET = re.compile(rb"^(\d*-?)(/[^,\[{]*,)?(\d*)([\[{\"].*)?$", re.DOTALL)


def spoil_text(rng: random.Random, payload: bytes) -> bytes:
    """Spoil a JSON request, or a packet of Socket.IO by its parts, or its bytes."""
    if rng.random() < 0.3:
        return spoil_bytes(rng, payload)
    found = _PACKET.match(payload)
    if found is None:
        return spoil_bytes(rng, payload)
    head, namespace, id, body = (part or b"" for part in found.groups())
    match rng.randrange(8):
        case 0:
            head = rng.choice((b"0", b"1", b"2", b"2probe", b"3", b"4", b"40", b"41", b"42", b"43", b"44",
                               b"451-", b"452-", b"45101-", b"451000-", b"45-1-", b"450-", b"461-",
                               b"46999999999-", b"47", b"49", b"5", b"6", b"7", b"b", b""))  # fmt: skip
        case 1:
            namespace = rng.choice(
                (
                    b"/app,",
                    b"/,",
                    b"/nope,",
                    b"/app?a=b,",
                    b"/" + b"n" * 400 + b",",
                    b"/\xff,",
                    b"/app",
                    b",",
                )
            )
        case 2:
            id = rng.choice((b"", b"0", b"1", b"7", b"99999999999", b"9" * 500, b"-1", b"1.5"))
        case _ if body:
            try:
                value = spoil_value(rng, json.loads(body))
                body = json.dumps(value, ensure_ascii=rng.random() < 0.7).encode(
                    errors="surrogatepass"
                )
            except (ValueError, RecursionError):
                body = spoil_bytes(rng, body)
        case _:
            body = rng.choice(
                (b"", b"[]", b"{}", b'[""]', b"[null]", b'["x"]', b"[[]]", b"1", b'"x"')
            )
    return head + namespace + id + body


# Frames and conversations.


def spoil_frame(rng: random.Random, frame: Frame, *, lawful: bool) -> list[Frame]:
    """One frame may become several; `lawful`: no rule of WebSocket is broken."""
    match rng.choice((6, 7, 10, *[11] * 17)) if lawful else rng.randrange(20):
        case 0:
            return [replace(frame, opcode=rng.randrange(16))]
        case 1:
            return [replace(frame, fin=False)]
        case 2:
            return [replace(frame, rsv=rng.randrange(1, 8))]
        case 3:
            return [replace(frame, masked=False)]
        case 4:
            return [replace(frame, width=rng.choice((2, 8)))]
        case 5:
            lies = (0, 1, 125, 126, 65535, 65536, 2**20, 2**31, 2**63, 2**64 - 1)
            return [replace(frame, length=rng.choice(lies))]
        case 6 | 7:
            return in_fragments(rng, frame)
        case 8:
            return [
                Frame(
                    rng.choice((PING, PONG, CLOSE)), rng.randbytes(rng.choice((0, 1, 2, 125, 126)))
                ),
                frame,
            ]
        case 9:
            code = rng.choice((0, 999, 1000, 1001, 1004, 1005, 1006, 1015, 3000, 4999, 5000, 65535))
            return [Frame(CLOSE, struct.pack("!H", code) + rng.choice((b"", b"bye", b"\xff")))]
        case 10:
            return [Frame(BINARY, rng.randbytes(rng.choice((0, 1, 100, 5000))))]
        case _:
            if frame.opcode == TEXT:
                return [replace(frame, payload=spoil_text(rng, frame.payload))]
            return [replace(frame, payload=spoil_bytes(rng, frame.payload))]


def in_fragments(rng: random.Random, frame: Frame) -> list[Frame]:
    """The same message in fragments, with control frames between them."""
    places = sorted(rng.randrange(len(frame.payload) + 1) for _ in range(rng.choice((1, 2, 5, 20))))
    pieces = list(itertools.pairwise([0, *places, len(frame.payload)]))
    frames: list[Frame] = []
    for number, (start, end) in enumerate(pieces):
        if number and rng.random() < 0.2:
            frames.append(Frame(rng.choice((PING, PONG)), b"between"))
        opcode = CONTINUATION if number else frame.opcode
        frames.append(Frame(opcode, frame.payload[start:end], fin=number == len(pieces) - 1))
    return frames


def spoil_conversation(
    rng: random.Random, frames: Sequence[Frame], others: Sequence[Sequence[Frame]]
) -> list[Frame]:
    """Spoil the order of frames, and some of them."""
    out = list(frames)
    for _ in range(rng.choice((0, 0, 1, 2))):
        if not out:
            break
        place = rng.randrange(len(out))
        match rng.randrange(6):
            case 0:
                del out[place]
            case 1:
                out[place:place] = [out[place]] * rng.choice((1, 2, 20))
            case 2:
                other = rng.randrange(len(out))
                out[place], out[other] = out[other], out[place]
            case 3:
                out[place:place] = rng.choice(others)
            case 4:
                del out[place:]
            case _:
                out.append(out.pop(place))
    spoilt: list[Frame] = []
    rate = rng.choice((0.1, 0.3, 0.6, 1.0))
    lawful = rng.random() < 0.7
    for frame in out:
        spoilt += spoil_frame(rng, frame, lawful=lawful) if rng.random() < rate else [frame]
    return spoilt


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """Pieces in which bytes are sent."""
    if not data or rng.random() < 0.7:
        return [data]
    if rng.random() < 0.2 and len(data) < 300:
        return [data[n : n + 1] for n in range(len(data))]
    places = sorted(rng.randrange(len(data)) for _ in range(rng.choice((1, 2, 5))))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


# HTTP.

_HEADERS = [
    b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 5", b"Content-Length: 1e3",
    b"Content-Length: 18446744073709551616", b"Content-Length: 10, 10", b"Content-Length: +5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: x",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding : chunked",
    b"Content-Encoding: gzip", b"Content-Encoding: br", b"Content-Encoding: deflate",
    b"Content-Encoding: nope", b"Expect: 100-continue", b"Expect: 200-ok", b"Upgrade: h2c",
    b"Upgrade: websocket", b"Connection: Upgrade", b"Connection: close", b"Connection: keep-alive, Upgrade",
    b"Connection:", b"Host:", b"Host: a\xff", b"Host: a, b", b"Host: x:99999", b"Host: [::1", b"Host: evil/../",
    b"Origin: null", b"Origin: http://evil.test", b"Origin: \xff\xfe", b"Origin: http://[", b"Origin: x y",
    b"Authorization: Bearer", b"Authorization: Bearer \xff", b"Authorization: Basic x",
    b"Authorization: Bearer a.b.c", b"Authorization: Bearer eyJhbGciOiJub25lIn0.e30.",
    b"X-Forwarded-For: 1.2.3.4, \xff", b"X-Forwarded-For: ::ffff:1.2.3.4%eth0", b"X-Real-IP: x",
    b'Forwarded: for="[', b"X-Request-ID: " + b"r" * 300, b"X-Request-ID: \x01\x02", b"X-Request-ID: a b",
    b"Cookie: " + b"c" * 5000, b"Cookie: \xff=\x80", b"Content-Type: \xff", b"Content-Type: a/b; charset=nope",
    b"Content-Type: application/json; charset=utf-7", b"Content-Type: multipart/form-data",
    b"Accept-Encoding: gzip;q=x", b"If-None-Match: *", b"If-Modified-Since: x", b"Range: bytes=0-0,-1",
    b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 8", b"Sec-WebSocket-Protocol: a, \xff",
    b"Sec-WebSocket-Extensions: permessage-deflate", b"Access-Control-Request-Method: \xff",
    b"Access-Control-Request-Headers: " + b"x," * 500, b": novalue", b"No colon", b" folded: x",
    b"A\x00B: c", b"A: b\x00c", b"A: b\rc", b"A: b\nc", b"\xff: x", b"Big: " + b"x" * 9000,
    b"Huge: " + b"x" * 40_000, b"T: " + b"\t" * 200,
]  # fmt: skip
_METHODS = [
    b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"CONNECT", b"PATCH", b"BREW", b"get",
    b"G\x00T", b"\xff", b"", b"GET GET", b"PRI", b"x" * 300,
]  # fmt: skip
_VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.11", b"HTTP/1.", b"http/1.1", b"XTTP/1.1",
             b"", b"HTTP/1.1 x", b"HTTP/-1.1", b"HTTP/9999999999.1"]  # fmt: skip
_TARGETS = [
    b"/", b"//", b"/status", b"/history", b"/metrics", b"/ws/stats", b"/ws/queue", b"/ws/broadcast",
    b"/ws/realtime", b"/hooks/alertmanager", b"*", b"http://127.0.0.1/status", b"http://[/status",
    b"http://evil.test:99999/x", b"https://a:b@c/%00", b"/%", b"/%zz", b"/%ff%fe", b"/%00", b"/..%2f..%2fetc/passwd",
    b"/../../x", b"/\xff", b"/status?\xff=\x80", b"/status#x", b"/history?type=status&limit=%F0%9F",
    b"/history?type[]=1&type=status&type=stats", b"/history?limit=99999999999999999999999",
    b"/history?type=status&before=-1", b"/history?" + b"a=b&" * 500, b"/" + b"a" * 9000, b"/ws/realtime?user=%00",
    b"/ws/realtime?EIO=4&transport=polling", b"/ws/realtime?EIO=3", b"/ws/realtime?types=" + b"status," * 300,
    b"/ws/realtime?user=" + b"u" * 400, b"/ws/realtime?resume=%ff.%00", b"example.com:443", b"status", b" ", b"?",
]  # fmt: skip


def spoil_request(rng: random.Random, request: bytes, others: Sequence[bytes]) -> bytes:
    """Spoil an HTTP request: its line, its headers, its body, or all of its bytes."""
    head, mark, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        words = lines[0].split(b" ") if lines else []
        match rng.randrange(16):
            case 0 if len(words) > 1:
                lines[0] = b" ".join([rng.choice(_METHODS), *words[1:]])
            case 1 if len(words) > 2:
                lines[0] = b" ".join([words[0], rng.choice(_TARGETS), *words[2:]])
            case 2 if len(words) > 1:
                lines[0] = b" ".join([*words[:-1], rng.choice(_VERSIONS)])
            case 3 | 4 | 5:
                lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_HEADERS))
            case 6 if len(lines) > 1:
                lines.append(rng.choice(lines[1:]))
            case 7 if len(lines) > 1:
                del lines[rng.randrange(1, len(lines))]
            case 8:
                lines += [b"H%d: v" % n for n in range(rng.choice((10, 99, 130, 1000)))]
            case 9:
                body = spoil_text(rng, body)
                if rng.random() < 0.7:
                    lines = [
                        line for line in lines if not line.lower().startswith(b"content-length")
                    ]
                    lines.append(b"Content-Length: %d" % len(body))
            case 10:
                lines = [line for line in lines if not line.lower().startswith(b"content-length")]
                lines.append(b"Transfer-Encoding: chunked")
                body = in_chunks(rng, body)
            case 11 if len(lines) > 1:
                place = rng.randrange(len(lines))
                lines[place] = spoil_bytes(rng, lines[place])
            case 12:
                mark = rng.choice((b"\n\n", b"\r\r", b"\r\n\n", b"\r\n \r\n\r\n", b"", b"\r\n\r\n"))
            case 13:
                return b"\r\n".join(lines) + mark + body + rng.choice(others)
            case 14:
                return spoil_bytes(rng, b"\r\n".join(lines) + mark + body)
            case _:
                return rng.randbytes(rng.choice((1, 10, 100, 5000)))
    return (
        rng.choice((b"\r\n", b"\n")).join(lines) + mark + body
        if rng.random() < 0.05
        else (b"\r\n".join(lines) + mark + body)
    )


def in_chunks(rng: random.Random, body: bytes) -> bytes:
    """A chunked body, right or wrong."""
    out = b""
    rest = body
    while rest:
        size = min(len(rest), rng.choice((1, 3, 16, 1000)))
        part, rest = rest[:size], rest[size:]
        stated = rng.choice((b"%x" % size,) * 12 + (b"%X" % size, b"0%x" % size, b"-1", b"", b"g", b"0x1",
                             b"f" * 17, b"%x;ext=1" % size, b"%x;" % size + b"e" * 5000, b" %x" % size))  # fmt: skip
        out += stated + rng.choice((b"\r\n",) * 12 + (b"\n", b"\r")) + part
        out += rng.choice((b"\r\n",) * 12 + (b"\n", b"", b"x\r\n"))
    return out + rng.choice(
        (b"0\r\n\r\n",) * 6 + (b"", b"0\r\n", b"0\r\nT: x\r\n\r\n", b"0\r\n" + b"T: x\r\n" * 300)
    )


def seed_of_day() -> int:
    """The seed of a run: TORTURE_SEED, or a new one."""
    text = os.environ.get("TORTURE_SEED")
    return int(text) if text else int.from_bytes(os.urandom(4), "big")
