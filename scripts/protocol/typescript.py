"""The protocol as types of TypeScript."""

from __future__ import annotations

import json
from collections.abc import Iterable

from app.errors import CloseCode, ErrorCode
from app.protocol.schema import actions, events
from app.protocol.schema.kinds import Boolean, Choice, Integer, Number, Struct, Text, TypeName
from app.protocol.schema.payloads import ENVELOPE, STREAM_MESSAGE
from scripts.protocol.notation import Leaf, Notation

_GENERIC = (ENVELOPE, STREAM_MESSAGE)
"""Structs with a parameter for the type of `data`."""


def write(structs: Iterable[Struct]) -> str:
    """The file of types."""
    events_of_clients = [event for event in events.TABLE if not event.is_bare]
    parts = [
        "/** What goes over a connection, and the answers to HTTP calls. Made by `make protocol`: do not edit. */\n",
        *map(_interface, structs),
        (
            "/** Codes of `error` events and of HTTP answers. */\n"
            f"export type ErrorCode =\n{_union(json.dumps(code) for code in ErrorCode)};\n"
        ),
        (
            "/** Close codes of the service. */\n"
            f"export type CloseCode =\n{_union(str(code.value) for code in CloseCode)};\n"
        ),
        "/** What clients may ask for: payload, and data of the answer. */\n"
        "export interface Actions {\n"
        + "".join(
            f"  /** {action.about} */\n  {action.name}: {{ payload: {kind(action.payload)}; reply: {_reply(action)} }};\n"
            for action in actions.TABLE
        )
        + "}\n",
        "/** Data of the events of the service. Publishers add their own. */\n"
        "export interface EventData {\n"
        + "".join(
            f"  /** {event.about} */\n  {event.name}: {kind(event.data)};\n"
            for event in events_of_clients
        )
        + "}\n",
    ]
    return "\n".join(parts)


def _leaf(value: Leaf) -> str:
    match value:
        case Text() | TypeName():
            return "string"
        case Integer() | Number():
            return "number"
        case Boolean():
            return "boolean"
        case Choice():
            return " | ".join(f"'{each}'" for each in value.values)
        case _:
            return "unknown"


kind = Notation(
    leaf=_leaf,
    nullable="{} | null",
    list_of=lambda inner: f"({inner})[]" if "|" in inner else f"{inner}[]",
    map_of="Record<string, {}>",
    either=" | ",
).of
"""A kind as a type."""


def _interface(struct: Struct) -> str:
    generic = "<T = unknown>" if struct in _GENERIC else ""
    base = ""
    if struct.like is not None:
        base = f" extends {struct.like.name}" + ("<T>" if struct.like in _GENERIC else "")
    lines = [f"/** {struct.about} */", f"export interface {struct.name}{generic}{base} {{"]
    for field in struct.fields:
        is_data = struct in _GENERIC and field.name == "data"
        optional = "" if field.required else "?"
        lines += [
            f"  /** {field.about} */",
            f"  {field.name}{optional}: {'T' if is_data else kind(field.kind)};",
        ]
    return "\n".join([*lines, "}", ""])


def _union(values: Iterable[str]) -> str:
    return "\n".join(f"  | {value}" for value in values)


def _reply(action: actions.Action) -> str:
    return "undefined" if action.reply is None else kind(events.EVENTS[action.reply].data)
