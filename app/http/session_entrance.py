"""What requests that become sessions have in common: admission, the socket, and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web

from app.errors import ErrorCode
from app.http.admission import Admission, Admitted, Refused
from app.http.cors import Hosts
from app.http.request_head import Parsed, UpgradeHead
from app.sessions.context import SessionContext
from app.sessions.session import Session
from app.sessions.token_keys import KeysUnavailable
from app.transport.door import Passed
from app.transport.http_connection import HttpConnection
from app.transport.takeover import detach

AdmittedT = TypeVar("AdmittedT")

logger = logging.getLogger("realtime.connection")


@dataclass(frozen=True, slots=True)
class Gate:
    """What every entrance asks before it begins a session."""

    context: SessionContext
    """The parts of this worker."""
    admission: Admission
    """Decides which clients may connect."""
    hosts: Hosts
    """Which names are served, where no middleware has looked at that."""
    most: Callable[[], int]
    """Gives the number that a descriptor of a connection is below; the others are kept for what
    must go on when descriptors are short."""
    count_request: Callable[[str, str, int], None]
    """Counts an answer by route, method and status: that of a client which comes in without a
    request of aiohttp's."""


class SessionEntrance:
    """Begins sessions on the sockets of HTTP requests."""

    def __init__(self, gate: Gate) -> None:
        self._context = gate.context
        self._admission = gate.admission
        self._hosts = gate.hosts
        self._most = gate.most
        self._count_request = gate.count_request

    def _parse(
        self, parse: Callable[[bytes, str | None], Parsed | None], data: bytes, peer: str | None
    ) -> Parsed | None:
        """The first request of a connection; None: not an ordinary one, or to a host that is not served."""
        parsed = parse(data, peer)
        return parsed if parsed is not None and self._hosts.allows(parsed.head) else None

    def _check(
        self, check: Callable[[UpgradeHead], AdmittedT], head: UpgradeHead
    ) -> AdmittedT | Passed:
        """Let a request in at the door; one that is refused is answered by aiohttp, the one way to do so."""
        try:
            return check(head)
        except (Refused, KeysUnavailable) as refused:
            return Passed(refused.with_traceback(None))

    async def _admit(self, request: web.Request, check: Callable[..., AdmittedT]) -> AdmittedT:
        """Let a request in, after the fetch of keys that its token may need; a refusal is logged.

        Args:
            request: which may have been refused at the door.
            check: of the admission.

        Raises:
            Refused: nothing is reserved.
        """
        try:
            try:
                connection = request.protocol
                if isinstance(connection, HttpConnection) and (known := connection.take_refusal()):
                    raise known
                return check(request)
            except KeysUnavailable as unavailable:
                await self._context.verifier.settle(unavailable)
                return check(request, again=True)
        except Refused as refused:
            self._context.refusals.log(
                refused.reason, request.headers.get("Origin"), refused.message
            )
            raise

    def _take_socket(self, request: web.Request, admitted: Admitted) -> tuple[int, bytes]:
        """Take the socket of a request that was let in; see `detach`.

        Raises:
            ConnectionResetError: the client is gone, and what was reserved for it is given back.
            Refused: descriptors are short; the same.
        """
        try:
            return detach(request, self._most())
        except ConnectionResetError:
            self._admission.give_back(admitted)
            raise
        except OSError:
            self._admission.give_back(admitted)
            self._context.refusals.note("descriptors")
            raise Refused(
                503,
                ErrorCode.MAX_CONNECTIONS_EXCEEDED,
                "The server has no free file descriptors; try again later.",
                "descriptors",
                retry_after=5,
            ) from None

    def _begin_session(
        self, session: Session, admitted: Admitted, start: Callable[[], None]
    ) -> None:
        """Give a session to the hub, which starts it.

        Raises:
            OSError: the hub does not take its descriptor; what was reserved for it is given back.
        """
        try:
            self._context.hub.begin(session, start)
        except OSError:
            self._admission.give_back(admitted)
            raise


def log_opened(session: Session, address: str) -> None:
    """Write the line of a new connection, at the level of debugging."""
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug(
            "Opened", extra={"connection": session.id, "user": session.user, "peer": address}
        )
