"""JSON Schema (2020-12) of kinds, for both documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


class Schemas:
    """Writes schemas.

    Args:
        types: the types of messages that there are.
        place: where the schemas of structs stand in the document, such as `#/$defs/`.
    """

    def __init__(self, types: Sequence[str], place: str) -> None:
        self._types = list(types)
        self._place = place

    def of(self, kind: Kind) -> Schema:  # noqa: PLR0911 - one case for each kind
        """The schema of a kind; a struct is referred to."""
        match kind:
            case Text():
                return _without_none(
                    {
                        "type": "string",
                        "minLength": kind.least or None,
                        "maxLength": kind.most,
                        "pattern": None if kind.pattern is None else f"^{kind.pattern}$",
                    }
                )
            case Integer():
                return _without_none(
                    {"type": "integer", "minimum": kind.least, "maximum": kind.most}
                )
            case Number():
                return {"type": "number"}
            case Boolean():
                return {"type": "boolean"}
            case AnyJson():
                return {}
            case Choice():
                return {"type": "string", "enum": list(kind.values)}
            case TypeName():
                return {"type": "string", "enum": [*self._types, *(["all"] if kind.or_all else [])]}
            case Nullable():
                return {"anyOf": [self.of(kind.kind), {"type": "null"}]}
            case ListOf():
                return _without_none(
                    {
                        "type": "array",
                        "items": self.of(kind.kind),
                        "minItems": kind.least or None,
                        "maxItems": kind.most,
                    }
                )
            case MapOf():
                schema = {"type": "object", "additionalProperties": self.of(kind.kind)}
                if kind.keys is not None:
                    schema["propertyNames"] = self.of(kind.keys)
                return schema
            case Either():
                return {"anyOf": [self.of(each) for each in kind.kinds]}
            case Struct():
                return {"$ref": f"{self._place}{kind.name}"}

    def struct(self, struct: Struct) -> Schema:
        """The schema of a struct itself."""
        schema: Schema = {"type": "object", "description": struct.about}
        fields = struct.all_fields()
        if fields:
            schema["properties"] = {
                field.name: self.of(field.kind) | {"description": field.about} for field in fields
            }
        required = [field.name for field in fields if field.required]
        if required:
            schema["required"] = required
        if struct.is_closed:
            schema["additionalProperties"] = False
        return schema


def _without_none(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if value is not None}
