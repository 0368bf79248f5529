"""The protocol as types of Python, for the client."""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Iterable

from app.errors import CloseCode, ErrorCode
from app.protocol.schema import actions, events
from app.protocol.schema.kinds import (
    AnyJson,
    Boolean,
    Choice,
    Either,
    Field,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Nullable,
    Number,
    Struct,
    Text,
    TypeName,
)

_HEAD = '''\
"""What goes over a connection, and the answers to HTTP calls. Made by `make protocol`: do not edit."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict
'''


def write(structs: Iterable[Struct]) -> str:
    """The module."""
    parts = [_HEAD]
    parts += [_functional(each) if _is_odd(each) else _class(each) for each in structs]
    parts += [
        _literal(
            "ErrorCode", map(_quoted, ErrorCode), "Codes of `error` events and of HTTP answers."
        ),
        _literal(
            "CloseCode", (str(code.value) for code in CloseCode), "Close codes of the service."
        ),
        _literal("ActionName", map(_quoted, actions.ACTIONS), "What clients may ask for."),
        _literal(
            "EventName",
            map(_quoted, events.EVENTS),
            "Events of the service; publishers add their own.",
        ),
    ]
    return "\n\n".join(parts)


def kind(value: Kind) -> str:  # noqa: PLR0911 - one case for each kind
    """A kind as an annotation."""
    match value:
        case Text() | TypeName():
            return "str"
        case Integer():
            return "int"
        case Number():
            return "float"
        case Boolean():
            return "bool"
        case AnyJson():
            return "Any"
        case Choice():
            return f"Literal[{', '.join(map(_quoted, value.values))}]"
        case Nullable():
            return f"{kind(value.kind)} | None"
        case ListOf():
            return f"list[{kind(value.kind)}]"
        case MapOf():
            return f"dict[str, {kind(value.kind)}]"
        case Either():
            return " | ".join(kind(each) for each in value.kinds)
        case Struct():
            return value.name


def _is_odd(struct: Struct) -> bool:
    return any(keyword.iskeyword(field.name) for field in struct.all_fields())


def _annotation(field: Field) -> str:
    return kind(field.kind) if field.required else f"NotRequired[{kind(field.kind)}]"


def _class(struct: Struct) -> str:
    lines = [f"class {struct.name}(TypedDict):", f'    """{struct.about}"""', ""]
    for field in struct.all_fields():
        lines += [f"    {field.name}: {_annotation(field)}", f'    """{field.about}"""']
    return "\n".join([*lines, ""])


def _functional(struct: Struct) -> str:
    lines = [f"{struct.name} = TypedDict(", f'    "{struct.name}",', "    {"]
    lines += [f'        "{field.name}": {_annotation(field)},' for field in struct.all_fields()]
    return "\n".join([*lines, "    },", ")", f'"""{struct.about}"""', ""])


def _literal(name: str, values: Iterable[str], about: str) -> str:
    listed = textwrap.fill(", ".join(values), 96, initial_indent="    ", subsequent_indent="    ")
    return f'{name} = Literal[\n{listed},\n]\n"""{about}"""\n'


def _quoted(text: str) -> str:
    return f'"{text}"'
