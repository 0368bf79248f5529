"""The HTTP calls of docs/HTTP.md. Any worker answers for all workers of the machine."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from app.backplane.series import RANGES
from app.errors import ClientError, ErrorCode
from app.http import queries
from app.http.alert_hook import post_alerts
from app.http.audit import Write
from app.http.clients import bearer_token
from app.http.connected import delete_connected, delete_user, get_connected, get_users
from app.http.context import HttpContext
from app.http.documents import add_documents
from app.http.errors import HttpError, error_middleware, json_response, raw_json_response
from app.http.health import Health
from app.http.json_body import read_json
from app.http.limiter import Limiter
from app.http.page import PageFiles
from app.http.publishing import broadcast, make_draft, publish
from app.machine import describe_connections, describe_worker, figure
from app.protocol.http_answers import DATA_HEADERS
from app.protocol.requests import Allowed, check_type
from app.protocol.schema.bodies import SET_PRESENCE
from app.protocol.schema.limits import MAX_HISTORY, MAX_HTTP_BEFORE
from app.types import Priority

_SMALL_BODY = 16_384
_PRESENCE_FIELDS = tuple(field.name for field in SET_PRESENCE.fields)
_PRIORITY_NAMES = tuple(priority.name.lower() for priority in Priority)


def add_routes(app: web.Application, context: HttpContext) -> None:
    """Add the routes, the answers to errors, and the headers that every answer bears.

    The middleware is put in front, so it also answers the errors of routes added elsewhere.
    """
    for path, read in _READING:
        app.router.add_get(path, functools.partial(read, context=context))  # and HEAD
    for path, write in _WRITING:
        app.router.add_post(path, _audited(functools.partial(write, context=context), context))
    for path, write in _CLOSING:
        app.router.add_delete(path, _audited(functools.partial(write, context=context), context))
    add_documents(app, context.settings, context.version)
    if context.settings.page:
        PageFiles().add_routes(app, context.version)
    _add_middlewares(app, context)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers["X-Request-ID"] = context.clients.request_id(request)
        for name, value in DATA_HEADERS.items():
            headers.setdefault(name, value)
        # aiohttp's own names its version and Python's.
        headers.pop("Server", None)
        context.origins.add_headers(request, response)

    app.on_response_prepare.append(add_headers)


def _add_middlewares(app: web.Application, context: HttpContext) -> None:
    """Put the limits in front of what is there, and the answers to errors in front of them."""
    limiter = Limiter(
        context.writers,
        context.clients,
        context.budgets,
        context.note_refused,
        slice=context.slice,
    )
    app.middlewares.insert(0, limiter.middleware())
    answer_errors = error_middleware(
        context.clients, context.origins, context.count_request, context.hosts, context.note_refused
    )
    app.middlewares.insert(0, answer_errors)


def _audited(
    handler: Callable[[web.Request, Write], Awaitable[web.Response]], context: HttpContext
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler of a call that writes, with a line in the log for each call."""

    async def answer(request: web.Request) -> web.Response:
        return await context.audit.watch(request, handler, context.clients.address(request))

    return answer


async def get_status(request: web.Request, context: HttpContext) -> web.Response:
    """`GET /status`: can clients be served, and what is the lab doing."""
    rows = context.slots.rows()
    presence, confirmed = await context.presence.read()
    knows = await _may_read(request, context)
    health = Health.of(rows, context)
    healthy = health.serving and not health.causes
    status: dict[str, object] = {
        "status": "ok" if healthy else "degraded" if health.serving else "unavailable",
        "causes": health.causes if knows else health.kinds,
        "connections": sum(row.connections for row in rows),
        "maxConnections": context.settings.max_total_connections,
        "expectedWorkers": context.settings.workers,
        "workers": [describe_worker(row, is_known=knows) for row in rows],
    }
    if knows:
        status["version"] = context.version
        status["uptime"] = round(context.now() - context.started_at, 3)
        backplane = health.backplane | {"warnings": list(context.warnings())}
        if (replica := context.backplane_replica()) is not None:
            backplane["replica"] = replica
        status["backplane"] = backplane
    else:
        status["backplane"] = {name: health.backplane[name] for name in ("status", "writable")}
    if knows and await _may_read(request, context, "status"):
        status["presence"] = presence.to_json() | ({} if confirmed else {"stale": True})
    return json_response(status, 200 if health.serving else 503)


async def post_status(request: web.Request, write: Write, context: HttpContext) -> web.Response:
    """`POST /status`: set what the lab is doing and publish it as `status`."""
    writer = write.writer = await context.writers.require(request)
    context.writers.charge(writer, 1)
    value, _ = await read_json(request, _SMALL_BODY, context.received)
    if not isinstance(value, Mapping):
        message = "Send an object with 'state' and optionally 'task'."
        raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    for name in value:
        if name not in _PRESENCE_FIELDS:
            message = f"Unknown field {name[:64]!r}: a presence has {', '.join(_PRESENCE_FIELDS)}."
            raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    state = await context.presence.update(value.get("state"), value.get("task"))
    presence = state.to_json()
    # Every status_update has the same shape: what the machine does stays in it.
    figures = context.machine_status()
    data = {**figures, "presence": presence} | ({"since": state.since} if figures else {})
    update = {"type": "status", "event": "status_update", "data": data}
    draft = make_draft(update, context.settings, context.now())
    write.messages, write.types, write.event = 1, {draft.type}, draft.event
    return json_response(presence | {"message": await publish(draft, context)})


