"""Answers to HTTP requests whose connection is no longer aiohttp's, as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from app.protocol.envelope import encode_json

JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json", "Cache-Control": "no-store"}
"""Of every answer with JSON: it is true for the moment only."""
DATA_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of whatever is not the page: it is data, and nothing that a browser shows."""
JSON_DATA_HEADERS: Mapping[str, str] = {**JSON_HEADERS, **DATA_HEADERS}
"""Of an answer with JSON that no `on_response_prepare` of aiohttp's completes."""
STREAM_HEADERS: Mapping[str, str] = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
"""Of an answer with server-sent events; nginx buffers nothing of it."""


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The head of an answer whose end is the end of the connection."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


def error(status: int, code: str, message: str, headers: Mapping[str, str]) -> bytes:
    """An answer `{"error", "code"}`, complete."""
    body = encode_json({"error": message, "code": code}) + b"\n"
    return head(status, {**JSON_DATA_HEADERS, "Content-Length": str(len(body)), **headers}) + body
