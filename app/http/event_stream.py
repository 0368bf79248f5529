"""`GET /events`: from an HTTP request to a session of server-sent events on a connection of its own."""

from __future__ import annotations

import functools
import os

from aiohttp import web

from app.errors import ClientError, CloseCode
from app.http.admission import Admitted, Refused
from app.http.cors import Origins, is_browser
from app.http.request_head import EVENTS_PATH, RequestHead, parse_events
from app.http.session_entrance import Gate, SessionEntrance, log_opened
from app.protocol import http_answers
from app.protocol.envelope import connection_id
from app.protocol.offsets import decode_offset
from app.sessions.event_stream import EventStreamSession, error_event, last_event
from app.sessions.retry import retry_reason
from app.sessions.session import Opening
from app.transport.door import PASSED, Passed
from app.transport.takeover import DetachedResponse


class EventStream(SessionEntrance):
    """Handles requests for server-sent events.

    Args:
        gate: what every entrance asks.
        origins: let pages of other origins read the stream.
    """

    def __init__(self, gate: Gate, origins: Origins) -> None:
        super().__init__(gate)
        self._origins = origins

    def add_routes(self, app: web.Application) -> None:
        """Serve the path with and without a trailing slash, by GET and HEAD."""
        for path in (EVENTS_PATH, EVENTS_PATH + "/"):
            app.router.add_get(path, self.handle)

    def enter(self, fd: int, peer: str, data: bytes) -> Passed | None:
        """Begin a session at once if an ordinary request is admitted; see `Entrance`."""
        parsed = self._parse(parse_events, data, peer) if fd < self._most() else None
        if parsed is None:
            return PASSED
        found = self._check(self._admission.check_events, parsed.head)
        if isinstance(found, Passed):
            return found
        admitted, last_id = found
        self._count_request(EVENTS_PATH, "GET", 200)
        self._begin(parsed.head, admitted, last_id, fd)
        return None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Admit a client, take its socket over and begin its session.

        Raises:
            Refused: with the status and the reason.
        """
        try:
            admitted, last_id = await self._admit(request, self._admission.check_events)
            if request.method == "HEAD":
                self._admission.give_back(admitted)
                return web.StreamResponse(
                    headers={**http_answers.STREAM_HEADERS, **self._origins.of_stream(request)}
                )
            fd, _ = self._take_socket(request, admitted)
        except ConnectionResetError:
            return DetachedResponse(status=499)
        except Refused as refused:
            if refused.retry_after is None or not is_browser(request):
                raise
            return self._come_back(request, refused, refused.retry_after)
        try:
            self._begin(request, admitted, last_id, fd)
        except OSError:
            os.close(fd)
            raise
        return DetachedResponse(status=200)

    def _begin(self, request: RequestHead, admitted: Admitted, last_id: str, fd: int) -> None:
        context = self._context
        session = EventStreamSession(context, fd, connection_id(), admitted.user)
        start = functools.partial(self._start, session, request, admitted, last_id)
        self._begin_session(session, admitted, start)

    def _start(
        self, session: EventStreamSession, request: RequestHead, admitted: Admitted, last_id: str
    ) -> None:
        """Begin a session."""
        context = self._context
        if context.addresses is not None:
            context.addresses.hold(session, admitted.address)
        cors = self._origins.of_stream(request)
        head = http_answers.head(200, {**http_answers.STREAM_HEADERS, **cors})
        session.begin(
            Opening(head, cors, is_browser(request)),
            admitted.identity,
            admitted.options,
            decode_offset(last_id),
        )
        log_opened(session, admitted.address)

    def _come_back(self, request: web.Request, refused: Refused, seconds: int) -> web.Response:
        """A stream that ends at once: after any other status a browser does not come back."""
        error = ClientError(refused.code, refused.message)
        code = refused.close_code or CloseCode.TRY_AGAIN_LATER
        response = web.Response(
            body=error_event(error) + last_event(code, retry_reason(seconds * 1000)),
            headers={**http_answers.STREAM_HEADERS, **self._origins.of_stream(request)},
        )
        response.force_close()
        return response
