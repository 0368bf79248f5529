"""Which pages may use the service: the Origin header, and CORS answers (fetch.spec.whatwg.org)."""

from __future__ import annotations

from aiohttp import web

from app.config import Settings
from app.http.clients import Clients

MAX_AGE = 600
"""Seconds for which a browser may remember the answer to a preflight."""

_ALLOWED_HEADERS = "Authorization, Content-Type, X-Publish-Token, X-Request-ID"
_EXPOSED_HEADERS = "Retry-After, X-Request-ID"


class Origins:
    """Decides by ALLOWED_ORIGINS; without it only the service's own origin is allowed."""

    def __init__(self, settings: Settings, clients: Clients) -> None:
        self._allowed = frozenset(settings.allowed_origins)
        self._any = "*" in self._allowed
        self._clients = clients

    def allows(self, request: web.Request) -> bool:
        """Whether the page that sends this request may connect; what is no page may."""
        origin = request.headers.get("Origin")
        if origin is None or self._any:
            return True
        if self._allowed:
            return origin.lower() in self._allowed
        return self._clients.is_same_origin(request, origin)

    def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let the pages of ALLOWED_ORIGINS read this answer."""
        if not self._allowed:
            return
        headers = response.headers
        origin = request.headers.get("Origin")
        if self._any:
            headers["Access-Control-Allow-Origin"] = "*"
        else:
            headers.add("Vary", "Origin")
            if origin is None or origin.lower() not in self._allowed:
                return
            headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS

    def answer_options(self, request: web.Request, methods: str) -> web.Response:
        """Answer OPTIONS, the preflight of a browser included.

        Args:
            request: with the method OPTIONS.
            methods: what the resource takes, between commas.
        """
        response = web.Response(status=204, headers={"Allow": methods})
        if "Access-Control-Request-Method" in request.headers and self._allowed:
            headers = response.headers
            headers.add("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
            if self.allows(request):
                headers["Access-Control-Allow-Methods"] = methods
                headers["Access-Control-Allow-Headers"] = _ALLOWED_HEADERS
                headers["Access-Control-Max-Age"] = str(MAX_AGE)
        return response
