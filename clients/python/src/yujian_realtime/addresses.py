"""Addresses of a service, as people write them."""

from __future__ import annotations

import re

from yarl import URL

DEFAULT = "http://127.0.0.1:3001"
SOCKET_PATH = "/ws/realtime"
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def base_url(text: str) -> URL:
    """The address of a service for HTTP, without a path unless it is served under one.

    Args:
        text: `http(s)` or `ws(s)`, with or without `/ws/realtime`; or just `host:port`. A query is not read.

    Raises:
        ValueError: it is no address.
    """
    url = _parse(text)
    path = url.path.rstrip("/")
    return url.with_path(path.removesuffix(SOCKET_PATH) or "/")


def socket_url(text: str) -> URL:
    """The address of the WebSocket endpoint, `/ws/realtime` beside the paths for HTTP.

    Raises:
        ValueError: it is no address.
    """
    url = base_url(text)
    return url.joinpath(SOCKET_PATH[1:]).with_scheme("wss" if url.scheme == "https" else "ws")


def _parse(text: str) -> URL:
    text = text.strip()
    if not re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        text = f"http://{text}"
    try:
        url = URL(text)
        scheme = _SCHEMES.get(url.scheme)
        if scheme is None or not url.host:
            raise ValueError
        _ = url.port  # a port that is no number raises here
    except ValueError:
        raise ValueError(
            f"{text!r} is no address of a service: write http://host:port or wss://host"
        ) from None
    return URL.build(
        scheme=scheme,
        user=url.user,
        password=url.password,
        host=url.host,
        port=url.explicit_port,
        path=url.path or "/",
    )
