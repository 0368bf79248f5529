"""Exit codes of `yujian`, and the error that ends it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager

from yujian_realtime.closing import Ending
from yujian_realtime.errors import ConnectionClosed, PublishError, RealtimeError
from yujian_realtime.messages import Cause


class Exit(enum.IntEnum):
    """Exit codes; `yujian --help` lists them."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    TOKEN = 4
    MISSED = 5


MEANINGS = {
    Exit.OK: "done; also Ctrl-C",
    Exit.REFUSED: "the service refused, or is degraded (status), or the output cannot be written",
    Exit.USAGE: "the command line or .env is wrong",
    Exit.UNREACHABLE: "the service cannot be reached",
    Exit.TOKEN: "not allowed: a missing, wrong or expired token, an origin, a list of users (PRESENCE_NAMES)",
    Exit.MISSED: "messages were missed, or clients could not connect (load)",
}

_CAUSES: dict[Cause, Exit] = {
    "network": Exit.UNREACHABLE,
    "restart": Exit.UNREACHABLE,
    "full": Exit.UNREACHABLE,
    "token": Exit.TOKEN,
    "origin": Exit.TOKEN,
}


class Failure(Exception):
    """Ends the command with a message and an exit code.

    Args:
        code: exit code.
        message: for standard error.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def failure_of(error: RealtimeError, address: str) -> Failure:
    """How an error of the client ends the command."""
    message = f"{address}: {error.message}"
    if isinstance(error, ConnectionClosed):
        return Failure(_CAUSES.get(error.cause, Exit.REFUSED), message)
    if error.code in {"UNREACHABLE", "TIMEOUT", "INVALID_ANSWER"}:
        return Failure(Exit.UNREACHABLE, message)
    status = error.status if isinstance(error, PublishError) else 0
    if status in {401, 403} or error.code in {"UNAUTHORIZED", "FORBIDDEN"}:
        return Failure(Exit.TOKEN, message)
    return Failure(Exit.REFUSED, f"{message} ({error.code})")


def failure_of_ending(ending: Ending, address: str) -> Failure:
    """How the end of a connection ends the command."""
    cause, _ = ending.meaning
    return failure_of(ConnectionClosed(cause, ending.code, ending.message or cause), address)


@contextmanager
def reporting(address: str) -> Iterator[None]:
    """Let an error of the client end the command.

    Raises:
        Failure: there was one.
    """
    try:
        yield
    except RealtimeError as error:
        raise failure_of(error, address) from None
