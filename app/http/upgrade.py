"""`/ws/realtime`: from an HTTP request to a session on a connection of its own."""

from __future__ import annotations

import asyncio
import functools
import os

from aiohttp import web

from app.errors import CloseCode
from app.http.admission import Admitted, Refused, choose_subprotocol
from app.http.familiar import Familiar
from app.http.request_head import PATH, UpgradeHead, parse_upgrade
from app.http.session_entrance import Gate, SessionEntrance, log_opened
from app.protocol.deflate import answer, negotiate
from app.protocol.envelope import connection_id
from app.sessions.deflated import session_class
from app.sessions.plain import PlainSession
from app.sessions.refused import Refuser
from app.sessions.retry import retry_reason
from app.sessions.socketio.session import SocketIOSession
from app.transport.door import PASSED, Passed
from app.transport.takeover import DetachedResponse, detach, handshake_response


class Upgrade(SessionEntrance):
    """Handles upgrade requests.

    Args:
        familiar: knows the header fields that most clients send.
    """

    def __init__(self, gate: Gate, familiar: Familiar) -> None:
        super().__init__(gate)
        self._familiar = familiar
        self._deflates = gate.context.settings.deflate
        self._refuser = Refuser(gate.context.hub, gate.context.open_packet)

    def add_routes(self, app: web.Application) -> None:
        """Serve the path with and without a trailing slash; other methods get an error."""
        for path in (PATH, PATH + "/"):
            app.router.add_route("*", path, self.handle)

    def enter(self, fd: int, peer: str, data: bytes) -> Passed | None:
        """Begin a session at once if an ordinary upgrade request is admitted; see `Entrance`."""
        if fd >= self._most():
            return PASSED
        head: UpgradeHead | None = self._familiar.parse(data, peer)
        rest = b""
        is_familiar = head is not None
        if head is None:
            parsed = self._parse(parse_upgrade, data, peer)
            if parsed is None:
                return PASSED
            head, rest = parsed
        admitted = self._check(self._admission.check, head)
        if isinstance(admitted, Passed):
            return admitted
        if not (is_familiar or rest):
            self._familiar.remember(data, head)
        self._count_request(PATH, "GET", 101)
        self._begin(head, admitted, fd, rest)
        return None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Admit a client, take its socket over and begin its session.

        Raises:
            Refused: with the status and the reason.
        """
        try:
            admitted = await self._admit(request, self._admission.check)
        except Refused as refused:
            origin = request.headers.get("Origin")
            if origin is None or refused.close_code is None:
                raise
            return self._refuse(request, refused, refused.close_code)
        try:
            fd, received = self._take_socket(request, admitted)
        except ConnectionResetError:
            return DetachedResponse(status=499)
        try:
            self._begin(request, admitted, fd, received)
        except OSError:
            os.close(fd)
            raise
        return DetachedResponse(status=101)

    def _refuse(
        self, request: web.Request, refused: Refused, code: CloseCode
    ) -> web.StreamResponse:
        """Let a page see why it is refused, unless there are too many at once.

        Raises:
            Refused: there are.
        """
        if not self._refuser.has_room(asyncio.get_running_loop().time()):
            raise refused
        try:
            fd, _ = detach(request, self._most())
        except ConnectionResetError:
            return DetachedResponse(status=499)
        except OSError:
            raise refused from None
        retry = refused.retry_after
        reason = refused.message if retry is None else retry_reason(retry * 1000)
        key = request.headers["Sec-WebSocket-Key"].strip()
        self._refuser.refuse(
            fd,
            handshake_response(key, choose_subprotocol(request)),
            refused.protocol,
            (code, reason),
            (refused.code, refused.message),
        )
        return DetachedResponse(status=101)

    def _begin(
        self, request: web.Request | UpgradeHead, admitted: Admitted, fd: int, received: bytes
    ) -> None:
        context = self._context
        session: PlainSession | SocketIOSession
        handshake = admitted.handshake
        assert handshake is not None
        bits = negotiate(handshake.offers) if self._deflates else None
        if admitted.protocol == "plain":
            session = session_class(PlainSession, bits)(context, fd, connection_id(), admitted.user)
        else:
            session = session_class(SocketIOSession, bits)(
                context, fd, connection_id(), admitted.user
            )
            if context.keeps_environ:
                session.keep_environ(make_environ(request, admitted.address))
        extension = None if bits is None else answer(bits)
        response = handshake_response(handshake.key, handshake.subprotocol, extension)
        start = functools.partial(self._start, session, admitted, response, received)
        self._begin_session(session, admitted, start)

    def _start(
        self,
        session: PlainSession | SocketIOSession,
        admitted: Admitted,
        response: bytes,
        received: bytes,
    ) -> None:
        """Answer the handshake, and begin the session with what came behind it."""
        context = self._context
        session.send(response)
        if context.addresses is not None:
            context.addresses.hold(session, admitted.address)
        if isinstance(session, PlainSession):
            session.begin(admitted.identity, admitted.options)
        else:
            if admitted.identity is not None:
                session.authenticated(admitted.identity)
            session.begin(admitted.options)
        log_opened(session, admitted.address)
        if received:
            session.receive(received)


def make_environ(request: web.Request | UpgradeHead, address: str) -> dict[str, object]:
    """The request as handlers of python-socketio expect it, in plain values (PEP 3333)."""
    environ: dict[str, object] = {
        "REQUEST_METHOD": request.method,
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query_string,
        "RAW_URI": request.raw_path,
        "SERVER_PROTOCOL": f"HTTP/{request.version.major}.{request.version.minor}",
        "REMOTE_ADDR": address,
        "wsgi.url_scheme": request.scheme,
    }
    for name, value in request.headers.items():
        key = "HTTP_" + name.upper().replace("-", "_")
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ
