"""The protocol as types of Python, for the client."""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Iterable

from app.errors import CloseCode, ErrorCode
from app.protocol.schema import actions, events
from app.protocol.schema.kinds import (
    Boolean,
    Choice,
    Field,
    Integer,
    Number,
    Struct,
    Text,
    TypeName,
)
from scripts.protocol.notation import Leaf, Notation

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


def _leaf(value: Leaf) -> str:
    match value:
        case Text() | TypeName():
            return "str"
        case Integer():
            return "int"
        case Number():
            return "float"
        case Boolean():
            return "bool"
        case Choice():
            return f"Literal[{', '.join(map(_quoted, value.values))}]"
        case _:
            return "Any"


kind = Notation(
    leaf=_leaf,
    nullable="{} | None",
    list_of="list[{}]".format,
    map_of="dict[str, {}]",
    either=" | ",
).of
"""A kind as an annotation."""


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
