"""The head of an upgrade request, parsed without aiohttp where it is an ordinary one.

Clients that come back after a failure come all at once, and aiohttp's request costs more than
their sessions. So `parse_upgrade` knows only what clients and proxies send as a rule: one complete
`GET /ws/realtime` in printable ASCII, `Name: value`, no header twice, no body. Everything else is aiohttp's, which
also answers what is wrong with a request.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol

from aiohttp import HttpVersion, HttpVersion11, hdrs
from multidict import CIMultiDict, MultiMapping
from yarl import URL

PATH = "/ws/realtime"
"""Where clients connect, with or without a slash at the end."""
MAX_HEADERS = 64
"""Headers of a request that is parsed here."""

_HEAD = re.compile(
    rb"GET (" + PATH.encode() + rb'/?(?:\?[!"$-~]*)?) HTTP/1\.1\r\n'
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [!-~](?:[ -~]*[!-~])?\r\n)+)\r\n"
)
_WITH_BODY = {"content-length", "transfer-encoding", "content-encoding", "expect"}


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
        """The address of the peer, which may be a proxy; None or "" on a Unix socket."""


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
    match = _HEAD.match(data)
    if match is None:
        return None
    target, block = match.groups()
    pairs: list[Any] = [line.split(": ", 1) for line in block[:-2].decode("ascii").split("\r\n")]
    names = {name.lower() for name, _ in pairs}
    if (
        len(names) < len(pairs)
        or len(pairs) > MAX_HEADERS
        or "host" not in names
        or not names.isdisjoint(_WITH_BODY)
    ):
        return None
    head = UpgradeHead(target.decode("ascii"), CIMultiDict(pairs), remote)
    return Parsed(head, data[match.end() :])
