"""permessage-deflate: what is negotiated, and messages in any pieces, as another library writes them."""

from __future__ import annotations

import itertools
import json
import random
import zlib

import pytest
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
)
from websockets.frames import Frame, Opcode

from app.errors import CloseCode
from app.protocol.codecs import PLAIN, SOCKETIO
from app.protocol.deflate import (
    LARGEST_SIZE,
    LEAST_SIZE,
    InflatingReader,
    answer,
    compress,
    deflated,
    negotiate,
)
from app.protocol.frames import (
    BINARY,
    CONTINUATION,
    PING,
    TEXT,
    TOO_LARGE,
    VIOLATION,
    Event,
    FrameReader,
    TooLarge,
    Violation,
)
from app.sessions.deflated import session_class
from app.sessions.plain import PlainSession
from app.sessions.socketio.session import SocketIOSession
from app.types import Message
from tests.support.raw import encode

LIMIT = 100_000


@pytest.mark.parametrize(
    ("offer", "bits"),
    [
        ("permessage-deflate", 15),
        ("permessage-deflate; client_max_window_bits", 15),
        ("PERMESSAGE-DEFLATE;Client_Max_Window_Bits=9", 15),
        ('permessage-deflate; server_max_window_bits="10"', 10),
        ("permessage-deflate; server_max_window_bits=9; server_no_context_takeover", 9),
        ("permessage-deflate; client_no_context_takeover; client_max_window_bits=8", 15),
        ("x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=12", 12),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", 15),
        ("permessage-deflate; unknown, permessage-deflate; server_max_window_bits=11", 11),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=010", None),
        ("permessage-deflate; server_max_window_bits=10; server_max_window_bits=11", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=", None),
        ("permessage-deflate;", None),
        ("permessage-bzip2", None),
        ("", None),
        (",".join(["x"] * 100) + ",permessage-deflate", None),
    ],
)
def test_the_first_offer_that_can_be_had(offer: str, bits: int | None) -> None:
    assert negotiate([offer]) == bits


def test_offers_on_several_lines() -> None:
    assert negotiate(["a; b=c", "permessage-deflate; server_max_window_bits=9"]) == 9
    assert negotiate([]) is None


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_another_library_accepts_the_answer(bits: int) -> None:
    factory = ClientPerMessageDeflateFactory(server_max_window_bits=None if bits == 15 else bits)
    _, *parameters = (part.strip() for part in answer(bits).split(";"))
    pairs: list[tuple[str, str | None]] = []
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        pairs.append((name, value if equals else None))
    made = factory.process_response_params(pairs, [])
    assert isinstance(made, PerMessageDeflate)
    assert made.remote_no_context_takeover
    assert made.local_no_context_takeover


def client() -> PerMessageDeflate:
    """The other side: it keeps no context, as the answer demands."""
    return PerMessageDeflate(True, True, 15, 15)


@pytest.mark.parametrize("bits", [9, 15])
@pytest.mark.parametrize("size", [0, 1, LEAST_SIZE, 20_000, 100_000, LARGEST_SIZE + 1])
def test_another_library_reads_what_is_compressed(bits: int, size: int) -> None:
    payload = json.dumps({"data": "status " * size}).encode()[:size]
    frame = compress(payload, bits)
    header = 2 if len(frame) < 128 else 4 if len(frame) < 65540 else 10
    compressed = bool(frame[0] & 0x40)
    assert compressed == (LEAST_SIZE <= size <= LARGEST_SIZE)
    read = Frame(Opcode.TEXT, frame[header:], True, compressed, False, False)
    assert client().decode(read).data == payload
    assert len(frame) <= size + 10


def test_what_does_not_become_smaller_is_sent_as_it_is() -> None:
    payload = random.Random(1).randbytes(500)
    assert compress(payload, 15)[0] == 0x80 | TEXT


def stream() -> tuple[bytes, list[Event]]:
    """Frames of a client, compressed and not, and what they say."""
    extension = client()
    frames = b""
    expected: list[Event] = []
    for number, text in enumerate(["a", "", "z" * 3000, "é" * 700, json.dumps([1] * 500)]):
        body = extension.encode(Frame(Opcode.TEXT, text.encode(), True)).data
        assert isinstance(body, bytes)
        expected.append((TEXT, text))
        if number % 2:
            frames += encode(TEXT, body, rsv=4)
            continue
        middle = len(body) // 2
        frames += encode(TEXT, body[:middle], fin=False, rsv=4) + encode(PING, b"p")
        frames += encode(CONTINUATION, b"", fin=False) + encode(CONTINUATION, body[middle:])
        expected.insert(-1, (PING, b"p"))
    frames += encode(TEXT, b"plain") + encode(BINARY, b"\xff\xfe")
    expected += [(TEXT, "plain"), (BINARY, b"\xff\xfe")]
    body = extension.encode(Frame(Opcode.BINARY, b"\x00\xff" * 900, True)).data
    assert isinstance(body, bytes)
    frames += encode(BINARY, body, rsv=4) + encode(TEXT, b"pl\xc3\xa9", fin=False)
    frames += encode(CONTINUATION, b"ain")
    return frames, [*expected, (BINARY, b"\x00\xff" * 900), (TEXT, "pléain")]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 1000, 10**6])
