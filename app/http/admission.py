"""Decides about a request for a connection before anything is made for it: cheap refusals come first.

Runs some thousand times a second when clients come back at once, so it touches only the headers
that it needs and parses the query by itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl

from aiohttp import HttpVersion11, hdrs
from multidict import MultiMapping

from app.config import Settings
from app.errors import LOW_ON_MEMORY, ClientError, CloseCode, ErrorCode
from app.http.clients import Clients, bearer_token
from app.http.cors import Origins
from app.http.errors import HttpError
from app.http.familiar import FamiliarHead, Handshake, is_key
from app.http.header_lists import split_list
from app.http.request_head import RequestHead
from app.ports import ConnectionPlaces
from app.protocol.requests import DEFAULT_OPTIONS, Allowed, ConnectOptions, parse_options
from app.sessions.addresses import Addresses, TooMany
from app.sessions.auth import NAME_RULE, Identity, TokenVerifier, user_name
from app.sessions.token_keys import KeysUnavailable

RETRY_AFTER = (1, 5)
"""Seconds after which a refused client may come back, drawn evenly so that they do not come
back together."""

Protocol = Literal["plain", "socketio", "sse"]

MAX_KNOWN, MAX_OPTIONS = 2048, 256
"""Maximum cached combinations of options, and maximum characters of one of them."""

_MAX_QUERY_FIELDS = 32
_SHARED = {"EIO", "transport", "types", "batch", "history"}
"""Fields of a query that say nothing of one client only."""
_ENCODED = re.compile(r"[^!-$&-*,-~]")
"""What makes a query mean something else than it says: `%`, `+`, and what is not printable ASCII."""
_NEVER = re.compile(r"q\s*=\s*0(\.0{0,3})?", re.ASCII)
"""The weight of a media range that is not accepted."""
_SUBPROTOCOL = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


class Refused(HttpError):
    """The handshake is refused.

    Args:
        status: the HTTP status.
        code: the kind of error, for programs.
        message: the cause and the remedy, for people.
        reason: one word for the metric of refused connections.
        retry_after: seconds after which the client may reconnect.
        headers: more headers of the answer.
        close_code: with which a browser's connection is closed instead, whose pages do not see
            HTTP answers to a handshake; None: it gets the HTTP answer too.
    """

    def __init__(
        self,
        status: int,
        code: ErrorCode,
        message: str,
        reason: str,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        close_code: CloseCode | None = None,
    ) -> None:
        headers = dict(headers or {})
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        super().__init__(status, code, message, headers=headers, close=True)
        self.reason = reason
        self.retry_after = retry_after
        self.close_code = close_code
        self.protocol: Protocol = "plain"
        """What the client speaks, for one with a `close_code`."""


class Admitted(NamedTuple):
    """What a request for a connection asks for; one is reserved for it, and counted for its address."""

    protocol: Protocol
    handshake: Handshake | None
    """None: there is no upgrade."""
    address: str
    identity: Identity | None
    """What its token proves; None without one."""
    user: str | None
    """Of the token or, when the service takes none, of the client's own choice."""
    options: ConnectOptions
    """Socket.IO: the default ones; those of its CONNECT packet count."""


class Admission:
    """Checks requests for a connection: upgrades, and those for server-sent events.

    Args:
        settings: of the service.
        places: of connections in the cap.
        verifier: of tokens.
        clients: tells addresses.
        origins: the pages that may connect.
        is_serving: whether this worker takes new connections.
        has_memory: whether there is memory for more connections.
        count_refused: called with the reason of each refusal.
        addresses: limits per address; None: there are none.
    """

    def __init__(
        self,
        settings: Settings,
        places: ConnectionPlaces,
        verifier: TokenVerifier,
        clients: Clients,
        origins: Origins,
        *,
        is_serving: Callable[[], bool],
        has_memory: Callable[[], bool],
        count_refused: Callable[[str], object],
        addresses: Addresses | None = None,
    ) -> None:
        self._types = settings.message_types
        self._cap = settings.max_total_connections
        self._places = places
        self._verifier = verifier
        self._clients = clients
        self._origins = origins
        self._is_serving = is_serving
        self._has_memory = has_memory
        self._count_refused = count_refused
        self._addresses = addresses
        self._known: dict[tuple[str | None, ...], ConnectOptions] = {}
        self._queries: dict[str, tuple[Mapping[str, str], Protocol]] = {}
        """What is parsed of queries that many clients of a storm send alike."""

    def check(self, request: RequestHead, *, again: bool = False) -> Admitted:
        """Let a request in, and reserve its connection, which the caller releases or gives back.

        Args:
            request: for an upgrade.
            again: the fetch of keys that it has waited for is done.

        Raises:
            Refused: nothing is reserved.
            KeysUnavailable: with the fetch to wait for; nothing is reserved.
        """
        try:
            return self._check(request, again)
        except Refused as refused:
            self._count_refused(refused.reason)
            raise

    def check_events(self, request: RequestHead, *, again: bool = False) -> tuple[Admitted, str]:
        """As `check`, for a request for server-sent events; also returns its `lastEventId`.

        Args:
            request: a GET, or a HEAD.
            again: the fetch of keys that it has waited for is done.

        Raises:
            Refused: nothing is reserved.
            KeysUnavailable: with the fetch to wait for; nothing is reserved.
        """
        try:
            _check_stream(request)
            query = parse_query(request.raw_path.partition("?")[2])
            self._check_origin(request)
            admitted = self._check_options(request, query, "sse", None, again)
        except Refused as refused:
            refused.protocol = "sse"
            self._count_refused(refused.reason)
            raise
        return admitted, request.headers.get("Last-Event-ID") or query.get("lastEventId", "")

    def _check(self, request: RequestHead, again: bool) -> Admitted:
        raw_query = request.raw_path.partition("?")[2]
        known = self._queries.get(raw_query)
        query, protocol = known or self._parse_query(raw_query)
        if isinstance(request, FamiliarHead):
            handshake = request.handshake
        else:
            handshake = _check_handshake(request)
            self._check_origin(request)
        try:
            return self._check_options(request, query, protocol, handshake, again)
        except Refused as refused:
            refused.protocol = protocol
            raise

    def _parse_query(self, raw: str) -> tuple[Mapping[str, str], Protocol]:
        """The fields of an upgrade's query, and what its client speaks; raises Refused."""
        query = parse_query(raw)
        parsed = query, _check_transport(query)
        if query.keys() <= _SHARED and len(raw) < MAX_OPTIONS and len(self._queries) < MAX_KNOWN:
            self._queries[raw] = parsed
        return parsed

    def _check_origin(self, request: RequestHead) -> None:
        if not self._origins.allows(request):
            raise Refused(
                403,
                ErrorCode.FORBIDDEN,
                "This origin is not allowed; see ALLOWED_ORIGINS.",
                "origin",
            )

    def _check_options(
        self,
        request: RequestHead,
        query: Mapping[str, str],
        protocol: Protocol,
        handshake: Handshake | None,
        again: bool,
    ) -> Admitted:
        """Check the options of a valid handshake, or of a request for events."""
        address = self._clients.address(request)
        if self._addresses is not None:
            self._check_address(self._addresses, address, again)
        identity: Identity | None = None
        if self._verifier.enabled:
            token = query.get("token")
            if not token:
                token = _header_token(request) if handshake is None else handshake.token
            identity = None if token is None else self._check_token(token, again)
            if identity is None and protocol == "sse":
                message = (
                    "Send a token, as 'Authorization: Bearer <token>' or 'token=' in the query."
                )
                raise _unauthorized(ErrorCode.UNAUTHORIZED, message, "Bearer")
            user = identity.user if identity else None
        else:
            user = query.get("user") or None
            if user is not None:
                user = user_name(user)
                if user is None:
                    raise _invalid(f"'user' {NAME_RULE}.", "user", CloseCode.POLICY_VIOLATION)
        options = DEFAULT_OPTIONS
        if query and protocol != "socketio":
            options = self._find_options(query, identity)
            if protocol == "plain" and query.get("resume"):
                options = replace(options, resume=query["resume"])
        admitted = Admitted(protocol, handshake, address, identity, user, options)
        self._reserve(address)
        return admitted

    def give_back(self, admitted: Admitted) -> None:
        """Give back what is reserved for a client that came in, but whose session did not begin."""
        self._places.release_connection()
        if self._addresses is not None:
            self._addresses.give_back(admitted.address)

    def _check_address(self, addresses: Addresses, address: str, again: bool) -> None:
        try:
            addresses.check(address, is_counted=again)
        except TooMany as error:
            raise _too_many(error) from None

    def _check_token(self, token: str, again: bool) -> Identity:
        try:
            return self._verifier.verify(token.strip(), may_fetch=not again)
        except KeysUnavailable as error:
            if error.fetch is not None:
                raise
            raise _unavailable(error.code, error.message, "keys", _draw_delay()) from None
        except ClientError as error:
            challenge = 'Bearer error="invalid_token"'
            raise _unauthorized(error.code, error.message, challenge) from None

    def _find_options(self, query: Mapping[str, str], identity: Identity | None) -> ConnectOptions:
        if identity is not None and identity.types is not None:
            return self._parse_options(query, Allowed.of(self._types, identity.types))
        # Most clients of a storm ask for the same.
        words = query.get("types"), query.get("batch"), query.get("history")
        found = self._known.get(words)
        if found is None:
            found = self._parse_options(query, self._types)
            if len(self._known) < MAX_KNOWN and sum(map(len, filter(None, words))) < MAX_OPTIONS:
                self._known[words] = found
        return found

    def _parse_options(self, query: Mapping[str, str], types: Collection[str]) -> ConnectOptions:
        try:
            return parse_options(query, types)
        except ClientError as error:
            reason = "query" if error.code is ErrorCode.INVALID_PAYLOAD else "types"
            status = 403 if error.code is ErrorCode.FORBIDDEN else 400
            raise Refused(
                status, error.code, error.message, reason, close_code=CloseCode.POLICY_VIOLATION
            ) from None

    def _reserve(self, address: str) -> None:
        if not self._is_serving():
            message = "This worker accepts no connections now; try again."
            raise _unavailable(ErrorCode.SERVICE_UNAVAILABLE, message, "not_ready", 1)
        if not self._has_memory():
            raise _low_on_memory()
        if not self._places.reserve_connection():
            message = (
                f"The service has reached its limit of {self._cap} connections; try again later."
            )
            code = ErrorCode.MAX_CONNECTIONS_EXCEEDED
            raise _unavailable(code, message, "cap", _draw_delay())
        if self._addresses is not None:
            try:
                self._addresses.claim(address)
            except TooMany as error:
                self._places.release_connection()
                raise _too_many(error) from None
            except OSError:  # the table that counts addresses is full, and /dev/shm too
                self._places.release_connection()
                raise _low_on_memory() from None


