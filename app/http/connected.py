"""The calls by which operators list connections and users, and close connections."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aiohttp import web

from app.errors import ClientError, CloseCode, ErrorCode
from app.http import queries
from app.http.audit import Write
from app.http.context import HttpContext
from app.http.errors import HttpError, json_response
from app.protocol.requests import check_type
from app.protocol.schema.limits import CLOSING_CODES, MAX_NAME, MAX_ROWS, PROTOCOLS
from app.sessions.auth import comparable
from app.sessions.roster import Closed, Query, RosterPage

DEFAULT_ROWS = 100
"""Rows of a page where the caller names no limit."""


async def get_connected(request: web.Request, context: HttpContext) -> web.Response:
    """`GET /connections?user=&type=&protocol=&limit=&after=`: connections of all workers, by id."""
    page = await _find(request, context, by_user=False)
    return json_response({"connections": page.rows, **_figures(page)})


async def get_users(request: web.Request, context: HttpContext) -> web.Response:
    """`GET /connections/users?type=&limit=&after=`: users of all workers, by name."""
    page = await _find(request, context, by_user=True)
    return json_response({"users": page.rows, "anonymous": page.anonymous, **_figures(page)})


async def delete_connected(
    request: web.Request, write: Write, context: HttpContext
) -> web.Response:
    """`DELETE /connections/ID?code=`: close one connection."""
    id = request.match_info["id"]
    write.writer = await context.writers.require(request)
    _refuse_others(request.query, ("code",))
    if len(id) > MAX_NAME:
        raise ClientError(ErrorCode.INVALID_PAYLOAD, f"An id has at most {MAX_NAME} characters.")
    closed = await context.roster.close(id=id, code=_code(request.query))
    write.id = id
    if not closed.count:
        raise HttpError(404, ErrorCode.NOT_FOUND, "No worker has an open connection of this id.")
    return _closed(closed)


async def delete_user(request: web.Request, write: Write, context: HttpContext) -> web.Response:
    """`DELETE /connections?user=&code=`: close all connections of a user."""
    write.writer = await context.writers.require(request)
    user = _name(request.query, "user")
    _refuse_others(request.query, ("user", "code"))
    if user is None:
        message = "Name the 'user' whose connections are to be closed."
        raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    write.id = user
    return _closed(await context.roster.close(user=user, code=_code(request.query)))


async def _find(request: web.Request, context: HttpContext, *, by_user: bool) -> RosterPage:
    await context.writers.require(request)
    query = request.query
    type = query.get("type") or None
    if type is not None:
        check_type(type, context.settings.message_types)
    return await context.roster.find(
        Query(
            None if by_user else _name(query, "user"),
            type,
            by_user,
            _name(query, "after") or "",
            queries.number(query, "limit", MAX_ROWS) or DEFAULT_ROWS,
            None if by_user else _protocol(query),
        )
    )


def _figures(page: RosterPage) -> dict[str, object]:
    return {
        "total": page.total,
        "more": page.more,
        "workers": page.workers,
        "complete": page.complete,
    }


def _closed(closed: Closed) -> web.Response:
    return json_response(
        {"closed": closed.count, "workers": closed.workers, "complete": closed.complete}
    )


def _name(query: Mapping[str, str], name: str) -> str | None:
    """A user's name in a parameter; None where there is none."""
    text = query.get(name) or None
    if text is None:
        return None
    text = comparable(text)
    if len(text) > MAX_NAME:
        message = f"'{name}' has at most {MAX_NAME} characters."
        raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    return text


def _protocol(query: Mapping[str, str]) -> str | None:
    name = query.get("protocol") or None
    if name is not None and name not in PROTOCOLS:
        message = f"'protocol' must be one of {', '.join(PROTOCOLS)}."
        raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    return name


def _refuse_others(query: Mapping[str, str], known: Collection[str]) -> None:
    """A filter that a call does not have would let it close more than the caller means."""
    for name in query:
        if name not in known:
            message = f"This call has no parameter {name[:64]!r}; it has: {', '.join(known)}."
            raise ClientError(ErrorCode.INVALID_PAYLOAD, message)


def _code(query: Mapping[str, str]) -> CloseCode:
    text = query.get("code") or CLOSING_CODES[0]
    if text not in CLOSING_CODES:
        message = f"'code' must be one of {', '.join(CLOSING_CODES)}."
        raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    return CloseCode(int(text))
