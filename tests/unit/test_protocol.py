"""The tables of the protocol: what is made of them is up to date, and the code has what they name."""

from __future__ import annotations

import json
import typing
from collections.abc import AsyncIterator
from typing import Any

import jsonschema_rs
import openapi_spec_validator
import pytest
from aiohttp import hdrs

import yujian_realtime.protocol as python_types
from app.backplane.series import RANGES as SERIES_RANGES
from app.errors import CloseCode, ErrorCode
from app.protocol.envelope import RESERVED_EVENTS, RESERVED_ON_WIRE
from app.protocol.schema import actions, asyncapi, calls, events, kinds, limits, openapi, payloads
from app.protocol.schema.json_schema import Schemas
from app.setting_values import BUILT_IN_TYPES
from app.types import Priority
from scripts.protocol.__main__ import all_structs, files
from tests.support import REPO
from tests.support.http_side import HttpSide, http_side
from workers.leader.periods import PERIODS

FILES = files()


@pytest.fixture
async def side() -> AsyncIterator[HttpSide]:
    async with http_side(PUBLISH_TOKEN="token", MESSAGE_TYPES="extra") as side:
        yield side


@pytest.mark.parametrize("name", FILES)
def test_what_is_made_of_the_tables_is_up_to_date(name: str) -> None:
    assert (REPO / name).read_text() == FILES[name], (
        "run `make protocol` and commit what it changes"
    )


def test_every_table_of_the_pages_is_used() -> None:
    """A new action or call cannot be left out of the pages."""
    from scripts.protocol.markdown import TABLES

    text = "".join(FILES[name] for name in FILES if name.endswith(".md"))
    assert [name for name in TABLES if f"<!-- protocol: {name} -->" not in text] == []


def test_names_are_unique() -> None:
    assert len(actions.ACTIONS) == len(actions.TABLE)
    assert len(events.EVENTS) == len(events.TABLE)
    assert len({(call.method, call.path) for call in calls.TABLE}) == len(calls.TABLE)
    assert len({call.id for call in calls.TABLE}) == len(calls.TABLE)
    for struct in all_structs():
        names = [field.name for field in struct.all_fields()]
        assert len(set(names)) == len(names), struct.name


def test_every_answer_is_an_event() -> None:
    assert {action.reply for action in actions.TABLE if action.reply} <= set(events.EVENTS)


def test_publishers_cannot_use_the_names_of_the_service() -> None:
    own = {event.name for event in events.TABLE if not event.is_stream}
    assert own <= RESERVED_EVENTS - RESERVED_ON_WIRE
    assert RESERVED_EVENTS.isdisjoint(event.name for event in events.TABLE if event.is_stream)


def test_the_same_words_as_the_code() -> None:
    assert tuple(SERIES_RANGES) == limits.RANGES
    assert tuple(PERIODS) == limits.PERIODS
    assert tuple(priority.name.lower() for priority in Priority) == limits.PRIORITIES


# Routes.


async def test_every_route_is_a_row_and_every_row_a_route(side: HttpSide) -> None:
    elsewhere = {("GET", "/ws/realtime"), ("GET", "/events"), ("GET", "/metrics")}  # by the worker
    routes = {
        (route.method, route.resource.canonical)
        for route in side.app.router.routes()
        if route.resource is not None and route.method != hdrs.METH_HEAD
    }
    page = {
        (method, path)
        for method, path in routes
        if path.startswith("/assets/") or path.endswith((".svg", ".css", ".html"))
    }
    rows: set[tuple[str, str]] = {(call.method, call.path) for call in calls.TABLE}
    assert rows == (routes - page - {("GET", "/fail")}) | elsewhere


@pytest.mark.parametrize(
    "path", sorted({call.path for call in calls.TABLE} - {"/ws/realtime", "/metrics", "/events"})
)
async def test_the_methods_of_a_path_are_those_of_its_rows(side: HttpSide, path: str) -> None:
    """Each resource takes what its rows say, and no other one's methods by its own name."""
    methods: set[str] = {call.method for call in calls.TABLE if call.path == path}
    expected = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    url = path.replace("{id}", "some")
    allowed = (await side.client.options(url)).headers["Allow"]
    assert allowed.split(", ") == sorted(expected)
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - methods:
        answer = await side.client.request(method, url)
        assert (answer.status, answer.headers["Allow"]) == (405, allowed)


# Documents.


async def test_openapi_is_served(side: HttpSide) -> None:
    answer = await side.client.get("/openapi.json")
    assert answer.status == 200
    assert answer.content_type == "application/json"
    document = await answer.json()
    openapi_spec_validator.validate(document)
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"
    assert document == openapi.document("1.2.3", (*BUILT_IN_TYPES, "extra"))
    published = document["components"]["schemas"]["PublishedMessage"]
    assert "extra" in published["properties"]["type"]["enum"]


async def test_asyncapi_is_served(side: HttpSide) -> None:
    document = await (await side.client.get("/asyncapi.json")).json()
    assert document == asyncapi.document("1.2.3", (*BUILT_IN_TYPES, "extra"))
    assert document["asyncapi"] == "3.0.0"


