"""Error codes, close codes, and the exceptions that `app/` raises on purpose.

The tree; a class that is defined elsewhere is followed by its module::

    PresenceError
    ├── SettingsError               a setting is invalid; the start fails with one line
    ├── ClientError                 reported to the client as {code, message}
    │   ├── NoRoomNow               the user's limit is reached for now; a retry may succeed
    │   ├── QueueOverflow           the message was dropped from the full broadcast queue
    │   ├── KeysUnavailable         app.sessions.token_keys: a token's key is unknown for now
    │   └── BackplaneUnavailable    the message may or may not be stored
    │       └── BackplaneFull       the backplane is out of memory; the message is not stored
    ├── HttpError                   app.http.errors: an HTTP answer with a status of 400 or more
    │   ├── Refused                 app.http.admission: a refused connection
    │   └── Conflict                app.http.publishing: the id belongs to another message
    ├── TooMany                     app.sessions.addresses: a limit per address is reached
    ├── Unreadable                  app.sessions.control: an invalid control message
    ├── CannotPass                  app.sessions.handoff.state: a session cannot be handed over
    ├── FailedCalls                 app.backplane.client: some of several calls failed
    ├── NotThere                    app.backplane.replica: it cannot be read from this position
    ├── TooFewReplicas              app.backplane.faults: not confirmed by BACKPLANE_WAIT replicas
    ├── Unsettled                   app.backplane.faults: the nodes of a Cluster do not agree
    ├── UnexpectedAnswer            app.backplane.faults: an answer that is none to the question
    ├── SlotMoved                   app.backplane.cluster.link: another node has the type now
    └── ViolationError              app.protocol.frames: a frame violates RFC 6455

The gunicorn master imports nothing of `app/`, so the errors of `workers/` do not belong to it.
"""

from __future__ import annotations

import enum
from typing import Literal, Self

LOW_ON_MEMORY = "The service is low on memory; try again later."


class ErrorCode(enum.StrEnum):
    """Codes of `error` events, CONNECT_ERROR packets and HTTP errors, a row for each.

    A row has the code, the HTTP status of an answer with it, what the client should do, and marks:
    see `retryable` and `is_http_only`. The tables of docs/PROTOCOL.md, the schemas and the types of
    the clients are made of these rows by `make protocol`.
    """

    status: int
    """HTTP status of an answer with this code. Answers about one address have 429 in place of 503."""
    advice: str
    """What the client should do, in Markdown."""
    retryable: bool
    """Whether the same request may succeed later without a change by the client."""
    is_http_only: bool
    """Whether the code occurs in HTTP answers only, never on a connection."""

    def __new__(
        cls, code: str, status: int = 0, advice: str = "", *marks: Literal["retry", "http only"]
    ) -> Self:
        """Make a member of its row."""
        self = str.__new__(cls, code)
        self._value_ = code
        self.status, self.advice = status, advice
        self.retryable, self.is_http_only = "retry" in marks, "http only" in marks
        return self

    PARSE_ERROR = "PARSE_ERROR", 400, "send JSON text"
    INVALID_TYPE = "INVALID_TYPE", 400, "name a type of `supportedTypes`"
    INVALID_ACTION = "INVALID_ACTION", 400, "name an action of this page"
    INVALID_PAYLOAD = (
        "INVALID_PAYLOAD",
        400,
        "see the message: a field is missing or wrong, or a Socket.IO event has a reserved name",
    )
    SUBSCRIPTION_INVALID = (
        "SUBSCRIPTION_INVALID",
        400,
        "name a type that can be subscribed to: `error` cannot",
    )
    MESSAGE_TOO_LARGE = (
        "MESSAGE_TOO_LARGE",
        413,
        "send at most `maxMessageSize` bytes, and smaller requests: see [Limits](#limits)",
    )
    RATE_LIMITED = (
        "RATE_LIMITED",
        429,
        "send less; the message was dropped: see [Limits](#limits)",
        "retry",
    )
    UNAUTHORIZED = "UNAUTHORIZED", 401, "send a valid token"
    FORBIDDEN = (
        "FORBIDDEN",
        403,
        (
            "the token does not allow this: send another one, or ask for less, see [Tokens](#tokens); over"
            " HTTP also a host or an origin that is not allowed, or publishing is disabled, see"
            " docs/REFUSALS.md"
        ),
    )
    MAX_CONNECTIONS_EXCEEDED = (
        "MAX_CONNECTIONS_EXCEEDED",
        503,
        "close other connections of this user, or reconnect later",
    )
    HEARTBEAT_TIMEOUT = "HEARTBEAT_TIMEOUT", 408, "answer pings"
    QUEUE_OVERFLOW = "QUEUE_OVERFLOW", 503, "publish the message again later", "retry"
    BACKPLANE_UNAVAILABLE = (
        "BACKPLANE_UNAVAILABLE",
        503,
        "try again; the message may have been stored, so repeat it with the same `id`",
        "retry",
    )
    BACKPLANE_FULL = (
        "BACKPLANE_FULL",
        503,
        "the memory of the backplane is full: publish later, with the same `id`; reading still works",
        "retry",
    )
    SERVICE_UNAVAILABLE = (
        "SERVICE_UNAVAILABLE",
        503,
        (
            "the keys for checking tokens cannot be fetched now; over HTTP also: this worker leaves, or"
            " memory is short. Repeat it after `Retry-After` seconds"
        ),
        "retry",
    )
    INTERNAL_ERROR = "INTERNAL_ERROR", 500, "report it"

    # HTTP answers only.
    BAD_REQUEST = (
        "BAD_REQUEST",
        400,
        "send a valid HTTP/1.1 request; at `/ws/realtime` a WebSocket handshake",
        "http only",
    )
    NOT_FOUND = "NOT_FOUND", 404, "request a path of docs/HTTP.md", "http only"
    METHOD_NOT_ALLOWED = (
        "METHOD_NOT_ALLOWED",
        405,
        "use a method of the `Allow` header",
        "http only",
    )
    REQUEST_TIMEOUT = (
        "REQUEST_TIMEOUT",
        408,
        "send the head and the body of the request faster",
        "retry",
        "http only",
    )
    CONFLICT = (
        "CONFLICT",
        409,
        "publish with another `id`: this one belongs to a stored message with other data",
        "http only",
    )
    UNSUPPORTED_MEDIA_TYPE = (
        "UNSUPPORTED_MEDIA_TYPE",
        415,
        "send JSON with `Content-Type: application/json`",
        "http only",
    )
    NOT_ACCEPTABLE = (
        "NOT_ACCEPTABLE",
        406,
        "at `/events`: send `Accept: text/event-stream`, `*/*`, or no `Accept`",
        "http only",
    )
    EXPECTATION_FAILED = (
        "EXPECTATION_FAILED",
        417,
        "send no `Expect` header other than `100-continue`",
        "http only",
    )
    UPGRADE_REQUIRED = (
        "UPGRADE_REQUIRED",
        426,
        "use version 13 of the WebSocket protocol",
        "http only",
    )
    REQUEST_HEADER_FIELDS_TOO_LARGE = (
        "REQUEST_HEADER_FIELDS_TOO_LARGE",
        431,
        "send at most 16 KB in the request line and in each header field, and at most 128 fields",
        "http only",
    )
    HTTP_VERSION_NOT_SUPPORTED = (
        "HTTP_VERSION_NOT_SUPPORTED",
        505,
        "at `/events`: use HTTP/1.1, also from a proxy to the service (nginx: `proxy_http_version 1.1`)",
        "http only",
    )


