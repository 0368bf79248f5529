"""The private names of redis-py that the backplane uses, made sure of when this module is imported.

redis-py opens a connection: address, TLS, login. Its streams are then used without the library
(`wire.py`, `cluster/pipeline.py`), and have no public name. A worker does not start with a version
that has other names. tests/unit/test_private_names.py says what is expected of them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection
from typing import Any

import redis
from redis.asyncio.connection import AbstractConnection

CONNECTION_NAMES = frozenset({"_parser", "_reader", "_writer"})
"""Attributes of a connection."""


def check(names: Collection[str] = CONNECTION_NAMES) -> None:
    """Make sure that the library has the names.

    Raises:
        ImportError: one of them is gone.
    """
    made = inspect.unwrap(AbstractConnection.__init__).__code__.co_names
    missing = sorted(set(names).difference(made))
    if missing:
        raise ImportError(
            f"redis {redis.__version__} is not supported: its connections have no"
            f" {', '.join(missing)}"
        )


def writer_of(connection: AbstractConnection) -> asyncio.StreamWriter | None:
    """Where a connection writes to; None: it is not open."""
    return connection._writer


def reply_error_of(connection: AbstractConnection) -> Callable[[Any], Exception]:
    """What makes the exception of an error reply."""
    made: Callable[[Any], Exception] = connection._parser.parse_error
    return made


def take_streams(connection: AbstractConnection) -> None:
    """Let a connection not use its streams any more, nor close them."""
    connection._reader = connection._writer = None


def drop(connection: AbstractConnection) -> None:
    """Close a connection now: unsent commands are given up, and no end of TLS is waited for.

    A server that has stopped reads neither, and the socket would stay until it goes on.
    """
    writer = writer_of(connection)
    take_streams(connection)
    if writer is not None:
        writer.transport.abort()


check()
