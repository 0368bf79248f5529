"""Decides about an upgrade request before anything is made for it: cheap refusals come first.

Runs some thousand times a second when clients come back at once, so it touches only the headers
that it needs and parses the query by itself.
"""

from __future__ import annotations

import binascii
import random
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl

from aiohttp import HttpVersion11, web

from app.config import Settings
from app.errors import ClientError, ErrorCode
from app.http.clients import Clients
from app.http.cors import Origins
from app.http.errors import HttpError
from app.ports import Slots
from app.protocol.requests import First, parse_first
from app.sessions.auth import Identity, TokenVerifier, is_user_name

RETRY_AFTER = (1, 5)
"""Seconds after which a refused client may come back, drawn evenly so that they do not come
back together."""

Protocol = Literal["plain", "socketio"]

_MAX_QUERY_FIELDS = 32
_SOCKETIO_QUERY = "EIO=4&transport=websocket"
_NO_WISHES = First()


class Refused(HttpError):
    """The connection is not let in.

    Args:
        status: the HTTP status.
        code: what kind of error it is, for programs.
        message: what to do about it, for people.
        reason: one word for the metric of refused connections.
        retry_after: seconds after which the client may come back.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        reason: str,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        headers = dict(headers or {})
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        super().__init__(status, code, message, headers=headers, close=True)
        self.reason = reason
        self.retry_after = retry_after


class Admitted(NamedTuple):
    """What an upgrade request asks for. One connection is reserved in the slot table for it."""

    protocol: Protocol
    key: str
    """Its Sec-WebSocket-Key."""
    address: str
    identity: Identity | None
    """What its token proves; None without one."""
    user: str | None
    """Of the token or, when the service takes none, of the client's own choice."""
    types: frozenset[str] | None
    """Subscriptions in place of the default; None: the default."""
    batch: bool
    history: int | None
    """Newest messages of each type that it gets at once; None: none."""
    resume: str | None


class Admission:
    """Checks upgrade requests.

    Args:
        settings: of the service.
        slots: the table that holds the cap.
        verifier: of tokens.
        clients: tells addresses.
        origins: the pages that may connect.
        is_serving: whether this worker takes new connections.
        has_memory: whether there is memory for more connections.
        count_refused: called with the reason of each refusal.
    """

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        verifier: TokenVerifier,
        clients: Clients,
        origins: Origins,
        *,
        is_serving: Callable[[], bool],
        has_memory: Callable[[], bool],
        count_refused: Callable[[str], object],
    ) -> None:
        self._types = settings.message_types
        self._cap = settings.max_total_connections
        self._slots = slots
        self._verifier = verifier
        self._clients = clients
        self._origins = origins
        self._is_serving = is_serving
        self._has_memory = has_memory
        self._count_refused = count_refused

    def check(self, request: web.Request) -> Admitted:
        """Let a request in, and reserve its connection: the caller releases it.

        Raises:
            Refused: nothing is reserved.
        """
        try:
            return self._check(request)
        except Refused as refused:
            self._count_refused(refused.reason)
            raise

    def _check(self, request: web.Request) -> Admitted:
        raw_query = request.raw_path.partition("?")[2]
        query: dict[str, str] = {}
        protocol: Protocol = "socketio"
        if raw_query != _SOCKETIO_QUERY:
            query = _parse_query(raw_query)
            protocol = _check_transport(query)
        key = _check_handshake(request)
        if not self._origins.allows(request):
            raise Refused(403, "FORBIDDEN", "This page's origin may not connect here.", "origin")
        identity = self._check_token(request, query)
        if self._verifier.enabled:
            user = identity.user if identity else None
        else:
            user = query.get("user") or None
            if user is not None and not is_user_name(user):
                raise _invalid("'user' must have at most 128 printable characters.", "user")
        first, resume = _NO_WISHES, None
        if query and protocol == "plain":
            first = self._check_first(query)
            resume = query.get("resume") or None
        admitted = Admitted(
            protocol,
            key,
            self._clients.address(request),
            identity,
            user,
            first.types,
            first.batch,
            first.history,
            resume,
        )
        self._reserve()
        return admitted

    def _check_token(self, request: web.Request, query: Mapping[str, str]) -> Identity | None:
        """The token's holder; without a token it may come in the first message."""
        if not self._verifier.enabled:
            return None
        token = query.get("token")
        if not token:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                return None
        try:
            return self._verifier.verify(token.strip())
        except ClientError as error:
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise Refused(401, error.code, error.message, "token", headers=headers) from None

    def _check_first(self, query: Mapping[str, str]) -> First:
        try:
            return parse_first(query, self._types)
        except ClientError as error:
            reason = "query" if error.code is ErrorCode.INVALID_PAYLOAD else "types"
            raise Refused(400, error.code, error.message, reason) from None

    def _reserve(self) -> None:
        unavailable = "SERVICE_UNAVAILABLE"
        if not self._is_serving():
            message = "This worker takes no connections now; try again."
            raise Refused(503, unavailable, message, "not_ready", retry_after=1)
        if not self._has_memory():
            message = "The service is short of memory; try again later."
            raise Refused(503, unavailable, message, "memory", _draw_delay())
        if not self._slots.reserve_connection():
            message = f"All {self._cap} connections are taken; try again later."
            code = ErrorCode.MAX_CONNECTIONS_EXCEEDED
            raise Refused(503, code, message, "cap", _draw_delay())


