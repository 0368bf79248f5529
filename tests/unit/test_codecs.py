"""The same messages on all protocols, as other implementations read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import socketio
from websockets.protocol import Protocol, Side

from app.broadcast.encoding import encode_write
from app.protocol.codecs import EVENT_STREAM, PLAIN, SOCKETIO, Codec
from app.protocol.offsets import decode_offset
from app.types import Gap, Message, Position
from tests.support.events import EventParser


def message(seq: int, *, type: str = "status", event: str = "status_update") -> Message:
    body = b'{"id":"m%d","type":"%b","event":"%b","data":{"n":%d}' % (
        seq,
        type.encode(),
        json.dumps(event)[1:-1].encode(),
        seq,
    )
    return Message(type, "e1", seq, event, body, 0.0)


def texts(frames: bytes) -> list[str]:
    """The text frames in some bytes, as websockets reads them."""
    protocol = Protocol(Side.CLIENT, max_size=None)
    protocol.receive_data(frames)
    read = protocol.events_received()
    assert protocol.parser_exc is None
    assert all(frame.opcode == 1 and frame.fin for frame in read)  # type: ignore[union-attr]
    return [bytes(frame.data).decode() for frame in read]  # type: ignore[union-attr]


def events(codec: Codec, frames: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Event and envelope of each frame."""
    if codec is PLAIN:
        return [(json.loads(text)["event"], json.loads(text)) for text in texts(frames)]
    found = []
    for text in texts(frames):
        assert text[0] == "4"
        packet = socketio.packet.Packet(encoded_packet=text[1:])
        assert packet.packet_type == socketio.packet.EVENT
        assert packet.namespace is None  # the main one
        assert packet.id is None
        name, envelope = packet.data
        found.append((name, envelope))
    return found


both = pytest.mark.parametrize("codec", [PLAIN, SOCKETIO], ids=["plain", "socketio"])


@both
def test_a_message_is_its_envelope_with_its_place(codec: Codec) -> None:
    ((event, envelope),) = events(codec, codec.message(message(7)))
    assert event == "status_update"
    assert envelope == {
        "id": "m7",
        "type": "status",
        "event": "status_update",
        "data": {"n": 7},
        "seq": 7,
        "epoch": "e1",
    }


def test_a_message_is_encoded_once_per_codec() -> None:
    sent = message(1)
    assert PLAIN.message(sent) is PLAIN.message(sent)
    assert SOCKETIO.message(sent) is SOCKETIO.message(sent)
    assert PLAIN.message(sent) != SOCKETIO.message(sent)
    assert PLAIN.flush([sent], batch=False) is PLAIN.message(sent)


@both
@pytest.mark.parametrize("name", ["é", 'a"b\\', "汉字", "\n", "1", "\u2028"])
def test_names_of_events_are_json(codec: Codec, name: str) -> None:
    ((event, envelope),) = events(codec, codec.message(message(1, event=name)))
    assert event == envelope["event"] == name


@both
def test_a_gap_names_what_will_not_come(codec: Codec) -> None:
    ((event, envelope),) = events(codec, codec.gap(Gap("health", "e2", 3, 9, "latest")))
    assert event == envelope["event"] == "gap"
    assert envelope["type"] == "health"
    assert envelope["data"] == {"first": 3, "last": 9, "epoch": "e2", "reason": "latest"}
    assert "seq" not in envelope


GAP = Gap("status", "e1", 3, 4, "history")


@both
def test_a_flush_keeps_the_order(codec: Codec) -> None:
    items = [message(1), message(2), GAP, message(5)]
    found = events(codec, codec.flush(items, batch=False))  # type: ignore[arg-type]
    assert [event for event, _ in found] == [*["status_update"] * 2, "gap", "status_update"]
    assert [envelope.get("seq") for _, envelope in found] == [1, 2, None, 5]
    ((event, _),) = events(codec, codec.flush([GAP], batch=False))
    assert event == "gap"


@both
def test_a_batch_holds_complete_envelopes_in_order(codec: Codec) -> None:
    items = [message(1), message(1, type="stats", event="stats_update"), message(2)]
    ((event, envelope),) = events(codec, codec.flush(items, batch=True))
    assert event == envelope["event"] == "batch_update"
    assert "seq" not in envelope
    assert envelope["direction"] == "server-to-client"
    assert envelope["data"] == {"messages": [json.loads(item.envelope) for item in items]}


@both
def test_gaps_part_batches(codec: Codec) -> None:
    def kinds(*items: Message | Gap) -> list[Any]:
        return [
            [m["seq"] for m in envelope["data"]["messages"]]
            if event == "batch_update"
            else envelope.get("seq", event)
            for event, envelope in events(codec, codec.flush(items, batch=True))
        ]

    assert kinds(message(1), message(2), GAP, message(5), message(6)) == [[1, 2], "gap", [5, 6]]
    assert kinds(GAP, message(5), message(6)) == ["gap", [5, 6]]
    assert kinds(message(2), GAP) == [2, "gap"]
    assert kinds(GAP, GAP) == ["gap", "gap"]
    assert kinds(message(5)) == [5]
    assert kinds(GAP) == ["gap"]


