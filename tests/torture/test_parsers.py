"""Spoilt input for everything that parses it, without a socket: only documented errors come out."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from typing import Any

import pytest
from socketio.packet import Packet

from app.config import Settings
from app.errors import ClientError
from app.http import alert_hook
from app.http.publishing import make_draft
from app.protocol import requests
from app.protocol.envelope import decode_json, encode_json
from app.protocol.frames import VIOLATION, Event, FrameReader, read_single
from app.protocol.offsets import decode_offset, encode_offset
from app.sessions.handoff import shape
from app.sessions.socketio.server import StrictJson
from app.types import Position
from tests.support.mutations import (
    BINARY,
    TEXT,
    Frame,
    cut,
    seed_of_day,
    spoil_bytes,
    spoil_conversation,
    spoil_text,
    spoil_value,
)
from tests.torture.watch import LONG, scaled

pytestmark = pytest.mark.timeout(3600 if LONG else 600)

INPUTS = scaled(5_000, 200_000)
"""For each of the parsers."""
SLOW = 0.5
"""Seconds of CPU that no single input of these sizes may need; a hundred times what any does."""

SETTINGS = Settings()
KNOWN = frozenset(SETTINGS.message_types)
REQUESTS = [
    {"id": "a1", "type": "config", "timestamp": 1, "action": action, "payload": payload}
    for action, payload in (
        (
            "subscribe",
            {
                "types": ["status", "stats"],
                "history": 5,
                "batch": True,
                "recover": {"status": {"epoch": "e", "seq": 3}},
            },
        ),
        ("unsubscribe", {"types": ["status"]}),
        ("get_history", {"type": "status", "limit": 5, "before": 100}),
        ("presence", {"type": "stats"}),
        ("ping", {"any": ["thing", 1, 2.5, None]}),
        ("ack", {"id": "x"}),
        ("auth", {"token": "a.b.c"}),
    )
]
MESSAGE = {"type": "status", "event": "x", "data": {"y": 1}, "priority": "low", "id": "i"}
NOTIFICATION = {
    "version": "4",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "A", "severity": "warning"},
            "annotations": {"summary": "s", "value": "1.5"},
            "startsAt": "2026-11-26T10:00:00Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "fingerprint": "0123456789abcdef",
        }
    ],
}
PACKETS = [
    b'0{"token":"a.b.c","pid":"x|y|null.00","offset":"o"}',
    b'2["subscribe",{"types":["status"]}]',
    b'2/app,12["echo",1,"two",null]',
    b'51-7["echo",{"_placeholder":true,"num":0}]',
    b"1/app,",
    b'3/app,4["answer"]',
]


def check_request(rng: random.Random) -> None:
    """A request of the plain protocol, and each of its payloads."""
    text = spoil_text(rng, json.dumps(rng.choice(REQUESTS)).encode()).decode(errors="replace")
    request = requests.parse_request(text)
    payload = request.payload
    for parse in (
        lambda: requests.check_action(request),
        lambda: requests.parse_subscribe(payload, KNOWN),
        lambda: requests.parse_get_history(payload, KNOWN, 50),
        lambda: requests.parse_one_type(payload, KNOWN),
        lambda: requests.parse_string(payload, "id", 128),
        lambda: encode_json(request.id),
    ):
        try:
            parse()
        except ClientError as error:
            json.dumps(error.message).encode()


def check_json(rng: random.Random) -> None:
    """JSON: what is taken can be written and read again."""
    value = decode_json(spoil_bytes(rng, json.dumps(rng.choice(REQUESTS)).encode()))
    assert decode_json(encode_json(value)) == value


def check_offset(rng: random.Random) -> None:
    """An offset of a Socket.IO client, or anything in its place."""
    positions = {type: Position("epoch", 7) for type in KNOWN}
    right = encode_offset(sorted(KNOWN), positions, rng.random() < 0.5)
    value: Any = spoil_bytes(rng, right.encode()).decode(errors="replace")
    if rng.random() < 0.1:
        value = spoil_value(rng, right)
    decode_offset(value)


def check_message(rng: random.Random) -> None:
    """What a publisher sends."""
    make_draft(decode_json(json.dumps(spoil_value(rng, MESSAGE))), SETTINGS, 1.0)


def check_notification(rng: random.Random) -> None:
    """What Alertmanager sends."""
    value = decode_json(json.dumps(spoil_value(rng, NOTIFICATION)))
    for alert in alert_hook.check_notification(value):
        message = alert_hook.read_alert(alert, value)
        make_draft(message, SETTINGS, 0.0)


def check_state(rng: random.Random) -> None:
    """A session of another worker."""
    reader = FrameReader(1000)
    reader.feed(Frame(TEXT, b"x" * 300).encode(rng)[:100])
    state = {
        "version": 2,
        "protocol": "socketio",
        "id": "i",
        "user": None,
        "claimed": False,
        "welcomed": True,
        "held": False,
        "positions": {"status": ["e", 1]},
        "batch": False,
        "times": [1.0, 2.0],
        "exported_at": 1.0,
        "reader": reader.dump(),
        "unsent": [b"ab", b"c"],
        "offset": 1,
        "headless": False,
        "inbox": ["2", b"c"],
        "pages": [
            {
                "type": "status",
                "limit": 5,
                "before": None,
                "reply_to": 7,
                "ack": None,
                "is_one": True,
            }
        ],
        "expires_at": None,
        "wishes": None,
        "socketio": {
            "namespaces": {"/": "i"},
            "rooms": [["/", "r"]],
            "session": {},
            "environ": None,
            "acks": {"i": {"next": 2, "homes": {"1": ["h", "i", "/", 1]}}},
            "packet": None,
        },
    }
    assert shape.fault(state) is None
    shape.fault(spoil_value(rng, state))


class StrictPacket(Packet):
    """As python-socketio parses packets of this service."""

    json = StrictJson


def check_packet(rng: random.Random) -> None:
    """A packet of Socket.IO."""
    text = spoil_text(rng, rng.choice(PACKETS)).decode(errors="replace")
    try:
        StrictPacket(encoded_packet=text)
    except (ValueError, IndexError, TypeError, AttributeError):
        return  # the session answers these with PARSE_ERROR


def check_frames(rng: random.Random) -> None:
    """Frames: any cut gives the same events, and a violation is the last one."""
    text = json.dumps(rng.choice(REQUESTS)).encode()
    frames = [
        Frame(TEXT, text),
        Frame(BINARY, rng.randbytes(200)),
        Frame(TEXT, "é会😀".encode() * 20),
    ]
    spoilt = spoil_conversation(rng, frames, [frames])
    data = b"".join(frame.encode(rng) for frame in spoilt)
    if rng.random() < 0.3:
        data = spoil_bytes(rng, data)
    complete = FrameReader(5000).feed(data)
    in_pieces: list[Event] = []
    reader = FrameReader(5000)
    for piece in cut(rng, data):
        in_pieces += reader.feed(piece)
        if in_pieces and in_pieces[-1][0] == VIOLATION:
            break
        if rng.random() < 0.3:
            reader = FrameReader.load(5000, reader.dump())
    assert in_pieces == complete
    assert all(opcode != VIOLATION for opcode, _ in complete[:-1])
    single = read_single(data)
    if single is not None and single[0] == TEXT:
        assert [single] == complete


@pytest.mark.parametrize(
    "check",
    [
        check_request,
        check_json,
        check_offset,
        check_message,
        check_notification,
        check_state,
        check_packet,
        check_frames,
    ],
)
def test_only_documented_errors_come_out(check: Any) -> None:
    seed = seed_of_day()
    print(f"TORTURE_SEED={seed}")
    outcomes: Counter[str] = Counter()
    for number in range(INPUTS):
        began = time.process_time()
        try:
            check(random.Random(f"{check.__name__} {seed} {number}"))
            outcomes["taken"] += 1
        except ClientError as error:
            outcomes[error.code] += 1
            error.message.encode()
        except Exception as error:
            error.add_note(f"TORTURE_SEED={seed}, {check.__name__}, input {number}")
            raise
        assert time.process_time() - began < SLOW, f"TORTURE_SEED={seed}, input {number}"
    print(f"{check.__name__}: {dict(outcomes)}")
    assert outcomes["taken"] > INPUTS * 0.01
