"""Who a client is: the names that users may have, and JSON Web Tokens (RFC 7519) that prove one.

A token is signed with HS256 and AUTH_SECRET, or with RS256, ES256 or EdDSA and a private key whose
public half is in AUTH_JWKS_FILE. The keys of one kind are never tried on the other, so nobody can
sign with a public key. What is wrong with a token is told to its sender; keys and claims are not.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from app.config import Settings
from app.errors import ClientError, ErrorCode, SettingsError
from app.protocol.envelope import decode_json

log = logging.getLogger(__name__)

MAX_USER_LENGTH = 128
"""Characters of a user's name."""

MAX_TOKEN_LENGTH = 8192
"""Characters of a token; more would not fit into a request line either."""

NAME_RULE = f"must have 1 to {MAX_USER_LENGTH} characters that can be printed"

_FORMATTING = frozenset(
    "\u200c\u200d"  # joiners: Persian and Indic words, emoji sequences
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
    "\u180e"
)
"""Characters of the category Cf that belong to words; tags (U+E0020 to U+E007F) belong to flags."""

MAX_KEYS = 4
"""Keys of one name that are tried."""

LEEWAY = 10.0
"""Seconds that the clocks of issuer and service may differ."""

_KEY_TYPES = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
_ACCESS_TYPES = {"jwt", "at+jwt", "bearer"}
"""Media types (`typ`) of access tokens; a token may also have none."""
_OTHER_USES = {"id", "id_token", "refresh", "refresh_token", "offline", "logout"}
"""What providers write into a claim about a token that is no access token."""
_USE_CLAIMS = ("typ", "token_use", "token_type")
_OTHER_CLAIMS = ("at_hash", "c_hash", "events")
"""Claims that only ID tokens and logout tokens have (OpenID Connect)."""
_PROBLEMS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "The token has expired."),
    (jwt.ImmatureSignatureError, "The token is not valid yet."),
    (jwt.InvalidIssuedAtError, "The token has a wrong 'iat' claim."),
    (jwt.InvalidSignatureError, "The token's signature is wrong."),
    (jwt.InvalidAudienceError, "The token is for another audience ('aud')."),
    (jwt.InvalidIssuerError, "The token is of another issuer ('iss')."),
    (jwt.exceptions.InvalidSubjectError, "The token's 'sub' claim is not a string."),
)


def user_name(value: object) -> str | None:
    """The name of a user in the form that names are compared in (NFC); None for what is no name.

    What people are called comes in, with joiners, no-break spaces and emoji sequences. Controls,
    what changes the direction of text around it, and other characters that cannot be seen do not.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_USER_LENGTH:
        return None
    if value.isascii():
        return value if value.isprintable() else None
    name = unicodedata.normalize("NFC", value)
    if len(name) > MAX_USER_LENGTH or not all(map(_is_allowed, name)):
        return None
    is_seen = any(unicodedata.category(char) not in {"Zs", "Cf"} for char in name)
    return name if is_seen else None


def _is_allowed(char: str) -> bool:
    category = unicodedata.category(char)
    if category == "Cf":
        return char in _FORMATTING or 0xE0020 <= ord(char) <= 0xE007F
    if category == "Cn":
        # An emoji that is newer than this Python's tables; the noncharacters never mean anything.
        return not (ord(char) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(char) <= 0xFDEF)
    return category not in {"Cc", "Cs", "Co", "Zl", "Zp"}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a token proves."""

    user: str
    expires_at: float | None
    """Unix time in seconds; None: never."""


