"""What the service answers over HTTP: the table of calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.errors import ErrorCode
from app.protocol.schema import bodies, payloads
from app.protocol.schema.kinds import (
    AnyJson,
    Choice,
    Either,
    Integer,
    Kind,
    ListOf,
    Struct,
    Text,
    TypeName,
)
from app.protocol.schema.limits import (
    CLOSING_CODES,
    MAX_HISTORY,
    MAX_HTTP_BEFORE,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_ROWS,
    PROTOCOLS,
    RANGES,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the query, or of the path."""

    name: str
    kind: Kind
    about: str
    required: bool = False
    place: Literal["query", "path"] = "query"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a call that has not failed, or that says more than an error."""

    status: int
    about: str
    body: Kind | None = None
    """None: the body is no JSON, or there is none."""
    content_type: str | None = "application/json"
    """None: there is no body."""


Reader = Literal["public", "reader", "publisher", "publisher or client"]
"""Which token a call needs: none; a client's where clients need one; a publish token; a publish
token, or a client's with the claim `publish`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    id: str
    """Of the operation in OpenAPI."""
    about: str
    answers: tuple[Answer, ...]
    reader: Reader = "public"
    parameters: tuple[Parameter, ...] = ()
    body: Kind | None = None
    errors: tuple[ErrorCode, ...] = ()
    """Codes of its own, beside `COMMON_ERRORS`, `BODY_ERRORS` and those of tokens."""
    details: str = ""
    """More, in Markdown."""


COMMON_ERRORS = (
    ErrorCode.BAD_REQUEST,
    ErrorCode.FORBIDDEN,
    ErrorCode.RATE_LIMITED,
    ErrorCode.EXPECTATION_FAILED,
    ErrorCode.REQUEST_HEADER_FIELDS_TOO_LARGE,
    ErrorCode.REQUEST_TIMEOUT,
    ErrorCode.INTERNAL_ERROR,
    ErrorCode.SERVICE_UNAVAILABLE,
)
"""Codes that any call may be answered with: a wrong head, host or pace."""
BODY_ERRORS = (
    ErrorCode.PARSE_ERROR,
    ErrorCode.INVALID_PAYLOAD,
    ErrorCode.MESSAGE_TOO_LARGE,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE,
)
"""Codes that a call with a body may be answered with."""
TOKEN_ERRORS = (ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN, ErrorCode.SERVICE_UNAVAILABLE)
"""Codes that a call with a token may be answered with."""

_STORING_ERRORS = (
    ErrorCode.QUEUE_OVERFLOW,
    ErrorCode.BACKPLANE_UNAVAILABLE,
    ErrorCode.BACKPLANE_FULL,
)

_ASKING_ERRORS = (
    ErrorCode.INVALID_PAYLOAD,
    ErrorCode.QUEUE_OVERFLOW,
    ErrorCode.BACKPLANE_UNAVAILABLE,
    ErrorCode.BACKPLANE_FULL,
)
_PAGE = (
    Parameter("limit", Integer(1, MAX_ROWS), "rows; 100"),
    Parameter("after", Text(most=MAX_NAME), "the last row of the page before"),
)
_CLOSING_CODE = Parameter(
    "code",
    Choice(CLOSING_CODES),
    "close code: 4403, or 4401 when the client's token is revoked; 4403",
)
_COMPLETE = (
    "Where workers are on several machines it is unknown how many there are: they have half a second to answer, and"
    " `complete` is false."
)

_CONNECT_OPTIONS = (
    Parameter("types", Text(), "subscriptions in place of the default, between commas"),
    Parameter("batch", Text(), "`1`: several messages may come as one `batch_update`"),
    Parameter(
        "history", Text(), "`1` to `100`: so many of the newest messages of each type at once"
    ),
    Parameter("user", Text(), "name of the user, where the service requires no token"),
    Parameter("token", Text(), "a JWT, where it does"),
)
_CONNECT_ERRORS = (
    ErrorCode.INVALID_PAYLOAD,
    ErrorCode.INVALID_TYPE,
    ErrorCode.SUBSCRIPTION_INVALID,
    ErrorCode.UNAUTHORIZED,
    ErrorCode.MAX_CONNECTIONS_EXCEEDED,
)

