"""WebSocket frames: two other implementations as oracles, every cut, noise, limits."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side
from wsproto.connection import Connection, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from app.protocol.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    SKIP_ALLOWANCE,
    TEXT,
    TOO_LARGE,
    VIOLATION,
    Event,
    FrameReader,
    build_close,
    build_frame,
    close_payload,
    read_single,
    unmask,
)

# Nothing here is a matter of time, and the first use of `st.text` makes a table of Unicode.
settings.register_profile("frames", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("frames")

LIMIT = 1000
WIDEST_HEADER = 14


def masked(
    opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\x01\xfe\x80\x37"
) -> bytes:
    """A frame as a client sends it, made by another implementation."""
    size = len(payload)
    head = bytes([opcode | (0x80 if fin else 0)])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += b"\xfe" + size.to_bytes(2, "big")
    else:
        head += b"\xff" + size.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def feed(data: bytes, *cuts: int, limit: int = LIMIT) -> list[Event]:
    """All events of a stream that arrives in pieces; stops after a violation, as it must."""
    reader = FrameReader(limit)
    events: list[Event] = []
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        events += reader.feed(data[start:end])
        assert reader.held <= limit + WIDEST_HEADER + 125
        if events and events[-1][0] == VIOLATION:
            break
    return events


def violation(events: list[Event]) -> int:
    opcode, payload = events[-1]
    assert opcode == VIOLATION
    assert isinstance(payload, bytes)
    payload[2:].decode()
    assert len(payload) <= 125
    return int.from_bytes(payload[:2], "big")


@dataclass(frozen=True)
class Stream:
    """A valid stream of a client, and what it means."""

    data: bytes
    events: list[Event]


masks = st.binary(min_size=4, max_size=4)
controls = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))
contents = st.one_of(
    st.text(max_size=60).map(lambda text: (TEXT, text.encode())),
    st.binary(max_size=60).map(lambda data: (BINARY, data)),
    st.integers(120, 130).map(lambda size: (BINARY, bytes(range(size)))),
    st.integers(900, LIMIT).map(lambda size: (TEXT, b"x" * size)),
)


@st.composite
def streams(draw: st.DrawFn, *, close: bool = True) -> Stream:
    data = b""
    events: list[Event] = []

    def control() -> None:
        nonlocal data
        opcode, payload = draw(controls)
        data += masked(opcode, payload, mask=draw(masks))
        events.append((opcode, payload))

    for _ in range(draw(st.integers(0, 4))):
        opcode, payload = draw(contents)
        places = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        pieces = [
            payload[start:end]
            for start, end in zip([0, *places], [*places, len(payload)], strict=True)
        ]
        for place, piece in enumerate(pieces):
            kind = CONTINUATION if place else opcode
            data += masked(
                kind, piece, fin=piece is pieces[-1] and place == len(places), mask=draw(masks)
            )
            if place < len(places) and draw(st.booleans()):
                control()
        events.append((opcode, payload.decode() if opcode == TEXT else payload))
        if draw(st.booleans()):
            control()
    if close and draw(st.booleans()):
        code = draw(st.sampled_from([1000, 1001, 1011, 3000, 4999]))
        payload = draw(st.sampled_from([b"", close_payload(code, draw(st.text(max_size=30)))]))
        data += masked(CLOSE, payload, mask=draw(masks))
        events.append((CLOSE, payload))
    return Stream(data, events)


# Valid streams.


@given(streams(), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_cut_gives_the_same_events(stream: Stream, cuts: list[int]) -> None:
    assert feed(stream.data, *cuts) == stream.events


@settings(max_examples=30)
@given(streams())
def test_byte_by_byte(stream: Stream) -> None:
    reader = FrameReader(LIMIT)
    events = [event for byte in stream.data for event in reader.feed(bytes([byte]))]
    assert events == stream.events
    assert reader.idle
    assert reader.held == 0


@settings(max_examples=50)
@given(streams(), st.integers(0, 10_000))
def test_another_process_goes_on_at_any_place(stream: Stream, cut: int) -> None:
    place = cut % (len(stream.data) + 1)
    first = FrameReader(LIMIT)
    events = first.feed(stream.data[:place])
    state = json.loads(json.dumps(first.dump()))
    second = FrameReader.load(LIMIT, state)
    assert (second.held, second.idle) == (first.held, first.idle)
    assert events + second.feed(stream.data[place:]) == stream.events


def test_a_skipped_message_goes_on_in_another_process() -> None:
    data = masked(TEXT, b"x" * (LIMIT + 500), fin=False) + masked(CONTINUATION, b"yy")
    for place in (20, len(data) - 3):
        first = FrameReader(LIMIT)
        assert first.feed(data[:place]) == []
        second = FrameReader.load(LIMIT, json.loads(json.dumps(first.dump())))
        assert second.feed(data[place:]) == [(TOO_LARGE, b"")]
        assert second.idle


def wsproto_events(data: bytes) -> list[Event]:
    """What wsproto makes of a stream, its message parts joined; a violation ends it."""
    connection = Connection(ConnectionType.SERVER)
    events: list[Event] = []
    text: list[str] = []
    parts: list[bytes] = []
    try:
        connection.receive_data(data)
        for event in connection.events():
            match event:
                case TextMessage():
                    text.append(event.data)
                    if event.message_finished:
                        events.append((TEXT, "".join(text)))
                        text = []
                case BytesMessage():
                    parts.append(bytes(event.data))
                    if event.message_finished:
                        events.append((BINARY, b"".join(parts)))
                        parts = []
                case Ping():
                    events.append((PING, bytes(event.payload)))
                case Pong():
                    events.append((PONG, bytes(event.payload)))
                case CloseConnection():
                    if event.code == 1005:
                        events.append((CLOSE, b""))
                    else:
                        events.append((CLOSE, close_payload(event.code, event.reason or "")))
                    break
    except RemoteProtocolError as error:
        code = error.event_hint.code if isinstance(error.event_hint, CloseConnection) else 1002
        events.append((VIOLATION, int(code).to_bytes(2, "big")))
    return events


def websockets_events(data: bytes) -> list[Event]:
    """What websockets makes of a stream, its fragments joined; a violation ends it."""
    protocol = Protocol(Side.SERVER, max_size=None)
    protocol.receive_data(data)
    events: list[Event] = []
    opcode, parts = 0, b""
    for frame in protocol.events_received():
        assert isinstance(frame, Frame)
        if frame.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
            events.append((int(frame.opcode), bytes(frame.data)))
            continue
        opcode, parts = int(frame.opcode) or opcode, parts + bytes(frame.data)
        if frame.fin:
            try:
                events.append((TEXT, parts.decode()) if opcode == TEXT else (BINARY, parts))
            except UnicodeDecodeError:
                events.append((VIOLATION, (1007).to_bytes(2, "big")))
                return events
            opcode, parts = 0, b""
    if protocol.parser_exc is not None:
        # A close frame between fragments, which the RFC allows.
        assume(str(protocol.parser_exc) != "incomplete fragmented message")
        assert protocol.close_sent is not None
        events.append((VIOLATION, int(protocol.close_sent.code).to_bytes(2, "big")))
    return events


@given(streams())
def test_other_implementations_read_the_same(stream: Stream) -> None:
    assert wsproto_events(stream.data) == stream.events
    assert websockets_events(stream.data) == stream.events


def until_close(events: list[Event]) -> list[Event]:
    """Events up to the close frame, behind which nothing means anything.

    Without the codes of violations, since one frame may be wrong in two ways.
    """
    cut: list[Event] = []
    for opcode, payload in events:
        cut.append((opcode, b"" if opcode == VIOLATION else payload))
        if opcode == CLOSE:
            break
    return cut


@settings(max_examples=300)
@given(streams(), st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_judged_as_websockets_does(stream: Stream, place: int, bit: int) -> None:
    data = bytearray(stream.data or b"\x81\x80abcd")
    data[place % len(data)] ^= 1 << bit
    ours = until_close(feed(bytes(data), limit=1 << 62))
    theirs = until_close(websockets_events(bytes(data)))
    # A frame that may not come here is known by its header; websockets waits for its payload.
    early = len(ours) == len(theirs) + 1 and ours[-1] == (VIOLATION, b"")
    assert (ours[:-1] if early else ours) == theirs


# Noise.


@settings(max_examples=300)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
@example(b"\x81", [])
@example(b"\x88\x82abcd\x00\x00", [3])
def test_noise_never_raises_and_is_answered_with_a_close_code(data: bytes, cuts: list[int]) -> None:
    events = feed(data, *cuts)
    assert events == feed(data)
    if events and events[-1][0] == VIOLATION:
        assert violation(events) in (1002, 1007, 1009)
    assert all(opcode != VIOLATION for opcode, _ in events[:-1])


@given(streams(close=False), st.binary(max_size=40))
def test_what_came_before_a_violation_still_counts(stream: Stream, noise: bytes) -> None:
    events = feed(stream.data + b"\xff" + noise + b"\xff")
    assert events[:-1] == stream.events
    assert violation(events) == 1002


unmasked = build_frame(TEXT, b"hi")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(unmasked, 1002, id="unmasked"),
        pytest.param(masked(TEXT | 0x40, b"hi"), 1002, id="compressed"),
        pytest.param(masked(TEXT | 0x20, b"hi"), 1002, id="rsv2"),
        pytest.param(masked(TEXT | 0x10, b"hi"), 1002, id="rsv3"),
        pytest.param(masked(CONTINUATION, b"hi"), 1002, id="continues nothing"),
        pytest.param(masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002, id="two at once"),
        pytest.param(masked(3, b""), 1002, id="data opcode 3"),
        pytest.param(masked(7, b""), 1002, id="data opcode 7"),
        pytest.param(masked(11, b""), 1002, id="control opcode 11"),
        pytest.param(masked(15, b""), 1002, id="control opcode 15"),
        pytest.param(masked(PING, b"", fin=False), 1002, id="fragmented ping"),
        pytest.param(masked(PING, b"x" * 126), 1002, id="long ping"),
        pytest.param(masked(CLOSE, b"x" * 126), 1002, id="long close"),
        pytest.param(masked(CLOSE, b"\x03"), 1002, id="close of one byte"),
        pytest.param(masked(CLOSE, (999).to_bytes(2, "big")), 1002, id="close 999"),
        pytest.param(masked(CLOSE, (1004).to_bytes(2, "big")), 1002, id="close 1004"),
        pytest.param(masked(CLOSE, (1005).to_bytes(2, "big")), 1002, id="close 1005"),
        pytest.param(masked(CLOSE, (1006).to_bytes(2, "big")), 1002, id="close 1006"),
        pytest.param(masked(CLOSE, (1015).to_bytes(2, "big")), 1002, id="close 1015"),
        pytest.param(masked(CLOSE, (2999).to_bytes(2, "big")), 1002, id="close 2999"),
        pytest.param(masked(CLOSE, (5000).to_bytes(2, "big")), 1002, id="close 5000"),
        pytest.param(masked(CLOSE, b"\x03\xe8\xff"), 1007, id="reason not UTF-8"),
        pytest.param(masked(TEXT, b"\xc3"), 1007, id="text not UTF-8"),
        pytest.param(masked(TEXT, b"\xed\xa0\x80"), 1007, id="surrogate"),
        pytest.param(
            masked(TEXT, b"\xc3", fin=False) + masked(CONTINUATION, b"("), 1007, id="in two"
        ),
    ],
)
def test_violations(data: bytes, code: int) -> None:
    assert read_single(data) is None
    assert violation(feed(data)) == code
    assert violation(feed(data, *range(len(data)))) == code


@pytest.mark.parametrize("head", [b"\x01\x05", b"\xc1", b"\x8b", b"\x89\xfe", b"\x00\x80"])
def test_a_bad_header_is_known_without_its_payload(head: bytes) -> None:
    # One byte says nothing alone; the second one is there in every frame.
    assert violation(feed((head + b"\x85")[:2])) == 1002


# UTF-8 and fragments.


@given(st.text(min_size=1, max_size=20), st.data())
def test_text_may_be_cut_within_a_character(text: str, data: st.DataObject) -> None:
    payload = text.encode()
    cut = data.draw(st.integers(0, len(payload)))
    stream = (
        masked(TEXT, payload[:cut], fin=False)
        + masked(PING, b"between")
        + masked(CONTINUATION, payload[cut:])
    )
    assert feed(stream) == [(PING, b"between"), (TEXT, text)]


def test_binary_need_not_be_utf8() -> None:
    assert feed(masked(BINARY, b"\xff\xfe")) == [(BINARY, b"\xff\xfe")]
    fragments = masked(BINARY, b"\xff", fin=False) + masked(CONTINUATION, b"\xfe")
    assert feed(fragments) == [(BINARY, b"\xff\xfe")]


def test_control_frames_between_fragments_come_at_once() -> None:
    reader = FrameReader(LIMIT)
    assert reader.feed(masked(TEXT, b"a", fin=False) + masked(PING, b"1")) == [(PING, b"1")]
    assert not reader.idle
    assert reader.feed(masked(CONTINUATION, b"b", fin=False) + masked(PONG, b"")) == [(PONG, b"")]
    assert reader.feed(masked(CLOSE, b"") + masked(CONTINUATION, b"c")) == [
        (CLOSE, b""),
        (TEXT, "abc"),
    ]


# Limits.


def sized(size: int, pieces: int) -> bytes:
    """A message of `size` bytes in some fragments."""
    step = -(-size // pieces)
    chunks = [b"x" * min(step, size - start) for start in range(0, size, step)]
    return b"".join(
        masked(CONTINUATION if n else BINARY, chunk, fin=n == len(chunks) - 1)
        for n, chunk in enumerate(chunks)
    )


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_limit_is_inclusive(pieces: int) -> None:
    after = masked(TEXT, b"next")
    assert feed(sized(LIMIT, pieces) + after) == [(BINARY, b"x" * LIMIT), (TEXT, "next")]
    assert feed(sized(LIMIT + 1, pieces) + after) == [(TOO_LARGE, b""), (TEXT, "next")]


@pytest.mark.parametrize("pieces", [1, 7])
def test_up_to_64_kb_over_are_skipped_and_more_ends_it(pieces: int) -> None:
    assert SKIP_ALLOWANCE == 64 * 1024
    after = masked(TEXT, b"next")
    most = LIMIT + SKIP_ALLOWANCE
    assert feed(sized(most, pieces) + after, 10, 5000, 66_000) == [
        (TOO_LARGE, b""),
        (TEXT, "next"),
    ]
    assert violation(feed(sized(most + 1, pieces) + after)) == 1009


def test_too_large_is_known_from_the_header() -> None:
    for size in (100 * 1024**2, 2**63, 2**64 - 1):
        assert violation(feed(b"\x81\xff" + size.to_bytes(8, "big"))) == 1009


def test_nothing_is_kept_of_what_is_skipped() -> None:
    reader = FrameReader(LIMIT)
    data = sized(LIMIT + 2, 2)
    middle = data[: LIMIT // 2 + 1 + 8]
    assert reader.feed(middle) == []
    assert reader.held == LIMIT // 2 + 1
    rest = data[len(middle) :]
    for place in range(0, len(rest) - 100, 100):
        assert reader.feed(rest[place : place + 100]) == []
        assert reader.held == 0
        assert not reader.idle


def test_control_frames_within_a_skipped_message() -> None:
    data = masked(TEXT, b"x" * LIMIT + b"y", fin=False)
    data += masked(PING, b"p") + masked(CONTINUATION, b"", fin=False) + masked(CONTINUATION, b"z")
    assert feed(data + masked(TEXT, b"ok"), 900, 1100) == [
        (PING, b"p"),
        (TOO_LARGE, b""),
        (TEXT, "ok"),
    ]


def test_a_skipped_message_may_end_with_an_empty_fragment() -> None:
    data = masked(TEXT, b"x" * (LIMIT + 1), fin=False) + masked(CONTINUATION, b"")
    assert feed(data) == [(TOO_LARGE, b"")]


def test_sizes_of_messages_do_not_add_up() -> None:
    assert feed(sized(LIMIT, 2) * 3) == [(BINARY, b"x" * LIMIT)] * 3
    assert feed(sized(LIMIT + 1, 2) * 2 + sized(LIMIT, 2))[-1] == (BINARY, b"x" * LIMIT)


def test_a_violation_frees_what_was_held() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(masked(TEXT, b"x" * 500, fin=False))
    assert reader.held == 500
    assert violation(reader.feed(unmasked + b"z" * 400)) == 1002
    assert reader.held == 0


# One short frame without a reader.


@given(streams())
def test_read_single_agrees_with_the_reader(stream: Stream) -> None:
    event = read_single(stream.data)
    if event is not None and event[0] == TEXT:
        assert [event] == stream.events
    elif event is not None:
        # Nobody looks at what a pong says.
        assert event == (PONG, b"")
        assert [opcode for opcode, _ in stream.events] == [PONG]


@pytest.mark.parametrize("size", [0, 1, 100, 125])
def test_read_single_takes_whole_short_texts_and_pongs(size: int) -> None:
    assert read_single(masked(TEXT, b"x" * size)) == (TEXT, "x" * size)
    assert read_single(masked(PONG, b"x" * size)) == (PONG, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        masked(TEXT, b"hi")[:-1],
        masked(TEXT, b"hi") + b"\x81",
        masked(TEXT, b"hi", fin=False),
        masked(TEXT, b"x" * 126),
        masked(BINARY, b"hi"),
        masked(PING, b""),
        masked(CLOSE, b""),
        b"\x81\x04abcdefgh",
        b"\x81\x00abcd",
        b"\x8a\x00abcd",
        # As long as a length byte of 126 or 127 would make a short frame.
        b"\x81\xfe\x00\x7e" + b"abcd" + b"x" * 124,
        b"\x8a\xfe" + b"\x00" * 130,
    ],
)
def test_read_single_leaves_everything_else(data: bytes) -> None:
    assert read_single(data) is None


@settings(max_examples=300)
@given(st.binary(max_size=140))
def test_read_single_says_of_noise_what_the_reader_says(data: bytes) -> None:
    event = read_single(data)
    if event is not None:
        (other,) = feed(data)
        assert event == (other if other[0] == TEXT else (PONG, b""))


# Building.


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_built_frames_are_read_by_others(size: int) -> None:
    payload = os.urandom(size)
    connection = Connection(ConnectionType.CLIENT)
    connection.receive_data(build_frame(BINARY, payload))
    received = b"".join(bytes(e.data) for e in connection.events() if isinstance(e, BytesMessage))
    assert received == payload
    protocol = Protocol(Side.CLIENT, max_size=None)
    protocol.receive_data(build_frame(TEXT, payload))
    (frame,) = protocol.events_received()
    assert frame == Frame(Opcode.TEXT, payload)
    assert build_frame(BINARY, payload) == Frame(Opcode.BINARY, payload).serialize(mask=False)


def test_close_frames_are_read_by_others() -> None:
    connection = Connection(ConnectionType.CLIENT)
    connection.receive_data(build_close(4409, "replaced"))
    (event,) = connection.events()
    assert event == CloseConnection(4409, "replaced")


@given(st.text())
def test_a_close_reason_is_cut_to_what_fits(reason: str) -> None:
    payload = close_payload(1012, reason)
    assert len(payload) <= 125
    assert payload[:2] == b"\x03\xf4"
    assert reason.startswith(payload[2:].decode())
    if len(reason.encode()) <= 123:
        assert payload[2:].decode() == reason


@given(st.binary(max_size=200), masks)
def test_unmask(payload: bytes, mask: bytes) -> None:
    expected = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    for value in (payload, bytearray(payload), memoryview(payload)):
        assert unmask(value, mask) == expected
