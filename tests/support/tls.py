"""TLS before servers that have none: the Valkey of the tests is built without it."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.threads import LoopThread

_HANDSHAKE = 0x16
"""The first byte of a TLS connection; no command of Redis begins so."""
LIFE = dt.timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Certificates:
    """An authority, and a certificate for the loopback that it has signed.

    Args:
        directory: for the files.
        hosts: names or addresses that the certificate is for.
    """

    def __init__(self, directory: Path, *hosts: str) -> None:
        self.authority = directory / "ca.pem"
        self._own = directory / "own.pem"
        now = dt.datetime.now(dt.UTC)

        def build(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
            return (
                x509.CertificateBuilder()
                .subject_name(_name(subject))
                .issuer_name(_name("authority"))
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - LIFE)
                .not_valid_after(now + LIFE)
            )

        root = ec.generate_private_key(ec.SECP256R1())
        constraint = x509.BasicConstraints(ca=True, path_length=None)
        signed = build("authority", root).add_extension(constraint, critical=True)
        self.authority.write_bytes(_pem(signed.sign(root, hashes.SHA256())))
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_general(host) for host in hosts])
        own = build("server", key).add_extension(names, critical=False)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self._own.write_bytes(secret + _pem(own.sign(root, hashes.SHA256())))

    def context(self) -> ssl.SSLContext:
        """For the server's side."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._own)
        return context


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class TlsFront:
    """Relays connections to servers, with TLS where the client begins with it. Started by `with`.

    Args:
        hosts: that the certificate is for.
    """

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts or ("127.0.0.1", "localhost")
        self._directory = tempfile.TemporaryDirectory(prefix="yj-tls-")
        self._thread = LoopThread()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.Transport] = set()
        self.refuses_plain = False
        """Whether connections without TLS are ended."""
        self.encrypted = 0
        """Connections with TLS since the start."""
        self.plain = 0
        """Those without."""

    def __enter__(self) -> Self:
        self.certificates = Certificates(Path(self._directory.name), *self._hosts)
        self._context = self.certificates.context()
        self._thread.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.run(self._stop())
        self._thread.__exit__()
        self._directory.cleanup()

    @property
    def options(self) -> str:
        """For the query of a URL."""
        return f"ssl_ca_certs={self.certificates.authority}"

    def relay(self, target: tuple[str, int], port: int = 0, host: str = "127.0.0.1") -> int:
        """Listen for connections to a server; returns the port."""
        listener = socket.create_server((host, port))
        listener.setblocking(False)
        self._thread.loop.call_soon_threadsafe(self._start, self._accept(listener, target))
        return int(listener.getsockname()[1])

    def cut(self) -> None:
        """End all connections."""

        def abort() -> None:
            for transport in list(self._transports):
                transport.abort()

        self._thread.loop.call_soon_threadsafe(abort)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Serve no client, with all connections open."""
        stopped, over = threading.Event(), threading.Event()

        def stop() -> None:
            stopped.set()
            over.wait()

        self._thread.loop.call_soon_threadsafe(stop)
        stopped.wait()
        try:
            yield
        finally:
            over.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._thread.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for transport in list(self._transports):
            transport.abort()
        await asyncio.sleep(0.05)

    async def _accept(self, listener: socket.socket, target: tuple[str, int]) -> None:
        with listener:
            while True:
                client, _ = await self._thread.loop.sock_accept(listener)
                self._start(self._serve(client, target))

    async def _serve(self, client: socket.socket, target: tuple[str, int]) -> None:
        try:
            client.setblocking(False)
            first = await self._first_byte(client)
            is_tls = first == bytes([_HANDSHAKE])
            self.encrypted += is_tls
            self.plain += bool(first) and not is_tls
            if not first or (self.refuses_plain and not is_tls):
                client.close()
                return
            near, far = _End(self._transports), _End(self._transports)
            near.other, far.other = far, near
            await self._thread.loop.create_connection(lambda: far, *target)
            await self._thread.loop.connect_accepted_socket(
                lambda: near, client, ssl=self._context if is_tls else None
            )
        except OSError:
            client.close()
        except asyncio.CancelledError:
            client.close()
            raise

    async def _first_byte(self, client: socket.socket) -> bytes:
        """What a client begins with, which stays to be read; none: it has gone."""
        readable = asyncio.Event()
        self._thread.loop.add_reader(client, readable.set)
        try:
            await readable.wait()
        finally:
            self._thread.loop.remove_reader(client)
        return client.recv(1, socket.MSG_PEEK)


class _End(asyncio.Protocol):
    """One of the two connections of a relay; what it gets the other one sends."""

    def __init__(self, transports: set[asyncio.Transport]) -> None:
        self._transports = transports
        self._early: list[bytes] = []
        self._is_over = False
        self._transport: asyncio.Transport | None = None
        self.other: _End

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._transports.add(transport)
        for data in self._early:
            transport.write(data)
        if self._is_over:
            transport.close()

    def data_received(self, data: bytes) -> None:
        self.other.send(data)

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
        else:
            self._transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._transports.discard(self._transport)
        self.other.end()

    def end(self) -> None:
        self._is_over = True
        if self._transport is not None:
            self._transport.close()
