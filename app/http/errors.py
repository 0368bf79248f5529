"""Errors as HTTP answers: `{"error": "...", "code": "..."}` with the right status, never a trace."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from app.errors import ClientError, ErrorCode, PresenceError
from app.http.clients import Clients
from app.http.cors import Hosts, Origins
from app.protocol.envelope import encode_json
from app.protocol.http_answers import JSON_HEADERS

logger = logging.getLogger(__name__)

RETRY_AFTER = 1
"""Seconds after which a publisher may try again."""

_BY_STATUS = {code.status: code for code in ErrorCode if code.is_http_only} | {
    403: ErrorCode.FORBIDDEN,
    503: ErrorCode.SERVICE_UNAVAILABLE,
}

_KEPT_HEADERS = ("Allow", "Location")


class HttpError(PresenceError):
    """An HTTP answer with a status of 400 or more.

    Args:
        status: the HTTP status.
        code: the kind of error, for programs.
        message: the cause and the remedy, for people.
        headers: further headers of the answer.
        close: whether the connection is closed after the answer.
    """

    def __init__(
        self,
        status: int,
        code: ErrorCode,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.close = close

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without a change by the client."""
        return self.code.retryable or "Retry-After" in self.headers

    @classmethod
    def of(cls, error: ClientError) -> HttpError:
        """The answer to a call that failed with `error`."""
        status = error.code.status
        headers = {}
        if status in {429, 503}:
            headers["Retry-After"] = str(RETRY_AFTER)
        elif status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return cls(status, error.code, error.message, headers=headers)


def json_response(value: Any, status: int = 200) -> web.Response:
    """Answer with a JSON value that must not be cached."""
    return raw_json_response(encode_json(value), status)


def raw_json_response(body: bytes, status: int = 200) -> web.Response:
    """Answer with encoded JSON."""
    return web.Response(body=body + b"\n", status=status, headers=JSON_HEADERS)


def error_middleware(
    clients: Clients,
    origins: Origins,
    count: Callable[[str, str, int], None],
    hosts: Hosts,
    note_refused: Callable[[str, str | None], object],
) -> Middleware:
    """The middleware that answers errors, and OPTIONS for every route.

    Args:
        clients: gives requests their ids.
        origins: answers preflights.
        count: called with route, method and status of each answer.
        hosts: accepted names.
        note_refused: called with a reason and the Origin header of each request that is refused
            for its host.
    """

    def check_host(request: web.Request) -> None:
        if not hosts.allows(request):
            note_refused("host", request.headers.get("Origin"))
            message = "This host is not allowed; see ALLOWED_HOSTS."
            raise HttpError(403, ErrorCode.FORBIDDEN, message, close=True)

    @web.middleware
    async def answer_errors(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            check_host(request)
            response = await handler(request)
        except (HttpError, ClientError) as error:
            # The frames of its traceback may hold the error, in a cycle with the body of the request.
            error.with_traceback(None)
            response = _respond(HttpError.of(error) if isinstance(error, ClientError) else error)
        except web.HTTPMethodNotAllowed as error:
            response = _refuse_method(error, request, origins)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            response = _respond(_explain(error, _describe(error, request)))
        except Exception:
            id = clients.request_id(request)
            logger.exception("%s %s failed", request.method, _path(request), extra={"request": id})
            message = f"An internal error occurred; the log has details under {id}."
            response = _respond(HttpError(500, ErrorCode.INTERNAL_ERROR, message))
        if logger.isEnabledFor(logging.DEBUG):
            id = clients.request_id(request)
            logger.debug(
                "%s %s: %d", request.method, _path(request), response.status, extra={"request": id}
            )
        resource = request.match_info.route.resource
        count(resource.canonical if resource else "none", request.method, response.status)
        return response

    return answer_errors


def _path(request: web.Request) -> str:
    """The path as it was sent, without the query: it has no blanks, and no secrets."""
    return request.raw_path.partition("?")[0]


def error_body(error: HttpError) -> bytes:
    """What an answer with an error says, as JSON."""
    return encode_json({"error": error.message, "code": error.code})


def _respond(error: HttpError) -> web.Response:
    response = raw_json_response(error_body(error), error.status)
    response.headers.update(error.headers)
    if error.close:
        response.force_close()
    return response


def _refuse_method(
    error: web.HTTPMethodNotAllowed, request: web.Request, origins: Origins
) -> web.Response:
    methods = ", ".join(sorted({*error.allowed_methods, "OPTIONS"}))
    if request.method == "OPTIONS":
        return origins.answer_options(request, methods)
    refused = _explain(error, f"Use {methods} for this path.")
    refused.headers["Allow"] = methods
    return _respond(refused)


def _explain(error: web.HTTPException, message: str) -> HttpError:
    kept = {name: error.headers[name] for name in _KEPT_HEADERS if name in error.headers}
    if error.status == 413:
        return HttpError(413, ErrorCode.MESSAGE_TOO_LARGE, message, close=True)
    code = _BY_STATUS.get(error.status)
    if code is None:  # aiohttp raises no others by itself
        code = ErrorCode.BAD_REQUEST if error.status < 500 else ErrorCode.INTERNAL_ERROR
    return HttpError(error.status, code, message, headers=kept)


def _describe(error: web.HTTPException, request: web.Request) -> str:
    if error.status == 404:
        return f"The path {request.path[:100]} does not exist."
    if error.status == 413:
        return "The request is too large."
    return HTTPStatus(error.status).description or HTTPStatus(error.status).phrase
