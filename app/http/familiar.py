"""Upgrade requests whose header fields are known from an earlier one: only the key differs.

Clients of one kind send the same fields, and after a failure all come back at once. What was found out
about the fields of a client that was let in holds for the next one that sends them.
"""

from __future__ import annotations

import binascii
from typing import NamedTuple

from aiohttp import hdrs
from multidict import MultiMapping

from app.http.clients import Clients
from app.http.request_head import TARGET, UpgradeHead, parse_fields

MAX_KNOWN, MAX_FIELDS = 128, 1024
"""Fields that are kept at once, and bytes of those of one request at most."""

_KEY = b"\r\nSec-WebSocket-Key: "
_KEY_SIZE = 24
_KINDS = frozenset(
    {
        *(b"host", b"upgrade", b"connection", b"origin", b"user-agent", b"accept"),
        *(b"accept-encoding", b"accept-language", b"cache-control", b"pragma", b"dnt", b"priority"),
        *(b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions"),
        *(
            b"sec-gpc",
            b"sec-fetch-dest",
            b"sec-fetch-mode",
            b"sec-fetch-site",
            b"sec-fetch-storage-access",
        ),
        *(b"sec-ch-ua", b"sec-ch-ua-mobile", b"sec-ch-ua-platform"),
    }
)
"""Names, in lower case, of fields that are the same in all clients of a kind. Others may be secret, or of one
client or request only: such would push out what is known."""


def is_key(key: str | bytes) -> bool:
    """Whether this is a `Sec-WebSocket-Key`: 16 bytes in base64."""
    try:
        return len(key) == _KEY_SIZE and len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except ValueError:
        return False


class Handshake(NamedTuple):
    """What the header fields of an upgrade request say."""

    key: str
    """`Sec-WebSocket-Key`."""
    token: str | None
    """Of the client, where it is not in the query."""
    subprotocol: str | None
    """To answer with."""
    offers: list[str]
    """Values of `Sec-WebSocket-Extensions`."""


class FamiliarHead(UpgradeHead):
    """A request with the fields of one that was let in, at a worker that lets the same in always.

    So it is a complete handshake, names a Host and an Origin that are allowed, and no token.

    Args:
        raw_path: path and query as the client wrote them.
        remote: see `RequestHead`.
        fields: of the head, as the client wrote them.
        handshake: what they say.
    """

    __slots__ = ("_fields", "handshake")

    def __init__(
        self, raw_path: str, remote: str | None, fields: bytes, handshake: Handshake
    ) -> None:
        self.raw_path = raw_path
        self.remote = remote
        self._fields = fields
        self.handshake = handshake

    @property
    def headers(self) -> MultiMapping[str]:  # type: ignore[override]
        """Parsed for the few that ask."""
        return parse_fields(self._fields)


class Familiar:
    """Fields of requests that were let in, without their keys.

    Args:
        clients: recognises trusted proxies, which may ask for more than others.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._offers: dict[bytes, list[str]] = {}

    @property
    def held(self) -> int:
        """Fields that are kept."""
        return len(self._offers)

    def parse(self, data: bytes, remote: str | None) -> FamiliarHead | None:
        """Parse the first bytes of a connection.

        Args:
            data: what the client has sent so far.
            remote: the address of the peer.

        Returns:
            The request; None when its fields are not known, or it is not complete, or more.
        """
        target = TARGET.match(data)
        if target is None:
            return None
        begin, key_at = target.end(), data.find(_KEY) + len(_KEY)
        key_end = key_at + _KEY_SIZE
        offers = self._offers.get(data[begin:key_at] + data[key_end:])
        key = data[key_at:key_end]
        if offers is None or not is_key(key):
            return None
        handshake = Handshake(key.decode("ascii"), None, None, offers)
        return FamiliarHead(target[1].decode("ascii"), remote, data[begin:], handshake)

    def remember(self, data: bytes, head: UpgradeHead) -> None:
        """Keep the fields of a request that was let in for more than what its query says.

        Args:
            data: all of the request.
            head: what was parsed of it.
        """
        if self._clients.is_behind_proxy(head):
            return
        begin, key_at = data.find(b"\r\n"), data.find(_KEY) + len(_KEY)
        fields = data[begin:key_at] + data[key_at + _KEY_SIZE :]
        if key_at < len(_KEY) or len(fields) > MAX_FIELDS:
            return
        names = [line.partition(b":")[0].lower() for line in fields[2:-4].split(b"\r\n")]
        if not _KINDS.issuperset(names):
            return
        if len(self._offers) >= MAX_KNOWN:
            self._offers.clear()
        self._offers[fields] = head.headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, [])
