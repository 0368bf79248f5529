"""What an entry of a stream must look like to be a message."""

from __future__ import annotations

from typing import Any

import pytest

from app.backplane.entries import LARGEST, MAX_SEQ, body_name, seq_of, to_message

BODY = (
    b'{"id":"x","type":"status","timestamp":1,"direction":"server-to-client",'
    b'"event":"tick","data":1'
)


def entry(
    id: bytes = b"0-7",
    epoch: bytes = b"k3f9-_aZ",
    event: bytes = b"tick",
    accepted: bytes = b"1700000000250000",
    name: bytes | None = None,
    body: bytes = BODY,
) -> Any:
    name = body_name(body) if name is None else name
    return [id, [b"p", epoch, b"e", event, b"t", accepted, name, body]]


def test_an_entry_of_this_service() -> None:
    message = to_message("status", entry(event="é".encode(), body=BODY))
    assert message is not None
    assert (message.type, message.epoch, message.seq) == ("status", "k3f9-_aZ", 7)
    assert (message.event, message.body, message.accepted) == ("é", BODY, 1700000000.25)


@pytest.mark.parametrize(
    "wrong",
    [
        [b"0-7", None],
        [b"0-7", []],
        [b"0-7", [b"x", b"y"]],
        [b"0-7", [b"p", b"k", b"e", b"tick", b"t", b"1", b"d"]],
        [b"0-7", [b"p", b"k", b"e", b"tick", b"t", b"1", b"d", BODY, b"x", b"y"]],
        [b"0-7", [b"e", b"tick", b"p", b"k", b"t", b"1", b"d", BODY]],
        [b"0-7", [b"p", b"k", b"e", b"tick", b"t", b"1", b"x", BODY]],
        entry(id=b"5-1"),
        entry(id=b"0-%d" % (MAX_SEQ + 1)),
        entry(id=b"0-18446744073709551615"),
        entry(id=b"1700000000000-0"),
        entry(epoch=b""),
        entry(epoch=b'a"b'),
        entry(epoch=b"\xff"),
        entry(epoch=b"a" * 65),
        entry(event=b"\xff\xfe"),
        entry(event=b"connect", name=b"d"),
        entry(accepted=b""),
        entry(accepted=b"noon"),
        entry(accepted=b"1.5"),
        entry(accepted=b"9" * 19),
        entry(accepted=b"9" * 5000),
        entry(accepted=b"\xff"),
    ],
)
def test_what_is_no_message(wrong: Any) -> None:
    assert to_message("status", wrong) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}",
        b"[1",
        b'{"id":"x"',
        BODY.replace(b"tick", b"tock"),
        BODY.replace(b"status", b"stats"),
        BODY.replace(b"direction", b"bearing"),
        BODY[:-9],
        b'{"id":"x","data":',
        b'{"id":"x","data":1,',
        b'{"id":"x","data":1}',
        b'{"id":"x\xff"',
        b'{"id":"x","data":NaN',
        b'{"id":' + b"9" * 400,
        b'{"id":' + b"[" * 200 + b"]" * 200,
        b"\x00\x01\x02",
    ],
)
def test_a_body_that_another_program_wrote_must_be_an_envelope(body: bytes) -> None:
    for name in (b"d", b"d00000000", body_name(BODY)):
        assert to_message("status", entry(name=name, body=body)) is None


def test_a_sound_body_needs_no_seal() -> None:
    """Workers of an earlier version write none."""
    message = to_message("status", entry(name=b"d"))
    assert message is not None
    assert message.body == BODY
    assert to_message("status", entry(name=b"d"), len(BODY)) is not None
    assert to_message("status", entry(name=b"d"), len(BODY) - 1) is None
    assert LARGEST > 64 * 1024 * 1024


def test_control_messages_are_parsed_when_they_are_carried_out() -> None:
    assert to_message("control", entry(name=b"d", body=b"junk")) is not None


def test_numbers_that_clients_can_hold() -> None:
    assert seq_of([b"0-%d" % MAX_SEQ, []]) == MAX_SEQ
    assert seq_of([b"0-0", []]) == 0
    for id in (b"0-%d" % (MAX_SEQ + 1), b"1-1", b"0-", b"0", b"", b"-1", b"0-1-2", b"0-x"):
        assert seq_of([id, []]) is None
