"""The page at `/`: files that `npm run build` wrote to app/page, with the headers that they need.

All of them, some 400 KB, are read once and answered from memory. `index.html` is asked for anew
each time (304 when it is the same); what it loads bears a hash in its name and is kept for a year.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from app.errors import ErrorCode
from app.http.errors import HttpError, json_response
from app.http.files import ENCODINGS, File, weights

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
    "events": "/events?types=status",
    "status": "/status",
    "stats": "/stats",
    "series": "/stats/series?range=15m",
    "history": "/history?type=status",
    "connections": "/ws/stats",
    "openConnections": "/connections",
    "users": "/connections/users",
    "queue": "/ws/queue",
    "publish": "/ws/broadcast",
    "alertmanager": "/hooks/alertmanager",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
    "asyncapi": "/asyncapi.json",
}


class PageFiles:
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
        caching = _FOR_GOOD if name.startswith("assets/") else _ASKED_ANEW
        vary = "Accept, Accept-Encoding" if name == "index.html" else "Accept-Encoding"
        return file.answer(request, {**_HEADERS, "Cache-Control": caching}, vary)


def _read(root: Path) -> dict[str, File]:
    files: dict[str, File] = {}
    endings = tuple(ending for _, ending in ENCODINGS)
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name.endswith(endings):
            continue
        name = path.relative_to(root).as_posix()
        bodies = {"identity": path.read_bytes()}
        for encoding, ending in ENCODINGS:
            packed = path.with_name(path.name + ending)
            if packed.is_file():
                bodies[encoding] = packed.read_bytes()
        type = _TYPES.get(path.suffix, "application/octet-stream")
        files[name] = File.of(type, bodies)
    return files


def _prefers_json(accept: str) -> bool:
    """Whether a client asks for JSON rather than for a page; one that takes anything does not."""
    choices = weights(accept)
    anything = choices.get("*/*", 0.0 if accept else 1.0)
    page = max(choices.get("text/html", 0.0), choices.get("text/*", 0.0), anything)
    exact = choices.get("application/json", 0.0)
    return exact > 0 and exact >= page if "text/html" not in choices else exact > page
