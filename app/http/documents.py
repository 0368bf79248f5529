"""`GET /openapi.json` and `GET /asyncapi.json`: the protocol for programs, made once at the start."""

from __future__ import annotations

from aiohttp import web

from app.config import Settings
from app.http.files import File
from app.protocol.envelope import encode_json
from app.protocol.schema import asyncapi, openapi

_HEADERS = {"Cache-Control": "no-cache"}


def add_documents(app: web.Application, settings: Settings, version: str) -> None:
    """Serve both documents.

    Args:
        app: gets the routes.
        settings: name the types of messages that there are.
        version: of the service.
    """
    types = settings.message_types
    documents = {
        "/openapi.json": openapi.document(version, types),
        "/asyncapi.json": asyncapi.document(version, types),
    }
    files = {
        path: File.compressed("application/json", encode_json(document))
        for path, document in documents.items()
    }

    async def get_document(request: web.Request) -> web.Response:
        return files[request.path].answer(request, _HEADERS)

    for path in files:
        app.router.add_get(path, get_document)