class TokenVerifier:
    """Checks the tokens of clients against AUTH_SECRET and AUTH_JWKS_FILE.

    Raises:
        SettingsError: the file of keys cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.auth_secret
        self._keys = _KeyFile(Path(settings.auth_jwks_file)) if settings.auth_jwks_file else None
        self._audience = list(settings.auth_audience) or None
        self._issuer = list(settings.auth_issuer) or None
        required = ["sub"]
        required += ["aud"] if self._audience else []
        required += ["iss"] if self._issuer else []
        required += ["exp"] if settings.auth_require_exp else []
        self._options: Any = {"require": required, "verify_aud": self._audience is not None}

    @property
    def enabled(self) -> bool:
        """Whether clients need a token."""
        return bool(self._secret) or self._keys is not None

    def verify(self, token: str) -> Identity:
        """Say whom a token names.

        Raises:
            ClientError: UNAUTHORIZED, and what is wrong with the token.
        """
        if not token or len(token) > MAX_TOKEN_LENGTH:
            raise _unauthorized("The token is empty or too long.")
        try:
            header = jwt.get_unverified_header(token)
            claims = self._decode(token, header)
            subject = claims["sub"]
            expires = claims.get("exp")
            expires = None if expires is None else float(expires)
        except (jwt.PyJWTError, ArithmeticError, TypeError, ValueError) as error:
            raise _unauthorized(_problem(error)) from None
        if not _is_access_token(header, claims):
            raise _unauthorized(
                "The token is for something else: an access token is needed, no ID, refresh,"
                " logout or DPoP token, and none that is bound to a key."
            )
        user = user_name(subject)
        if user is None:
            raise _unauthorized(f"The token's 'sub' claim {NAME_RULE}.")
        return Identity(user, expires)

    def _decode(self, token: str, header: Mapping[str, Any]) -> dict[str, Any]:
        """The claims of a token, by whichever key of its name fits.

        Raises:
            ClientError, jwt.PyJWTError, ArithmeticError, TypeError, ValueError: none does, or a
                claim is wrong.
        """
        algorithm = header.get("alg")
        keys = self._keys_for(algorithm, header.get("kid"))
        for number, key in enumerate(keys, 1):
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[str(algorithm)],
                    audience=self._audience,
                    issuer=self._issuer,
                    options=self._options,
                    leeway=LEEWAY,
                )
            except jwt.InvalidSignatureError:
                if number == len(keys):
                    raise
            else:
                return claims
        raise _unauthorized("The token is signed with a key that is not known.")

    def _keys_for(self, algorithm: object, key_id: object) -> list[Any]:
        if algorithm == "HS256" and self._secret:
            return [self._secret]
        if algorithm in _KEY_TYPES and self._keys is not None:
            return self._keys.find(str(algorithm), key_id)
        raise _unauthorized("The token is signed with an algorithm that is not accepted.")


class _KeyFile:
    """The keys of a JWKS file (RFC 7517), read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._version = self._stat()
            self._keys = _read_keys(path)
        except (OSError, ValueError) as error:
            raise SettingsError(f"AUTH_JWKS_FILE={str(path)!r}: {error}") from None

    def find(self, algorithm: str, key_id: object) -> list[Any]:
        """The public keys that a token's header names; several may have one name."""
        self._refresh()
        fitting = [key for key in self._keys if key.algorithm_name == algorithm]
        if key_id is not None:
            fitting = [key for key in fitting if key.key_id == key_id]
        elif len(fitting) > 1:
            raise _unauthorized("The token must name its key ('kid').")
        if not fitting:
            raise _unauthorized("The token is signed with a key that is not known.")
        return [key.key for key in fitting[:MAX_KEYS]]

    def _refresh(self) -> None:
        try:
            version = self._stat()
            if version == self._version:
                return
            # Remembered even when it cannot be used: one warning for each change.
            self._version = version
            self._keys = _read_keys(self._path)
        except (OSError, ValueError) as error:
            log.warning("AUTH_JWKS_FILE: %s; the old keys stay in use", error)

    def _stat(self) -> tuple[int, int, int]:
        stat = os.stat(self._path)  # noqa: PTH116 - on the way of every connect
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read_keys(path: Path) -> list[jwt.PyJWK]:
    try:
        document = decode_json(path.read_bytes())
    except ClientError as error:
        raise ValueError(error.message) from None
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list of 'keys'")
    keys = []
    for entry in entries:
        # Other kinds and uses of keys may stand in the same file (RFC 7517 section 5).
        if not isinstance(entry, Mapping) or entry.get("kty") not in _KEY_TYPES.values():
            continue
        if entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(dict(entry))
        except jwt.PyJWTError:
            continue
        if key.algorithm_name in _KEY_TYPES:
            keys.append(key)
    if not keys:
        raise ValueError(f"it has no public key for {', '.join(_KEY_TYPES)}")
    return keys


def _is_access_token(header: Mapping[str, Any], claims: Mapping[str, Any]) -> bool:
    kind = header.get("typ")
    if kind is not None:
        if not isinstance(kind, str):
            return False
        if kind.lower().removeprefix("application/") not in _ACCESS_TYPES:
            return False
    uses = (claims.get(name) for name in _USE_CLAIMS)
    if any(isinstance(use, str) and use.lower() in _OTHER_USES for use in uses):
        return False
    confirmation = claims.get("cnf")
    is_bound = isinstance(confirmation, Mapping) and bool({"jkt", "x5t#S256"} & confirmation.keys())
    return not is_bound and not any(name in claims for name in _OTHER_CLAIMS)


def _problem(error: Exception) -> str:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"The token has no {error.claim!r} claim."
    for kind, problem in _PROBLEMS:
        if isinstance(error, kind):
            return problem
    return "The token is not a valid JSON Web Token."


def _unauthorized(message: str) -> ClientError:
    return ClientError(ErrorCode.UNAUTHORIZED, message)
