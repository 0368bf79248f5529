"""Requests: what is taken, and that each mistake has its own code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ClientError, ErrorCode
from app.protocol.envelope import decode_json, encode_json
from app.protocol.requests import (
    AskPresence,
    ConnectOptions,
    GetHistory,
    Request,
    Subscribe,
    check_action,
    check_type,
    parse_get_history,
    parse_one_type,
    parse_options,
    parse_presence,
    parse_request,
    parse_string,
    parse_subscribe,
    parse_types,
)
from app.protocol.schema.actions import ACTIONS
from app.types import Position

KNOWN = ("status", "stats", "health")
AT = {"epoch": "e", "seq": 3}


def values() -> st.SearchStrategy[Any]:
    """Any JSON, rich in the words that requests use."""
    fields = ["types", "type", "history", "recover", "batch", "limit", "before", "epoch", "seq"]
    words = st.sampled_from([*fields, "all", "error", "id", "action", "payload", *KNOWN, *ACTIONS])
    texts = st.one_of(words, st.text(max_size=5))
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=8,
    )


def refused(code: ErrorCode, call: Any, *args: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(*args)
    assert caught.value.code is code
    return caught.value.message


# The frame.


def test_a_request_is_taken_apart() -> None:
    text = '{"id":"7","type":"config","timestamp":1,"action":"ping","payload":[1]}'
    assert parse_request(text) == Request("ping", [1], "7")
    assert parse_request('{"action":"ping"}') == Request("ping", None, None)
    assert parse_request('{"action":"ping","id":7,"more":1}').id == 7
    assert parse_request('{"action":"ping","id":null}').id is None


@pytest.mark.parametrize("text", ["", "x", "{", "[1,]", "{'a':1}", '{"a":NaN}', "\x00", "[" * 5000])
def test_what_is_not_json(text: str) -> None:
    refused(ErrorCode.PARSE_ERROR, parse_request, text)


@pytest.mark.parametrize("text", ["null", "1", "[]", '"subscribe"', "true"])
def test_what_is_not_an_object(text: str) -> None:
    refused(ErrorCode.INVALID_PAYLOAD, parse_request, text)


@pytest.mark.parametrize("id", [True, False, 1.5, [], {}, "x" * 129])
def test_wrong_ids(id: Any) -> None:
    message = refused(ErrorCode.INVALID_PAYLOAD, parse_request, json.dumps({"id": id}))
    assert "id" in message


@pytest.mark.parametrize("id", ["x" * 128, "", 0, -5, 2**60, "汉字", "\ud800"])
def test_ids_come_back_as_they_were(id: Any) -> None:
    request = parse_request(json.dumps({"action": "ping", "id": id}))
    assert request.id is not None
    assert decode_json(encode_json(request.id)) == id


# The action.


def test_all_actions_are_known() -> None:
    for action in ACTIONS:
        check_action(Request(action, None))


@pytest.mark.parametrize("action", [None, 1, [], {}, "", "Subscribe", "x" * 10_000, "\ud800"])
def test_unknown_actions_are_refused_with_the_known_ones(action: Any) -> None:
    message = refused(ErrorCode.INVALID_ACTION, check_action, Request(action, None))
    assert all(known in message for known in ACTIONS)
    assert len(message.encode()) < 500


# Types.


def test_types() -> None:
    assert parse_types(["status", "stats", "status"], KNOWN) == {"status", "stats"}
    assert parse_types(["all"], KNOWN) == set(KNOWN)
    assert parse_types(["status", "all"], KNOWN) == set(KNOWN)
    assert parse_types([], KNOWN) == frozenset()


def test_types_are_taken_completely_or_not_at_all() -> None:
    assert "'nope'" in refused(ErrorCode.INVALID_TYPE, parse_types, ["status", "nope"], KNOWN)
    refused(ErrorCode.INVALID_TYPE, parse_types, ["all", "nope"], KNOWN)
    refused(ErrorCode.SUBSCRIPTION_INVALID, parse_types, ["status", "error"], KNOWN)
    refused(ErrorCode.SUBSCRIPTION_INVALID, parse_types, ["all", "error"], KNOWN)


@pytest.mark.parametrize(
    "value", [None, "status", {"status": 1}, [1], ["status", None], [["a"]], 5]
)
def test_what_is_not_a_list_of_strings(value: Any) -> None:
    refused(ErrorCode.INVALID_PAYLOAD, parse_types, value, KNOWN)


def test_a_type_is_checked() -> None:
    check_type("status", KNOWN)
    message = refused(ErrorCode.INVALID_TYPE, check_type, "x" * 10_000, KNOWN)
    assert len(message) < 200
    assert "health, stats, status" in message
    refused(ErrorCode.INVALID_TYPE, check_type, "all", KNOWN)
    refused(ErrorCode.SUBSCRIPTION_INVALID, check_type, "error", KNOWN)


def test_one_type() -> None:
    assert parse_one_type({"type": "stats"}, KNOWN) == "stats"
    for payload in (None, {}, {"type": 1}, {"type": ["stats"]}, [], "stats"):
        refused(ErrorCode.INVALID_PAYLOAD, parse_one_type, payload, KNOWN)
    refused(ErrorCode.INVALID_TYPE, parse_one_type, {"type": "all"}, KNOWN)


# Subscribing.


def test_presence() -> None:
    assert parse_presence({"type": "stats"}, KNOWN) == AskPresence("stats", None, "")
    assert parse_presence({"type": "stats", "limit": None, "after": None}, KNOWN).limit is None
    asked = {"type": "stats", "limit": 100, "after": "ann"}
    assert parse_presence(asked, KNOWN) == AskPresence("stats", 100, "ann")


@pytest.mark.parametrize(
    "fields",
    [
        {"limit": 0},
        {"limit": 101},
        {"limit": "5"},
        {"limit": True},
        {"limit": 5, "after": 5},
        {"limit": 5, "after": "x" * 129},
        {"limit": 5, "after": "\ud800"},
        {"limit": 5, "type": ["stats"]},
    ],
)
def test_wrong_questions_about_presence(fields: dict[str, Any]) -> None:
    refused(ErrorCode.INVALID_PAYLOAD, parse_presence, {"type": "stats", **fields}, KNOWN)


def test_subscribe() -> None:
    assert parse_subscribe({"types": ["status"]}, KNOWN) == Subscribe(frozenset({"status"}))
    payload = {
        "types": ["status", "stats"],
        "history": 100,
        "recover": {"stats": AT},
        "batch": False,
        "more": 1,
    }
    assert parse_subscribe(payload, KNOWN) == Subscribe(
        frozenset({"status", "stats"}), 100, {"stats": Position("e", 3)}, False
    )
    nulls = {"types": ["status"], "history": None, "recover": None, "batch": None}
    assert parse_subscribe(nulls, KNOWN) == Subscribe(frozenset({"status"}))
    every = parse_subscribe({"types": ["all"], "recover": {"health": AT}}, KNOWN)
    assert every.recover == {"health": Position("e", 3)}


@pytest.mark.parametrize("history", [0, 101, -1, 1.0, "5", True, [5], 10**400])
def test_history_is_from_1_to_100(history: Any) -> None:
    payload = {"types": ["status"], "history": history}
    message = refused(ErrorCode.INVALID_PAYLOAD, parse_subscribe, payload, KNOWN)
    assert "history" in message
    assert "1 to 100" in message


@pytest.mark.parametrize("batch", [0, 1, "true", []])
def test_batch_is_a_boolean(batch: Any) -> None:
    payload = {"types": ["status"], "batch": batch}
    assert "batch" in refused(ErrorCode.INVALID_PAYLOAD, parse_subscribe, payload, KNOWN)


@pytest.mark.parametrize(
    "position",
    [
        None,
        3,
        [],
        {},
        {"epoch": "e"},
        {"seq": 3},
        {"epoch": 1, "seq": 3},
        {"epoch": "e", "seq": -1},
        {"epoch": "e", "seq": "3"},
        {"epoch": "e", "seq": True},
        {"epoch": "e", "seq": 3.0},
        {"epoch": "e", "seq": 2**63},
        {"epoch": "e" * 65, "seq": 3},
    ],
)
def test_positions_to_recover_from(position: Any) -> None:
    payload = {"types": ["status"], "recover": {"status": position}}
    assert "'status'" in refused(ErrorCode.INVALID_PAYLOAD, parse_subscribe, payload, KNOWN)


def test_the_edges_of_a_position() -> None:
    for position in ({"epoch": "e" * 64, "seq": 0}, {"epoch": "", "seq": 2**63 - 1}):
        payload = {"types": ["status"], "recover": {"status": position}}
        assert parse_subscribe(payload, KNOWN).recover == {"status": Position(**position)}  # type: ignore[arg-type]


@pytest.mark.parametrize("recover", [[], "status", 1, True, [["status", AT]]])
def test_recover_is_an_object(recover: Any) -> None:
    payload = {"types": ["status"], "recover": recover}
    assert "recover" in refused(ErrorCode.INVALID_PAYLOAD, parse_subscribe, payload, KNOWN)


def test_recover_names_types_that_are_subscribed_to() -> None:
    payload = {"types": ["status"], "recover": {"stats": AT}}
    refused(ErrorCode.INVALID_PAYLOAD, parse_subscribe, payload, KNOWN)
    payload["recover"] = {"nope": AT}
    refused(ErrorCode.INVALID_TYPE, parse_subscribe, payload, KNOWN)
    payload["recover"] = {"error": AT}
    refused(ErrorCode.SUBSCRIPTION_INVALID, parse_subscribe, payload, KNOWN)
    payload["recover"] = {"all": AT}
    refused(ErrorCode.INVALID_TYPE, parse_subscribe, payload, KNOWN)


# History.


def test_get_history() -> None:
    assert parse_get_history({"type": "status"}, KNOWN, 50) == GetHistory("status", 50, None)
    asked = {"type": "stats", "limit": 1, "before": 7}
    assert parse_get_history(asked, KNOWN, 50) == GetHistory("stats", 1, 7)
    most = {"type": "stats", "limit": 100, "before": 2**53}
    assert parse_get_history(most, KNOWN, 50) == GetHistory("stats", 100, 2**53)


@pytest.mark.parametrize("name", ["limit", "before"])
@pytest.mark.parametrize("value", [0, -1, 2**53 + 1, "5", 1.5, False, {}])
def test_wrong_numbers(name: str, value: Any) -> None:
    payload = {"type": "status", name: value}
    assert name in refused(ErrorCode.INVALID_PAYLOAD, parse_get_history, payload, KNOWN, 50)


def test_limit_is_at_most_100() -> None:
    payload = {"type": "status", "limit": 101}
    refused(ErrorCode.INVALID_PAYLOAD, parse_get_history, payload, KNOWN, 50)


# Strings.


def test_strings_have_a_length() -> None:
    assert parse_string({"token": "a" * 5}, "token", 5) == "a" * 5
    for payload in (None, {}, {"token": ""}, {"token": "a" * 6}, {"token": 1}):
        message = refused(ErrorCode.INVALID_PAYLOAD, parse_string, payload, "token", 5)
        assert message == "'token' must be a string of 1 to 5 characters."
    for payload in (["token"], "token"):  # type: ignore[assignment]
        refused(ErrorCode.INVALID_PAYLOAD, parse_string, payload, "token", 5)


# Everything else that a client may send.


def got(call: Any, *args: Any) -> ErrorCode | None:
    """With which code a call refuses; None when it does not."""
    try:
        call(*args)
    except ClientError as error:
        error.message.encode()
        return error.code
    return None


@given(values())
def test_any_payload_is_taken_or_refused_with_a_code(payload: Any) -> None:
    checked = {
        None,
        ErrorCode.INVALID_PAYLOAD,
        ErrorCode.INVALID_TYPE,
        ErrorCode.SUBSCRIPTION_INVALID,
    }
    assert got(parse_subscribe, payload, KNOWN) in checked
    assert got(parse_get_history, payload, KNOWN, 50) in checked
    assert got(parse_one_type, payload, KNOWN) in checked
    assert got(parse_string, payload, "id", 5) in (None, ErrorCode.INVALID_PAYLOAD)
    known = isinstance(payload, str) and payload in ACTIONS
    expected = None if known else ErrorCode.INVALID_ACTION
    assert got(check_action, Request(payload, None)) is expected


@given(values().map(json.dumps) | st.text(max_size=30))
def test_any_text_is_a_request_or_refused_with_a_code(text: str) -> None:
    code = got(parse_request, text)
    assert code in (None, ErrorCode.PARSE_ERROR, ErrorCode.INVALID_PAYLOAD)


# What a client asks for as it connects.


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({}, ConnectOptions()),
        ({"types": None, "batch": None, "history": None, "token": "x"}, ConnectOptions()),
        ({"types": ["stats", "status"]}, ConnectOptions(frozenset({"stats", "status"}))),
        ({"types": " stats, status,"}, ConnectOptions(frozenset({"stats", "status"}))),
        ({"types": []}, ConnectOptions(frozenset())),
        ({"types": ""}, ConnectOptions(frozenset())),
        ({"types": ["all"]}, ConnectOptions(frozenset(KNOWN))),
        ({"batch": True}, ConnectOptions(batch=True)),
        ({"batch": "1"}, ConnectOptions(batch=True)),
        ({"batch": "0"}, ConnectOptions()),
        ({"history": 7}, ConnectOptions(history=7)),
        ({"history": "100"}, ConnectOptions(history=100)),
        ({"history": ""}, ConnectOptions()),
    ],
)
def test_first_wishes(fields: dict[str, Any], first: ConnectOptions) -> None:
    assert parse_options(fields, KNOWN) == first


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"types": "nope"}, ErrorCode.INVALID_TYPE),
        ({"types": ["error"]}, ErrorCode.SUBSCRIPTION_INVALID),
        ({"types": {"status": 1}}, ErrorCode.INVALID_PAYLOAD),
        ({"types": [1]}, ErrorCode.INVALID_PAYLOAD),
        ({"batch": 1}, ErrorCode.INVALID_PAYLOAD),
        ({"batch": "maybe"}, ErrorCode.INVALID_PAYLOAD),
        ({"history": 0}, ErrorCode.INVALID_PAYLOAD),
        ({"history": 101}, ErrorCode.INVALID_PAYLOAD),
        ({"history": True}, ErrorCode.INVALID_PAYLOAD),
        ({"history": 1.5}, ErrorCode.INVALID_PAYLOAD),
        ({"history": "1.5"}, ErrorCode.INVALID_PAYLOAD),
        ({"history": "-1"}, ErrorCode.INVALID_PAYLOAD),
        ({"history": "٣"}, ErrorCode.INVALID_PAYLOAD),
        ({"history": "9" * 5000}, ErrorCode.INVALID_PAYLOAD),
    ],
)
def test_wrong_first_wishes(fields: dict[str, Any], code: ErrorCode) -> None:
    refused(code, parse_options, fields, KNOWN)


@given(st.dictionaries(st.sampled_from(["types", "batch", "history"]), values(), max_size=3))
def test_any_first_wishes_are_taken_or_refused(fields: dict[str, Any]) -> None:
    try:
        parse_options(fields, KNOWN)
    except ClientError:
        pass
