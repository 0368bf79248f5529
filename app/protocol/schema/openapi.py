"""The table of calls as a document of OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from app.errors import ErrorCode
from app.protocol.schema import payloads
from app.protocol.schema.calls import (
    BODY_ERRORS,
    COMMON_ERRORS,
    TABLE,
    TOKEN_ERRORS,
    Answer,
    Call,
    Parameter,
    Reader,
)
from app.protocol.schema.json_schema import DIALECT, Schema, Schemas
from app.protocol.schema.kinds import Text, structs

_ALSO_429 = {ErrorCode.MAX_CONNECTIONS_EXCEEDED}
"""Codes that have 429 in place of their status when they are about one address."""

_SECURITY: dict[Reader, list[dict[str, list[str]]]] = {
    "public": [],
    "reader": [{}, {"clientToken": []}, {"clientTokenInQuery": []}, {"publishToken": []}],
    "publisher": [{"publishToken": []}, {"publishTokenHeader": []}],
    "publisher or client": [{"publishToken": []}, {"publishTokenHeader": []}, {"clientToken": []}],
}
_SCHEMES = {
    "publishToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "`PUBLISH_TOKEN`, or one of `PUBLISH_TOKENS`.",
    },
    "publishTokenHeader": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Publish-Token",
        "description": "The same, where a proxy uses `Authorization` itself.",
    },
    "clientToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A client's token, where the service has `AUTH_SECRET`, `AUTH_JWKS_FILE` or `AUTH_JWKS_URL`.",
    },
    "clientTokenInQuery": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "The same in the query.",
    },
}
_REQUEST_ID = {
    "X-Request-ID": {
        "description": "Names the request in the log: its own header of this name, or a new one.",
        "schema": {"type": "string"},
    }
}
_HEADERS: dict[int, dict[str, Any]] = {
    304: {"ETag": {"description": "Of the document.", "schema": {"type": "string"}}},
    401: {"WWW-Authenticate": {"description": "The kind of token.", "schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    503: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
}


def document(version: str, types: Sequence[str]) -> dict[str, Any]:
    """The document.

    Args:
        version: of the service.
        types: the types of messages that there are.
    """
    schemas = Schemas(types, "#/components/schemas/")
    paths: dict[str, dict[str, Any]] = {}
    for call in TABLE:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, schemas)
    used = structs(
        payloads.ERROR,
        *(kind for call in TABLE for kind in (call.body, *(each.body for each in call.answers))),
    )
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": DIALECT,
        "info": {
            "title": "Yujian Presence",
            "version": version,
            "summary": "A real-time push server: the HTTP calls.",
            "description": "The messages over WebSockets are in `/asyncapi.json`. Fields may be added to answers at any time.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {struct.name: schemas.struct(struct) for struct in used},
            "securitySchemes": _SCHEMES,
        },
    }


def codes(call: Call) -> list[ErrorCode]:
    """Every code that a call may be answered with."""
    found = [*call.errors, *COMMON_ERRORS]
    if call.body is not None:
        found += BODY_ERRORS
    if call.reader != "public":
        found += TOKEN_ERRORS
    return sorted(set(found), key=list(ErrorCode).index)


def _operation(call: Call, schemas: Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": call.id,
        "summary": call.about[0].upper() + call.about[1:],
        "security": _SECURITY[call.reader],
    }
    if call.details:
        operation["description"] = call.details
    if call.parameters:
        operation["parameters"] = [
            {
                "name": each.name,
                "in": each.place,
                "required": each.required,
                "description": each.about,
                "schema": _parameter(each, schemas),
            }
            for each in call.parameters
        ]
    if call.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas.of(call.body)}},
        }
    operation["responses"] = _responses(call, schemas)
    return operation


def _parameter(parameter: Parameter, schemas: Schemas) -> Schema:
    """The schema of a parameter: an empty one is as one that is not there."""
    schema = schemas.of(parameter.kind)
    if parameter.required or isinstance(parameter.kind, Text):
        return schema
    return {"anyOf": [schema, {"type": "string", "maxLength": 0}]}


def _responses(call: Call, schemas: Schemas) -> dict[str, Any]:
    error = schemas.of(payloads.ERROR)
    responses: dict[int, dict[str, Any]] = {}
    for answer in call.answers:
        _add(responses, answer, {} if answer.body is None else schemas.of(answer.body))
    by_status: dict[int, list[ErrorCode]] = {}
    for code in codes(call):
        by_status.setdefault(code.status, []).append(code)
        if code in _ALSO_429:
            by_status.setdefault(429, []).append(code)
    for status, listed in by_status.items():
        about = " or ".join(f"`{code}`" for code in listed)
        _add(responses, Answer(status, about), error)
    return {str(status): responses[status] for status in sorted(responses)}


def _add(responses: dict[int, dict[str, Any]], answer: Answer, schema: dict[str, Any]) -> None:
    """Add an answer, which may share its status with others."""
    response = responses.get(answer.status)
    if response is None:
        response = responses[answer.status] = {
            "description": f"{HTTPStatus(answer.status).phrase}: {answer.about}",
            "headers": _REQUEST_ID | _HEADERS.get(answer.status, {}),
        }
        if answer.status == 101:
            del response["headers"]
    else:
        response["description"] += f"; or {answer.about}"
    if answer.content_type is None:
        return
    content = response.setdefault("content", {})
    known = content.get(answer.content_type, {}).get("schema")
    if known is None:
        content[answer.content_type] = {"schema": schema}
    elif known != schema:
        content[answer.content_type] = {"schema": {"anyOf": [known, schema]}}