def parse_query(raw: str) -> dict[str, str]:
    """The fields of a query, the last of each name; raises Refused."""
    if not raw:
        return {}
    if not _ENCODED.search(raw) and raw.count("&") < _MAX_QUERY_FIELDS:
        # Of most clients; it says the same as `parse_qsl`, at a fifth of the price.
        return {
            name: value
            for name, _, value in (part.partition("=") for part in raw.split("&") if part)
        }
    try:
        raw.encode()
        pairs = parse_qsl(
            raw, keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
        )
    except UnicodeError:
        raise _invalid("The query must be UTF-8.", "query") from None
    except ValueError:
        raise _invalid("The query has too many fields.", "query") from None
    return dict(pairs)


def _check_transport(query: Mapping[str, str]) -> Protocol:
    """Tell the protocols apart, and long polling from both."""
    version = query.get("EIO")
    if query.get("transport", "websocket") != "websocket":
        raise _invalid(
            "Only the WebSocket transport is supported: set the option"
            " transports: ['websocket'] of the Socket.IO client.",
            "transport",
        )
    if version is None:
        return "plain"
    if version != "4":
        message = (
            "Only Engine.IO 4 is supported (EIO=4): use a Socket.IO client of version 3 or later."
        )
        raise _invalid(message, "transport")
    if "sid" in query:
        message = "There is no session to upgrade: connect with the WebSocket transport only."
        raise _invalid(message, "transport")
    return "socketio"


def _check_handshake(request: RequestHead) -> Handshake:
    """Check what RFC 6455 (section 4.2.1) demands of an upgrade request."""
    if request.method != "GET":
        message = "This is a WebSocket endpoint: use GET."
        allowed = {"Allow": "GET"}
        raise Refused(405, ErrorCode.METHOD_NOT_ALLOWED, message, "handshake", headers=allowed)
    headers = request.headers
    if (
        not _has_token(headers, "Upgrade", "websocket")
        or not _has_token(headers, "Connection", "upgrade")
        or request.version < HttpVersion11
    ):
        message = (
            "This is a WebSocket endpoint: the request must have the headers"
            " 'Connection: Upgrade' and 'Upgrade: websocket'."
        )
        raise Refused(400, ErrorCode.BAD_REQUEST, message, "handshake")
    if headers.get("Sec-WebSocket-Version") != "13":
        message = "Only version 13 of the WebSocket protocol is supported."
        served = {
            "Connection": "Upgrade, close",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
        }
        raise Refused(426, ErrorCode.UPGRADE_REQUIRED, message, "handshake", headers=served)
    key = headers.get("Sec-WebSocket-Key", "").strip()
    if not is_key(key):
        message = "Sec-WebSocket-Key must be 16 bytes in base64."
        raise Refused(400, ErrorCode.BAD_REQUEST, message, "handshake")
    offers = headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, [])
    return Handshake(key, _header_token(request), choose_subprotocol(request), offers)


