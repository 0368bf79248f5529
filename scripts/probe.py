"""Looks at a running service as its clients do, for the shell scripts.

    python -m scripts.probe http BASE          the HTTP API answers as it should
    python -m scripts.probe endpoints BASE     /ws/stats, /ws/queue and /ws/realtime are there
    python -m scripts.probe socket BASE        handshake, subscribe, and a message received
    python -m scripts.probe private BASE       /metrics and /hooks are not public
    python -m scripts.probe certificate BASE   the certificate is valid for some more days

One line says what was found. Exit codes: 0 good; 1 not.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ipaddress
import json
import os
import socket
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from app.command_line import make_parser
from app.config import load
from app.errors import ErrorCode, SettingsError
from workers.shared import paths

_TIMEOUT = 10.0
"""Seconds that one answer may take."""
_PAUSE = 0.3
"""Seconds until a publish that was refused for now is repeated."""
_FULL: Mapping[tuple[int, object], str] = {
    (503, ErrorCode.MAX_CONNECTIONS_EXCEEDED): "the service is full",
    (429, ErrorCode.MAX_CONNECTIONS_EXCEEDED): "this address has as many connections as it may",
}
"""How handshakes are refused by a service that is well."""


class Wrong(Exception):
    """The service is not as it should be; the message says what is wrong."""


class _Closed(Wrong):
    """It has closed the connection."""


class _NeedsToken(Wrong):
    """It asks for a client's token, as it should, and we have none."""


