"""The client's address and origin behind trusted proxies, and ids of requests.

Any client can write headers such as X-Forwarded-For; they count only as far as the hops that
wrote them are in TRUSTED_PROXIES, read from the nearest hop outwards.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from aiohttp import web

from app.http.request_head import RequestHead
from app.protocol.envelope import new_id
from app.setting_values import Network

ON_UNIX_SOCKET = "unix"
"""Stands for the address of a peer on a Unix socket."""
GONE = "unknown"
"""Stands for the address of a client that was gone before it was asked for; never trusted."""

_REQUEST_ID = web.RequestKey("request_id", str)
_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
_MAX_HOPS = 32
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """The token of `Authorization: Bearer TOKEN`, with a scheme in any case; None without one."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


class Clients:
    """Finds the client behind trusted proxies.

    Args:
        trusted: networks whose X-Forwarded-* headers are trusted. If there are any, a peer on a
            Unix socket is trusted too: the file system controls access to it.
    """

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)
        self._is_trusted = lru_cache(maxsize=1024)(self._look_up)

    def address(self, request: RequestHead) -> str:
        """The IP address of the client, `ON_UNIX_SOCKET` or `GONE`."""
        address = _peer(request)
        if not self._trusted or not self._is_trusted(address):
            return address
        hops = ",".join(request.headers.getall("X-Forwarded-For", ())).rsplit(",", _MAX_HOPS)
        for hop in reversed(hops):
            parsed = _parse_address(hop.strip())
            if parsed is None:
                break
            address = parsed
            if not self._is_trusted(address):
                break
        return address

    def is_behind_proxy(self, request: RequestHead) -> bool:
        """Whether the peer is a trusted proxy."""
        return bool(self._trusted) and self._is_trusted(_peer(request))

    def is_same_origin(self, request: RequestHead, origin: str) -> bool:
        """Whether an origin, as `normal_origin` gives it, is the host that a request was sent to.

        The scheme is compared only where it is known: on the word of a trusted proxy, which
        may also name the host. A proxy that says nothing may have taken TLS off.
        """
        scheme, separator, origin_host = origin.partition("://")
        if not separator:
            return False
        host = request.headers.get("Host", "")
        if self.is_behind_proxy(request):
            host = _nearest(request, "X-Forwarded-Host") or host
            forwarded_scheme = _nearest(request, "X-Forwarded-Proto").lower()
            if forwarded_scheme and _web_scheme(forwarded_scheme) != scheme:
                return False
        port = _DEFAULT_PORTS.get(scheme)
        return bool(host) and _without_port(host.lower(), port) == origin_host

    def request_id(self, request: web.Request) -> str:
        """The id of a request: a trusted proxy's X-Request-ID, or a new one."""
        known = request.get(_REQUEST_ID)
        if known is None:
            known = request[_REQUEST_ID] = self.proxy_request_id(request) or new_id()
        return known

    def proxy_request_id(self, request: RequestHead) -> str | None:
        """The id that a trusted proxy has given a request; None without one."""
        id = request.headers.get("X-Request-ID", "")
        return id if _REQUEST_ID_FORM.fullmatch(id) and self.is_behind_proxy(request) else None

    def _look_up(self, address: str) -> bool:
        if address == ON_UNIX_SOCKET:
            return True
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._trusted)


def _peer(request: RequestHead) -> str:
    remote = request.remote
    return GONE if remote is None else remote or ON_UNIX_SOCKET


def _parse_address(hop: str) -> str | None:
    """The address in `1.2.3.4`, `1.2.3.4:5`, `::1` or `[::1]:5`; None for anything else."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return None


def _nearest(request: RequestHead, name: str) -> str:
    """What the nearest proxy wrote into a header that each hop appends to."""
    values = request.headers.getall(name, ())
    return values[-1].rpartition(",")[2].strip() if values else ""


def _web_scheme(scheme: str) -> str:
    return {"ws": "http", "wss": "https"}.get(scheme, scheme)


def _without_port(host: str, port: str | None) -> str:
    return host.removesuffix(f":{port}") if port else host
