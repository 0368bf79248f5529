"""An HTTP or HTTPS server that answers as something else than the service does."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CLOSE = 8
"""The opcode of a frame that closes."""


@dataclass(frozen=True)
class Page:
    """What it answers."""

    status: int = 200
    text: str = ""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Impostor:
    """The server. Started by `with`.

    Args:
        pages: by path; others are answered 404.
        certificate: file with a certificate and its key, for HTTPS.
        frames: texts that it sends over any WebSocket; None: it accepts none.
    """

    def __init__(
        self,
        pages: dict[str, Page] | None = None,
        certificate: Path | None = None,
        frames: Sequence[str] | None = None,
    ) -> None:
        self.silent = threading.Event()
        """Set: it accepts connections, and answers nothing until this is cleared or it ends."""
        self.hosts: list[str] = []
        """Of its requests."""
        self._ended = threading.Event()
        impostor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                impostor.hosts.append(self.headers["Host"])
                while impostor.silent.is_set() and not impostor._ended.wait(0.02):
                    pass
                path = self.path.partition("?")[0]
                if frames is not None and "Sec-WebSocket-Key" in self.headers:
                    self.upgrade(frames)
                    return
                page = (pages or {}).get(path, Page(404, "", "text/html"))
                self.send_response(page.status)
                self.send_header("Content-Type", page.kind)
                self.send_header("Content-Length", str(len(page.text)))
                for name, value in page.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(page.text.encode())

            def upgrade(self, frames: Sequence[str]) -> None:
                key = self.headers["Sec-WebSocket-Key"].encode()
                accept = base64.b64encode(hashlib.sha1(key + _MAGIC).digest()).decode()
                self.send_response(101)
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                self.send_header("Sec-WebSocket-Accept", accept)
                self.end_headers()
                for text in frames:
                    self.wfile.write(bytes([0x81, len(text)]) + text.encode())
                while (data := self.connection.recv(4096)) and data[0] & 0x0F != _CLOSE:
                    pass
                self.close_connection = True

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.scheme = "http"
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self._server.server_port

    def url(self, name: str = "127.0.0.1") -> str:
        """Its address by a name."""
        return f"{self.scheme}://{name}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Authority:
    """Signs certificates. `root` is the file with its own, which clients may trust.

    Args:
        home: where files are written.
        name: of the authority.
    """

    def __init__(self, home: Path, name: str = "an authority") -> None:
        self._home = home
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.root = home / "root.crt"
        made = self._build(self._name, self._key.public_key(), 3650)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.root.write_bytes(self._sign(made))

    def certificate(self, name: str, days: float) -> Path:
        """A file with a certificate of a name and its key; it ends in so many days, or has ended."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = self._build(subject, key.public_key(), days)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        file = self._home / f"{name}{days}.pem"
        file.write_bytes(self._sign(made) + _pem(key))
        return file

    def self_signed(self, name: str) -> Path:
        """A file with a certificate that no authority has signed, and its key."""
        other = Authority.__new__(Authority)
        other._key = ec.generate_private_key(ec.SECP256R1())
        other._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = other._build(other._name, other._key.public_key(), 10)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        file = self._home / f"self-{name}.pem"
        file.write_bytes(other._sign(made) + _pem(other._key))
        return file

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: float
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=20))
            .not_valid_after(now + dt.timedelta(days=days))
        )

    def _sign(self, made: x509.CertificateBuilder) -> bytes:
        signed = made.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