class CloseCode(enum.IntEnum):
    """WebSocket close codes (RFC 6455 section 7.4), a row for each.

    A row has the code, why the service closes a connection with it, and what the client should do
    then. See `ErrorCode` for what is made of the rows.
    """

    why: str
    """Why a connection is closed with it."""
    advice: str
    """Whether the client should reconnect by itself, and how."""

    def __new__(cls, code: int, why: str = "", advice: str = "") -> Self:
        """Make a member of its row."""
        self = int.__new__(cls, code)
        self._value_ = code
        self.why, self.advice = why, advice
        return self

    NORMAL = 1000, "the client closed it", "no"
    GOING_AWAY = 1001, "the service stops", "yes"
    PROTOCOL_ERROR = 1002, "the client violated the WebSocket protocol", "yes, after a fix"
    INVALID_DATA = (
        1007,
        "text that is not UTF-8, or data that cannot be decompressed",
        "yes, after a fix",
    )
    POLICY_VIOLATION = (
        1008,
        "too many connections of this user, all of which answer; or an invalid query",
        "no",
    )
    TOO_BIG = 1009, "a message that exceeds `maxMessageSize` by far", "yes, after a fix"
    RESTART = 1012, "the worker was replaced", "yes, after `retryAfter` ms (in the reason)"
    TRY_AGAIN_LATER = (
        1013,
        "no room now: the caps, memory, descriptors",
        "yes, after `retryAfter` ms (in the reason)",
    )
    UNAUTHORIZED = 4401, "the token is missing, invalid or expired", "no, not without a new one"
    OPERATOR = 4403, "an operator has closed it", "no"
    HEARTBEAT_TIMEOUT = (
        4408,
        "no input for too long, or in no Socket.IO namespace for ten seconds",
        "yes",
    )
    REPLACED = 4409, "replaced by a newer connection of the same client", "no"
    NOT_READING = 4413, "the client does not read", "yes, and read"
    FLOOD = 4429, "the client exceeds its limits by far", "yes, and send less"

    @property
    def is_final(self) -> bool:
        """Whether the client must not reconnect automatically."""
        return self.advice.startswith("no") and self is not CloseCode.NORMAL


class PresenceError(Exception):
    """Base of every exception that `app/` defines."""

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later without a change by the caller."""
        return False


class SettingsError(PresenceError):
    """A setting has an invalid value. The message is one line that names the setting."""


class ClientError(PresenceError):
    """An error that is reported to the client.

    Args:
        code: the kind of error, for programs.
        message: the cause and the remedy, for people.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change by the client."""
        return self.code.retryable


class NoRoomNow(ClientError):
    """The user's connection limit is reached, but places are about to become free.

    Args:
        message: the cause and the remedy, for people.
        retry_after: milliseconds after which the client may reconnect.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(ErrorCode.MAX_CONNECTIONS_EXCEEDED, message)
        self.close_reason = f'{{"retryAfter": {retry_after}}}'
        """Reason of the close frame."""

    @property
    def retryable(self) -> bool:
        """Always: places become free."""
        return True


class QueueOverflow(ClientError):
    """The message was dropped from the full broadcast queue and is not in the stream."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.QUEUE_OVERFLOW, "The broadcast queue is full; try again later.")


class BackplaneUnavailable(ClientError):
    """The backplane did not answer in time, or refuses; the message may have been stored."""

    def __init__(
        self,
        message: str = "The backplane does not answer; repeat the call with the same id.",
        code: ErrorCode = ErrorCode.BACKPLANE_UNAVAILABLE,
    ) -> None:
        super().__init__(code, message)


class BackplaneFull(BackplaneUnavailable):
    """The backplane has reached its `maxmemory`; nothing of this call is stored."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.BACKPLANE_FULL)
