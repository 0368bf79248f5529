"""Tokens: their signer, their user, their end."""

from __future__ import annotations

import base64
import json
import logging
import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from app.config import Settings
from app.errors import ClientError, ErrorCode, SettingsError
from app.sessions.auth import LEEWAY, Identity, TokenVerifier, user_name

SECRET = "s" * 32
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def hs256(claims: dict[str, Any], secret: str = SECRET) -> str:
    return jwt.encode(claims, secret, algorithm="HS256")


def raw(header: bytes, claims: bytes) -> str:
    """A token of arbitrary parts, well signed."""
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, claims)]
    signing_input = b".".join(parts)
    algorithm = jwt.get_algorithm_by_name("HS256")
    signature = algorithm.sign(signing_input, SECRET.encode())
    return b".".join([signing_input, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def jwk(kid: str | None, private: Any, **more: str) -> dict[str, Any]:
    algorithm = {
        rsa.RSAPrivateKey: "RS256",
        ec.EllipticCurvePrivateKey: "ES256",
        ed25519.Ed25519PrivateKey: "EdDSA",
    }
    name = next(name for kind, name in algorithm.items() if isinstance(private, kind))
    entry: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(name).to_jwk(private.public_key()))
    return entry | ({"kid": kid} if kid else {}) | more


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    count = 0

    def write(*keys: dict[str, Any]) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / "jwks.json"
        path.write_text(json.dumps({"keys": keys}))
        os.utime(path, ns=(count, count))  # each version has a time of its own
        return path

    return write


def refusal(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(ClientError) as caught:
        verifier.verify(token)
    assert caught.value.code is ErrorCode.UNAUTHORIZED
    assert SECRET not in caught.value.message
    return caught.value.message


@pytest.fixture
def verifier() -> TokenVerifier:
    return TokenVerifier(Settings(auth_secret=SECRET))


def test_without_keys_no_client_needs_a_token() -> None:
    verifier = TokenVerifier(Settings())
    assert not verifier.enabled
    assert "algorithm" in refusal(verifier, hs256({"sub": "a"}))
    assert "algorithm" in refusal(verifier, jwt.encode({"sub": "a"}, "", algorithm="none"))


def test_a_token_names_its_user(verifier: TokenVerifier) -> None:
    assert verifier.enabled
    assert verifier.verify(hs256({"sub": "汉字 1"})) == Identity("汉字 1", None)
    soon = int(time.time()) + 60
    assert verifier.verify(hs256({"sub": "a", "exp": soon, "aud": "x"})) == Identity("a", soon)


@pytest.mark.parametrize("ends", [1_795_000_000_000, 253_402_300_800, 1e300, 1e307])
def test_an_end_in_milliseconds_or_far_off_is_none(verifier: TokenVerifier, ends: float) -> None:
    """No clock of this service goes so far, nor does a state that is handed over."""
    assert verifier.verify(hs256({"sub": "a", "exp": ends})) == Identity("a", None)
    last = 253_402_300_799
    assert verifier.verify(hs256({"sub": "a", "exp": last})) == Identity("a", last)


def test_time_is_respected_with_some_leeway(verifier: TokenVerifier) -> None:
    now = time.time()
    assert verifier.verify(hs256({"sub": "a", "exp": now - LEEWAY / 2})).user == "a"
    assert "expired" in refusal(verifier, hs256({"sub": "a", "exp": now - LEEWAY - 1}))
    assert verifier.verify(hs256({"sub": "a", "nbf": now + LEEWAY / 2})).user == "a"
    assert "not valid yet" in refusal(verifier, hs256({"sub": "a", "nbf": now + LEEWAY + 5}))


@pytest.mark.parametrize("sub", ["", "x" * 129, "a\nb", "a\ud800"])
def test_the_user_must_be_a_usable_name(verifier: TokenVerifier, sub: str) -> None:
    assert "128" in refusal(verifier, hs256({"sub": sub}))
    assert user_name(sub) is None


@pytest.mark.parametrize(
    "name",
    [
        "می\u200cخواهم",
        "👩\u200d💻",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "❤️",
        "1️⃣",
        "Anna\u00a0Maria",
        "क्\u200dष",
        "Ann O'Neil",
        "汉字",
        "\U0001fae8",
    ],
)
def test_what_people_are_called(name: str) -> None:
    assert user_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a\u202eb",
        "a\u2066b",
        "a\u200eb",
        "a\u061cb",
        "a\x00b",
        "a\x7f",
        "a\x85b",
        "a\u2028b",
        "a\u200bb",
        "\ufeffa",
        "a\ud800",
        "a\uffff",
        "a\ue000",
        "\u200d",
        "\u00a0\u00a0",
        " ",
        "   ",
        "\u3164",
        "\u2800\u115f",
        "a" * 129,
        7,
        None,
        b"a",
    ],
)
def test_what_is_no_name(name: object) -> None:
    assert user_name(name) is None


