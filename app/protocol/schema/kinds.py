"""Kinds of JSON values, of which the tables of the protocol are made.

Nothing here checks a message: a kind says what is valid, so that schemas, types and pages can be
written from one place, and tests can compare the checks with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """A string; lengths are in characters."""

    least: int = 0
    most: int | None = None
    pattern: str | None = None
    """A regular expression that both Python and JavaScript know, for the complete string."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A number without a fraction."""

    least: int | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """Any number."""


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false."""


@dataclass(frozen=True, slots=True)
class AnyJson:
    """Any JSON value."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some strings."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TypeName:
    """The name of a type of messages; which there are is a setting."""

    or_all: bool = False
    """Whether `all` stands for every one."""


@dataclass(frozen=True, slots=True)
class Nullable:
    """A value, or null."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list."""

    kind: Kind
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose keys are not known beforehand."""

    kind: Kind
    keys: TypeName | None = None
    """What the keys are; None: any text."""


@dataclass(frozen=True, slots=True)
class Either:
    """A value of one of several kinds."""

    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an object."""

    name: str
    kind: Kind
    about: str
    """Meaning and unit, in Markdown."""
    required: bool = True


@dataclass(frozen=True, slots=True)
class Struct:
    """An object with known fields. Readers must ignore fields that they do not know."""

    name: str
    """Of the type in the clients and the schemas."""
    about: str
    fields: tuple[Field, ...]
    is_closed: bool = False
    """Whether the service refuses fields of other names."""
    like: Struct | None = None
    """A struct whose fields this one has too."""

    def all_fields(self) -> tuple[Field, ...]:
        """The fields, those of `like` first; a field of the same name stands for that one."""
        if self.like is None:
            return self.fields
        own = {field.name for field in self.fields}
        return (*(each for each in self.like.all_fields() if each.name not in own), *self.fields)


Kind = (
    Text
    | Integer
    | Number
    | Boolean
    | AnyJson
    | Choice
    | TypeName
    | Nullable
    | ListOf
    | MapOf
    | Either
    | Struct
)


def parts(kind: Kind) -> Iterator[Kind]:
    """The kinds that a kind directly consists of."""
    if isinstance(kind, Nullable | ListOf | MapOf):
        yield kind.kind
    elif isinstance(kind, Either):
        yield from kind.kinds
    elif isinstance(kind, Struct):
        yield from (field.kind for field in kind.all_fields())


def structs(*kinds: Kind | None) -> list[Struct]:
    """The structs that kinds consist of, each once, behind those that it uses."""
    found: dict[str, Struct] = {}

    def visit(kind: Kind) -> None:
        if isinstance(kind, Struct) and found.get(kind.name) is kind:
            return
        for part in parts(kind):
            visit(part)
        if isinstance(kind, Struct) and found.setdefault(kind.name, kind) is not kind:
            raise ValueError(f"two structs are named {kind.name}")

    for kind in kinds:
        if kind is not None:
            visit(kind)
    return list(found.values())