def _check_stream(request: RequestHead) -> None:
    """Check that a client can read what it asks for."""
    if request.version < HttpVersion11:
        message = (
            "Server-sent events need HTTP/1.1: a proxy may speak an older version to the service"
            " (nginx: proxy_http_version 1.1)."
        )
        raise Refused(505, ErrorCode.HTTP_VERSION_NOT_SUPPORTED, message, "stream")
    accepted = request.headers.getall("Accept", ())
    if accepted and not _accepts(accepted, "text", "event-stream"):
        message = (
            "This path answers with server-sent events: send 'Accept: text/event-stream', or no"
            " Accept header."
        )
        raise Refused(406, ErrorCode.NOT_ACCEPTABLE, message, "stream")


def _accepts(lines: Sequence[str], kind: str, subtype: str) -> bool:
    """Whether a media type is in an Accept header; the closest range counts (RFC 9110, 12.5.1)."""
    best, accepted = 0, False
    for part in split_list(",".join(lines).lower()):
        range, *parameters = split_list(part, ";")
        rank = {"*/*": 1, f"{kind}/*": 2, f"{kind}/{subtype}": 3}.get(range, 0)
        if rank > best:
            best, accepted = rank, not any(map(_NEVER.fullmatch, parameters))
    return accepted


def _has_token(headers: MultiMapping[str], name: str, token: str) -> bool:
    """Whether a header, on however many lines, lists a token; case does not matter."""
    value = headers.get(name, "").lower()
    if value == token:
        return True
    return any(token == part.lower() for part in _listed(headers, name))


def _listed(headers: MultiMapping[str], name: str) -> list[str]:
    """The parts between commas of a header, over all of its lines."""
    return split_list(",".join(headers.getall(name, ())))


def choose_subprotocol(request: RequestHead) -> str | None:
    """The subprotocol to answer with: the first offered one, those with a token last.

    A browser fails a connection for which it has offered some and none is chosen.
    """
    if hdrs.SEC_WEBSOCKET_PROTOCOL not in request.headers:
        return None
    offered = _offered(request)
    return next((name for name in offered if not _is_bearer(name)), offered[0] if offered else None)


def _header_token(request: RequestHead) -> str | None:
    """The token in the header fields; None without one."""
    token = bearer_token(request.headers)
    return _offered_token(request) if token is None else token


def _offered_token(request: RequestHead) -> str | None:
    """The token in an offered subprotocol `bearer.TOKEN`, a browser's way beside the URL."""
    if hdrs.SEC_WEBSOCKET_PROTOCOL not in request.headers:
        return None
    return next((name.partition(".")[2] for name in _offered(request) if _is_bearer(name)), None)


def _offered(request: RequestHead) -> list[str]:
    names = _listed(request.headers, hdrs.SEC_WEBSOCKET_PROTOCOL)
    return [name for name in names if _SUBPROTOCOL.fullmatch(name)]


def _is_bearer(name: str) -> bool:
    return name[:7].lower() == "bearer."


def _invalid(message: str, reason: str, close_code: CloseCode | None = None) -> Refused:
    return Refused(400, ErrorCode.INVALID_PAYLOAD, message, reason, close_code=close_code)


def _unauthorized(code: ErrorCode, message: str, challenge: str) -> Refused:
    return Refused(
        401,
        code,
        message,
        "token",
        headers={"WWW-Authenticate": challenge},
        close_code=CloseCode.UNAUTHORIZED,
    )


def _unavailable(code: ErrorCode, message: str, reason: str, retry_after: int) -> Refused:
    return Refused(503, code, message, reason, retry_after, close_code=CloseCode.TRY_AGAIN_LATER)


def _low_on_memory() -> Refused:
    return _unavailable(ErrorCode.SERVICE_UNAVAILABLE, LOW_ON_MEMORY, "memory", _draw_delay())


def _too_many(error: TooMany) -> Refused:
    code, delay = ErrorCode.MAX_CONNECTIONS_EXCEEDED, _draw_delay()
    later = CloseCode.TRY_AGAIN_LATER
    return Refused(429, code, str(error), error.reason, delay, close_code=later)


def _draw_delay() -> int:
    return random.randint(*RETRY_AFTER)  # noqa: S311 - spreads load, guards nothing
