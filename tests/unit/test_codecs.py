"""The same messages on both protocols, as other implementations read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import socketio
from websockets.protocol import Protocol, Side

from app.protocol.codecs import PLAIN, SOCKETIO, Codec
from app.types import Gap, Message


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
def test_a_batch_holds_whole_envelopes_in_order(codec: Codec) -> None:
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