@pytest.mark.parametrize("path", ["/openapi.json", "/asyncapi.json"])
async def test_documents_are_compressed_and_sent_once(side: HttpSide, path: str) -> None:
    headers = {"Accept-Encoding": "identity"}
    plain = await side.client.get(path, headers=headers)
    tag = plain.headers["ETag"]
    assert plain.headers["Cache-Control"] == "no-cache"
    assert plain.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    packed = await side.client.get(path, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["ETag"] != tag
    assert await packed.json() == await plain.json()
    again = await side.client.get(path, headers=headers | {"If-None-Match": tag})
    assert again.status == 304
    assert await again.read() == b""
    changed = await side.client.get(path, headers=headers | {"If-None-Match": '"other"'})
    assert changed.status == 200
    head = await side.client.head(path, headers=headers)
    assert (head.status, head.headers["ETag"]) == (200, tag)


async def test_documents_are_served_without_the_page() -> None:
    async with http_side(PAGE="0") as side:
        assert (await side.client.get("/")).status == 404
        assert (await side.client.get("/openapi.json")).status == 200


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    if isinstance(value, list):
        return set[str]().union(*map(references, value))
    return set()


@pytest.mark.parametrize(
    "document",
    [
        openapi.document("1", BUILT_IN_TYPES),
        asyncapi.document("1", BUILT_IN_TYPES),
        asyncapi.json_schemas(BUILT_IN_TYPES),
    ],
    ids=["openapi", "asyncapi", "json schemas"],
)
def test_references_lead_somewhere(document: Any) -> None:
    found = references(document)
    assert found
    for reference in found:
        place = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_the_json_schemas_are_schemas() -> None:
    document = asyncapi.json_schemas(BUILT_IN_TYPES)
    jsonschema_rs.meta.validate(document)
    for name, schema in document["$defs"].items():
        jsonschema_rs.meta.validate(schema | {"$schema": document["$schema"]})
        assert schema["description"], name


def test_every_status_of_a_call_is_in_openapi() -> None:
    document = openapi.document("1", BUILT_IN_TYPES)
    for call in calls.TABLE:
        responses = document["paths"][call.path][call.method.lower()]["responses"]
        expected = {str(each.status) for each in call.answers}
        expected |= {str(code.status) for code in openapi.codes(call)}
        assert expected <= set(responses), call.path
    explained = {code for call in calls.TABLE for code in openapi.codes(call)}
    on_connections = {ErrorCode.INVALID_ACTION, ErrorCode.HEARTBEAT_TIMEOUT}
    elsewhere = {ErrorCode.METHOD_NOT_ALLOWED}
    assert set(ErrorCode) - explained == on_connections | elsewhere


def test_every_close_code_is_in_asyncapi() -> None:
    about = asyncapi.document("1", BUILT_IN_TYPES)["info"]["description"]
    assert [code for code in CloseCode if f"- {int(code)}: " not in about] == [CloseCode.NORMAL]


# Kinds.


def test_two_structs_of_one_name_are_found() -> None:
    first, second = (kinds.Struct("Same", about, ()) for about in ("a", "b"))
    with pytest.raises(ValueError, match="Same"):
        kinds.structs(first, kinds.ListOf(second))


def test_a_field_of_the_same_name_replaces_that_of_the_base() -> None:
    fields = {field.name: field for field in payloads.STREAM_MESSAGE.all_fields()}
    assert fields["seq"].required
    assert not {field.name: field for field in payloads.ENVELOPE.all_fields()}["seq"].required
    assert "replyTo" in fields


SCHEMAS = Schemas(("status", "stats"), "#/$defs/")

KINDS: list[tuple[kinds.Kind, list[Any], list[Any]]] = [
    (kinds.Text(1, 3, "[a-z]+"), ["a", "abc"], ["", "abcd", "A", 1, None]),
    (kinds.Integer(1, 3), [1, 3], [0, 4, 1.5, "1", True]),
    (kinds.Number(), [1, 1.5, -2], ["1", None]),
    (kinds.Boolean(), [True], [1, "true"]),
    (kinds.AnyJson(), [None, 1, [], {}], []),
    (kinds.Choice(("a", "b")), ["a"], ["c", 1]),
    (kinds.TypeName(), ["status"], ["all", "other"]),
    (kinds.TypeName(or_all=True), ["status", "all"], ["other"]),
    (kinds.Nullable(kinds.Integer()), [1, None], ["1"]),
    (kinds.ListOf(kinds.Integer(), 1, 2), [[1], [1, 2]], [[], [1, 2, 3], ["1"], {}]),
    (
        kinds.MapOf(kinds.Integer(), kinds.TypeName()),
        [{}, {"stats": 1}],
        [{"x": 1}, {"stats": "1"}],
    ),
    (kinds.Either((kinds.Integer(), kinds.Text())), [1, "1"], [None, []]),
]


@pytest.mark.parametrize(("kind", "good", "bad"), KINDS, ids=lambda value: type(value).__name__)
def test_the_schema_of_a_kind(kind: kinds.Kind, good: list[Any], bad: list[Any]) -> None:
    valid = jsonschema_rs.validator_for(SCHEMAS.of(kind)).is_valid
    assert [value for value in good if not valid(value)] == []
    assert [value for value in bad if valid(value)] == []


# Types of Python.


def test_the_types_of_python_have_the_fields() -> None:
    for struct in all_structs():
        found = getattr(python_types, struct.name)
        fields = struct.all_fields()
        # `NotRequired` stands in texts, which only `get_type_hints` reads.
        hints = typing.get_type_hints(found, include_extras=True)
        assert set(hints) == {field.name for field in fields}
        optional = {
            name for name, hint in hints.items() if typing.get_origin(hint) is typing.NotRequired
        }
        assert optional == {field.name for field in fields if not field.required}, struct.name


def test_the_words_of_python() -> None:
    assert set(typing.get_args(python_types.ErrorCode)) == set(ErrorCode)
    assert set(typing.get_args(python_types.CloseCode)) == set(CloseCode)
    assert set(typing.get_args(python_types.ActionName)) == set(actions.ACTIONS)
    assert set(typing.get_args(python_types.EventName)) == set(events.EVENTS)


def test_the_file_of_schemas_is_json() -> None:
    document = json.loads(FILES["docs/schema/messages.schema.json"])
    assert "request:subscribe" in document["$defs"]
    assert "event:connected" in document["$defs"]
