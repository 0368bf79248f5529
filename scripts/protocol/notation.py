"""How a language writes kinds: the one walk over them, for types and for tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.protocol.schema.kinds import (
    AnyJson,
    Boolean,
    Choice,
    Either,
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

Leaf = Text | Integer | Number | Boolean | AnyJson | Choice | TypeName
"""Kinds that consist of no others."""


@dataclass(frozen=True, slots=True)
class Notation:
    """What one language writes for each kind; `{}` stands for the kind inside."""

    leaf: Callable[[Leaf], str]
    nullable: str
    list_of: Callable[[str], str]
    map_of: str
    either: str
    """Between the kinds."""
    struct: Callable[[Struct], str] = lambda struct: struct.name

    def of(self, value: Kind) -> str:
        """A kind in this language."""
        match value:
            case Nullable():
                return self.nullable.format(self.of(value.kind))
            case ListOf():
                return self.list_of(self.of(value.kind))
            case MapOf():
                return self.map_of.format(self.of(value.kind))
            case Either():
                return self.either.join(map(self.of, value.kinds))
            case Struct():
                return self.struct(value)
            case _:
                return self.leaf(value)
