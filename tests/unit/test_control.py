"""The shapes of messages between workers."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.canary import PROBE
from app.sessions.control import (
    MAX_NAME,
    METHODS,
    Unreadable,
    check_event,
    check_rooms,
    check_skipped,
    count_placeholders,
    parse,
)
from tests.support.sessions import Worker

GOOD: list[dict[str, Any]] = [
    {"method": "emit", "event": "e", "data": [1], "namespace": "/", "room": None, "n": 1},
    {"method": "emit", "event": "e", "data": [], "namespace": "/app", "room": ["a", 5]},
    {"method": "emit", "event": "e", "data": [1], "namespace": "/", "skip_sid": ["a"]},
    {"method": "emit", "event": "e", "data": [1], "namespace": "/", "callback": ["r", "/", 3]},
    {
        "method": "emit",
        "event": "e",
        "namespace": "/",
        "binary": True,
        "data": [[{"_placeholder": True, "num": 0}], "eA=="],
    },
    {"method": "enter_room", "sid": "s", "namespace": "/", "room": "r", "host_id": "h"},
    {"method": "leave_room", "sid": "s", "namespace": "/", "room": 7},
    {"method": "close_room", "namespace": "/", "room": "r"},
    {"method": "replace", "sids": ["a", "b"]},
    {
        "method": "callback",
        "host_id": "h",
        "sid": "s",
        "namespace": "/",
        "id": 1,
        "args": [1],
        "attachments": [],
    },
    {"method": "disconnect", "sid": "s", "namespace": "/"},
    {"method": "of a later version", "sid": {}},
]

ODD: list[Any] = [None, True, 1.5, -1, 2**70, "", "x" * 2000, [], [[]], [None], {}, {"a": 1}]


@pytest.mark.parametrize("message", GOOD, ids=lambda message: message["method"])
def test_what_workers_send_is_read(message: dict[str, Any]) -> None:
    assert parse(json.dumps(message).encode()) == message


async def test_what_no_worker_could_read_is_not_sent() -> None:
    worker = Worker()
    manager = worker.context.sio.manager
    try:
        for message in GOOD:
            await manager.send_to_all(message)
        for send in (manager.send_to_all, manager.send_and_read_back):
            with pytest.raises(ValueError, match="at most 1024 characters, not 1025"):
                await send(
                    {"method": "list", "ask": 1, "limit": 1, "host_id": "h", "user": "x" * 1025}
                )
        with pytest.raises(ValueError, match="namespace"):
            await worker.context.sio.disconnect("elsewhere", namespace="/" * 1025)
    finally:
        worker.close()


def test_every_method_and_the_probe_are_known() -> None:
    assert parse(PROBE)["method"] in METHODS
    assert {message["method"] for message in GOOD} - METHODS == {"of a later version"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b'"emit"',
        b"{}",
        b'{"method":1}',
        b'{"method":["emit"]}',
        b'{"method":"emit"}',
        b"[" * 500,
        b'{"method":"callback","host_id":' + b"9" * 400 + b"}",
    ],
)
def test_what_is_no_control_message(body: bytes) -> None:
    with pytest.raises(Unreadable):
        parse(body)


@pytest.mark.parametrize("good", GOOD[:-1], ids=lambda message: message["method"])
def test_odd_values_in_every_field(good: dict[str, Any]) -> None:
    """Each is either refused or of a type that carrying it out can deal with."""
    for name, value in good.items():
        for odd in ODD:
            try:
                read = parse(json.dumps(good | {name: odd}).encode())
            except Unreadable:
                continue
            keys = [read.get(key) for key in ("sid", "host_id", "namespace", "event", "n", "id")]
            rooms = read.get("room")
            hash((*keys, *(rooms if isinstance(rooms, list) else [rooms])))
            assert isinstance(read.get("data", []), list), (name, odd, value)
            assert isinstance(read.get("sids", []), list), (name, odd, value)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = ["event", "data", "namespace", "room", "skip_sid", "callback", "binary", "sid", "sids"]


@settings(derandomize=True, max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(METHODS)),
    st.dictionaries(st.sampled_from([*FIELDS, "host_id", "n", "id", "args"]), VALUES),
)
def test_nothing_but_unreadable_is_raised(method: str, fields: dict[str, Any]) -> None:
    with contextlib.suppress(Unreadable):
        parse(json.dumps(fields | {"method": method}).encode())


def test_attachments_and_placeholders_must_match() -> None:
    message = {"method": "emit", "event": "e", "namespace": "/", "binary": True}
    for data in ([[1], "eA=="], [[{"_placeholder": True, "num": 9}]], [{}, "eA=="], ["x"], []):
        with pytest.raises(Unreadable):
            parse(json.dumps(message | {"data": data}).encode())
    nested = [{"a": [{"_placeholder": True, "num": 0}, {"_placeholder": False, "num": 1}]}]
    assert count_placeholders(nested) == 1


def test_names_that_applications_give() -> None:
    assert check_rooms({"a"}) == ["a"]
    assert check_rooms(("a", 1)) == ["a", 1]
    assert check_skipped(("a", None)) == ["a"]
    assert check_rooms("x" * MAX_NAME) == "x" * MAX_NAME
    for wrong in (b"a", 1.5, {"a": 1}, [None], [["a"]], "x" * (MAX_NAME + 1), True, 2**64):
        with pytest.raises(ValueError, match="The name of a room"):
            check_rooms(wrong)
    for wrong in (1, b"a", ["a", 1], "x" * (MAX_NAME + 1)):  # type: ignore[assignment]
        with pytest.raises(ValueError, match="The id of a client"):
            check_skipped(wrong)
    for wrong in (1, None, b"a", "connect", "disconnect", "\ud800"):  # type: ignore[assignment]
        with pytest.raises(ValueError, match="event"):
            check_event(wrong)
