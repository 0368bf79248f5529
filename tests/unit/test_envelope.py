"""JSON and envelopes."""

from __future__ import annotations

import json
import math
import time
import uuid
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import ClientError, ErrorCode
from app.protocol.envelope import (
    MAX_DEPTH,
    body,
    connection_id,
    decode_json,
    encode_ascii,
    encode_decoded,
    encode_json,
    envelope,
    new_id,
    time_of_id,
)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, "", "汉字 🎉", [], {}, {"a": [1, {"b": None}]}, "\u2028", '"\\\n\0'],
)
def test_json_round_trip(value: Any) -> None:
    assert decode_json(encode_json(value)) == value


def test_json_is_compact_and_utf8() -> None:
    assert encode_json({"a": ["é", 1]}) == '{"a":["é",1]}'.encode()


def test_unpaired_surrogates_are_escaped() -> None:
    encoded = encode_json({"é": "\ud800"})
    assert encoded == b'{"\\u00e9":"\\ud800"}'
    assert decode_json(encoded) == {"é": "\ud800"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_json_cannot_say_is_not_encoded(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_json(value)


def test_encoding_never_exhausts_the_stack() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="too deeply"):
        encode_json(deep)
    while deep:  # a deep list may not be freed recursively by a failing test
        deep = deep[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "expecting value at line 1, column 1"),
        (b"{", "expecting property name"),
        (b"[1] 2", "extra data at line 1, column 5"),
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"-Infinity", "-Infinity"),
        (b"1e999", "too large"),
        (b"9" * 309, "too large"),
        (b"9" * 100_000, "too large"),
        (b"1" * 400 + b".0", "too large"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\n"', "control character"),
        (b"\xef\xbb\xbf1", "expecting value"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested too deeply"),
    ],
)
def test_bad_json_is_a_parse_error(text: bytes, says: str) -> None:
    for form in (text, text.decode(errors="surrogateescape")):
        if form is not text and b"\xff" in text:
            continue  # a str has been decoded already
        with pytest.raises(ClientError) as caught:
            decode_json(form)
        assert caught.value.code is ErrorCode.PARSE_ERROR
        assert says in caught.value.message
        assert len(caught.value.message) < 200


def test_nesting_is_allowed_up_to_the_limit() -> None:
    assert decode_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ClientError):
        decode_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(ClientError):
        decode_json('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1))
    assert len(decode_json("[" + ",".join(["{}"] * 1000) + "]")) == 1000
    assert decode_json('"' + "[" * 1000 + '"') == "[" * 1000


def test_what_was_decoded_can_be_encoded_again() -> None:
    value = decode_json("[" * MAX_DEPTH + "9" * 308 + ",1e308" + "]" * MAX_DEPTH)
    assert decode_json(encode_json(value)) == value


def nested(levels: int, inside: Any = 1, kind: str = "list") -> Any:
    """A value in so many arrays, tuples or objects."""
    value = inside
    for _ in range(levels):
        value = {"list": [value], "tuple": (value,), "dict": {"a": value}}[kind]
    return value


TEXT = st.text(st.characters(exclude_categories=[]), max_size=400)
INTEGERS = st.one_of(
    st.integers(),
    st.integers(300, 320).flatmap(lambda n: st.integers(10 ** (n - 1), 10**n)),
    st.integers(300, 320).flatmap(lambda n: st.integers(-(10**n), -(10 ** (n - 1)))),
    st.sampled_from([10**4299, 10**308 - 1, 1 - 10**308, 10**308]),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.floats(), INTEGERS, TEXT, st.sampled_from(["9" * 500, "[" * 500])
)
VALUES = st.builds(
    nested,
    st.one_of(st.integers(0, 3), st.integers(110, 140)),
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.lists(inner, max_size=5),
            st.lists(inner, max_size=5).map(tuple),
            st.dictionaries(TEXT, inner, max_size=5),
        ),
        max_leaves=20,
    ),
    st.sampled_from(["list", "tuple", "dict"]),
)


def as_json(value: Any) -> Any:
    """The value with lists for tuples and with surrogates that make up one character joined."""
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {as_json(key): as_json(item) for key, item in value.items()}
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return value