def test_messages_in_any_pieces(step: int) -> None:
    data, expected = stream()
    reader, events = InflatingReader(LIMIT), []
    for start in range(0, len(data), step):
        events += reader.feed(data[start : start + step])
    assert events == expected
    assert reader.idle


def test_a_reader_is_handed_over_at_any_byte() -> None:
    data, expected = stream()
    for cut in range(0, len(data), 3):
        reader = InflatingReader(LIMIT)
        events = reader.feed(data[:cut])
        again = InflatingReader.load(LIMIT, reader.dump())
        assert again.held == reader.held, cut
        assert events + again.feed(data[cut:]) == expected, cut


@pytest.mark.parametrize("compressed", [True, 3, -1, "1", None])
def test_a_spoilt_state_is_refused(compressed: object) -> None:
    dumped = InflatingReader(LIMIT).dump() | {"compressed": compressed}
    with pytest.raises((ValueError, TypeError)):
        InflatingReader.load(LIMIT, dumped)
    with pytest.raises(KeyError):
        InflatingReader.load(LIMIT, FrameReader(LIMIT).dump())


def deflate(payload: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (made.compress(payload) + made.flush(zlib.Z_SYNC_FLUSH))[:-4]


def code_of(frames: bytes, limit: int = LIMIT) -> int:
    """Close code that the last event, a violation, bears."""
    kind, payload = InflatingReader(limit).feed(frames)[-1]
    assert kind == VIOLATION
    assert isinstance(payload, Violation)
    return payload.code


def test_a_bomb_ends_at_the_limit() -> None:
    bomb = deflate(b"0" * 50_000_000)
    assert len(bomb) < LIMIT
    for frames in (
        encode(TEXT, bomb, rsv=4),
        encode(TEXT, bomb[:9], fin=False, rsv=4) + encode(CONTINUATION, bomb[9:]),
        encode(TEXT, deflate(b"0" * (LIMIT + 1)), rsv=4),
    ):
        assert code_of(frames) == CloseCode.TOO_BIG
    assert InflatingReader(LIMIT).feed(encode(TEXT, deflate(b"0" * LIMIT), rsv=4)) == [
        (TEXT, "0" * LIMIT)
    ]


def test_what_is_too_large_compressed_already() -> None:
    reader = InflatingReader(1000)
    late = encode(TEXT, deflate(b"after"), rsv=4)
    events = reader.feed(encode(TEXT, b"x" * 1500, rsv=4) + late)
    assert events == [(TOO_LARGE, TooLarge()), (TEXT, "after")]
    assert code_of(encode(TEXT, b"x" * 200_000, rsv=4), 1000) == CloseCode.TOO_BIG


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (encode(TEXT, b"\xff\xff\xff\xff", rsv=4), CloseCode.INVALID_DATA),
        (encode(TEXT, deflate(b"\xff\xfe"), rsv=4), CloseCode.INVALID_DATA),
        (encode(TEXT, deflate(b"\xed\xa0\x80"), rsv=4), CloseCode.INVALID_DATA),
        (encode(PING, b"", rsv=4), CloseCode.PROTOCOL_ERROR),
        (encode(TEXT, deflate(b"x"), rsv=6), CloseCode.PROTOCOL_ERROR),
        (encode(TEXT, deflate(b"x"), rsv=2), CloseCode.PROTOCOL_ERROR),
        (encode(0x3, deflate(b"x"), rsv=4), CloseCode.PROTOCOL_ERROR),
        (encode(TEXT, deflate(b"x"), rsv=4, mask=False), CloseCode.PROTOCOL_ERROR),
        (encode(CONTINUATION, b"x", rsv=4), CloseCode.PROTOCOL_ERROR),
        (
            encode(TEXT, b"x", fin=False, rsv=4) + encode(CONTINUATION, b"x", rsv=4),
            CloseCode.PROTOCOL_ERROR,
        ),
        (
            encode(TEXT, b"x", fin=False, rsv=4) + encode(TEXT, b"x", rsv=4),
            CloseCode.PROTOCOL_ERROR,
        ),
    ],
    ids=itertools.count(),  # masks are random
)
def test_violations(frames: bytes, code: CloseCode) -> None:
    assert code_of(frames) == code