def test_names_are_compared_in_one_form(verifier: TokenVerifier) -> None:
    assert verifier.verify(hs256({"sub": "e\u0301"})).user == "\u00e9"


def test_names_are_counted_in_characters() -> None:
    assert user_name("汉" * 128) is not None
    assert user_name(1) is None


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "empty"),
        ("x" * 9000, "longer than 8192 characters"),
        ("nonsense", "not a valid"),
        ("a.b.c", "not a valid"),
        ("é.ü.\ud800", "not a valid"),
        (hs256({"sub": "a"}, "t" * 32), "signature"),
        (hs256({}), "no 'sub'"),
        (raw(b'{"alg":"HS256"}', b'{"sub":1}'), "'sub'"),
        (raw(b'{"alg":"HS256"}', b'{"sub":null}'), "'sub'"),
        (raw(b'{"alg":"HS256"}', b"[]"), "not a valid"),
        (raw(b'{"alg":"HS256"}', b'{"sub":"a","exp":"x"}'), "not a valid"),
        (raw(b'{"alg":"HS256"}', b'{"sub":"a","exp":Infinity}'), "not a valid"),
        (raw(b'{"alg":"HS256"}', b'{"sub":"a","exp":1' + b"0" * 400 + b"}"), "not a valid"),
        (raw(b'{"alg":"HS256"}', b"[" * 5000), "not a valid"),
        (raw(b"[" * 5000, b"{}"), "not a valid"),
        (raw(b'{"alg":["HS256"]}', b'{"sub":"a"}'), "not a valid"),
        (raw(b'{"alg":"none"}', b'{"sub":"a"}'), "algorithm"),
        (jwt.encode({"sub": "a"}, SECRET * 2, algorithm="HS512"), "algorithm"),
        (jwt.encode({"sub": "a"}, RSA_KEY, algorithm="RS256"), "algorithm"),
    ],
)
def test_a_bad_token_is_refused_with_the_reason(
    verifier: TokenVerifier, token: str, says: str
) -> None:
    assert says in refusal(verifier, token)


@pytest.mark.parametrize(
    ("algorithm", "key"), [("RS256", RSA_KEY), ("ES256", EC_KEY), ("EdDSA", ED_KEY)]
)
def test_public_keys_come_from_a_file(write: Write, algorithm: str, key: Any) -> None:
    path = write(jwk("r", RSA_KEY), jwk("e", EC_KEY), jwk("d", ED_KEY), {"kty": "new"}, {"kty": 1})
    verifier = TokenVerifier(Settings(auth_jwks_file=str(path)))
    kid = {"RS256": "r", "ES256": "e", "EdDSA": "d"}[algorithm]
    assert verifier.enabled
    signed = jwt.encode({"sub": "a"}, key, algorithm=algorithm, headers={"kid": kid})
    assert verifier.verify(signed).user == "a"
    # One key of this kind: it need not be named.
    assert verifier.verify(jwt.encode({"sub": "a"}, key, algorithm=algorithm)).user == "a"
    other = jwt.encode({"sub": "a"}, key, algorithm=algorithm, headers={"kid": "x"})
    assert "not known" in refusal(verifier, other)


def test_a_public_key_is_no_secret(write: Write) -> None:
    verifier = TokenVerifier(Settings(auth_jwks_file=str(write(jwk("r", RSA_KEY)))))
    assert "algorithm" in refusal(verifier, hs256({"sub": "a"}))


def test_several_keys_of_a_kind_must_be_named(write: Write) -> None:
    second = ec.generate_private_key(ec.SECP256R1())
    path = write(jwk("1", EC_KEY), jwk("2", second))
    verifier = TokenVerifier(Settings(auth_jwks_file=str(path)))
    signed = jwt.encode({"sub": "a"}, second, algorithm="ES256", headers={"kid": "2"})
    assert verifier.verify(signed).user == "a"
    assert "kid" in refusal(verifier, jwt.encode({"sub": "a"}, second, algorithm="ES256"))
    wrong = jwt.encode({"sub": "a"}, second, algorithm="ES256", headers={"kid": "1"})
    assert "signature" in refusal(verifier, wrong)


