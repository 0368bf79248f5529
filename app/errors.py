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
    │   ├── Refused                 app.http.admission: a refused WebSocket handshake
    │   └── Conflict                app.http.publishing: the id belongs to another message
    ├── TooMany                     app.sessions.addresses: a limit per address is reached
    ├── Unreadable                  app.sessions.control: an invalid control message
    ├── CannotPass                  app.sessions.handoff.state: a session cannot be handed over
    ├── FailedCalls                 app.backplane.client: some of several calls failed
    ├── TooFewReplicas              app.backplane.faults: not confirmed by BACKPLANE_WAIT replicas
    └── ViolationError              app.protocol.frames: a frame violates RFC 6455

The gunicorn master imports nothing of `app/`, so the errors of `workers/` do not belong to it.
"""

from __future__ import annotations

import enum


class ErrorCode(enum.StrEnum):
    """Codes of `error` events, CONNECT_ERROR packets and HTTP errors (docs/PROTOCOL.md)."""

    PARSE_ERROR = "PARSE_ERROR"
    INVALID_TYPE = "INVALID_TYPE"
    INVALID_ACTION = "INVALID_ACTION"
    INVALID_PAYLOAD = "INVALID_PAYLOAD"
    SUBSCRIPTION_INVALID = "SUBSCRIPTION_INVALID"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    RATE_LIMITED = "RATE_LIMITED"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    MAX_CONNECTIONS_EXCEEDED = "MAX_CONNECTIONS_EXCEEDED"
    HEARTBEAT_TIMEOUT = "HEARTBEAT_TIMEOUT"
    QUEUE_OVERFLOW = "QUEUE_OVERFLOW"
    BACKPLANE_UNAVAILABLE = "BACKPLANE_UNAVAILABLE"
    BACKPLANE_FULL = "BACKPLANE_FULL"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    INTERNAL_ERROR = "INTERNAL_ERROR"

    # These occur in HTTP answers only.
    BAD_REQUEST = "BAD_REQUEST"
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    CONFLICT = "CONFLICT"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    EXPECTATION_FAILED = "EXPECTATION_FAILED"
    UPGRADE_REQUIRED = "UPGRADE_REQUIRED"
    REQUEST_HEADER_FIELDS_TOO_LARGE = "REQUEST_HEADER_FIELDS_TOO_LARGE"

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change by the client."""
        return self in _RETRYABLE

    @property
    def is_http_only(self) -> bool:
        """Whether the code occurs in HTTP answers only, never on a connection."""
        return self in _HTTP_ONLY


_RETRYABLE = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.QUEUE_OVERFLOW,
        ErrorCode.BACKPLANE_UNAVAILABLE,
        ErrorCode.BACKPLANE_FULL,
        ErrorCode.REQUEST_TIMEOUT,
        ErrorCode.SERVICE_UNAVAILABLE,
    }
)
_HTTP_ONLY = frozenset(
    {
        ErrorCode.BAD_REQUEST,
        ErrorCode.NOT_FOUND,
        ErrorCode.METHOD_NOT_ALLOWED,
        ErrorCode.REQUEST_TIMEOUT,
        ErrorCode.CONFLICT,
        ErrorCode.UNSUPPORTED_MEDIA_TYPE,
        ErrorCode.EXPECTATION_FAILED,
        ErrorCode.UPGRADE_REQUIRED,
        ErrorCode.REQUEST_HEADER_FIELDS_TOO_LARGE,
    }
)


class CloseCode(enum.IntEnum):
    """WebSocket close codes. RFC 6455 section 7.4 and docs/PROTOCOL.md."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    RESTART = 1012
    TRY_AGAIN_LATER = 1013
    UNAUTHORIZED = 4401
    HEARTBEAT_TIMEOUT = 4408
    REPLACED = 4409
    NOT_READING = 4413
    FLOOD = 4429

    @property
    def is_final(self) -> bool:
        """Whether the client must not reconnect automatically."""
        return self in _FINAL


_FINAL = frozenset({CloseCode.POLICY_VIOLATION, CloseCode.UNAUTHORIZED, CloseCode.REPLACED})


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

    def __init__(self, message: str = "The broadcast queue is full; try again later.") -> None:
        super().__init__(ErrorCode.QUEUE_OVERFLOW, message)


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
