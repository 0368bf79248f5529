"""A proxy that lets no WebSocket through, and that can be cut off."""

from __future__ import annotations

from typing import Literal, Self

import aiohttp
from aiohttp import hdrs, web

from tests.support.ports import free_port

Way = Literal["refused", "stripped", "dropped"]
"""With 403; passed on as a request without an upgrade; closed without an answer."""

_OF_CONNECTION = {hdrs.HOST, hdrs.CONNECTION, hdrs.UPGRADE, hdrs.TRANSFER_ENCODING, hdrs.DATE}


class BlockingProxy:
    """Passes HTTP on to a service, answers included as they come."""

    def __init__(self, backend: str, way: Way) -> None:
        self.backend = backend
        self.way = way
        self.port = free_port()
        self.is_cut = False
        self.upgrades = 0
        self.paths: list[str] = []
        """Of what was passed on, with the method."""
        self._requests: list[web.Request] = []

    @property
    def base(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End every connection, and let none through until `is_cut` is false again."""
        self.is_cut = True
        for request in [*self._requests]:
            _abort(request)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.is_cut:
            return _abort(request)
        if hdrs.UPGRADE in request.headers:
            self.upgrades += 1
            if self.way == "refused":
                return web.Response(status=403)
            if self.way == "dropped":
                return _abort(request)
        self.paths.append(f"{request.method} {request.path}")
        self._requests.append(request)
        try:
            return await self._pass_on(request)
        except (aiohttp.ClientError, ConnectionResetError):
            return _abort(request)
        finally:
            self._requests.remove(request)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if _passes(name)}
        async with self._session.request(
            request.method, self.backend + request.path_qs, headers=headers
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if _passes(name)}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


def _passes(name: str) -> bool:
    return name.title() not in _OF_CONNECTION


def _abort(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # goes nowhere
