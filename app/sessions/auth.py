"""Identities of clients: valid user names, and JSON Web Tokens (RFC 7519) that prove one.

A token is signed with HS256 and AUTH_SECRET, or with RS256, ES256 or EdDSA and a private key whose
public half is in AUTH_JWKS_FILE or behind AUTH_JWKS_URL. The keys of one kind are never tried on the
other, so a public key signs nothing. The sender of a token learns its fault, but no keys and claims.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from app.config import Settings
from app.errors import ClientError, ErrorCode
from app.protocol.schema.limits import MAX_TOKEN
from app.sessions.token_keys import KEY_TYPES, FileKeys, KeysUnavailable, RemoteKeys, choose_keys

MAX_USER_LENGTH = 128
"""Characters of a user's name."""

NAME_RULE = f"must have 1 to {MAX_USER_LENGTH} characters that can be printed"

_FORMATTING = frozenset(
    "\u200c\u200d"  # joiners: Persian and Indic words, emoji sequences
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
    "\u180e"
)
"""Characters of the category Cf that belong to words; tags (U+E0020 to U+E007F) belong to flags."""

LEEWAY = 10.0
"""Seconds that the clocks of issuer and service may differ."""

NEVER = 253_402_300_800.0
"""Unix time in seconds of the year 10000: what expires then, or is in milliseconds, does not expire here."""

_ACCESS_TYPES = {"jwt", "at+jwt", "bearer"}
"""Media types (`typ`) of access tokens; a token may also have none."""
_OTHER_USES = {"id", "id_token", "refresh", "refresh_token", "offline", "logout"}
"""What providers write into a claim about a token that is no access token."""
_USE_CLAIMS = ("typ", "token_use", "token_type", "type", "use")
_OTHER_CLAIMS = ("at_hash", "c_hash", "s_hash", "events")
"""Claims that only ID tokens and logout tokens have (OpenID Connect)."""
_PROBLEMS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "The token has expired."),
    (jwt.ImmatureSignatureError, "The token is not valid yet."),
    (jwt.InvalidIssuedAtError, "The token has an invalid 'iat' claim."),
    (jwt.InvalidSignatureError, "The token's signature is invalid."),
    (jwt.InvalidAudienceError, "The token is for another audience ('aud')."),
    (jwt.InvalidIssuerError, "The token is of another issuer ('iss')."),
    (jwt.exceptions.InvalidSubjectError, "The token's 'sub' claim is not a string."),
)

_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
"""Letters of Hangul and Braille that show nothing."""


def comparable(name: str) -> str:
    """A name in the form in which names of users are compared (NFC)."""
    return unicodedata.normalize("NFC", name)


