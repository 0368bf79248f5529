"""Offsets: what a Socket.IO client keeps of where it stands."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.offsets import Offset, decode_offset, encode_offset
from app.types import Position

names = st.from_regex(r"[a-z][a-z0-9_-]{0,15}", fullmatch=True)
positions = st.dictionaries(
    names.filter(lambda name: name != "batch"),
    st.builds(
        Position, st.from_regex(r"[0-9a-f]{1,32}", fullmatch=True), st.integers(0, 10**18 - 1)
    ),
    max_size=20,
)


@pytest.mark.no_cover
@given(positions=positions, batch=st.booleans())
def test_what_is_written_is_read(positions: dict[str, Position], batch: bool) -> None:
    text = encode_offset(positions, positions, batch)
    assert decode_offset(text) == Offset(positions, batch)
    assert json.dumps(text) == f'"{text}"'


def test_only_the_types_of_the_client_are_written() -> None:
    known = {"status": Position("e1", 3), "stats": Position("e2", 0), "health": Position("e3", 9)}
    text = encode_offset({"status", "stats"}, known, batch=False)
    found = decode_offset(text)
    assert found is not None
    assert found.positions == {"status": Position("e1", 3), "stats": Position("e2", 0)}
    assert encode_offset(["stats", "status"], known, batch=False) == text


def test_no_subscription() -> None:
    assert decode_offset(encode_offset((), {}, batch=False)) == Offset({}, batch=False)
    assert decode_offset(encode_offset((), {}, batch=True)) == Offset({}, batch=True)


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        b"yj1;",
        ["yj1;"],
        "",
        "hello",
        "yj2;status,e,1",
        "yj1;status",
        "yj1;status,e",
        "yj1;status,e,1,2",
        "yj1;status,e,-1",
        "yj1;status,e,1.5",
        "yj1;status,e,",
        "yj1;status,e,x",
        "yj1;status,e,²",
        "yj1;status,e,١",
        "yj1;status,e," + "9" * 19,
        "yj1;" + "status,e,1;" * 1000,
    ],
)
def test_what_is_not_ours(text: object) -> None:
    assert decode_offset(text) is None


@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    found = decode_offset("yj1;" + text)
    assert found is None or all(
        isinstance(position.seq, int) for position in found.positions.values()
    )
