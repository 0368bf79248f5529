"""The page at `/`: files that `npm run build` wrote to app/page, with the headers that they need.

All of them, some 400 KB, are read once and answered from memory. `index.html` is asked for anew
each time (304 when it is the same); what it loads bears a hash in its name and is kept for a year.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from app.errors import ErrorCode
from app.http.errors import HttpError, json_response

ROOT = Path(__file__).resolve().parents[1] / "page"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""Content-Security-Policy: nothing inline, nothing from elsewhere. `'self'` includes the socket."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ASKED_ANEW = "no-cache"
_FOR_GOOD = "public, max-age=31536000, immutable"
_ENCODINGS = (("br", ".br"), ("gzip", ".gz"))
"""In the order of preference, with the endings of their files."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}

LINKS: Mapping[str, str] = {
    "page": "/",
    "socket": "/ws/realtime",
    "status": "/status",
    "stats": "/stats",
    "series": "/stats/series?range=15m",
    "history": "/history?type=status",
    "connections": "/ws/stats",
    "queue": "/ws/queue",
    "publish": "/ws/broadcast",
    "alertmanager": "/hooks/alertmanager",
    "metrics": "/metrics",
}


@dataclass(frozen=True, slots=True)
class _File:
    """One file and its compressed forms."""

    type: str
    caching: str
    bodies: Mapping[str, bytes]
    """By encoding; `identity` is always there."""
    tags: Mapping[str, str]
    """Entity tags by encoding."""


class Page:
    """Serves the files under `root`.

    Args:
        root: what the build wrote.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._files = _read(root)

    def add_routes(self, app: web.Application, version: str) -> None:
        """Serve `/` and all that the page loads; nothing where the files are missing.

        Args:
            app: gets the routes.
            version: of the service, for the answer in JSON.
        """
        if "index.html" not in self._files:
            return

        async def root(request: web.Request) -> web.Response:
            if _prefers_json(request.headers.get("Accept", "")):
                links = {"name": "Yujian Presence", "version": version, "links": dict(LINKS)}
                response = json_response(links)
                response.headers["Vary"] = "Accept"
                return response
            return self._answer(request, "index.html")

        async def asset(request: web.Request) -> web.Response:
            return self._answer(request, request.path[1:])

        async def config(_: web.Request) -> web.Response:
            # Caddy's site of the page answers the address of the service here.
            return json_response({"api": ""})

        app.router.add_get("/", root)
        app.router.add_get("/config.json", config)
        app.router.add_get("/assets/{name}", asset)
        for name in self._files:
            if "/" not in name and name != "index.html":
                app.router.add_get(f"/{name}", asset)

    def _answer(self, request: web.Request, name: str) -> web.Response:
        file = self._files.get(name)
        if file is None:
            raise HttpError(
                404, ErrorCode.NOT_FOUND, f"The path {request.path[:100]} does not exist."
            )
        encoding = _choose(request.headers.get("Accept-Encoding", ""), file.bodies)
        tag = file.tags[encoding]
        headers = {
            **_HEADERS,
            "Cache-Control": file.caching,
            "ETag": tag,
            "Vary": "Accept, Accept-Encoding" if name == "index.html" else "Accept-Encoding",
        }
        known = request.headers.get("If-None-Match", "")
        if known.strip() == "*" or tag in (each.strip() for each in known.split(",")):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = file.type
        if encoding != "identity":
            headers["Content-Encoding"] = encoding
        return web.Response(body=file.bodies[encoding], headers=headers)


def _read(root: Path) -> dict[str, _File]:
    files: dict[str, _File] = {}
    endings = tuple(ending for _, ending in _ENCODINGS)
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name.endswith(endings):
            continue
        name = path.relative_to(root).as_posix()
        bodies = {"identity": path.read_bytes()}
        for encoding, ending in _ENCODINGS:
            packed = path.with_name(path.name + ending)
            if packed.is_file():
                bodies[encoding] = packed.read_bytes()
        digest = hashlib.blake2b(bodies["identity"], digest_size=12).hexdigest()
        type = _TYPES.get(path.suffix, "application/octet-stream")
        files[name] = _File(
            type,
            _FOR_GOOD if name.startswith("assets/") else _ASKED_ANEW,
            bodies,
            {encoding: f'"{digest}-{encoding}"' for encoding in bodies},
        )
    return files


def _choose(accepted: str, bodies: Mapping[str, bytes]) -> str:
    """The best encoding that is there and that the client takes (RFC 9110 section 12.5.3)."""
    weights = _weights(accepted)
    for encoding, _ in _ENCODINGS:
        if encoding in bodies and weights.get(encoding, weights.get("*", 0.0)) > 0:
            return encoding
    return "identity"


def _prefers_json(accept: str) -> bool:
    """Whether a client asks for JSON rather than for a page; one that takes anything does not."""
    weights = _weights(accept)
    anything = weights.get("*/*", 0.0 if accept else 1.0)
    page = max(weights.get("text/html", 0.0), weights.get("text/*", 0.0), anything)
    exact = weights.get("application/json", 0.0)
    return exact > 0 and exact >= page if "text/html" not in weights else exact > page


def _weights(header: str) -> dict[str, float]:
    """The choices of an Accept header with their weights, 0 to 1."""
    weights: dict[str, float] = {}
    for item in header.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = min(max(float(parameter[2:]), 0.0), 1.0)
                except ValueError:
                    weight = 0.0
        if name:
            weights[name] = weight
    return weights
