"""Codes that clients are told, codes that connections close with, and the exceptions.

The tree::

    PresenceError
    ├── SettingsError           a setting is wrong: the start stops with one line
    └── ClientError             told to the client that caused it, as {code, message}
        ├── NoRoomNow           its user's places may be held by connections that are dead
        ├── QueueOverflow       its message was pushed out of the full broadcast queue
        └── BackplaneUnavailable  its message may or may not have reached the stream
            └── BackplaneFull   the backplane's memory is full: the message is not stored
"""

from __future__ import annotations

import enum


class ErrorCode(enum.StrEnum):
    """Codes of `error` events, CONNECT_ERROR packets and HTTP errors (PROTOCOL.md)."""

    PARSE_ERROR = "PARSE_ERROR"
    INVALID_TYPE = "INVALID_TYPE"
    INVALID_ACTION = "INVALID_ACTION"
    INVALID_PAYLOAD = "INVALID_PAYLOAD"
    SUBSCRIPTION_INVALID = "SUBSCRIPTION_INVALID"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    RATE_LIMITED = "RATE_LIMITED"
    UNAUTHORIZED = "UNAUTHORIZED"
    MAX_CONNECTIONS_EXCEEDED = "MAX_CONNECTIONS_EXCEEDED"
    HEARTBEAT_TIMEOUT = "HEARTBEAT_TIMEOUT"
    QUEUE_OVERFLOW = "QUEUE_OVERFLOW"
    BACKPLANE_UNAVAILABLE = "BACKPLANE_UNAVAILABLE"
    BACKPLANE_FULL = "BACKPLANE_FULL"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class CloseCode(enum.IntEnum):
    """WebSocket close codes. RFC 6455 section 7.4 and PROTOCOL.md."""

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
        """Whether the client should stay away until somebody acts."""
        return self in _FINAL


_FINAL = frozenset({CloseCode.POLICY_VIOLATION, CloseCode.UNAUTHORIZED, CloseCode.REPLACED})


class PresenceError(Exception):
    """Base of everything that this service raises on purpose."""


class SettingsError(PresenceError):
    """A setting has a wrong value. The message is one line that names the setting."""


class ClientError(PresenceError):
    """Something that one client did wrong or must be told.

    Args:
        code: what kind of error it is, for programs.
        message: what to do about it, for people.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class NoRoomNow(ClientError):
    """There is no place now, which time will mend.

    Args:
        message: what to do about it, for people.
        retry_after: milliseconds after which to come back.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(ErrorCode.MAX_CONNECTIONS_EXCEEDED, message)
        self.close_reason = f'{{"retryAfter": {retry_after}}}'
        """Reason of the close frame."""


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
