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
import json
import os
import socket
import ssl
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

_FULL = "MAX_CONNECTIONS_EXCEEDED"
_TIMEOUT = 10.0
"""Seconds that one answer may take."""


class Wrong(Exception):
    """The service is not as it should be; the message says what is wrong."""


class Probe:
    """One service.

    Args:
        base: `http://` or `https://` and the host, as clients name it.
        connect: the address to connect to in place of what the name stands for.
        ca: file with the certificates of the authority to trust.
        origin: the page that the client comes from.
    """

    def __init__(self, base: str, connect: str = "", ca: str = "", origin: str = "") -> None:
        self.base = base.rstrip("/")
        self._connect = connect.strip("[]")
        self._tls = ssl.create_default_context(cafile=ca or None)
        self._headers = {"Origin": origin} if origin else {}

    def _session(self) -> aiohttp.ClientSession:
        resolver = _Fixed(self._connect) if self._connect else None
        connector = aiohttp.TCPConnector(ssl=self._tls, resolver=resolver)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(_TIMEOUT),
            headers=self._headers,
        )

    async def _json(self, http: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
        async with http.get(self.base + path) as answer:
            try:
                return answer.status, await answer.json()
            except (aiohttp.ContentTypeError, ValueError):
                raise Wrong(f"{path} answers {answer.status} without JSON") from None

    async def http(self) -> str:
        """`GET /status` answers "ok", and errors are JSON."""
        async with self._session() as http:
            status, body = await self._json(http, "/status")
            if status != 200 or body.get("status") != "ok":
                raise Wrong(f"/status answers {status}, status {body.get('status')!r}")
            ready = sum(row["state"] == "ready" for row in body["workers"])
            missing, error = await self._json(http, "/there-is-no-such-page")
            if missing != 404 or "code" not in error:
                raise Wrong(f"an unknown path answers {missing}: {error}")
        return f"version {body['version']}, {ready} workers, {body['connections']} connections"

    async def endpoints(self) -> str:
        """The socket's endpoint asks for an upgrade; its figures are there."""
        async with self._session() as http:
            for path, key in (("/ws/stats", "totalConnections"), ("/ws/queue", "length")):
                status, body = await self._json(http, path)
                if status != 200 or key not in body:
                    raise Wrong(f"{path} answers {status} without {key}")
            async with http.get(f"{self.base}/ws/realtime") as answer:
                if answer.status not in {400, 426}:
                    raise Wrong(f"/ws/realtime answers {answer.status} to a plain GET")
        return "/ws/realtime, /ws/stats, /ws/queue"

    async def socket(self, token: str, wait: float) -> str:
        """Subscribe, and receive a message: our own with a token, else any.

        A service that is full refuses us as it should; our own message is looked for in its history then.
        """
        try:
            return await self._received(token, wait)
        except aiohttp.WSServerHandshakeError as error:
            if error.status != 503 or not await self._is_full():
                raise
        return await self._published_while_full(token)

    async def _received(self, token: str, wait: float) -> str:
        url = f"{self.base.replace('http', 'ws', 1)}/ws/realtime?types="
        async with self._session() as http, http.ws_connect(url, timeout=_CLOSE) as ws:
            began = time.monotonic()
            ident = str(uuid.uuid4())
            types = ["system", "status", "stats", "health"]
            await ws.send_json({"id": ident, "action": "subscribe", "payload": {"types": types}})
            reply = await _receive(ws, lambda got: got.get("replyTo") == ident, _TIMEOUT)
            if reply["event"] != "subscribed":
                raise Wrong(f"subscribe was answered {reply['data']}")
            if token:
                sent = await self._publish(http, token)
                await _receive(
                    ws,
                    lambda got: got["type"] == "system" and got.get("seq") == sent["seq"],
                    _TIMEOUT,
                )
                what = f"message system {sent['seq']} sent and received"
            else:
                got = await _receive(ws, lambda got: "seq" in got, wait)
                what = f"message {got['type']} {got['seq']} received"
            return f"{what}, {1000 * (time.monotonic() - began):.0f} ms in all"

    async def _is_full(self) -> bool:
        """Whether a handshake is refused because there are as many connections as may be."""
        handshake = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        async with (
            self._session() as http,
            http.get(f"{self.base}/ws/realtime?types=", headers=handshake) as answer,
        ):
            if answer.status != 503:
                return False
            try:
                body = await answer.json()
            except (aiohttp.ContentTypeError, ValueError):
                return False
            return isinstance(body, dict) and body.get("code") == _FULL

    async def _published_while_full(self, token: str) -> str:
        found = f"no handshake: the service is full ({_FULL})"
        if not token:
            return found
        async with self._session() as http:
            sent = await self._publish(http, token)
            _, body = await self._json(http, "/history?type=system&limit=100")
            if sent["seq"] not in [message["seq"] for message in body["messages"]]:
                raise Wrong(f"message system {sent['seq']} was sent, and is not in the history")
        return f"{found}; message system {sent['seq']} sent, and found in the history"

    async def _publish(self, http: aiohttp.ClientSession, token: str) -> dict[str, Any]:
        message = {"type": "system", "event": "deployment_check", "data": {}, "priority": "low"}
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self.base}/ws/broadcast"
        async with http.post(url, json=message, headers=headers) as answer:
            if answer.status != 200:
                raise Wrong(f"/ws/broadcast answers {answer.status}: {await answer.text()}")
            sent: dict[str, Any] = await answer.json()
            return sent

    async def private(self) -> str:
        """What is for operators is not there for the public."""
        async with self._session() as http:
            for path in ("/metrics", "/hooks/alertmanager"):
                async with http.get(self.base + path) as answer:
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


async def _receive(ws: aiohttp.ClientWebSocketResponse, wanted: Any, timeout: float) -> Any:
    try:
        async with asyncio.timeout(timeout):
            async for frame in ws:
                got = json.loads(frame.data)
                if wanted(got):
                    return got
    except TimeoutError:
        raise Wrong(f"nothing of what was waited for came within {timeout:g} s") from None
    raise Wrong(f"closed with {ws.close_code}")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one check; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("check", choices=["http", "endpoints", "socket", "private", "certificate"])
    parser.add_argument("base")
    parser.add_argument("--connect", default="", metavar="ADDRESS")
    parser.add_argument("--ca", default="", metavar="FILE")
    parser.add_argument("--origin", default="")
    parser.add_argument("--days", type=float, default=14)
    parser.add_argument("--wait", type=float, default=35, help="seconds for a message")
    options = parser.parse_args(arguments)
    try:
        probe = Probe(options.base, options.connect, options.ca, options.origin)
        if options.check == "certificate":
            found = probe.certificate(options.days)
        elif options.check == "socket":
            # Not as an argument: every process could read it.
            token = os.environ.get("PUBLISH_TOKEN", "")
            found = asyncio.run(probe.socket(token, options.wait))
        else:
            looks = {"http": probe.http, "endpoints": probe.endpoints, "private": probe.private}
            found = asyncio.run(looks[options.check]())
    except TimeoutError:
        print(f"no answer within {_TIMEOUT:g} s")
        return 1
    except (Wrong, OSError, aiohttp.ClientError, KeyError, ValueError) as error:
        print(" ".join((str(error) or type(error).__name__).split()))
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
