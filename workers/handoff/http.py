"""HTTP connections on their way to another worker: descriptors of those that are at rest.

Publishers and scrapers keep connections open between their calls. One on which nothing has
begun and nothing is owed has no state but the number of its requests; it passes by the same
conversation as sessions do (`channel.py`), in offers of their own kind.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from app.sessions.handoff.shape import is_count
from app.transport.http_connection import HttpConnection, HttpServer
from workers.handoff.channel import close_all

KIND = "http"
VERSION = "http-1"
"""No version of a session's state: code that does not know this kind refuses what it is offered."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class HttpBatch:
    """Connections that are offered; they read nothing meanwhile."""

    connections: list[HttpConnection]
    states: list[dict[str, Any]]
    descriptors: list[int]
    """Duplicates: an idle connection may end before they are sent."""

    def close(self) -> None:
        """Close the duplicates."""
        close_all(self.descriptors)


class HttpHandoff:
    """Both ends of the handoff of the HTTP connections of one worker.

    Args:
        runner: has the server while the application serves.
    """

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner

    @property
    def _server(self) -> HttpServer | None:
        server = self._runner.server
        return server if isinstance(server, HttpServer) else None

    # Giving.

    def is_empty(self) -> bool:
        """Whether no HTTP connection is open."""
        return self._server is None or next(self._server.all(), None) is None

    def is_answering(self) -> bool:
        """Whether a request is in progress on some connection."""
        return self._server is not None and self._server.is_answering

    def pack(self, limit: int) -> HttpBatch:
        """Take connections that are at rest, at most `limit`."""
        batch = HttpBatch([], [], [])
        if self._server is None:
            return batch
        for connection in self._server.all():
            if len(batch.connections) >= limit:
                break
            if not connection.is_at_rest:
                continue
            try:
                descriptor = os.dup(connection.descriptor())
            except OSError as error:
                logger.warning("An HTTP connection is not handed over: %s", error)
                break
            connection.pause()
            batch.connections.append(connection)
            batch.states.append({"version": VERSION, "requests": connection.requests})
            batch.descriptors.append(descriptor)
        return batch

    @staticmethod
    def settle(batch: HttpBatch, answer: Sequence[bool]) -> None:
        """Forget what was taken, and go on with the rest."""
        for connection, taken in zip(batch.connections, answer, strict=True):
            if taken:
                connection.let_go()
            else:
                connection.resume()

    # Taking over.

    def judge(self, states: Sequence[Any]) -> list[dict[str, Any] | None]:
        """The states of these connections; None of one that this worker cannot take."""
        serves = self._server is not None
        return [state if serves and _is_state(state) else None for state in states]

    async def take(self, states: Sequence[Any], descriptors: Sequence[int]) -> None:
        """Serve connections that their giver has let go."""
        server = self._server
        if server is None:
            close_all(descriptors)
            return
        adopted = (
            server.adopt(descriptor, state["requests"])
            for state, descriptor in zip(states, descriptors, strict=True)
        )
        for result in await asyncio.gather(*adopted, return_exceptions=True):
            if isinstance(result, BaseException):
                logger.warning("An HTTP connection was lost in the handoff: %s", result)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("version") == VERSION
        and is_count(value.get("requests"))
    )
