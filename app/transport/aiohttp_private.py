"""The private names of aiohttp that this package uses: a table, made sure of when it is imported.

They are no interface of the library. The modules that extend aiohttp's connection use them
(`http_guard.py`, `http_connection.py`, `door.py`, `takeover.py`) and get its class from here: a worker does not
start with a version that has other names, where it would fail at its first client or first reload.
tests/unit/test_private_names.py says what is expected of what they do.
"""

from __future__ import annotations

from collections.abc import Collection

import aiohttp
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_protocol import _ErrInfo as BadRequest  # stands in `_messages` for a request
from aiohttp.web_runner import BaseRunner

__all__ = [
    "CONNECTION_NAMES",
    "RUNNER_NAMES",
    "SERVER_NAMES",
    "BadRequest",
    "RequestHandler",
    "check",
]

CONNECTION_NAMES = frozenset(
    {
        "_buffer_paused",
        "_close",
        "_current_request",
        "_force_close",
        "_handle_request",
        "_keepalive_timeout",
        "_manager",
        "_message_tail",
        "_messages",
        "_next_keepalive_close_time",
        "_reading_paused",
        "_request_count",
        "_request_in_progress",
        "_upgraded",
        "_waiter",
    }
)
"""Attributes of aiohttp's server side of a connection."""
SERVER_NAMES = frozenset({"_kwargs", "_loop"})
"""Those of its server, which makes the connections."""
RUNNER_NAMES = frozenset({"_make_server"})
"""Those of what makes the server."""


def check(
    connection: Collection[str] = CONNECTION_NAMES,
    server: Collection[str] = SERVER_NAMES,
    runner: Collection[str] = RUNNER_NAMES,
) -> None:
    """Make sure that the library has the names.

    Raises:
        ImportError: one of them is gone.
    """
    made = web.Server.__init__.__code__.co_names
    missing = [
        *(f"RequestHandler.{name}" for name in connection if not hasattr(RequestHandler, name)),
        *(f"Server.{name}" for name in server if name not in made),
        *(f"BaseRunner.{name}" for name in runner if not hasattr(BaseRunner, name)),
    ]
    if missing:
        raise ImportError(
            f"aiohttp {aiohttp.__version__} is not supported: it has no"
            f" {', '.join(sorted(missing))}"
        )


check()
