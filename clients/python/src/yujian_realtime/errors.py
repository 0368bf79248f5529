"""The exceptions of this package.

The tree::

    RealtimeError           the service answered a request with an error; `code` names it
    ├── ConnectionClosed    the connection has ended, for good or before the answer came
    ├── RequestTimeout      no answer came in time
    └── PublishError        a message was not stored, or may not have been
"""

from __future__ import annotations

from yujian_realtime.messages import Cause

_RETRYABLE = frozenset(
    {
        "BACKPLANE_FULL",
        "BACKPLANE_UNAVAILABLE",
        "QUEUE_OVERFLOW",
        "RATE_LIMITED",
        "REQUEST_TIMEOUT",
        "SERVICE_UNAVAILABLE",
        "TIMEOUT",
        "UNREACHABLE",
    }
)


class RealtimeError(Exception):
    """An error that the service has answered, or that stands for its answer.

    Args:
        code: the kind of error, for programs: the service's own codes, and `CLOSED`, `TIMEOUT`,
            `UNREACHABLE` and `INVALID_ANSWER` (of another service than this one).
        message: the cause, for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change by the caller."""
        return self.code in _RETRYABLE


class ConnectionClosed(RealtimeError):
    """The connection has ended.

    Args:
        cause: why, in one word.
        close_code: of the WebSocket connection; 1006 where there was no close frame.
        message: what the service said about it.
    """

    def __init__(self, cause: Cause, close_code: int, message: str) -> None:
        super().__init__("CLOSED", message)
        self.cause = cause
        self.close_code = close_code


class RequestTimeout(RealtimeError):
    """No answer came in time, or there was no connection for that long."""

    def __init__(self, message: str) -> None:
        super().__init__("TIMEOUT", message)


class PublishError(RealtimeError):
    """A call over HTTP has failed.

    Args:
        code: as in `RealtimeError`.
        message: the cause, for people.
        status: of the HTTP answer; 0 where none came.
        id: of the message that is concerned, if it is one.
    """

    def __init__(self, code: str, message: str, status: int = 0, id: str | None = None) -> None:
        super().__init__(code, message)
        self.status = status
        self.id = id