def test_a_final_block_is_a_message_too() -> None:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = made.compress(b"final") + made.flush() + b"\x00"
    assert InflatingReader(LIMIT).feed(encode(TEXT, body, rsv=4)) == [(TEXT, "final")]


def test_random_bytes_are_survived() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        reader = InflatingReader(1000)
        size = chance.randrange(1, 60)
        body = chance.randbytes(size)
        if chance.random() < 0.7:
            body = encode(chance.choice([TEXT, BINARY]), body, rsv=4, fin=chance.random() < 0.8)
        events = reader.feed(body)
        if not any(kind == VIOLATION for kind, _ in events):
            again = InflatingReader.load(1000, reader.dump())
            assert again.held == reader.held


# What is written


def message(size: int = 400) -> Message:
    body = b'{"id":"x","type":"status","event":"e","data":"' + b"d" * size + b'"'
    return Message("status", "e1", 1, "e", body, 0.0)


@pytest.mark.parametrize("plain", [PLAIN, SOCKETIO])
def test_a_message_is_compressed_once_for_all(plain: object) -> None:
    assert plain in (PLAIN, SOCKETIO)
    codec = PLAIN if plain is PLAIN else SOCKETIO
    made = deflated(codec.protocol, 15)
    assert made is deflated(codec.protocol, 15)
    one = message()
    frame = made.message(one)
    assert made.message(one) is frame
    assert codec.name not in one.frames
    expected = codec.message(one)
    assert len(frame) < len(expected)
    assert InflatingReader(LIMIT).feed(masked(frame)) == FrameReader(LIMIT).feed(masked(expected))
    assert made.protocol == codec.protocol
    # Answers to one client are sent as they are.
    assert made.event("pong", b"{}" * 200) == codec.event("pong", b"{}" * 200)
    batch = [message(), message()]
    inflated = InflatingReader(10 * LIMIT).feed(masked(made.batch(batch)))
    assert str(inflated[0][1]).count('"type":"status"') == 2


def masked(frame: bytes) -> bytes:
    """A frame of the service as if a client had sent it."""
    header = 2 if frame[1] < 126 else 4 if frame[1] == 126 else 10
    return encode(frame[0] & 15, frame[header:], rsv=(frame[0] & 0x70) >> 4)


def test_sessions_without_it_are_as_they_were() -> None:
    for base in (PlainSession, SocketIOSession):
        assert session_class(base, None) is base
        made = session_class(base, 15)
        assert made is session_class(base, 15)
        assert made is not session_class(base, 9)
        assert issubclass(made, base)
        assert made.__basicsize__ == base.__basicsize__
        assert base.deflate is None