@pytest.mark.no_cover
@settings(derandomize=True, max_examples=600, deadline=None)
@given(VALUES)
@example(nested(MAX_DEPTH))
@example(nested(MAX_DEPTH + 1))
@example(nested(MAX_DEPTH + 1, kind="tuple"))
@example([nested(MAX_DEPTH - 1), "x" * 1000])
@example([nested(MAX_DEPTH), "x" * 1000])
@example(["x" * 5000, 10**308, "x" * 5000])
@example(["9" * 5000, [{"a": -(10**308)}]])
def test_what_is_encoded_can_be_decoded(value: Any) -> None:
    for encode in (encode_json, encode_ascii):
        try:
            text = encode(value)
        except ValueError:
            continue
        assert decode_json(text) == as_json(value)


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_encoder_and_decoder_have_the_same_depth(kind: str) -> None:
    assert decode_json(encode_json(nested(MAX_DEPTH, kind=kind)))
    assert decode_json(encode_ascii(nested(MAX_DEPTH, kind=kind)))
    for encode in (encode_json, encode_ascii):
        with pytest.raises(ValueError, match="at most 128 levels"):
            encode(nested(MAX_DEPTH + 1, kind=kind))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("around", [0, 1, 127, 128, 129, 255, 1000])
def test_encoder_and_decoder_have_the_same_largest_integer(sign: int, around: int) -> None:
    text = "x" * around
    last = sign * (10**308 - 1)
    assert decode_json(encode_json([text, last, text])) == [text, last, text]
    for digits in (308, 309, 400, 4299, 4300, 5000):
        for encode in (encode_json, encode_ascii):
            with pytest.raises(ValueError, match="308 digits"):
                encode([text, sign * 10**digits, text])


def test_many_digits_and_brackets_that_are_allowed() -> None:
    for value in (["9" * 5000], list(range(10**6, 10**6 + 5000)), ["[" * 5000], [[[]]] * 5000):
        assert decode_json(encode_json(value)) == value


def test_ascii_is_ascii() -> None:
    assert encode_ascii({"é": "\ud800"}) == '{"\\u00e9":"\\ud800"}'
    with pytest.raises(ValueError, match="JSON"):
        encode_ascii([float("nan")])


@pytest.mark.parametrize("place", [0, 100, 200])
def test_one_deep_value_among_many_flat_ones_is_found(place: int) -> None:
    """Its depth, and not the number of brackets of the text, decides."""
    flat: list[Any] = [{"data": {"n": n}} for n in range(200)]
    flat.insert(place, nested(MAX_DEPTH - 1))
    assert decode_json(encode_json(flat)) == flat
    flat[place] = nested(MAX_DEPTH)
    text = json.dumps(flat)
    with pytest.raises(ClientError, match="too deeply"):
        decode_json(text)
    with pytest.raises(ValueError, match="too deeply"):
        encode_json(flat)


def test_brackets_in_texts_are_no_depth() -> None:
    assert decode_json(encode_json([["[{" * 1000]])) == [["[{" * 1000]]


