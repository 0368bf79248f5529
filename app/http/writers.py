"""Publishers: publish tokens with labels, and clients' tokens with the claim `publish`.

A label stands for a token wherever one is named: in the log, in the metrics, in budgets. Several
tokens may have one label, so that a new one can be used before the old one is taken away.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from app.config import Settings
from app.errors import ClientError, ErrorCode
from app.http.clients import bearer_token
from app.http.errors import HttpError
from app.sessions.auth import TokenVerifier

DEFAULT_LABEL = "default"
"""Label of PUBLISH_TOKEN."""
CLIENTS_LABEL = "clients"
"""Stands for all clients' tokens in metrics."""
BURST = 10.0
"""Seconds of its share that a writer may use at once."""
MAX_CLIENTS = 10_000
"""Writers whose budgets are known at once; the one that wrote last longest ago is forgotten."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A publisher."""

    label: str
    """Of its token; `CLIENTS_LABEL` for the token of a client."""
    user: str | None = None
    """The client's name."""
    types: frozenset[str] | None = None
    """Types that it may publish to; None: all."""

    @property
    def name(self) -> str:
        """How the log names it."""
        return self.label if self.user is None else f"user {self.user}"

    def check_type(self, type: object) -> None:
        """Make sure that it may publish to a type.

        Raises:
            ClientError: FORBIDDEN.
        """
        if self.types is not None and isinstance(type, str) and type not in self.types:
            raise ClientError(
                ErrorCode.FORBIDDEN, f"This token does not allow publishing to {type[:64]!r}."
            )


_IDENTIFIED: web.RequestKey[tuple[str | None, Writer | None]] = web.RequestKey("writer", tuple)
"""Where a request keeps its token and its publisher: the limits and the handler both ask."""


class Writers:
    """Knows the tokens and what their holders have left.

    Args:
        settings: of the service.
        verifier: of clients' tokens.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        verifier: TokenVerifier,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        tokens = [(token, label) for label, token in settings.publish_tokens]
        if settings.publish_token:
            tokens.append((settings.publish_token, DEFAULT_LABEL))
        self._tokens = [(token.encode(), Writer(label)) for token, label in tokens]
        self._verifier = verifier
        self._rate = float(settings.publish_rate_limit)
        self._clock = clock
        self._used: dict[str, tuple[float, float]] = {}
        """Messages that count still, and when that was so, by writer, the one that wrote last at the end."""

    def is_publisher(self, request: web.Request) -> bool:
        """Whether a request carries a publish token, as bearer token or as X-Publish-Token."""
        return self._identify(request)[1] is not None

    def publisher(self, headers: Mapping[str, str]) -> Writer | None:
        """The holder of the publish token in the headers of a request; None without a valid one."""
        token = _token(headers)
        return None if token is None else self._publisher(token)

    async def require(self, request: web.Request, *, clients: bool = False) -> Writer:
        """Identify the publisher, and make sure that it has not used up its budget.

        Args:
            request: with a token.
            clients: whether the tokens of clients count as well.

        Raises:
            HttpError: 403 when publishing is disabled, 401 for a missing or wrong token, 429.
            ClientError: UNAUTHORIZED, FORBIDDEN or SERVICE_UNAVAILABLE.
        """
        clients = clients and self._verifier.enabled
        if not self._tokens and not clients:
            message = "Publishing and operators' calls are disabled: PUBLISH_TOKEN is not set."
            raise HttpError(403, ErrorCode.FORBIDDEN, message, close=True)
        token, writer = self._identify(request)
        # What is no JWT is a publish token that is wrong, and is answered as one.
        if writer is None and token and clients and token.count(".") == 2:
            writer = await self._client(token)
        if writer is None:
            raise HttpError(
                401,
                ErrorCode.UNAUTHORIZED,
                "Send the publish token as 'Authorization: Bearer <token>'.",
                headers={"WWW-Authenticate": 'Bearer realm="publish"'},
                close=True,
            )
        self.check_budget(writer)
        return writer

    def charge(self, writer: Writer, messages: int) -> None:
        """Count messages that a writer sends."""
        if not self._rate:
            return
        used = self._now_used(writer) + messages
        self._used.pop(writer.name, None)
        if len(self._used) >= MAX_CLIENTS:
            del self._used[next(iter(self._used))]
        self._used[writer.name] = used, self._clock()

    def _now_used(self, writer: Writer) -> float:
        used, at = self._used.get(writer.name, (0.0, 0.0))
        return max(0.0, used - (self._clock() - at) * self._rate)

    def check_budget(self, writer: Writer) -> None:
        """Make sure that a writer has not used up its budget.

        Raises:
            HttpError: 429.
        """
        if not self._rate:
            return
        over = self._now_used(writer) - self._rate * BURST
        if over >= 0:
            raise HttpError(
                429,
                ErrorCode.RATE_LIMITED,
                "This token has published more than PUBLISH_RATE_LIMIT allows; try again later.",
                headers={"Retry-After": str(math.floor(over / self._rate) + 1)},
                close=True,
            )

    def _identify(self, request: web.Request) -> tuple[str | None, Writer | None]:
        """The token that a request carries and the publisher it belongs to, looked up once."""
        found = request.get(_IDENTIFIED)
        if found is None:
            token = _token(request.headers)
            writer = None if token is None else self._publisher(token)
            found = request[_IDENTIFIED] = token, writer
        return found

    def _publisher(self, token: str) -> Writer | None:
        shown = token.encode(errors="surrogateescape")
        found = None
        # All are compared, so that the time says nothing of the place of one.
        for expected, writer in self._tokens:
            if hmac.compare_digest(shown, expected):
                found = writer
        return found

    async def _client(self, token: str) -> Writer:
        identity = await self._verifier.verify_patiently(token)
        if identity.publish is not None and not identity.publish:
            message = "This token does not allow publishing: it has no 'publish' claim."
            raise ClientError(ErrorCode.FORBIDDEN, message)
        return Writer(CLIENTS_LABEL, identity.user, identity.publish)


def _token(headers: Mapping[str, str]) -> str | None:
    token = headers.get("X-Publish-Token")
    return bearer_token(headers) if token is None else token.strip()