def user_name(value: object) -> str | None:
    """The name of a user in the form of `comparable`; None for what is no name.

    What people are called comes in, with joiners, no-break spaces and emoji sequences. Controls,
    what changes the direction of text around it, and other characters that cannot be seen do not.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_USER_LENGTH:
        return None
    if value.isascii():
        return value if value.isprintable() and not value.isspace() else None
    name = comparable(value)
    if len(name) > MAX_USER_LENGTH or not all(map(_is_allowed, name)):
        return None
    is_seen = any(
        unicodedata.category(char) not in {"Zs", "Cf"} and char not in _FILLERS for char in name
    )
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
    types: frozenset[str] | None = None
    """Types that its bearer may subscribe to and read; None: all."""
    publish: frozenset[str] | None = frozenset()
    """Types that its bearer may publish to; None: all."""
    presence: frozenset[str] | None = frozenset()
    """Types whose users its bearer may list; None: all that it may read."""


class TokenVerifier:
    """Checks the tokens of clients against AUTH_SECRET, AUTH_JWKS_FILE and AUTH_JWKS_URL.

    Args:
        settings: of the service.
        remote: the keys of AUTH_JWKS_URL; None: there are none.

    Raises:
        SettingsError: the file of keys cannot be used.
    """

    def __init__(self, settings: Settings, remote: RemoteKeys | None = None) -> None:
        self._secret = settings.auth_secret
        self._file = FileKeys(Path(settings.auth_jwks_file)) if settings.auth_jwks_file else None
        self._remote = remote
        self._audience = list(settings.auth_audience) or None
        self._issuer = list(settings.auth_issuer) or None
        required = ["sub"]
        required += ["aud"] if self._audience else []
        required += ["iss"] if self._issuer else []
        required += ["exp"] if settings.auth_require_exp else []
        self._options: Any = {"require": required, "verify_aud": self._audience is not None}
        self.enabled = bool(self._secret) or self._file is not None or remote is not None
        """Whether clients need a token."""

    async def settle(self, unavailable: KeysUnavailable) -> None:
        """Wait for the fetch of keys that a token needs.

        Raises:
            KeysUnavailable: there is no such fetch.
        """
        fetch, remote = unavailable.fetch, self._remote
        if fetch is None or remote is None:
            raise unavailable
        remote.waiting += 1
        try:
            # The fetch goes on for the others when this client leaves.
            await asyncio.shield(fetch)
        finally:
            remote.waiting -= 1

    async def verify_patiently(self, token: str) -> Identity:
        """As `verify`, after a fetch of the keys where the token needs one."""
        try:
            return self.verify(token)
        except KeysUnavailable as unavailable:
            await self.settle(unavailable)
        return self.verify(token, may_fetch=False)

    def verify(self, token: str, *, may_fetch: bool = True) -> Identity:
        """Check a token and return the identity that it names.

        Args:
            token: of a client.
            may_fetch: whether keys may be fetched for it.

        Raises:
            ClientError: UNAUTHORIZED, and what is wrong with the token.
            KeysUnavailable: its key is not known yet; see `settle`.
        """
        if not self.enabled:
            raise _unauthorized("This service asks for no token and accepts no signing algorithm.")
        if not token or len(token) > MAX_TOKEN:
            raise _unauthorized(f"The token is empty or longer than {MAX_TOKEN} characters.")
        try:
            header = jwt.get_unverified_header(token)
            claims = self._decode(token, header, may_fetch)
            subject = claims["sub"]
            expires = claims.get("exp")
            expires = None if expires is None else float(expires)
            if expires is not None and expires >= NEVER:
                expires = None
        except (jwt.PyJWTError, ArithmeticError, TypeError, ValueError) as error:
            raise _unauthorized(_problem(error)) from None
        if not _is_access_token(header, claims):
            raise _unauthorized(
                "The token is for something else: an access token is needed, no ID, refresh,"
                " logout or DPoP token, nor one that is bound to a key."
            )
        user = user_name(subject)
        if user is None:
            raise _unauthorized(f"The token's 'sub' claim {NAME_RULE}.")
        types = _types_claim(claims)
        publish, presence = (
            _flag_or_types(claims, name, types) for name in ("publish", "presence")
        )
        return Identity(user, expires, types, publish, presence)

    def _decode(self, token: str, header: Mapping[str, Any], may_fetch: bool) -> dict[str, Any]:
        """The claims of a token, by whichever key of its name fits.

        Raises:
            ClientError, jwt.PyJWTError, ArithmeticError, TypeError, ValueError: none does, or a
                claim is wrong.
        """
        algorithm = header.get("alg")
        key_id = header.get("kid")
        keys = self._keys_for(algorithm, key_id)
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
                if number < len(keys):
                    continue
                # Without a name it may be of a new key.
                if key_id is None and algorithm in KEY_TYPES:
                    self._miss(may_fetch, is_known=True)
                raise
            else:
                return claims
        self._miss(may_fetch)
        raise _unauthorized("The token is signed with a key that is not known.")

    def _keys_for(self, algorithm: object, key_id: object) -> list[Any]:
        if algorithm == "HS256" and self._secret:
            return [self._secret]
        if algorithm in KEY_TYPES and (self._file is not None or self._remote is not None):
            return self._public_keys(str(algorithm), key_id)
        raise _unauthorized("The token is signed with an algorithm that is not accepted.")

    def _public_keys(self, algorithm: str, key_id: object) -> list[Any]:
        known = [*self._file.keys()] if self._file is not None else []
        if self._remote is not None:
            known += self._remote.keys()
        return choose_keys(known, algorithm, key_id)

    def _miss(self, may_fetch: bool, *, is_known: bool = False) -> None:
        """Have the keys fetched for a token that fits none.

        Raises:
            KeysUnavailable: see `RemoteKeys.miss`; with a fetch only if `is_known`.
        """
        if self._remote is None:
            return
        try:
            self._remote.miss(may_fetch)
        except KeysUnavailable as unavailable:
            if unavailable.fetch is not None or not is_known:
                raise


def _types_claim(claims: Mapping[str, Any]) -> frozenset[str] | None:
    """The claim `types`.

    Raises:
        ClientError: UNAUTHORIZED, it is no list of names.
    """
    if "types" not in claims:
        return None
    value = claims["types"]
    if not _is_list_of_names(value):
        raise _unauthorized("The token's 'types' claim must be a list of names of types.")
    return None if "all" in value else frozenset(value)


def _flag_or_types(
    claims: Mapping[str, Any], name: str, types: frozenset[str] | None
) -> frozenset[str] | None:
    """The claim `publish` or `presence`: true stands for the types that may be read.

    Raises:
        ClientError: UNAUTHORIZED, it is neither true, false nor a list of names.
    """
    value = claims.get(name, False)
    if isinstance(value, bool):
        return types if value else frozenset()
    if not _is_list_of_names(value):
        message = f"The token's {name!r} claim must be true, false or a list of names of types."
        raise _unauthorized(message)
    return None if "all" in value else frozenset(value)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


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