def test_a_changed_file_is_read_again(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write(jwk("1", EC_KEY))
    verifier = TokenVerifier(Settings(auth_jwks_file=str(path)))
    signed = jwt.encode({"sub": "a"}, ED_KEY, algorithm="EdDSA", headers={"kid": "2"})
    assert "not known" in refusal(verifier, signed)
    write(jwk("2", ED_KEY))
    assert verifier.verify(signed).user == "a"
    path.write_text("{half")
    with caplog.at_level(logging.WARNING):
        assert verifier.verify(signed).user == "a"
        assert verifier.verify(signed).user == "a"
    assert len(caplog.records) == 1
    assert "old keys" in caplog.text
    path.unlink()
    assert verifier.verify(signed).user == "a"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"keys": {}}', '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AA"}]}']
)
def test_a_useless_file_stops_the_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="AUTH_JWKS_FILE"):
        TokenVerifier(Settings(auth_jwks_file=str(path)))


def test_keys_for_encryption_do_not_sign(write: Write) -> None:
    path = write(jwk("1", RSA_KEY, use="enc"), jwk("2", EC_KEY))
    verifier = TokenVerifier(Settings(auth_jwks_file=str(path)))
    signed = jwt.encode({"sub": "a"}, RSA_KEY, algorithm="RS256", headers={"kid": "1"})
    assert "not known" in refusal(verifier, signed)


# What a token is for


def verifier_of(**settings: Any) -> TokenVerifier:
    return TokenVerifier(Settings(auth_secret=SECRET, **settings))


@pytest.mark.parametrize("aud", ["presence", ["other", "presence"], "second"])
def test_a_token_for_one_of_the_audiences(aud: Any) -> None:
    verifier = verifier_of(auth_audience=("presence", "second"))
    assert verifier.verify(hs256({"sub": "a", "aud": aud})).user == "a"


@pytest.mark.parametrize("aud", ["other", ["other"], [], "", 7, ["presence", 7]])
def test_a_token_for_another_audience(aud: Any) -> None:
    refusal(verifier_of(auth_audience=("presence",)), hs256({"sub": "a", "aud": aud}))


def test_a_token_of_one_of_the_issuers() -> None:
    verifier = verifier_of(auth_issuer=("https://id.example", "https://id2.example"))
    assert verifier.verify(hs256({"sub": "a", "iss": "https://id2.example"})).user == "a"
    assert "issuer" in refusal(verifier, hs256({"sub": "a", "iss": "https://evil.example"}))
    assert "issuer" in refusal(verifier, hs256({"sub": "a", "iss": "https://id.example/"}))


def test_what_is_set_is_required() -> None:
    for settings, claim in (
        ({"auth_audience": ("a",)}, "aud"),
        ({"auth_issuer": ("a",)}, "iss"),
        ({"auth_require_exp": True}, "exp"),
    ):
        assert f"'{claim}'" in refusal(verifier_of(**settings), hs256({"sub": "a"}))
    assert "'sub'" in refusal(verifier_of(), hs256({"aud": "a"}))


@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_types_of_access_tokens(verifier: TokenVerifier, typ: str | None) -> None:
    token = jwt.encode({"sub": "a"}, SECRET, "HS256", headers={"typ": typ})
    assert verifier.verify(token).user == "a"


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({"typ": "dpop+jwt"}, {}),
        ({"typ": "logout+jwt"}, {}),
        ({"typ": "application/secevent+jwt"}, {}),
        ({"typ": "refresh"}, {}),
        ({}, {"typ": "ID"}),
        ({}, {"typ": "Refresh"}),
        ({}, {"typ": "Offline"}),
        ({}, {"token_use": "id"}),
        ({}, {"token_type": "refresh_token"}),
        ({}, {"type": "refresh"}),
        ({}, {"use": "ID"}),
        ({}, {"at_hash": "x"}),
        ({}, {"s_hash": "x"}),
        ({}, {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}),
        ({}, {"cnf": {"jkt": "x"}}),
    ],
)
def test_tokens_for_something_else(
    verifier: TokenVerifier, header: dict[str, Any], claims: dict[str, Any]
) -> None:
    token = jwt.encode({"sub": "a"} | claims, SECRET, "HS256", headers=header)
    assert "for something else" in refusal(verifier, token)


def test_several_keys_of_one_name(write: Write) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    path = write(jwk("k", other), jwk("k", ED_KEY))
    verifier = TokenVerifier(Settings(auth_jwks_file=str(path)))
    for key in (other, ED_KEY):
        token = jwt.encode({"sub": "a"}, key, "EdDSA", headers={"kid": "k"})
        assert verifier.verify(token).user == "a"
    stranger = ed25519.Ed25519PrivateKey.generate()
    token = jwt.encode({"sub": "a"}, stranger, "EdDSA", headers={"kid": "k"})
    assert "signature" in refusal(verifier, token)