class Probe:
    """One service.

    Args:
        base: `http://` or `https://` and the host, as clients name it.
        connect: the address to connect to in place of what the name stands for.
        ca: file with the certificates of the authority to trust.
        origin: the page that the client comes from.
        client_token: of a client, where the service asks for one.
        publish_token: of a publisher; empty: the checks publish nothing.
    """

    def __init__(
        self,
        base: str,
        connect: str = "",
        ca: str = "",
        origin: str = "",
        client_token: str = "",
        publish_token: str = "",
    ) -> None:
        self._client_token = client_token
        self._publish_token = publish_token
        self.base = base.rstrip("/")
        self._connect = connect.strip("[]")
        self._tls = ssl.create_default_context(cafile=ca or None)
        self._headers = {"Origin": origin} if origin else {}
        self._url = self.base
        self._host: dict[str, str] = {}
        parts = urlsplit(self.base)
        if self._connect and _is_address(parts.hostname):
            # No resolver is asked for an address.
            if parts.scheme == "https":
                raise Wrong("--connect needs a base URL with a name, not an address")
            host = f"[{self._connect}]" if ":" in self._connect else self._connect
            self._url = f"http://{host}:{parts.port or 80}"
            self._host = {"Host": parts.netloc}

    def _session(self, *, as_page: bool = True) -> aiohttp.ClientSession:
        resolver = _Fixed(self._connect) if self._connect else None
        connector = aiohttp.TCPConnector(ssl=self._tls, resolver=resolver)
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(_refuse_redirect)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(_TIMEOUT),
            headers=self._host | (self._headers if as_page else {}),
            trace_configs=[tracing],
        )

    async def _json(
        self, http: aiohttp.ClientSession, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        async with http.get(self._url + path, headers=headers) as answer:
            try:
                body = await answer.json()
            except (aiohttp.ContentTypeError, ValueError):
                raise Wrong(f"{path} answers {answer.status} without JSON") from None
            if not isinstance(body, dict):
                raise Wrong(f"{path} answers {answer.status} with JSON that is no object")
            return answer.status, body

    async def http(self) -> str:
        """`GET /status` answers "ok", and errors are JSON."""
        async with self._session() as http:
            # Where clients need a token, strangers are not shown all.
            known = self._client_token or self._publish_token
            headers = {"Authorization": f"Bearer {known}"} if known else None
            status, body = await self._json(http, "/status", headers)
            if status != 200 or body.get("status") != "ok":
                raise Wrong(f"/status answers {status}, {_state(body)}")
            try:
                ready = sum(row["state"] == "ready" for row in body["workers"])
                found = (
                    f"version {body['version']}, {ready} workers, {body['connections']} connections"
                )
            except (KeyError, TypeError):
                raise Wrong("/status is that of another service: it names no workers") from None
            missing, error = await self._json(http, "/there-is-no-such-page")
            if missing != 404 or "code" not in error:
                raise Wrong(f"an unknown path answers {missing}: {error}")
        return found

    async def endpoints(self) -> str:
        """The socket's endpoint asks for an upgrade; its figures are there."""
        async with self._session() as http:
            for path, key in (("/ws/stats", "totalConnections"), ("/ws/queue", "length")):
                status, body = await self._json(http, path)
                if status != 200 or key not in body:
                    raise Wrong(f"{path} answers {status} without {key}")
            async with http.get(f"{self._url}/ws/realtime") as answer:
                if answer.status not in {400, 426}:
                    raise Wrong(f"/ws/realtime answers {answer.status} to a plain GET")
        return "/ws/realtime, /ws/stats, /ws/queue"

    async def socket(self, wait: float) -> str:
        """Subscribe, and receive a message: our own with a token, else any.

        A service that is full, or asks for a client's token that we do not have, refuses us as it
        should; our own message is looked for in its history then.
        """
        try:
            return await self._received(wait)
        except _NeedsToken:
            why = "clients need a token, and there is no AUTH_SECRET here to make one"
        except (aiohttp.WSServerHandshakeError, _Closed) as error:
            status, body = await self._refusal(as_page=False)
            if isinstance(error, aiohttp.WSServerHandshakeError) and status != error.status:
                status, body = await self._refusal(as_page=True)  # it is the page that is refused
            code = body.get("code")
            if (status, code) in _FULL:
                why = f"{_FULL[status, code]} ({code})"
            elif isinstance(error, _Closed):
                raise
            else:
                said = f" {code}: {body.get('error')}" if status == error.status and code else ""
                raise Wrong(f"the handshake is answered {error.status}{said}") from None
        return await self._published_unseen(f"no message was awaited: {why}")

    async def _received(self, wait: float) -> str:
        url = f"{self._url.replace('http', 'ws', 1)}/ws/realtime?types="
        headers = {"Authorization": f"Bearer {self._client_token}"} if self._client_token else {}
        async with (
            self._session() as http,
            http.ws_connect(url, timeout=_CLOSE, headers=headers) as ws,
        ):
            began = time.monotonic()
            ident = str(uuid.uuid4())
            types = ["system", "status", "stats", "health"]
            await ws.send_json({"id": ident, "action": "subscribe", "payload": {"types": types}})
            reply = await _receive(ws, lambda got: got.get("replyTo") == ident, _TIMEOUT)
            if reply.get("event") != "subscribed":
                data = reply.get("data")
                code = data.get("code") if isinstance(data, dict) else None
                if code == ErrorCode.UNAUTHORIZED and not self._client_token:
                    raise _NeedsToken
                raise Wrong(f"subscribe was answered {data}")
            if self._publish_token:
                sent = await self._publish(http)
                await _receive(
                    ws,
                    lambda got: got.get("type") == "system" and got.get("seq") == sent["seq"],
                    _TIMEOUT,
                )
                what = f"message system {sent['seq']} sent and received"
            else:
                got = await _receive(ws, lambda got: "seq" in got and "type" in got, wait)
                what = f"message {got['type']} {got['seq']} received"
            return f"{what}, {1000 * (time.monotonic() - began):.0f} ms in all"

    async def _refusal(self, *, as_page: bool) -> tuple[int, dict[str, Any]]:
        """The status and the JSON object with which a handshake is refused.

        Args:
            as_page: from the page's origin, as a browser: most are accepted, and then closed.
        """
        handshake = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        if self._client_token:
            handshake["Authorization"] = f"Bearer {self._client_token}"
        async with (
            self._session(as_page=as_page) as http,
            http.get(f"{self._url}/ws/realtime?types=", headers=handshake) as answer,
        ):
            body: Any = None
            if answer.status != 101:
                with contextlib.suppress(aiohttp.ClientError, ValueError):
                    body = await answer.json()
            return answer.status, body if isinstance(body, dict) else {}

    async def _published_unseen(self, found: str) -> str:
        if not self._publish_token:
            return found
        async with self._session() as http:
            sent = await self._publish(http)
            headers = {"Authorization": f"Bearer {self._publish_token}"}
            status, body = await self._json(http, "/history?type=system&limit=100", headers)
            try:
                is_there = any(message["seq"] == sent["seq"] for message in body["messages"])
            except (KeyError, TypeError):
                raise Wrong(f"/history answers {status} without messages") from None
            if not is_there:
                raise Wrong(f"message system {sent['seq']} was sent, and is not in the history")
        return f"{found}; message system {sent['seq']} sent, and found in the history"

    async def _publish(self, http: aiohttp.ClientSession) -> dict[str, Any]:
        message = {"type": "system", "event": "deployment_check", "data": {}, "priority": "low"}
        headers = {"Authorization": f"Bearer {self._publish_token}"}
        url = f"{self._url}/ws/broadcast"
        until = time.monotonic() + _TIMEOUT
        while True:
            async with http.post(url, json=message, headers=headers) as answer:
                if answer.status == 200:
                    sent = await answer.json()
                    if not isinstance(sent, dict) or "seq" not in sent:
                        raise Wrong("/ws/broadcast answers 200 without a seq")
                    return sent
                said = f"/ws/broadcast answers {answer.status}: {await answer.text()}"
                # Others may publish as much as they may, or a burst fill the queue.
                if answer.status not in {429, 503} or time.monotonic() > until:
                    raise Wrong(said)
            await asyncio.sleep(_PAUSE)

    async def private(self) -> str:
        """What is for operators is not there for the public."""
        async with self._session() as http:
            for path in ("/metrics", "/hooks/alertmanager"):
                async with http.get(self._url + path) as answer:
                    if answer.status != 404:
                        raise Wrong(f"{path} is public: it answers {answer.status}")
        return "/metrics and /hooks are not public"

    def certificate(self, days: float) -> str:
        """The certificate is trusted, of this name, and valid for `days` more."""
        parts = urlsplit(self.base)
        if parts.scheme != "https" or not parts.hostname:
            raise Wrong(f"{self.base} has no certificate")
        address = (self._connect or parts.hostname, parts.port or 443)
        with (
            socket.create_connection(address, _TIMEOUT) as raw,
            self._tls.wrap_socket(raw, server_hostname=parts.hostname) as tls,
        ):
            found = tls.getpeercert() or {}
        left = (ssl.cert_time_to_seconds(str(found["notAfter"])) - time.time()) / 86400
        text = f"valid for {left:.1f} days more, until {found['notAfter']}"
        if left < days:
            raise Wrong(f"{text}; at least {days:g} are wanted")
        return text


_CLOSE = aiohttp.ClientWSTimeout(ws_close=5)


async def _refuse_redirect(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    parameters: aiohttp.TraceRequestRedirectParams,
) -> None:
    """Clients of a WebSocket and publishers do not follow either.

    Raises:
        Wrong: always.
    """
    answer = parameters.response
    to = answer.headers.get("Location", "nowhere")
    raise Wrong(f"{parameters.url.path} answers {answer.status}, a redirect to {to}")


def _state(body: dict[str, Any]) -> str:
    """What the body of /status says is wrong."""
    found = f"status {body.get('status')!r}"
    causes = body.get("causes")
    if isinstance(causes, list) and causes:
        found += f": {'; '.join(map(str, causes))}"
    return found


async def _receive(
    ws: aiohttp.ClientWebSocketResponse, wanted: Callable[[dict[str, Any]], bool], timeout: float
) -> dict[str, Any]:
    """The first message that is wanted.

    Raises:
        Wrong: it does not come, or something else than messages does.
    """
    try:
        async with asyncio.timeout(timeout):
            async for frame in ws:
                try:
                    got = json.loads(frame.data)
                except (TypeError, ValueError):
                    got = None
                if not isinstance(got, dict):
                    raise Wrong(
                        "the WebSocket is that of another service: it sends no JSON objects"
                    )
                if wanted(got):
                    return got
    except TimeoutError:
        raise Wrong(f"nothing of what was waited for came within {timeout:g} s") from None
    raise _Closed(f"closed with {ws.close_code}")


def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


class _Fixed(AbstractResolver):
    """Sends every name to one address."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The one address."""
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=family,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is open."""


def tokens() -> tuple[str, str]:
    """Of a client, valid for a minute, and of a publisher, as far as the settings here have them.

    They are no arguments: every process could read those.
    """
    client, publisher = "", os.environ.get("PUBLISH_TOKEN", "")
    with contextlib.suppress(SettingsError):
        settings = load(os.environ, paths.home() / ".env")
        publisher = publisher or settings.publish_token
        if not publisher and settings.publish_tokens:
            publisher = settings.publish_tokens[0][1]
        if settings.auth_secret:
            # Here only, for it takes a quarter of the time of a probe.
            import jwt  # noqa: PLC0415

            claims: dict[str, Any] = {"sub": "deployment-check", "exp": int(time.time()) + 60}
            if settings.auth_audience:
                claims["aud"] = settings.auth_audience[0]
            if settings.auth_issuer:
                claims["iss"] = settings.auth_issuer[0]
            client = jwt.encode(claims, settings.auth_secret, "HS256")
    return client, publisher


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("python -m scripts.probe", __doc__)
    parser.add_argument(
        "check",
        choices=["http", "endpoints", "socket", "private", "certificate"],
        help="what to look at",
    )
    parser.add_argument("base", metavar="BASE", help="http(s)://host[:port], as clients name it")
    parser.add_argument(
        "--connect", default="", metavar="ADDRESS", help="connect to this address, not to BASE's"
    )
    parser.add_argument(
        "--ca", default="", metavar="FILE", help="certificates of the authority to trust"
    )
    parser.add_argument("--origin", default="", help="`Origin` of the page that a client is on")
    parser.add_argument(
        "--days",
        type=float,
        default=14,
        help="certificate: days for which it must be valid (default: 14)",
    )
    parser.add_argument(
        "--wait", type=float, default=35, help="socket: seconds for a message (default: 35)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one check; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        probe = Probe(options.base, options.connect, options.ca, options.origin, *tokens())
        if options.check == "certificate":
            found = probe.certificate(options.days)
        elif options.check == "socket":
            found = asyncio.run(probe.socket(options.wait))
        else:
            looks = {"http": probe.http, "endpoints": probe.endpoints, "private": probe.private}
            found = asyncio.run(looks[options.check]())
    except TimeoutError:
        print(f"{options.base} does not answer within {_TIMEOUT:g} s")
        return 1
    except (Wrong, OSError, aiohttp.ClientError, ValueError) as error:
        print(" ".join((str(error) or type(error).__name__).split()))
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
