"""Bodies over HTTP: of requests while they are received, and long ones of answers while they are not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import StreamReader, web
from aiohttp.typedefs import Middleware

from app.errors import ClientError, ErrorCode
from app.http.errors import HttpError
from app.transport.input import InputAccount
from app.transport.output import OutputAccount

LONG = 32 * 1024
"""Bytes from which on a body is counted; what is shorter fits into the socket as a rule."""
ROOM_SECONDS = 5.0
"""How long a request waits for the memory that its answer needs."""
ROOM_PAUSE = 0.05
"""Seconds between two looks whether there is room."""


class Bodies:
    """The bodies of one worker's HTTP answers.

    Args:
        output: where they are counted.
        close_stalled: closes a connection that keeps others waiting, if there is one.
    """

    def __init__(self, output: OutputAccount, close_stalled: Callable[[], object]) -> None:
        self._output = output
        self._close_stalled = close_stalled

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Wait until there is room for an answer with history, which is made within.

        Raises:
            ClientError: RATE_LIMITED, there was none in `ROOM_SECONDS`.
        """
        output = self._output
        loop = asyncio.get_running_loop()
        until, look_at = loop.time() + ROOM_SECONDS, loop.time() + 1.0
        while not output.has_room():
            now = loop.time()
            if now >= until:
                raise ClientError(
                    ErrorCode.RATE_LIMITED,
                    "The server holds too much unread output; try again later.",
                )
            if now >= look_at:
                look_at = now + 1.0
                self._close_stalled()
            await asyncio.sleep(ROOM_PAUSE)
        output.reserve()
        try:
            yield
        finally:
            output.unreserve()

    def middleware(self) -> Middleware:
        """Sends every answer with a long body, which must be the outermost thing to be done."""

        @web.middleware
        async def send_body(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            response = await handler(request)
            body = response.body if isinstance(response, web.Response) else None
            is_long = isinstance(body, bytes) and len(body) >= LONG
            del body
            if is_long and isinstance(response, web.Response):
                await self._send(request, response)
            return response

        return send_body

    async def _send(self, request: web.Request, response: web.Response) -> None:
        body = response.body
        assert isinstance(body, bytes)
        self._output.hold(body)
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError as error:
            # Its traceback leads through frames that hold the body, and is kept for a while.
            error.__traceback__ = None
        finally:
            self._output.give_back(body)
            del body
            response.body = None


class ReceivedBodies:
    """The bodies of requests that one worker is receiving; past the limit the largest is refused.

    Args:
        account: where they are counted, and whose limit they have.
    """

    def __init__(self, account: InputAccount) -> None:
        self._account = account
        self._sizes: dict[StreamReader, int] = {}

    def note(self, body: StreamReader, size: int) -> None:
        """So many bytes of a body are held now. One that is refused fails where it is read next."""
        self._account.count_bodies(size - self._sizes.get(body, 0))
        self._sizes[body] = size
        while self._account.bodies > self._account.limit and len(self._sizes) > 1:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            self.forget(largest)
            largest.set_exception(_no_room())

    def forget(self, body: StreamReader) -> None:
        """It is received, or refused."""
        self._account.count_bodies(-self._sizes.pop(body, 0))


def _no_room() -> HttpError:
    message = "The server is receiving too many large requests; try again later."
    headers = {"Retry-After": "1"}
    return HttpError(503, ErrorCode.SERVICE_UNAVAILABLE, message, headers=headers, close=True)
