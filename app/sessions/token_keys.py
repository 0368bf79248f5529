"""The public keys of clients' tokens (JWKS, RFC 7517): those of a file and those behind a URL.

The keys of a URL are fetched by each worker at its start and every `REFRESH_SECONDS`, never on the
way of a client. A token that names a key which is not among them has them fetched at once: `BURST`
times, and once more for each `REFILL_SECONDS`, however many tokens with invented key ids come. While
the URL does not answer the last keys stay in use; they are also in a file, for workers that start
meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt

from app.errors import ClientError, ErrorCode, SettingsError
from app.private_file import read_private, write_private
from app.protocol.envelope import decode_json
from app.shared_calls import SharedCalls

logger = logging.getLogger(__name__)

KEY_TYPES = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
"""Kinds of keys by the algorithm that a token names."""
_PUBLIC = ("kty", "alg", "kid", "crv", "x", "y", "n", "e")
"""Members of a key that are read: of a private one, the library would search for the factors, for minutes."""

MAX_TRIED = 4
"""Keys of one name that are tried on a token."""
MAX_KEYS = 100
"""Keys of a URL that are kept; others are left out."""
MAX_BYTES = 512 * 1024
"""Of an answer of the URL."""
FETCH_SECONDS = 5.0
"""What a fetch may take."""
REFRESH_SECONDS = 300.0
"""Between two fetches; a tenth less or more, so that workers do not fetch together."""
RETRY_SECONDS = 10.0
"""Between two fetches while there are no keys at all."""
BURST = 3.0
"""Fetches for unknown keys that may follow each other, and"""
REFILL_SECONDS = 60.0
"""the time after which there may be one more."""
MAX_WAITING = 1000
"""Clients that wait for a fetch at once; others are asked to come back later."""
_KEYS = "keys"

Fetch = Callable[[], Awaitable[bytes]]


class KeysUnavailable(ClientError):
    """Whether a token is right cannot be said now; waiting helps.

    Args:
        fetch: the fetch that is under way, after which it can be said; None: there is none.
    """

    def __init__(self, fetch: asyncio.Future[None] | None = None) -> None:
        super().__init__(
            ErrorCode.SERVICE_UNAVAILABLE,
            "The keys for checking tokens cannot be fetched now; try again later.",
        )
        self.fetch = fetch


class FileKeys:
    """The keys of AUTH_JWKS_FILE, read again when the file has changed.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._version = self._stat()
            self._keys = read_keys(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"AUTH_JWKS_FILE={str(path)!r}: {error}") from None

    def keys(self) -> Sequence[jwt.PyJWK]:
        """The newest keys that could be read."""
        try:
            version = self._stat()
            if version != self._version:
                # Remembered even when it cannot be used: one warning for each change.
                self._version = version
                self._keys = read_keys(self._path.read_bytes())
        except (OSError, ValueError) as error:
            logger.warning("AUTH_JWKS_FILE: %s; the old keys stay in use", error)
        return self._keys

    def _stat(self) -> tuple[int, int, int]:
        stat = os.stat(self._path)  # noqa: PTH116 - on the way of every connect
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class RemoteKeys:
    """The keys of AUTH_JWKS_URL.

    Args:
        url: where they are.
        cache: the file in which the last keys are kept for workers that start.
        fetch: gets them; None: over HTTP.
        count: called with `ok` or `failed` after each fetch.
        now: monotonic seconds.
    """

    def __init__(
        self,
        url: str,
        cache: Path | None = None,
        *,
        fetch: Fetch | None = None,
        count: Callable[[str], object] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._host = urlsplit(url).hostname
        self._cache = cache
        self._get = fetch or self._get_over_http
        self._count = count
        self._now = now
        self._body = b""
        self._keys: Sequence[jwt.PyJWK] = ()
        self._fetches = SharedCalls()
        self._failed = False
        """The last fetch has failed: what is not among the keys may be new."""
        self._budget = BURST
        """Fetches for unknown keys that may begin now, at `_budget_at`."""
        self._budget_at = now()
        self.waiting = 0
        """Clients that wait for a fetch."""
        if cache is not None:
            with contextlib.suppress(OSError, ValueError):
                self._take(read_private(cache, MAX_BYTES))

    def keys(self) -> Sequence[jwt.PyJWK]:
        """The newest keys that could be fetched; none where that has never worked."""
        return self._keys

    def miss(self, may_fetch: bool = True) -> None:
        """A token names a key that is not known: fetch the keys, if that may be done now.

        Args:
            may_fetch: False for a token that has waited for a fetch already.

        Raises:
            KeysUnavailable: with the fetch, or without one where the last one has failed.
        """
        now = self._now()
        refill = (now - self._budget_at) / REFILL_SECONDS
        self._budget, self._budget_at = min(BURST, self._budget + refill), now
        fetch = self._fetches.running(_KEYS)
        if may_fetch and fetch is None and self._budget >= 1:
            self._budget -= 1
            fetch = self._fetches.begin(_KEYS, self.fetch)
        if may_fetch and fetch is not None:
            raise KeysUnavailable(fetch if self.waiting < MAX_WAITING else None)
        if self._failed or not self._keys:
            raise KeysUnavailable

    async def run(self) -> None:
        """Fetch the keys again and again."""
        while True:
            await self._fetches.begin(_KEYS, self.fetch)  # tokens of unknown keys wait for it too
            pause = REFRESH_SECONDS if self._keys else RETRY_SECONDS
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 (it spreads load)

    async def fetch(self) -> None:
        """Fetch the keys once; the old ones stay in use where that does not work."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                body = await self._get()
            is_new = self._take(body)
        except (OSError, ValueError, aiohttp.ClientError, TimeoutError) as error:
            self._count("failed")
            if not self._failed:
                logger.warning(
                    "AUTH_JWKS_URL: no keys from %s: %s; %s",
                    self._host,
                    _words(error),
                    "the old keys stay in use" if self._keys else "no token can be checked",
                )
            self._failed = True
            return
        self._count("ok")
        if self._failed:
            logger.info("AUTH_JWKS_URL: %s gives keys again", self._host)
        self._failed = False
        if is_new:
            self._keep(body)

    def _take(self, body: bytes) -> bool:
        """Use the keys of a body; whether they are others than before.

        Raises:
            ValueError: it has none.
        """
        if body == self._body:
            return False
        self._keys = read_keys(body, MAX_KEYS)
        self._body = body
        return True

    def _keep(self, body: bytes) -> None:
        if self._cache is None:
            return
        try:
            self._cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._cache, body)
        except OSError as error:
            logger.warning("AUTH_JWKS_URL: the keys cannot be kept in %s: %s", self._cache, error)

    async def _get_over_http(self) -> bytes:
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(
                self._url,
                allow_redirects=False,
                headers={"Accept": "application/jwk-set+json, application/json"},
            ) as response,
        ):
            if response.status != 200:
                raise ValueError(f"it answers {response.status}")
            received = bytearray()
            async for chunk in response.content.iter_any():
                received += chunk
                if len(received) > MAX_BYTES:
                    raise ValueError(f"its answer has more than {MAX_BYTES} bytes")
            return bytes(received)


def choose_keys(keys: Sequence[jwt.PyJWK], algorithm: str, key_id: object) -> list[Any]:
    """The public keys that a token's header names; several may have one name.

    Raises:
        ClientError: UNAUTHORIZED, the token names none of several.
    """
    fitting = [key for key in keys if key.algorithm_name == algorithm]
    if key_id is not None:
        fitting = [key for key in fitting if key.key_id == key_id]
    elif len(fitting) > 1:
        raise ClientError(ErrorCode.UNAUTHORIZED, "The token must name its key ('kid').")
    return [key.key for key in fitting[:MAX_TRIED]]


def read_keys(body: bytes, most: int | None = None) -> list[jwt.PyJWK]:
    """The keys of a JWKS that are of use here.

    Args:
        body: the JWKS, as JSON.
        most: how many are read; None: all.

    Raises:
        ValueError: it is not a JWKS, or has no such key.
    """
    try:
        document = decode_json(body)
    except ClientError as error:
        raise ValueError(error.message) from None
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list of 'keys'")
    keys: list[jwt.PyJWK] = []
    for entry in entries:
        # Other kinds and uses of keys may stand in the same file (RFC 7517 section 5).
        if not isinstance(entry, Mapping) or entry.get("kty") not in KEY_TYPES.values():
            continue
        if entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK({name: entry[name] for name in _PUBLIC if name in entry})
        except Exception:  # noqa: BLE001, S112 (two libraries read it, each with errors of its own)
            continue
        if key.algorithm_name in KEY_TYPES:
            keys.append(key)
        if most is not None and len(keys) >= most:
            break
    if not keys:
        raise ValueError(f"it has no public key for {', '.join(KEY_TYPES)}")
    return keys


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {FETCH_SECONDS:g} seconds"
    return " ".join(str(error).split())[:200] or type(error).__name__
