"""The tables of actions and events as a document of AsyncAPI 3.0 (https://www.asyncapi.com/docs/reference)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.errors import CloseCode
from app.protocol.schema import actions, events, payloads
from app.protocol.schema.calls import TABLE as CALLS
from app.protocol.schema.json_schema import DIALECT, Schema, Schemas
from app.protocol.schema.kinds import structs

PLACE = "#/components/schemas/"


def document(version: str, types: Sequence[str]) -> dict[str, Any]:
    """The document.

    Args:
        version: of the service.
        types: the types of messages that there are.
    """
    schemas = Schemas(types, PLACE)
    messages = {
        f"{name}.request": _request(actions.ACTIONS[name], schemas) for name in actions.ACTIONS
    }
    messages |= {event.name: _event(event, schemas) for event in events.TABLE if not event.is_bare}
    messages["message"] = {
        "name": "message",
        "title": "Any message of a stream",
        "summary": "What publishers publish, with the event and data that they choose.",
        "payload": schemas.of(payloads.STREAM_MESSAGE),
    }
    sent = [name for name in messages if not name.endswith(".request")]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Yujian Presence",
            "version": version,
            "description": _about(),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"service": {"host": "127.0.0.1:3001", "protocol": "ws"}},
        "channels": {
            "realtime": {
                "address": "/ws/realtime",
                "title": "One connection",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET", "query": _query(schemas)}},
            }
        },
        "operations": _operations(sent),
        "components": {
            "messages": messages,
            "schemas": {struct.name: schemas.struct(struct) for struct in used()},
        },
    }


def used() -> list[Any]:
    """Every struct that goes over a connection."""
    return structs(
        payloads.ENVELOPE,
        payloads.STREAM_MESSAGE,
        payloads.REQUEST,
        *(action.payload for action in actions.TABLE),
        *(event.data for event in events.TABLE),
    )


def request_schema(action: actions.Action, schemas: Schemas) -> Schema:
    """The schema of a complete request."""
    schema = schemas.struct(payloads.REQUEST)
    properties: Schema = schema["properties"]
    properties["action"] = {"type": "string", "const": action.name}
    payload = schemas.of(action.payload)
    if payload:
        properties["payload"] = payload
        schema["required"] = ["action", "payload"]
    schema["description"] = action.about
    return schema


def event_schema(event: events.Event, schemas: Schemas) -> Schema:
    """The schema of a complete message of the service."""
    struct = payloads.STREAM_MESSAGE if event.is_stream else payloads.ENVELOPE
    schema = schemas.struct(struct)
    properties: Schema = schema["properties"]
    properties["event"] = {"type": "string", "const": event.name}
    if event.type != "any":
        properties["type"] = {"type": "string", "const": event.type}
    properties["data"] = schemas.of(event.data)
    schema["description"] = event.about[0].upper() + event.about[1:] + "."
    return schema


def json_schemas(types: Sequence[str]) -> dict[str, Any]:
    """One document of JSON Schema with a definition for each request, event and struct."""
    schemas = Schemas(types, "#/$defs/")
    definitions: dict[str, Any] = {struct.name: schemas.struct(struct) for struct in used()}
    for action in actions.TABLE:
        definitions[f"request:{action.name}"] = request_schema(action, schemas)
    for event in events.TABLE:
        if not event.is_bare:
            definitions[f"event:{event.name}"] = event_schema(event, schemas)
    return {
        "$schema": DIALECT,
        "title": "Messages of Yujian Presence",
        "anyOf": [
            {"$ref": f"#/$defs/{struct.name}"} for struct in (payloads.REQUEST, payloads.ENVELOPE)
        ],
        "$defs": definitions,
    }


def _request(action: actions.Action, schemas: Schemas) -> dict[str, Any]:
    return {
        "name": action.name,
        "title": action.name,
        "summary": action.about,
        "payload": request_schema(action, schemas),
    }


def _event(event: events.Event, schemas: Schemas) -> dict[str, Any]:
    return {
        "name": event.name,
        "title": event.name,
        "summary": event.about[0].upper() + event.about[1:] + ".",
        "payload": event_schema(event, schemas),
    }


def _operations(sent: list[str]) -> dict[str, Any]:
    channel = {"$ref": "#/channels/realtime"}

    def refs(names: list[str]) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/realtime/messages/{name}"} for name in names]

    operations: dict[str, Any] = {}
    answers: set[str] = set()
    for action in actions.TABLE:
        operation: dict[str, Any] = {
            "action": "receive",
            "channel": channel,
            "summary": action.about,
            "messages": refs([f"{action.name}.request"]),
        }
        names = [action.reply, "error"] if action.reply else ["error"]
        operation["reply"] = {"channel": channel, "messages": refs(names)}
        answers.update(names)
        operations[action.name] = operation
    operations["send"] = {
        "action": "send",
        "channel": channel,
        "summary": "What the service sends by itself.",
        "messages": refs(
            [name for name in sent if name not in answers or name in {"error", "history_data"}]
        ),
    }
    return operations


def _query(schemas: Schemas) -> Schema:
    (call,) = (call for call in CALLS if call.path == "/ws/realtime")
    return {
        "type": "object",
        "properties": {
            each.name: schemas.of(each.kind) | {"description": each.about}
            for each in call.parameters
        },
    }


def _about() -> str:
    rows = [
        (
            "The plain protocol: each message is one text frame of JSON. Over Socket.IO (`EIO=4`) the event's name is"
            " `event` and its argument the envelope; a request is an event named by the action, with the payload."
        ),
        "",
        "Close codes:",
        *(
            f"- {code.value}: {code.why}. Reconnect: {code.advice}."
            for code in CloseCode
            if code is not CloseCode.NORMAL
        ),
    ]
    return "\n".join(rows)