def _parse_query(raw: str) -> dict[str, str]:
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise _invalid("The query has too many fields.", "query") from None
    return dict(pairs)


def _check_transport(query: Mapping[str, str]) -> Protocol:
    """Tell the protocols apart, and long polling from both."""
    version = query.get("EIO")
    if query.get("transport", "websocket") != "websocket":
        raise _invalid(
            "Only the WebSocket transport is served: give your Socket.IO client"
            " the option transports: ['websocket'].",
            "transport",
        )
    if version is None:
        return "plain"
    if version != "4":
        message = (
            "Only Engine.IO 4 is served (EIO=4): use a Socket.IO client of version 3 or later."
        )
        raise _invalid(message, "transport")
    if "sid" in query:
        message = "There is no session to upgrade: connect with the WebSocket transport at once."
        raise _invalid(message, "transport")
    return "socketio"


def _check_handshake(request: web.Request) -> str:
    """Check what RFC 6455 (section 4.2.1) demands of an upgrade request; return its key."""
    if request.method != "GET":
        message = "Connect with a WebSocket client: only GET is served here."
        allowed = {"Allow": "GET"}
        raise Refused(405, "METHOD_NOT_ALLOWED", message, "handshake", headers=allowed)
    headers = request.headers
    if (
        not _has_token(headers.get("Upgrade", ""), "websocket")
        or not _has_token(headers.get("Connection", ""), "upgrade")
        or request.version < HttpVersion11
    ):
        message = (
            "This is a WebSocket endpoint: the request must have the headers"
            " 'Connection: Upgrade' and 'Upgrade: websocket'."
        )
        raise Refused(400, "BAD_REQUEST", message, "handshake")
    if headers.get("Sec-WebSocket-Version") != "13":
        message = "Only version 13 of the WebSocket protocol is served."
        served = {
            "Connection": "Upgrade, close",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
        }
        raise Refused(426, "UPGRADE_REQUIRED", message, "handshake", headers=served)
    key = headers.get("Sec-WebSocket-Key", "").strip()
    if not _is_key(key):
        message = "Sec-WebSocket-Key must be 16 bytes in base64."
        raise Refused(400, "BAD_REQUEST", message, "handshake")
    return key


def _has_token(header: str, token: str) -> bool:
    header = header.lower()
    return header == token or token in [part.strip() for part in header.split(",")]


def _is_key(key: str) -> bool:
    try:
        return len(key) == 24 and len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except ValueError:
        return False


def _invalid(message: str, reason: str) -> Refused:
    return Refused(400, ErrorCode.INVALID_PAYLOAD, message, reason)


def _draw_delay() -> int:
    return random.randint(*RETRY_AFTER)  # noqa: S311 - spreads load, guards nothing
