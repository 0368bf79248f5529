"""WebSocket frames: two other implementations as oracles, every cut, noise, limits."""

from __future__ import annotations

import codecs
import itertools
import os
import re
from dataclasses import dataclass

import pytest
from aiohttp import WSMessage, WSMsgType
from aiohttp._websocket.reader_py import WebSocketReader
from aiohttp.http_websocket import WebSocketError
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

from app.protocol import frames
from app.protocol.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_CODE,
    PING,
    PONG,
    SKIP_ALLOWANCE,
    TEXT,
    TOO_LARGE,
    VIOLATION,
    Event,
    FrameReader,
    PeerClose,
    TooLarge,
    Violation,
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
    assert isinstance(payload, Violation)
    assert len(payload.reason.encode()) <= 123
    return payload.code


def closed(payload: bytes = b"") -> Event:
    """The event of a close frame with this payload."""
    if not payload:
        return CLOSE, PeerClose(NO_CODE, "")
    return CLOSE, PeerClose(int.from_bytes(payload[:2], "big"), payload[2:].decode())


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
        events.append(closed(payload))
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
    state = first.dump()
    second = FrameReader.load(LIMIT, state)
    assert (second.held, second.idle) == (first.held, first.idle)
    assert events + second.feed(stream.data[place:]) == stream.events


def test_a_skipped_message_goes_on_in_another_process() -> None:
    data = masked(TEXT, b"x" * (LIMIT + 500), fin=False) + masked(CONTINUATION, b"yy")
    for place in (20, len(data) - 3):
        first = FrameReader(LIMIT)
        assert first.feed(data[:place]) == []
        second = FrameReader.load(LIMIT, first.dump())
        assert second.feed(data[place:]) == [(TOO_LARGE, TooLarge())]
        assert second.idle


@settings(max_examples=50)
@given(st.text(min_size=40, max_size=60), st.integers(0, 10_000), masks)
def test_text_under_way_is_still_checked_in_another_process(
    text: str, cut: int, mask: bytes
) -> None:
    payload = text.encode()
    data = masked(TEXT, payload[:20], fin=False) + masked(CONTINUATION, payload[20:], mask=mask)
    place = cut % len(data)
    first = FrameReader(LIMIT)
    assert first.feed(data[:place]) == []
    state = first.dump()
    assert FrameReader.load(LIMIT, state).feed(data[place:]) == [(TEXT, text)]
    spoilt = data[place:-1] + bytes([data[-1] ^ 0x80])
    assert violation(FrameReader.load(LIMIT, state).feed(spoilt)) == 1007


def test_a_frame_under_way_is_described_as_it_came() -> None:
    """So a worker of another version, which may read it in another way, goes on with it."""
    data = masked(TEXT, b"abc", fin=False) + masked(CONTINUATION, b"x" * 300, mask=b"mask")
    reader = FrameReader(LIMIT)
    reader.feed(data[:100])
    dumped = reader.dump()
    assert dumped["buffer"] == data[9:100]
    assert dumped["fragments"] == b"abc"
    assert (dumped["opcode"], dumped["total"], dumped["skip"]) == (TEXT, 3, 0)
    assert FrameReader.load(LIMIT, dumped).feed(data[100:]) == [(TEXT, "abc" + "x" * 300)]


def test_what_another_process_let_through_is_judged_with_the_next_bytes() -> None:
    """It has other rules, or another limit."""
    for begun, limit, code in [
        (masked(TEXT, b"\xff" + b"x" * 50)[:30], LIMIT, 1007),
        (stated(100, 2)[:30], LIMIT, 1002),
        (masked(BINARY, b"x" * 99_000)[:30], LIMIT, 1009),
        (masked(BINARY, b"x" * 2000)[:30], LIMIT, 0),
    ]:
        state = FrameReader(1 << 20).dump() | {"buffer": begun}
        reader = FrameReader.load(limit, state)
        events = reader.feed(b"x")
        assert (violation(events) if events else 0) == code


