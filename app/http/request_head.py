"""The heads of ordinary requests that are frequent, parsed without aiohttp.

Clients that come back after a failure come all at once, and aiohttp's request costs more than
their sessions. So `parse_upgrade` knows only what clients and proxies send as a rule: one complete
`GET /ws/realtime` or `GET /events` in printable ASCII, `Name: value`, no header twice, no body. Everything else is aiohttp's, which
also answers what is wrong with a request. `parse_call` does the same for publishers.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol

from aiohttp import HttpVersion, HttpVersion11, hdrs
from multidict import CIMultiDict, MultiMapping
from yarl import URL

PATH = "/ws/realtime"
"""Where clients connect, with or without a slash at the end."""
EVENTS_PATH = "/events"
"""Where clients of server-sent events connect, with or without a slash at the end."""
MAX_HEADERS = 64
"""Headers of a request that is parsed here."""

_FIELDS = rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~](?:[ -~]*[!-~])?\r\n)+)\r\n"
_QUERY = rb'/?(?:\?[!"$-~]*)?'
TARGET = re.compile(rb"GET (" + PATH.encode() + _QUERY + rb") HTTP/1\.1(?=\r\n)")
"""The first line of an upgrade request."""
_HEAD = re.compile(TARGET.pattern + rb"\r\n" + _FIELDS)
_EVENTS_HEAD = re.compile(rb"GET (" + EVENTS_PATH.encode() + _QUERY + rb") HTTP/1\.1\r\n" + _FIELDS)
_WITH_BODY = {"content-length", "transfer-encoding", "content-encoding", "expect"}
_CALL = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n" + _FIELDS)
_NOT_IN_CALLS = {
    "transfer-encoding",
    "content-encoding",
    "expect",
    "upgrade",
    "origin",
    "te",
    "trailer",
    "proxy-connection",  # aiohttp's parser takes it for Connection
}
_MAX_LENGTH_DIGITS = 9


class RequestHead(Protocol):
    """What the checks of a request need of it: an `UpgradeHead`, or aiohttp's request."""

    @property
    def method(self) -> str:
        """As the client wrote it."""

    @property
    def raw_path(self) -> str:
        """Path and query as the client wrote them."""

    @property
    def version(self) -> HttpVersion:
        """Of HTTP."""

    @property
    def headers(self) -> MultiMapping[str]:
        """By name, in which case does not matter."""

    @property
    def remote(self) -> str | None:
        """The address of the peer, which may be a proxy; "" on a Unix socket, None when the peer was gone before it was asked for."""


class UpgradeHead:
    """An ordinary upgrade request.

    Args:
        raw_path: path and query as the client wrote them.
        headers: at most one of each name.
        remote: see `RequestHead`.
    """

    __slots__ = ("headers", "raw_path", "remote")

    method = hdrs.METH_GET
    version = HttpVersion11
    scheme = "http"
    """The service itself speaks no TLS."""

    def __init__(self, raw_path: str, headers: MultiMapping[str], remote: str | None) -> None:
        self.raw_path = raw_path
        self.headers = headers
        self.remote = remote

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.raw_path.partition("?")[0]

    @property
    def query_string(self) -> str:
        """The query, decoded."""
        return URL.build(query_string=self.raw_path.partition("?")[2], encoded=True).query_string


class Parsed(NamedTuple):
    """An upgrade request and what came behind it."""

    head: UpgradeHead
    rest: bytes


def parse_upgrade(data: bytes, remote: str | None) -> Parsed | None:
    """Parse the first bytes of a connection.

    Args:
        data: what the client has sent so far.
        remote: the address of the peer.

    Returns:
        The request; None when the bytes are not one complete, ordinary upgrade request.
    """
    return _parse(_HEAD, data, remote)


def parse_events(data: bytes, remote: str | None) -> Parsed | None:
    """As `parse_upgrade`, for a request for server-sent events."""
    return _parse(_EVENTS_HEAD, data, remote)


def _parse(pattern: re.Pattern[bytes], data: bytes, remote: str | None) -> Parsed | None:
    match = pattern.match(data)
    if match is None:
        return None
    target, block = match.groups()
    headers = _headers(block, _WITH_BODY)
    if headers is None:
        return None
    return Parsed(UpgradeHead(target.decode("ascii"), headers, remote), data[match.end() :])


class CallHead:
    """The head of an ordinary request of a publisher.

    Args:
        method: the HTTP method.
        raw_path: path without a query.
        headers: at most one of each name.
        remote: see `RequestHead`.
    """

    __slots__ = ("headers", "method", "raw_path", "remote")

    version = HttpVersion11

    def __init__(
        self, method: str, raw_path: str, headers: MultiMapping[str], remote: str | None
    ) -> None:
        self.method = method
        self.raw_path = raw_path
        self.headers = headers
        self.remote = remote


def parse_call(head: bytes, path: str, remote: str | None) -> CallHead | None:
    """Parse the head of a `POST` with a body of a known length.

    Args:
        head: with the empty line at its end.
        path: the only one that is meant, as bytes of the request line have it.
        remote: the address of the peer.

    Returns:
        The head; None when it is not an ordinary one: a page's, one in several parts, one that
        expects an answer before the body, or anything that is not HTTP/1.1.
    """
    match = _CALL.fullmatch(head)
    if match is None or match[1].decode("ascii") != path:
        return None
    headers = _headers(match[2], _NOT_IN_CALLS)
    if headers is None:
        return None
    length = headers.get("Content-Length", "")
    if not (length.isdecimal() and len(length) <= _MAX_LENGTH_DIGITS):
        return None
    return CallHead(hdrs.METH_POST, path, headers, remote)


def parse_fields(fields: bytes) -> CIMultiDict[str]:
    """The header fields of an upgrade request that is known to be an ordinary one.

    Args:
        fields: from the end of its first line on.
    """
    headers = _headers(fields[2:-2], _WITH_BODY)
    assert headers is not None
    return headers


def _headers(block: bytes, unwanted: set[str]) -> CIMultiDict[str] | None:
    """The fields of a head with a Host and no name twice; None when an unwanted one is there."""
    pairs: list[Any] = [line.split(": ", 1) for line in block[:-2].decode("ascii").split("\r\n")]
    names = {name.lower() for name, _ in pairs}
    if (
        len(names) < len(pairs)
        or len(pairs) > MAX_HEADERS
        or "host" not in names
        or not names.isdisjoint(unwanted)
    ):
        return None
    return CIMultiDict(pairs)
