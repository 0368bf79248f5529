"""The private names of aiohttp that this package uses: a table, made sure of when it is imported.

They are no interface of the library. The modules that extend aiohttp's connection use them
(`http_guard.py`, `http_connection.py`, `takeover.py`) and get its class from here: a worker does not
start with a version that has other names, where it would fail at its first client or first reload.
tests/unit/test_private_names.py says what is expected of what they do.
"""

from __future__ import annotations

from collections.abc import Collection

import aiohttp
from aiohttp.web_protocol import RequestHandler

__all__ = ["CONNECTION_NAMES", "RequestHandler", "check"]

CONNECTION_NAMES = frozenset(
    {
        "_close",
        "_force_close",
        "_keepalive_timeout",
        "_manager",
        "_message_tail",
        "_messages",
        "_next_keepalive_close_time",
        "_request_count",
        "_request_in_progress",
        "_upgraded",
        "_waiter",
    }
)
"""Attributes of aiohttp's server side of a connection."""


def check(names: Collection[str] = CONNECTION_NAMES) -> None:
    """Make sure that the library has the names.

    Raises:
        ImportError: one of them is gone.
    """
    missing = sorted(name for name in names if not hasattr(RequestHandler, name))
    if missing:
        raise ImportError(
            f"aiohttp {aiohttp.__version__} is not supported: its RequestHandler has no"
            f" {', '.join(missing)}"
        )


check()