@pytest.mark.parametrize(
    "wrong",
    [
        {"opcode": CLOSE},
        {"opcode": TEXT, "skip": -1},
        {"opcode": TEXT, "fragments": b"ab", "total": 3},
        {"opcode": TEXT, "fragments": b"ab", "total": 2, "skip": 1},
        {"fragments": b"ab", "total": 2},
        {"total": 2},
        {"skip": 2},
        {"opcode": "text"},
        {"buffer": None},
        {"buffer": 7},
        {"fragments": [b"ab"]},
        {"fragments": "ab"},
        {"skip": None},
    ],
    ids=repr,
)
def test_parts_that_do_not_fit_together_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        FrameReader.load(LIMIT, FrameReader(LIMIT).dump() | wrong)


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
                        events.append(closed())
                    else:
                        events.append(closed(close_payload(event.code, event.reason or "")))
                    break
    except RemoteProtocolError as error:
        code = error.event_hint.code if isinstance(error.event_hint, CloseConnection) else 1002
        events.append((VIOLATION, Violation(int(code), "")))
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
            payload = bytes(frame.data)
            is_close = frame.opcode is Opcode.CLOSE
            events.append(closed(payload) if is_close else (int(frame.opcode), payload))
            continue
        opcode, parts = int(frame.opcode) or opcode, parts + bytes(frame.data)
        if opcode == TEXT and not can_become_text(parts):
            events.append((VIOLATION, Violation(1007, "")))
            return events
        if frame.fin:
            try:
                events.append((TEXT, parts.decode()) if opcode == TEXT else (BINARY, parts))
            except UnicodeDecodeError:
                events.append((VIOLATION, Violation(1007, "")))
                return events
            opcode, parts = 0, b""
    if protocol.parser_exc is not None:
        # A close frame between fragments, which the RFC allows.
        assume(str(protocol.parser_exc) != "incomplete fragmented message")
        assert protocol.close_sent is not None
        events.append((VIOLATION, Violation(int(protocol.close_sent.code), "")))
    return events


