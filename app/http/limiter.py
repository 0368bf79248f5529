"""Refuses HTTP requests beyond the budget of their address, before any work is done for them.

A refusal is answered late, the later the more there are, and its connection is not read meanwhile: clients
that ask again at once cost one answer in four seconds and connection. Requests with a publish token are never refused here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from app.errors import ClientError, ErrorCode
from app.http.budgets import RETRY_SECONDS, Account, Budgets
from app.http.clients import Clients
from app.http.errors import HttpError
from app.http.writers import Writers
from app.sessions.rates import metered
from app.transport.http_connection import MAX_KEPT, HttpConnection
from app.turns import Slice, Turns

ANSWER_SECONDS = 0.0002
"""What parsing a request and writing its answer costs beside its handler."""
READ_SECONDS = {"/history": 0.0005}
"""What the reads of a call cost outside of its handler, which may share them: Valkey and its answer."""
BYTE_SECONDS = 2e-9
"""What a byte of an answer costs."""
HOLD_SECONDS = 1.0
"""How long a refusal is held back, more or less: those of one moment must not come back together."""
HOLD_LONGER = 20
"""Refusals of an address that are not forgotten, after each of which the next are held back for as long again."""
MOST_HOLDS = 4
"""The longest time in `HOLD_SECONDS`: clients must not give up first, and come back at once."""
MAX_HELD_BACK, MAX_HELD_BACK_PER_ADDRESS = 1000, 100
"""Refusals that are held back at once; others are sent at once, and end their connections."""
BEGIN_CONNECTIONS = ("/ws/realtime", "/ws/realtime/", "/events", "/events/")
"""A GET of these becomes a connection, which has limits of its own, or ends it; see app/http/admission.py."""


class Limiter:
    """The middleware and its state.

    Args:
        writers: recognises publishers, which are not limited here.
        clients: tells addresses.
        budgets: of the addresses.
        note_refused: called with the reason `http_rate` of each refusal.
        slice: gives the seconds that handlers may have of each pass of the loop.
        cpu: seconds of the processor that this thread has used.
    """

    def __init__(
        self,
        writers: Writers,
        clients: Clients,
        budgets: Budgets,
        note_refused: Callable[[str, str | None], object],
        slice: Slice,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._writers = writers
        self._clients = clients
        self._budgets = budgets
        self._note_refused = note_refused
        self._held_back = 0
        """Refusals that are held back now."""
        self._turns = Turns(slice)
        self._cpu = cpu

    def middleware(self) -> Middleware:
        """The middleware, to be put inside of that which answers errors."""

        @web.middleware
        async def limit(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            begins = request.method == "GET" and request.path in BEGIN_CONNECTIONS
            if begins or self._writers.is_publisher(request):
                return await handler(request)
            return await self._answer(request, handler)

        return limit

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        budgets = self._budgets
        account = budgets.account(self._clients.address(request))
        budgets.spend(account, ANSWER_SECONDS)
        if not budgets.admits(account):
            await self._refuse(request, account, "This address exceeds its request limit")
        budgets.spend(account, READ_SECONDS.get(request.path, 0.0))
        await self._turns.take()

        def spend(seconds: float) -> None:
            budgets.spend(account, seconds)
            self._turns.spend(seconds)

        try:
            # By the processor's clock: a machine with other work must not make a request dearer.
            response = await metered(handler(request), spend, self._cpu)
        except (ClientError, HttpError) as error:
            if error.code == ErrorCode.UNAUTHORIZED:
                await self._slow_down(request, account)
            raise
        if isinstance(response, web.Response) and response.body is not None:
            budgets.spend(account, (response.content_length or 0) * BYTE_SECONDS)
        return response

    async def _slow_down(self, request: web.Request, account: Account) -> None:
        """Hold the answer to a wrong token back; after many of them it is another answer."""
        seconds = self._budgets.wrong_token(account)
        if self._budgets.refuses_tokens(account):
            await self._refuse(request, account, "This address has sent too many invalid tokens")
        await self._hold_back(request, account, seconds)

    async def _refuse(self, request: web.Request, account: Account, why: str) -> None:
        self._note_refused("http_rate", None)
        holds = min(MOST_HOLDS, 1 + int(account.refused) // HOLD_LONGER)
        account.refused += 1
        seconds = holds * HOLD_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 (it spreads load)
        held_back = await self._hold_back(request, account, seconds)
        raise HttpError(
            429,
            ErrorCode.RATE_LIMITED,
            f"{why}; try again later.",
            headers={"Retry-After": str(RETRY_SECONDS)},
            close=not held_back,
        )

    async def _hold_back(self, request: web.Request, account: Account, seconds: float) -> bool:
        """Wait, without reading from the client; False where too many wait already, or it has sent much."""
        is_full = self._held_back >= MAX_HELD_BACK or account.waiting >= MAX_HELD_BACK_PER_ADDRESS
        if is_full or request.content.total_bytes > MAX_KEPT:
            return False
        self._held_back += 1
        account.waiting += 1
        connection = request.protocol if isinstance(request.protocol, HttpConnection) else None
        try:
            if connection is not None:
                connection.pause()
            await asyncio.sleep(seconds)
        finally:
            self._held_back -= 1
            account.waiting -= 1
            if connection is not None:
                connection.resume()
        return True
