"""Values of the kinds in app/protocol/schema, valid ones and such with one mistake."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

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

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "all", "error", "status", "x" * 129, "\u0000", "1"]),
    st.text(max_size=5),
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def valid(kind: Kind, types: list[str]) -> st.SearchStrategy[Any]:
    """Values of a kind.

    Args:
        kind: the kind.
        types: types of messages that there are.
    """
    match kind:
        case Text():
            if kind.pattern is not None:
                return st.from_regex(kind.pattern, fullmatch=True)
            most = kind.most or 20
            edges = st.sampled_from(["x" * most, "x" * max(1, kind.least)])
            return st.text(min_size=kind.least, max_size=min(most, 20)) | edges
        case Integer():
            return st.integers(kind.least, kind.most)
        case Number():
            return st.floats(allow_nan=False, allow_infinity=False)
        case Boolean():
            return st.booleans()
        case AnyJson():
            return ANYTHING
        case Choice():
            return st.sampled_from(kind.values)
        case TypeName():
            return st.sampled_from([*types, *(["all"] if kind.or_all else [])])
        case Nullable():
            return st.none() | valid(kind.kind, types)
        case ListOf():
            return st.lists(valid(kind.kind, types), min_size=kind.least, max_size=4)
        case MapOf():
            keys = st.text(max_size=5) if kind.keys is None else valid(kind.keys, types)
            return st.dictionaries(keys, valid(kind.kind, types), max_size=3)
        case Either():
            return st.one_of([valid(each, types) for each in kind.kinds])
        case Struct():
            return _objects(kind.all_fields(), types)


def _objects(fields: tuple[Field, ...], types: list[str]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {field.name: valid(field.kind, types) for field in fields if field.required},
        optional={field.name: valid(field.kind, types) for field in fields if not field.required},
    )


@st.composite
def perhaps_wrong(draw: st.DrawFn, kind: Kind, types: list[str]) -> Any:
    """A valid value, or one in which a part is missing, is another one, or is too much."""
    value = draw(valid(kind, types))
    if draw(st.booleans()):
        return value
    value = json.loads(json.dumps(value))  # nothing is shared
    holder: Any = {"": value}
    key: Any = ""
    while True:
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner and draw(st.integers(0, 3))):
            break
        holder = inner
        key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    mistake = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if mistake == "remove" and key != "":
        del holder[key]
    elif mistake == "add" and isinstance(holder[key], dict):
        holder[key][draw(st.text(max_size=8))] = draw(LEAVES)
    else:
        holder[key] = draw(ANYTHING)
    return value if key != "" else holder[""]