class Queue:
    """What aiohttp's reader gives its messages to."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self._size, self._limit, self._stalled_reader = 0, 1, None

    def feed_data(self, message: WSMessage, size: int) -> None:
        match message.type:
            case WSMsgType.TEXT:
                data = message.data
                self.events.append((TEXT, data if isinstance(data, str) else bytes(data).decode()))
            case WSMsgType.CLOSE if message.data:
                payload = close_payload(message.data, message.extra or "")
                self.events.append(closed(payload))
            case WSMsgType.CLOSE:
                self.events.append(closed())
            case kind:
                self.events.append((int(kind), bytes(message.data or b"")))

    def set_exception(self, error: BaseException) -> None:
        self.error = error

    def exception(self) -> BaseException | None:
        return self.error


def aiohttp_events(data: bytes) -> list[Event]:
    """What aiohttp makes of a stream; a violation ends it."""
    queue = Queue()
    WebSocketReader(queue, 0, compress=False, decode_text=True).feed_data(data)  # type: ignore[arg-type]
    if queue.error is not None:
        assert isinstance(queue.error, WebSocketError)
        queue.events.append((VIOLATION, Violation(int(queue.error.code), "")))
    return queue.events


@given(streams())
def test_other_implementations_read_the_same(stream: Stream) -> None:
    assert wsproto_events(stream.data) == stream.events
    assert websockets_events(stream.data) == stream.events
    assert aiohttp_events(stream.data) == stream.events


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


def said_by_wsproto(event: Event) -> bool:
    """Whether it may be a violation: wsproto shows those as close frames of the peer."""
    return isinstance(event[1], PeerClose) and event[1].code in (1002, 1007)


def judged_alike(ours: list[Event], theirs: list[Event]) -> bool:
    """Whether two readers agree.

    What is wrong in a header, or in the first bytes of a payload, is a violation here at once;
    others wait until the frame is complete.
    """
    ours, theirs = (
        [(VIOLATION, b"") if said_by_wsproto(event) else event for event in until_close(events)]
        for events in (ours, theirs)
    )
    early = len(ours) == len(theirs) + 1 and ours[-1] == (VIOLATION, b"")
    return (ours[:-1] if early else ours) == theirs


@pytest.mark.no_cover
@settings(max_examples=300)
@given(streams(), st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_judged_as_others_do(stream: Stream, place: int, bit: int) -> None:
    data = bytearray(stream.data or b"\x81\x80abcd")
    data[place % len(data)] ^= 1 << bit
    ours = feed(bytes(data), limit=1 << 63)
    assert judged_alike(ours, wsproto_events(bytes(data)))
    # This one takes lengths that are not minimal.
    if not (ours and ours[-1][0] == VIOLATION and "length" in str(ours[-1][1])):
        assert judged_alike(ours, websockets_events(bytes(data)))


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


def stated(size: int, width: int, opcode: int = TEXT) -> bytes:
    """A frame whose length stands in `width` bytes, whether or not that many are needed."""
    head = bytes([0x80 | opcode, 0xFE if width == 2 else 0xFF]) + size.to_bytes(width, "big")
    return head + masked(opcode, b"x" * size)[-4 - size :]


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
        pytest.param(stated(0, 2), 1002, id="0 in 16 bits"),
        pytest.param(stated(125, 2), 1002, id="125 in 16 bits"),
        pytest.param(stated(125, 2, BINARY), 1002, id="binary of 125 in 16 bits"),
        pytest.param(stated(0, 8), 1002, id="0 in 64 bits"),
        pytest.param(stated(125, 8), 1002, id="125 in 64 bits"),
        pytest.param(stated(126, 8), 1002, id="126 in 64 bits"),
        pytest.param(stated(65535, 8), 1002, id="65535 in 64 bits"),
        pytest.param(
            masked(TEXT, b"a", fin=False) + stated(5, 2, CONTINUATION), 1002, id="5 continued"
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


# RFC 3629, 4: the characters, and what may still become one.
CHARACTER = (
    rb"[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]"
    rb"|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)
UNFINISHED = (
    rb"[\xc2-\xdf]|\xe0[\xa0-\xbf]?|[\xe1-\xec\xee\xef][\x80-\xbf]?|\xed[\x80-\x9f]?"
    rb"|\xf0([\x90-\xbf][\x80-\xbf]?)?|[\xf1-\xf3][\x80-\xbf]{0,2}|\xf4([\x80-\x8f][\x80-\xbf]?)?"
)
_TEXT_SO_FAR = re.compile(rb"(%b)*(%b)?" % (CHARACTER, UNFINISHED))


def can_become_text(payload: bytes) -> bool:
    """Whether there are bytes that make UTF-8 of it."""
    return _TEXT_SO_FAR.fullmatch(payload) is not None


# The bytes at which the ranges of RFC 3629 begin and end.
edges = st.sampled_from(
    b"ab\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xe1\xec\xed\xee\xef\xf0\xf1\xf3\xf4\xf5\xff"
)
pieces_of_text = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=3).map(str.encode), st.lists(edges, max_size=4).map(bytes)
    ),
    max_size=6,
).map(b"".join)


@settings(max_examples=500)
@given(pieces_of_text, st.lists(st.integers(0, 40), max_size=4), masks)
def test_bad_text_is_known_at_its_first_wrong_byte(
    payload: bytes, cuts: list[int], mask: bytes
) -> None:
    """In a frame, and over the fragments of a message; in pieces of one byte."""
    wrong = next((n for n in range(len(payload)) if not can_become_text(payload[: n + 1])), None)
    places = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    reader = FrameReader(LIMIT)
    for number, (start, end) in enumerate(itertools.pairwise(places)):
        # More is announced than will come, so that nothing is complete.
        more = b"x" * 200 if number == len(cuts) else b""
        opcode = CONTINUATION if number else TEXT
        sent = masked(opcode, payload[start:end] + more, fin=False, mask=mask)
        head = len(sent) - (end - start) - len(more)
        assert reader.feed(sent[:head]) == []
        for place in range(start, end):
            events = reader.feed(sent[head + place - start :][:1])
            if place == wrong:
                assert violation(events) == 1007
                assert reader.held == 0
                return
            assert events == []
    assert wrong is None


def test_the_end_of_a_text_may_not_be_within_a_character() -> None:
    for character in ("é", "会", "😀"):
        for size in range(1, len(character.encode())):
            part = character.encode()[:size]
            assert violation(feed(masked(TEXT, part), 6, 7, 8)) == 1007
            empty = masked(CONTINUATION, b"")
            assert violation(feed(masked(TEXT, part, fin=False) + empty)) == 1007


def test_what_is_binary_or_skipped_is_not_checked() -> None:
    bad = b"\xff" * 200
    assert feed(masked(BINARY, bad), 5, 50, 150) == [(BINARY, bad)]
    assert feed(masked(TEXT, b"\xff" * (LIMIT + 1)), 5, 50, 800) == [(TOO_LARGE, TooLarge())]


@pytest.mark.no_cover
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_each_byte_is_checked_and_moved_a_fixed_number_of_times(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pieces and fragments a message comes in."""
    checked = 0

    def count(data: bytes, errors: str, final: bool) -> tuple[str, int]:
        nonlocal checked
        checked += len(data)
        return codecs.utf_8_decode(data, errors, final)

    monkeypatch.setattr(frames, "utf_8_decode", count)
    moved = 0

    def unmask_counted(payload: bytes, mask: bytes) -> bytes:
        nonlocal moved
        moved += len(payload)
        return unmask(payload, mask)

    monkeypatch.setattr(frames, "unmask", unmask_counted)
    text = "会" * 10_000
    size = len(text.encode())
    one = masked(TEXT, text.encode())
    many = b"".join(
        masked(CONTINUATION if n else TEXT, text.encode()[n : n + 3], fin=n == size - 3)
        for n in range(0, size, 3)
    )
    for data in (one, many):
        checked = moved = 0
        reader = FrameReader(1 << 20)
        events: list[Event] = []
        pieces = range(0, len(data), step)
        for place in pieces:
            events += reader.feed(data[place : place + step])
        assert events == [(TEXT, text)]
        assert moved == size
        # Of a character that is cut, the first bytes are looked at again.
        assert checked <= size + 3 * len(pieces)


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
        closed(),
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
    assert feed(sized(LIMIT + 1, pieces) + after) == [(TOO_LARGE, TooLarge()), (TEXT, "next")]