TABLE = (
    Call(
        "GET",
        "/status",
        "getStatus",
        "whether clients can be served, what is wrong if not, and what the lab does",
        (
            Answer(200, "clients are served", bodies.STATUS),
            Answer(503, "clients cannot be served", bodies.STATUS),
        ),
    ),
    Call(
        "POST",
        "/status",
        "setPresence",
        "sets what the lab does, and publishes it",
        (Answer(200, "it is set and published", bodies.PRESENCE_SET),),
        "publisher",
        body=bodies.SET_PRESENCE,
        errors=_STORING_ERRORS,
        details="After ten minutes of silence the state is `offline`.",
    ),
    Call(
        "GET",
        "/stats",
        "getStats",
        "the newest message of the type `stats`",
        (Answer(200, "the message", payloads.STREAM_MESSAGE),),
        "reader",
        errors=(ErrorCode.NOT_FOUND, ErrorCode.BACKPLANE_UNAVAILABLE),
    ),
    Call(
        "GET",
        "/stats/series",
        "getSeries",
        "CPU, memory, disk and connections of each machine over time",
        (Answer(200, "the samples", bodies.SERIES),),
        "reader",
        (Parameter("range", Choice(RANGES), "up to now; `15m`"),),
        errors=(ErrorCode.INVALID_PAYLOAD, ErrorCode.NOT_FOUND, ErrorCode.BACKPLANE_UNAVAILABLE),
    ),
    Call(
        "GET",
        "/history",
        "getHistory",
        "old messages of a type, the same as over a connection",
        (Answer(200, "at most 1 MB of messages, but at least one", payloads.HISTORY),),
        "reader",
        (
            Parameter("type", TypeName(), "of the messages", required=True),
            Parameter("limit", Integer(1, MAX_HISTORY), "messages; 50"),
            Parameter("before", Integer(1, MAX_HTTP_BEFORE), "only messages with a lower `seq`"),
        ),
        errors=(
            ErrorCode.INVALID_TYPE,
            ErrorCode.SUBSCRIPTION_INVALID,
            ErrorCode.INVALID_PAYLOAD,
            ErrorCode.BACKPLANE_UNAVAILABLE,
        ),
        details="Ask on with `before` and the lowest `seq` so far while `more` is true.",
    ),
    Call(
        "GET",
        "/ws/stats",
        "getConnections",
        "the connections of this machine by type, protocol and worker",
        (Answer(200, "the figures", payloads.CONNECTIONS),),
    ),
    Call(
        "GET",
        "/ws/queue",
        "getQueue",
        "what waits to be stored",
        (Answer(200, "the figures", bodies.QUEUE),),
    ),
    Call(
        "GET",
        "/connections",
        "listConnections",
        "the connections of all workers and machines, in the order of their ids",
        (Answer(200, "a page of them", bodies.CONNECTION_LIST),),
        "publisher",
        (
            Parameter("user", Text(1, MAX_NAME), "only those of this user"),
            Parameter("type", TypeName(), "only those that are subscribed to this type"),
            Parameter("protocol", Choice(PROTOCOLS), "only those that speak this one"),
            *_PAGE,
        ),
        errors=(ErrorCode.INVALID_TYPE, ErrorCode.NOT_FOUND, *_ASKING_ERRORS),
        details=_COMPLETE,
    ),
    Call(
        "GET",
        "/connections/users",
        "listUsers",
        "the users of all workers and machines that are connected, by name",
        (Answer(200, "a page of them", bodies.USER_LIST),),
        "publisher",
        (Parameter("type", TypeName(), "only those that are subscribed to this type"), *_PAGE),
        errors=(ErrorCode.INVALID_TYPE, ErrorCode.NOT_FOUND, *_ASKING_ERRORS),
        details=_COMPLETE,
    ),
    Call(
        "DELETE",
        "/connections",
        "closeUser",
        "closes all connections of a user",
        (Answer(200, "they are closed", bodies.CLOSED),),
        "publisher",
        (Parameter("user", Text(1, MAX_NAME), "whose connections", required=True), _CLOSING_CODE),
        errors=(ErrorCode.NOT_FOUND, *_ASKING_ERRORS),
        details="A client that comes back all the same is let in: revoke its token.",
    ),
    Call(
        "DELETE",
        "/connections/{id}",
        "closeConnection",
        "closes one connection",
        (Answer(200, "it is closed", bodies.CLOSED),),
        "publisher",
        (
            Parameter("id", Text(1, MAX_NAME), "of the connection", required=True, place="path"),
            _CLOSING_CODE,
        ),
        errors=(ErrorCode.NOT_FOUND, *_ASKING_ERRORS),
        details="404 where no worker that answered has it.",
    ),
    Call(
        "POST",
        "/ws/broadcast",
        "publish",
        "publishes one message, or an array of them",
        (
            Answer(
                200,
                "everything is in the streams; an array answers a list in order",
                Either((bodies.STORED, ListOf(bodies.STORED))),
            ),
            Answer(
                207,
                "of an array, some are not stored: those have `error` and `code`",
                ListOf(Either((bodies.STORED, bodies.NOT_STORED))),
            ),
        ),
        "publisher or client",
        body=Either((bodies.PUBLISHED, ListOf(AnyJson(), 0, MAX_MESSAGES))),
        errors=(ErrorCode.INVALID_TYPE, ErrorCode.CONFLICT, *_STORING_ERRORS),
        details=(
            "A 2xx answer means that the message is in the stream and survives any crash. Repeat a call that failed"
            " with the same `id`, and the message is stored once. What is wrong with one message of an array is"
            " said in its place."
        ),
    ),
    Call(
        "POST",
        "/hooks/alertmanager",
        "postAlerts",
        "Alertmanager's webhook: each alert becomes `health_alert` or `health_recovery`",
        (Answer(200, "what became of each alert", bodies.ALERTS_STORED),),
        "publisher",
        body=bodies.NOTIFICATION,
        errors=_STORING_ERRORS,
    ),
    Call(
        "GET",
        "/metrics",
        "getMetrics",
        "the figures of all workers together, for Prometheus",
        (Answer(200, "the figures", content_type="text/plain; version=0.0.4; charset=utf-8"),),
    ),
    Call(
        "GET",
        "/events",
        "streamEvents",
        "server-sent events: the envelopes of a connection, for clients that only receive",
        (Answer(200, "a stream that does not end", content_type="text/event-stream"),),
        parameters=(
            *_CONNECT_OPTIONS,
            Parameter(
                "lastEventId", Text(), "the last `id`, where the header `Last-Event-ID` is not sent"
            ),
        ),
        errors=(*_CONNECT_ERRORS, ErrorCode.NOT_ACCEPTABLE, ErrorCode.HTTP_VERSION_NOT_SUPPORTED),
        details=(
            "What has `Retry-After` is answered to a browser with a stream that ends: `error`,"
            " `connection_closing` and `retry`. HEAD is answered with the headers."
        ),
    ),
    Call(
        "GET",
        "/ws/realtime",
        "connect",
        "opens a WebSocket: see asyncapi.json",
        (Answer(101, "the connection is a WebSocket now", content_type=None),),
        parameters=(
            *_CONNECT_OPTIONS,
            Parameter("resume", Text(), "takes over from an older connection"),
            Parameter("EIO", Choice(("4",)), "speaks Socket.IO in place of plain JSON"),
            Parameter("transport", Choice(("websocket",)), "with `EIO`"),
        ),
        errors=(*_CONNECT_ERRORS, ErrorCode.UPGRADE_REQUIRED),
    ),
    Call(
        "GET",
        "/",
        "getIndex",
        "the page; with `Accept: application/json` links to other calls",
        (
            Answer(200, "where everything is", bodies.INDEX),
            Answer(200, "the page", content_type="text/html; charset=utf-8"),
            Answer(304, "the page that the client has is the newest one", content_type=None),
        ),
        details="Not with `PAGE=0`.",
    ),
    Call(
        "GET",
        "/config.json",
        "getPageConfig",
        "tells the page where its service is",
        (Answer(200, "the address", bodies.PAGE_CONFIG),),
        details="Not with `PAGE=0`.",
    ),
    Call(
        "GET",
        "/openapi.json",
        "getOpenApi",
        "these calls, as OpenAPI 3.1",
        (
            Answer(200, "the document", Struct("OpenApi", "A document of OpenAPI 3.1.", ())),
            Answer(304, "the document that the client has is the newest one", content_type=None),
        ),
    ),
    Call(
        "GET",
        "/asyncapi.json",
        "getAsyncApi",
        "the messages over WebSockets, as AsyncAPI 3",
        (
            Answer(200, "the document", Struct("AsyncApi", "A document of AsyncAPI 3.", ())),
            Answer(304, "the document that the client has is the newest one", content_type=None),
        ),
    ),
)
