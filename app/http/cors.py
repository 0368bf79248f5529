"""Which pages may use the service, and under which names: Origin, CORS answers, and Host.

A page whose name an attacker points at the loopback (DNS rebinding) is of the same origin as this
service, for the browser; only its Host header differs. CORS answers are those of
fetch.spec.whatwg.org.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NamedTuple

from aiohttp import web

from app.config import Settings
from app.http.clients import Clients
from app.http.request_head import RequestHead
from app.setting_values import ORIGIN, ORIGIN_PORTS, is_host

MAX_AGE = 600
"""Seconds for which a browser may remember the answer to a preflight."""

_MAX_ORIGIN = 300
"""Characters of an origin that is looked at: a name has at most 253."""
_SHORT_HOST = re.compile(r"[A-Za-z0-9_-]+(:\d{1,5})?", re.ASCII)
_OWN_HEADERS = ("Accept-Language", "Sec-Fetch-Site")
"""A browser adds these by itself, and no page can take `Accept-Language` away."""
_BROWSER_HEADERS = ("Origin", *_OWN_HEADERS)
"""Each request of a browser has one of these."""
_ALLOWED_HEADERS = "Authorization, Content-Type, X-Publish-Token, X-Request-ID"
_EXPOSED_HEADERS = "Retry-After, X-Request-ID"


@functools.lru_cache(maxsize=1024)
def normal_origin(origin: str) -> str:
    """An Origin header in lower case, without a default port or a slash at the end."""
    if len(origin) > _MAX_ORIGIN:
        return ""
    origin = origin.lower().removesuffix("/")
    scheme = origin.partition("://")[0]
    port = ORIGIN_PORTS.get(scheme)
    return origin.removesuffix(f":{port}") if port else origin


class _Pattern(NamedTuple):
    """An entry of ALLOWED_ORIGINS with a wildcard."""

    scheme: str
    host: str
    """With a leading dot where subdomains are meant."""
    port: str | None
    """`*` for every port; None for the default one."""

    def fits(self, scheme: str, host: str, port: str | None) -> bool:
        if scheme != self.scheme or self.port not in {"*", port}:
            return False
        return host.endswith(self.host) if self.host.startswith(".") else host == self.host


class Origins:
    """Decides by ALLOWED_ORIGINS; the service's own origin is always allowed."""

    def __init__(self, settings: Settings, clients: Clients) -> None:
        self._allowed = frozenset(settings.allowed_origins)
        self._any = "*" in self._allowed
        self._patterns = [
            _pattern(origin) for origin in settings.allowed_origins if "*" in origin[1:]
        ]
        self._clients = clients

    def allows(self, request: RequestHead) -> bool:
        """Whether the page that sends this request may connect; what is no page may."""
        origin = request.headers.get("Origin")
        if origin is None or self._any:
            return True
        origin = normal_origin(origin)
        return self._is_listed(origin) or self._clients.is_same_origin(request, origin)

    def _is_listed(self, origin: str) -> bool:
        if self._any or origin in self._allowed:
            return True
        if not self._patterns:
            return False
        match = ORIGIN.fullmatch(origin)
        return match is not None and any(
            pattern.fits(match["scheme"], match["host"], match["port"])
            for pattern in self._patterns
        )

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
            if origin is None or not self._is_listed(normal_origin(origin)):
                return
            headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS

    def plain_headers(self) -> tuple[tuple[str, str], ...]:
        """What `add_headers` adds to the answer to a request that comes from no page."""
        if self._any:
            return (
                ("Access-Control-Allow-Origin", "*"),
                ("Access-Control-Expose-Headers", _EXPOSED_HEADERS),
            )
        return (("Vary", "Origin"),) if self._allowed else ()

    def of_stream(self, request: RequestHead) -> dict[str, str]:
        """Headers that let a page read server-sent events, with credentials where it is listed.

        Where every origin is allowed there are none with credentials: a page of any origin could
        read what a proxy shows to those that have logged in.
        """
        if not self._allowed:
            return {}
        if self._any:
            return {"Access-Control-Allow-Origin": "*"}
        origin = request.headers.get("Origin")
        if origin is None or not self._is_listed(normal_origin(origin)):
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
        }

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


def is_browser(request: RequestHead) -> bool:
    """Whether a browser has sent a request, rather than a program."""
    return any(name in request.headers for name in _OWN_HEADERS)


def _pattern(origin: str) -> _Pattern:
    match = ORIGIN.fullmatch(origin)
    assert match is not None, "the settings are checked"
    return _Pattern(match["scheme"], match["host"].removeprefix("*"), match["port"])


class Hosts:
    """Decides which Host headers are served, by BIND and ALLOWED_HOSTS.

    Args:
        settings: of the service.
        clients: recognises trusted proxies, whose requests have the public name.
    """

    def __init__(self, settings: Settings, clients: Clients) -> None:
        allowed = settings.allowed_hosts
        self._any = "*" in allowed or (not allowed and not _binds_loopback(settings.bind))
        self._names = frozenset(allowed)
        self._suffixes = tuple(name[1:] for name in allowed if name.startswith("*."))
        self._clients = clients
        self._serves = functools.lru_cache(maxsize=1024)(self._look_up)

    def allows(self, request: RequestHead) -> bool:
        """Whether a request may ask for the host that it names; a browser always names one."""
        if self._any:
            return True
        host = request.headers.get("Host")
        if host is None or (len(host) <= _MAX_ORIGIN and self._serves(host)):
            return True
        if self._clients.is_behind_proxy(request):
            return True
        # Probes and scripts name anything, such as a service of Compose. No site of the internet has
        # a name without dots, but a network may give one to a page's host: no request of a browser.
        headers = request.headers
        return _SHORT_HOST.fullmatch(host) is not None and not any(
            name in headers for name in _BROWSER_HEADERS
        )

    def _look_up(self, host: str) -> bool:
        name = _host_name(host.lower())
        return name is not None and (
            _is_loopback(name) or name in self._names or name.endswith(self._suffixes)
        )


def _host_name(host: str) -> str | None:
    """The name in `name` or `name:port`; None for anything else."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name = host
    elif not (port.isascii() and port.isdecimal()):
        return None
    return name.removesuffix(".") if is_host(name) else None


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _binds_loopback(bind: str) -> bool:
    if bind.startswith("unix:"):
        return False
    return _is_loopback(bind.rpartition(":")[0].lower())