@pytest.mark.parametrize("pieces", [1, 7])
def test_up_to_64_kb_over_are_skipped_and_more_ends_it(pieces: int) -> None:
    assert SKIP_ALLOWANCE == 64 * 1024
    after = masked(TEXT, b"next")
    most = LIMIT + SKIP_ALLOWANCE
    assert feed(sized(most, pieces) + after, 10, 5000, 66_000) == [
        (TOO_LARGE, TooLarge()),
        (TEXT, "next"),
    ]
    assert violation(feed(sized(most + 1, pieces) + after)) == 1009


def test_too_large_is_known_from_the_header() -> None:
    for size in (100 * 1024**2, 2**63 - 1):
        assert violation(feed(b"\x81\xff" + size.to_bytes(8, "big"))) == 1009


def test_the_first_bit_of_a_length_of_64_bits_is_zero() -> None:
    for size in (2**63, 2**64 - 1):
        assert violation(feed(b"\x81\xff" + size.to_bytes(8, "big"))) == 1002


@pytest.mark.parametrize(("size", "width"), [(126, 2), (65535, 2), (65536, 8)])
def test_the_least_of_each_width_is_taken(size: int, width: int) -> None:
    assert feed(stated(size, width), 1, 5, 9, limit=1 << 20) == [(TEXT, "x" * size)]


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
        (TOO_LARGE, TooLarge()),
        (TEXT, "ok"),
    ]


def test_a_skipped_message_may_end_with_an_empty_fragment() -> None:
    data = masked(TEXT, b"x" * (LIMIT + 1), fin=False) + masked(CONTINUATION, b"")
    assert feed(data) == [(TOO_LARGE, TooLarge())]


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
        # The payload of a pong is ignored.
        assert event == (PONG, b"")
        assert [opcode for opcode, _ in stream.events] == [PONG]


@pytest.mark.parametrize("size", [0, 1, 100, 125])
def test_read_single_takes_complete_short_texts_and_pongs(size: int) -> None:
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
