"""Address and tokens: from the command line, the environment, or `.env` of the working directory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jwt

from yujian_realtime.addresses import DEFAULT, base_url
from yujian_realtime.command.exits import Exit, Failure

OWN_TOKEN_TTL = 600.0
"""Seconds that a token lasts which the command signs for itself."""
OWN_USER = "yujian"
LEAST_SECRET = 32
"""Bytes of an AUTH_SECRET that the service takes."""

_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_EVERY_ADDRESS = {
    "0.0.0.0": "127.0.0.1",  # noqa: S104 - what it stands for is asked for at the loopback
    "[::]": "[::1]",
    "": "127.0.0.1",
    "*": "127.0.0.1",
}


def read_dotenv(path: Path) -> dict[str, str]:
    """Names and values of a `.env` as the service reads it: `NAME=value`, empty lines, comments.

    Raises:
        Failure: it cannot be read, or a line is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(Exit.USAGE, f"{path}: {error}") from None
    values = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise Failure(Exit.USAGE, f"{path}: line {number} is not NAME=value.")
        values[found[1]] = found[2]
    return values


@dataclass(frozen=True, slots=True)
class Connection:
    """Which service, and with which tokens."""

    url: str
    token: str
    """Of a reader; empty: none."""
    publish_token: str
    settings: Mapping[str, str]
    """The environment above `.env`."""

    @classmethod
    def of(
        cls,
        url: str | None,
        token: str | None,
        publish_token: str | None,
        environ: Mapping[str, str] = os.environ,
        directory: Path = Path(),
    ) -> Connection:
        """Put together what the command line, the environment and `.env` say, in this order.

        Raises:
            Failure: the address is wrong, or `.env` is.
        """
        settings = read_dotenv(directory / ".env")
        settings |= {name: value for name, value in environ.items() if value}
        address = url or settings.get("YUJIAN_URL") or _of_bind(settings.get("BIND", ""))
        try:
            base_url(address)
        except ValueError as error:
            raise Failure(Exit.USAGE, str(error)) from None
        return cls(
            address,
            token or settings.get("YUJIAN_TOKEN", ""),
            publish_token or settings.get("PUBLISH_TOKEN") or _first(settings),
            settings,
        )

    def reader_token(self) -> str | Callable[[], str] | None:
        """The token of a reader: the one that was given, or one signed with AUTH_SECRET."""
        if self.token:
            return self.token
        if self.settings.get("AUTH_SECRET"):
            return lambda: self.sign(OWN_USER, OWN_TOKEN_TTL, {"presence": True})
        return None

    def bearer(self) -> str:
        """The same for a call over HTTP; empty: none."""
        token = self.reader_token()
        return (token() if callable(token) else token) or ""

    def sign(self, user: str, ttl: float | None, claims: Mapping[str, object] | None = None) -> str:
        """Sign a client's token with AUTH_SECRET, for the first audience and issuer that count.

        Args:
            user: the subject.
            ttl: seconds that it lasts; None: for ever.
            claims: others.

        Raises:
            Failure: there is no AUTH_SECRET, or it is too short.
        """
        secret = self.settings.get("AUTH_SECRET", "")
        if not secret:
            raise Failure(
                Exit.USAGE,
                "AUTH_SECRET is not set: neither in the environment nor in .env of this directory.",
            )
        if len(secret.encode()) < LEAST_SECRET:
            raise Failure(
                Exit.USAGE,
                f"AUTH_SECRET has fewer than {LEAST_SECRET} bytes: the service refuses such a one.",
            )
        now = int(time.time())
        payload: dict[str, object] = {"sub": user, "iat": now}
        if ttl is not None:
            payload["exp"] = now + max(int(ttl), 1)
        for claim, name in (("aud", "AUTH_AUDIENCE"), ("iss", "AUTH_ISSUER")):
            if values := self.settings.get(name, ""):
                payload[claim] = values.split(",")[0].strip()
        return jwt.encode(payload | dict(claims or {}), secret, algorithm="HS256")

    def require_publish_token(self) -> str:
        """The publish token.

        Raises:
            Failure: there is none.
        """
        if not self.publish_token:
            raise Failure(
                Exit.TOKEN,
                "A publish token is needed: --publish-token, or PUBLISH_TOKEN in the environment or .env.",
            )
        return self.publish_token


def _of_bind(bind: str) -> str:
    """The address at which a service with this BIND is reached from its own machine."""
    if not bind:
        return DEFAULT
    if bind.startswith("unix:"):
        raise Failure(Exit.USAGE, f"BIND={bind} of .env is a Unix socket: give --url.")
    host, _, port = bind.rpartition(":")
    return f"http://{_EVERY_ADDRESS.get(host, host)}:{port}"


def _first(settings: Mapping[str, str]) -> str:
    """The token of the first publisher of PUBLISH_TOKENS, `label:token` between commas."""
    first = settings.get("PUBLISH_TOKENS", "").split(",")[0]
    return first.partition(":")[2].strip()


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> float:
    """A duration as people write it: `90`, `90s`, `5m`, `1h`, `7d`.

    Raises:
        ValueError: it is none, or not above zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no duration: write 90s, 5m, 1h or 7d")
    return float(found[1]) * _UNITS[found[2] or "s"]