async def get_stats(request: web.Request, context: HttpContext) -> web.Response:
    """`GET /stats`: the newest message of the type `stats`."""
    await _require_reader(request, context, "stats")
    message = await context.history.latest("stats")
    if message is None:
        raise HttpError(404, ErrorCode.NOT_FOUND, "No statistics have been published yet.")
    return raw_json_response(message.envelope)


async def get_series(request: web.Request, context: HttpContext) -> web.Response:
    """`GET /stats/series?range=`: CPU, memory, disk and connections of each machine over time."""
    await _require_reader(request, context, "stats")
    range = request.query.get("range") or "15m"
    if range not in RANGES:
        message = f"'range' must be one of {', '.join(RANGES)}."
        raise ClientError(ErrorCode.INVALID_PAYLOAD, message)
    return raw_json_response(await context.series(range))


async def get_history(request: web.Request, context: HttpContext) -> web.Response:
    """`GET /history?type=&limit=&before=`: messages of one type, newest last, at most 1 MB."""
    settings, query = context.settings, request.query
    type = query.get("type", "")
    await _require_reader(request, context, type)
    check_type(type, settings.message_types)
    limit = queries.number(query, "limit", MAX_HISTORY)
    before = queries.number(query, "before", MAX_HTTP_BEFORE)
    async with context.room():
        messages, more = await context.history.newest(
            type, settings.default_history_limit if limit is None else limit, before
        )
        listed = b",".join(message.envelope for message in messages)
        return raw_json_response(
            b'{"messages":[%b],"more":%b}' % (listed, b"true" if more else b"false")
        )


async def get_connections(request: web.Request, context: HttpContext) -> web.Response:
    """`GET /ws/stats`: the connections of this machine by type, protocol and worker."""
    knows = await _may_read(request, context)
    return json_response(describe_connections(context.slots, context.settings, is_known=knows))


async def get_queue(_request: web.Request, context: HttpContext) -> web.Response:
    """`GET /ws/queue`: what waits to be stored. Times are milliseconds."""
    settings, rows = context.settings, context.slots.rows()
    length, size = context.slots.queue_totals()
    dropped = {
        name: sum(figure(row.stats, "dropped", name) for row in rows) for name in _PRIORITY_NAMES
    }
    return json_response(
        {
            "length": length,
            "maxSize": settings.max_queue_size,
            "bytes": size,
            "maxBytes": settings.max_queue_bytes,
            "priorities": {
                name: sum(figure(row.stats, "queued", name) for row in rows)
                for name in _PRIORITY_NAMES
            },
            "dropped": dropped | {"total": sum(dropped.values())},
            "flushInterval": _milliseconds(settings.broadcast_flush_interval),
            "batchSize": settings.broadcast_batch_size,
            "lag": _milliseconds(max((figure(row.stats, "lag") for row in rows), default=0)),
        }
    )


async def _may_read(request: web.Request, context: HttpContext, type: str | None = None) -> bool:
    """Whether a request may see messages of a type, or with None more than strangers do.

    It is answered without them otherwise.
    """
    try:
        await _require_reader(request, context, type)
    except ClientError:
        return False
    return True


async def _require_reader(request: web.Request, context: HttpContext, type: str | None) -> None:
    """Require a token to read old messages where clients need one to receive new ones.

    Args:
        request: to read.
        context: of the service.
        type: of the messages that the token must allow; None: any token that is valid will do.
    """
    if not context.verifier.enabled or context.writers.is_publisher(request):
        return
    token = request.query.get("token")
    if not token:
        token = bearer_token(request.headers)
        if token is None:
            message = "Send a client's token as 'Authorization: Bearer <token>'."
            raise ClientError(ErrorCode.UNAUTHORIZED, message)
    identity = await context.verifier.verify_patiently(token.strip())
    if type is not None and identity.types is not None:
        known = context.settings.message_types
        check_type(type, Allowed.of(known, identity.types) if type in known else known)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


_Handler = Callable[..., Awaitable[web.Response]]

_READING: list[tuple[str, _Handler]] = [
    ("/status", get_status),
    ("/stats", get_stats),
    ("/stats/series", get_series),
    ("/history", get_history),
    ("/ws/stats", get_connections),
    ("/ws/queue", get_queue),
    ("/connections", get_connected),
    ("/connections/users", get_users),
]
_WRITING: list[tuple[str, _Handler]] = [
    ("/status", post_status),
    ("/ws/broadcast", broadcast),
    ("/hooks/alertmanager", post_alerts),
]
_CLOSING: list[tuple[str, _Handler]] = [
    ("/connections", delete_user),
    # No connection has the name of the resource beside it.
    ("/connections/{id:(?!users$)[^/]+}", delete_connected),
]
