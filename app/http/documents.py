"""`GET /openapi.json` and `GET /asyncapi.json`: the protocol for programs, made when one is asked for."""

from __future__ import annotations

import functools

from aiohttp import web

from app.config import Settings
from app.http.files import File
from app.protocol.envelope import encode_json

_HEADERS = {"Cache-Control": "no-cache"}


def add_documents(app: web.Application, settings: Settings, version: str) -> None:
    """Serve both documents.

    Args:
        app: gets the routes.
        settings: name the types of messages that there are.
        version: of the service.
    """

    @functools.cache
    def file_of(path: str) -> File:
        # Few ask for them, and every worker would start some milliseconds later.
        from app.protocol.schema import asyncapi, openapi  # noqa: PLC0415

        make = openapi.document if path == "/openapi.json" else asyncapi.document
        return File.compressed(
            "application/json", encode_json(make(version, settings.message_types))
        )

    async def get_document(request: web.Request) -> web.Response:
        return file_of(request.path).answer(request, _HEADERS)

    for path in ("/openapi.json", "/asyncapi.json"):
        app.router.add_get(path, get_document)