def test_an_ack_is_read_by_socketio() -> None:
    (text,) = texts(SOCKETIO.ack(12, b'{"event":"pong"}'))
    assert text[0] == "4"
    packet = socketio.packet.Packet(encoded_packet=text[1:])
    assert (packet.packet_type, packet.id) == (socketio.packet.ACK, 12)
    assert packet.data == [{"event": "pong"}]


@both
def test_long_messages(codec: Codec) -> None:
    for size in (100, 200, 70_000):
        body = b'{"data":"' + b"x" * size + b'"'
        sent = Message("status", "e", 1, "status_update", body, 0.0)
        (text,) = texts(codec.message(sent))
        assert text.count("x") == size


# Server-sent events.


def test_an_event_is_the_envelope_in_one_line() -> None:
    (event,) = EventParser().feed(EVENT_STREAM.message(message(7)))
    assert (event.name, event.envelope["event"], event.envelope["seq"]) == (
        "message",
        "status_update",
        7,
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\n\ndata: {}\n\n"])
def test_line_ends_of_other_programs_end_no_event(end: str) -> None:
    body = b'{"id":"x","type":"status",%b"event":"a","data":"\xe2\x80\xa8"' % end.encode()
    parser = EventParser()
    (event,) = parser.feed(EVENT_STREAM.message(Message("status", "e1", 3, "a", body, 0.0)))
    assert parser.is_between_events
    assert "\n" not in event.data
    if "data:" not in end:
        assert event.envelope["data"] == "\u2028"
        assert event.envelope["seq"] == 3


@pytest.mark.parametrize("batch", [False, True])
def test_each_event_has_the_offset_of_a_client_that_has_it_last(batch: bool) -> None:
    items: list[Message | Gap] = [
        message(5),
        message(8, type="stats"),
        message(6),
        Gap("status", "e1", 7, 9, "history"),
        message(10),
    ]
    positions = {
        "status": Position("e1", 10),
        "stats": Position("e1", 8),
        "health": Position("h", 3),
        "other": Position("o", 1),
    }
    types = frozenset({"status", "stats", "health"})
    events = EventParser().feed(EVENT_STREAM.write(items, types, positions, batch=batch))
    offsets = [decode_offset(event.last_id) for event in events]
    seqs = [
        {type: position.seq for type, position in offset.positions.items()}
        for offset in offsets
        if offset is not None
    ]
    assert all(offset is not None and offset.batch == batch for offset in offsets)
    single = [
        {"status": 5, "stats": 7, "health": 3},
        {"status": 5, "stats": 8, "health": 3},
        {"status": 6, "stats": 8, "health": 3},
        {"status": 9, "stats": 8, "health": 3},
        {"status": 10, "stats": 8, "health": 3},
    ]
    assert seqs == (single[2:] if batch else single)
    names = [event.envelope["event"] for event in events]
    if batch:
        assert names == ["batch_update", "gap", "status_update"]
    else:
        assert names == [*["status_update"] * 3, "gap", "status_update"]


def test_a_write_that_is_cut_repeats_nothing_and_loses_nothing() -> None:
    """Whatever arrives complete is what the last `id` says."""
    items = [message(seq, type=type) for seq in (1, 2, 3) for type in ("status", "stats")]
    positions = {"status": Position("e1", 3), "stats": Position("e1", 3)}
    data = EVENT_STREAM.write(items, {"status", "stats"}, positions, batch=False)
    for end in range(len(data) + 1):
        parser = EventParser()
        events = parser.feed(data[:end])
        offset = decode_offset(parser.last_id)
        got = [(event.envelope["type"], event.envelope["seq"]) for event in events]
        known = {} if offset is None else offset.positions
        for type in ("status", "stats"):
            last = max((seq for name, seq in got if name == type), default=0)
            assert known.get(type, Position("e1", 0)).seq == last


def test_what_cannot_be_encoded_does_not_move_the_client_back() -> None:
    class Broken(Message):
        @property
        def envelope(self) -> bytes:
            raise ValueError("broken")

    errors: list[Exception] = []
    items = [message(1), Broken("status", "e1", 2, "x", b"", 0.0)]
    data = encode_write(
        EVENT_STREAM,
        items,
        {"status"},
        {"status": Position("e1", 2)},
        batch=False,
        failed=errors.append,
    )
    parser = EventParser()
    names = [event.envelope["event"] for event in parser.feed(data)]
    assert names == ["status_update", "gap"]
    assert len(errors) == 1
    offset = decode_offset(parser.last_id)
    assert offset is not None
    assert offset.positions == {"status": Position("e1", 2)}