def test_new_id_is_a_random_uuid() -> None:
    ids = [new_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert all(str(uuid.UUID(id)) == id for id in ids)
    assert {uuid.UUID(id).version for id in ids} == {4}
    assert {uuid.UUID(id).variant for id in ids} == {uuid.RFC_4122}


def test_connection_ids_say_since_when() -> None:
    before = time.time_ns() // 1_000_000
    ids = [connection_id() for _ in range(200)]
    after = time.time_ns() // 1_000_000
    assert len({id[15:] for id in ids}) == 200, "the rest is random"
    for id in ids:
        made = uuid.UUID(id)
        assert (str(made), made.version, made.variant) == (id, 7, uuid.RFC_4122)
        since = time_of_id(id)
        assert since is not None
        assert before <= since <= after


@pytest.mark.parametrize(
    ("id", "since"),
    [
        ("00000000-0001-7abc-8abc-0123456789ab", 1),
        ("018f4c00-0000-7abc-babc-0123456789ab", 0x018F4C000000),
        ("018f4c00-0000-4abc-babc-0123456789ab", None),
        ("018f4c0x-0000-7abc-babc-0123456789ab", None),
        ("c00", None),
        ("", None),
    ],
)
def test_the_time_of_an_id(id: str, since: int | None) -> None:
    assert time_of_id(id) == since


def test_body_is_an_envelope_without_its_end() -> None:
    text = body("status", "status_update", {"a": 1}, id="x", timestamp=12)
    assert text == (
        b'{"id":"x","type":"status","timestamp":12,"direction":"server-to-client",'
        b'"event":"status_update","data":{"a":1}'
    )


def test_envelope_has_an_id_and_the_time() -> None:
    message = json.loads(envelope("config", "pong", None, reply_to='a"b'))
    assert uuid.UUID(message.pop("id")).version == 4
    assert message.pop("timestamp") > 1_600_000_000_000
    assert message == {
        "type": "config",
        "direction": "server-to-client",
        "event": "pong",
        "data": None,
        "replyTo": 'a"b',
    }


NUMBERS = [
    "0", "-0", "-0.0", "0.1e1", "1E400", "-1e400", "1e-400", "1e308", "1.8e308", "1E+309", "2e99",
    "9" * 308, "-" + "9" * 308, "9" * 309, "-" + "9" * 309, "9" * 308 + ".5", "9" * 309 + ".5",
    "9" * 305 + "e9", "0." + "0" * 400 + "1", "1" + "0" * 308 + "e-300", str(2**64), str(-(2**63) - 1),
    "1e", "1.e5", "01", "+1", ".5", "NaN", "Infinity", "-Infinity", "0x1", "1_0",
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=range(len(NUMBERS)))
@pytest.mark.parametrize("form", ["%s", "[%s]", '{"a":%s,"0e":"1e5"}', '["%s"]', "%s  "])
def test_bytes_and_text_are_decoded_alike(number: str, form: str) -> None:
    """Numbers in bytes are looked at before they are parsed, those in a text while they are."""
    text = form % number
    found: list[object] = []
    for form_given in (text, text.encode()):
        try:
            found.append(repr(decode_json(form_given)))
        except ClientError as error:
            found.append(error.message)
    assert found[0] == found[1]


def test_ids_are_random() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(uuid.UUID(id).version == 4 and uuid.UUID(id).variant == uuid.RFC_4122 for id in ids)


def strictly(text: bytes) -> Any:
    """What the standard library makes of a text, with the limits of this service."""

    def refuse(_: str) -> Any:
        raise ValueError

    def number(digits: str) -> Any:
        value = float(digits) if set(digits) & set(".eE") else int(digits)
        if not math.isfinite(value) or (isinstance(value, int) and abs(value) >= 10**308):
            raise ValueError
        return value

    return json.loads(text.decode(), parse_constant=refuse, parse_int=number, parse_float=number)


DIGITS = st.text("0123456789", min_size=1, max_size=25)
WORDS = st.one_of(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "-", "-0", "0"]),
        st.one_of(DIGITS, st.integers(2**63 - 2, 2**64 + 2).map(str), st.just("9" * 308)),
        st.one_of(st.just(""), DIGITS.map(".{}".format)),
        st.one_of(
            st.just(""), st.builds("{}{}".format, st.sampled_from(["e", "E-", "e+"]), DIGITS)
        ),
    ),
    st.sampled_from(["null", "true", "false", "NaN", "Infinity", "-Infinity", "[", "]", "{", "}"]),
    st.lists(
        st.one_of(
            st.characters(exclude_categories=["Cs"]),
            st.sampled_from(['\\"', "\\\\", "\\/", "\\n", "\\u0000", "\\x", "\\ud800", "\\udc00"]),
        ),
        max_size=6,
    ).map(lambda parts: f'"{"".join(parts)}"'),
)
SPACE = st.sampled_from(["", "", " ", "\t\r\n", "\x0b", "\ufeff", "\0"])


def spaced(text: str, space: str) -> str:
    return f"{space}{text}{space}"


JSON_TEXTS = st.builds(
    spaced,
    st.recursive(
        WORDS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]"),
            st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '""', "a"]), inner), max_size=4).map(
                lambda pairs: "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"
            ),
        ),
        max_leaves=6,
    ),
    SPACE,
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(JSON_TEXTS, st.integers(0, 50), st.one_of(st.none(), st.binary(max_size=2)))
def test_decoding_is_that_of_the_standard_library(
    text: str, place: int, put_in: bytes | None
) -> None:
    """Types, signs of zeros, order of keys, which of two keys counts, and what is refused."""
    encoded = text.encode()
    if put_in is not None:
        encoded = encoded[:place] + put_in + encoded[place + 1 :]
    try:
        expected = repr(strictly(encoded))
    except ValueError:
        with pytest.raises(ClientError):
            decode_json(encoded)
        return
    value = decode_json(encoded)
    assert repr(value) == expected
    assert repr(decode_json(encoded.decode())) == expected
    # What was decoded can be encoded in both ways, and means the same.
    for encode in (encode_decoded, encode_json):
        assert repr(decode_json(encode(value))) == expected


@pytest.mark.parametrize(
    "number",
    [
        2**63 - 1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        10**18,
        10**19,
        -(10**18),
        10**300,
    ],
)
def test_integers_are_exact_beyond_64_bits(number: int) -> None:
    for text in (b"%d" % number, b'{"a":[%d,1.5,"\\u00e9"]}' % number):
        value = decode_json(text)
        assert repr(value) == repr(json.loads(text))
        assert repr(decode_json(encode_decoded(value))) == repr(value)


def test_half_a_surrogate_pair_is_kept() -> None:
    value = decode_json(b'{"a":"\\ud800","b":1}')
    assert value == {"a": "\ud800", "b": 1}
    assert decode_json(encode_decoded(value)) == value
