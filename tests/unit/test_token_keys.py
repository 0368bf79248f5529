"""Keys behind a URL: when they are fetched, what is kept, and how little strangers can cause."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from app.config import Settings
from app.errors import ClientError, ErrorCode
from app.sessions.auth import TokenVerifier
from app.sessions.token_keys import (
    BURST,
    MAX_BYTES,
    MAX_KEYS,
    REFILL_SECONDS,
    KeysUnavailable,
    RemoteKeys,
    read_keys,
)
from tests.unit.test_auth import ED_KEY, RSA_KEY, jwk

OTHER = ec.generate_private_key(ec.SECP256R1())


class Issuer:
    """A URL with keys, and a verifier that asks it."""

    def __init__(self, cache: Path | None = None) -> None:
        self.body = b""
        self.fetches = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.away = False
        self.now = 0.0
        self.results: list[str] = []
        self.keys = RemoteKeys(
            "https://id.example/keys?secret=x",
            cache,
            fetch=self.fetch,
            count=self.results.append,
            now=lambda: self.now,
        )
        self.verifier = TokenVerifier(Settings(), self.keys)

    def give(self, *keys: dict[str, Any]) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    async def fetch(self) -> bytes:
        self.fetches += 1
        await self.answers.wait()
        if self.away:
            raise OSError("no route")
        return self.body

    async def verify(self, token: str) -> str:
        """The user, or the code of the error."""
        try:
            return (await self.verifier.verify_patiently(token)).user
        except ClientError as error:
            return error.code


def signed(key: Any, kid: str | None, algorithm: str = "EdDSA") -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode({"sub": "ann"}, key, algorithm=algorithm, headers=headers)


async def test_keys_are_fetched_for_the_first_token_and_kept() -> None:
    issuer = Issuer()
    issuer.give(jwk("1", ED_KEY), jwk("2", RSA_KEY))
    assert issuer.verifier.enabled
    assert await issuer.verify(signed(ED_KEY, "1")) == "ann"
    assert await issuer.verify(signed(RSA_KEY, "2", "RS256")) == "ann"
    assert (issuer.fetches, issuer.results) == (1, ["ok"])


async def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    issuer = Issuer()
    issuer.give(jwk("1", ED_KEY))
    await issuer.keys.fetch()
    issuer.give(jwk("1", ED_KEY), jwk("2", OTHER))
    assert await issuer.verify(signed(OTHER, "2", "ES256")) == "ann"
    assert issuer.fetches == 2


async def test_a_new_key_without_a_name() -> None:
    issuer = Issuer()
    issuer.give(jwk(None, ED_KEY))
    await issuer.keys.fetch()
    assert await issuer.verify(signed(ED_KEY, None)) == "ann"
    new = ed25519.Ed25519PrivateKey.generate()
    issuer.give(jwk(None, new))
    assert await issuer.verify(signed(new, None)) == "ann"
    assert await issuer.verify(signed(ED_KEY, None)) == "UNAUTHORIZED"


@pytest.mark.no_cover
async def test_a_flood_of_invented_keys_causes_few_fetches() -> None:
    issuer = Issuer()
    issuer.give(jwk("1", ED_KEY))
    await issuer.keys.fetch()
    issuer.fetches = 0
    for number in range(2000):
        issuer.now += 0.06  # two minutes in all
        assert await issuer.verify(signed(OTHER, f"evil-{number}", "ES256")) == "UNAUTHORIZED"
        assert await issuer.verify(signed(ED_KEY, "1")) == "ann"
    assert issuer.fetches <= BURST + 2000 * 0.06 / REFILL_SECONDS
    # It does not take the fetch of a true new key away for good.
    issuer.give(jwk("2", OTHER))
    issuer.now += REFILL_SECONDS
    assert await issuer.verify(signed(OTHER, "2", "ES256")) == "ann"


async def test_clients_at_once_wait_for_one_fetch() -> None:
    issuer = Issuer()
    issuer.give(jwk("1", ED_KEY))
    issuer.answers.clear()
    waiting = [asyncio.create_task(issuer.verify(signed(ED_KEY, "1"))) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # the client that caused it goes away
    await asyncio.sleep(0)
    issuer.answers.set()
    assert await asyncio.gather(*waiting[1:]) == ["ann"] * 49
    assert (issuer.fetches, issuer.keys.waiting) == (1, 0)


async def test_no_more_than_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.sessions.token_keys.MAX_WAITING", 2)
    issuer = Issuer()
    issuer.answers.clear()
    waiting = [asyncio.create_task(issuer.verify(signed(ED_KEY, "1"))) for _ in range(2)]
    await asyncio.sleep(0)
    assert await issuer.verify(signed(ED_KEY, "1")) == "SERVICE_UNAVAILABLE"
    issuer.give(jwk("1", ED_KEY))
    issuer.answers.set()
    assert await asyncio.gather(*waiting) == ["ann"] * 2


async def test_an_outage_keeps_the_keys(caplog: pytest.LogCaptureFixture) -> None:
    issuer = Issuer()
    issuer.give(jwk("1", ED_KEY))
    await issuer.keys.fetch()
    issuer.away = True
    with caplog.at_level(logging.INFO, "app.sessions.token_keys"):
        for _ in range(3):
            await issuer.keys.fetch()
    assert await issuer.verify(signed(ED_KEY, "1")) == "ann"
    # What is not known may be new: it is not refused for good.
    assert await issuer.verify(signed(OTHER, "2", "ES256")) == "SERVICE_UNAVAILABLE"
    assert issuer.results[:4] == ["ok", "failed", "failed", "failed"]
    warnings = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "id.example" in warnings[0].getMessage()
    assert "secret" not in caplog.text
    issuer.away = False
    await issuer.keys.fetch()
    assert await issuer.verify(signed(OTHER, "2", "ES256")) == "UNAUTHORIZED"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"keys": []}', b'{"keys": 7}', b'{"keys": [{"kty": "RSA"}]}',
     b'{"keys": [{"kty": "RSA", "n": 1, "e": []}]}', b'{"keys": [null, 1, {"kty": {}}]}'],
)  # fmt: skip
async def test_an_answer_without_keys_changes_nothing(body: bytes) -> None:
    issuer = Issuer()
    issuer.give(jwk("1", ED_KEY))
    await issuer.keys.fetch()
    issuer.body = body
    await issuer.keys.fetch()
    assert issuer.results == ["ok", "failed"]
    assert await issuer.verify(signed(ED_KEY, "1")) == "ann"


async def test_without_any_keys_clients_come_back_later() -> None:
    issuer = Issuer()
    issuer.away = True
    assert await issuer.verify(signed(ED_KEY, "1")) == "SERVICE_UNAVAILABLE"
    with pytest.raises(KeysUnavailable) as caught:
        issuer.verifier.verify(signed(ED_KEY, "1"), may_fetch=False)
    assert caught.value.fetch is None
    # What no key could make right is wrong at once.
    assert await issuer.verify("a.b.c") == "UNAUTHORIZED"
    assert await issuer.verify(jwt.encode({"sub": "a"}, "s" * 32, "HS256")) == "UNAUTHORIZED"


async def test_a_worker_that_starts_during_an_outage_has_the_last_keys(tmp_path: Path) -> None:
    cache = tmp_path / "jwks.json"
    first = Issuer(cache)
    first.give(jwk("1", ED_KEY))
    await first.keys.fetch()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600
    second = Issuer(cache)
    second.away = True
    assert await second.verify(signed(ED_KEY, "1")) == "ann"
    assert second.fetches == 0


async def test_a_planted_file_of_keys_is_not_read(tmp_path: Path) -> None:
    planted = tmp_path / "evil.json"
    planted.write_text(json.dumps({"keys": [jwk("1", ED_KEY)]}))
    cache = tmp_path / "jwks.json"
    cache.symlink_to(planted)
    issuer = Issuer(cache)
    issuer.give(jwk("2", OTHER))
    assert await issuer.verify(signed(ED_KEY, "1")) == "UNAUTHORIZED"
    assert not cache.is_symlink()  # replaced by what was fetched
    assert "evil" not in {key.key_id for key in read_keys(planted.read_bytes())}


async def test_keys_beside_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk("1", ED_KEY)]}))
    issuer = Issuer()
    issuer.give(jwk("2", OTHER))
    issuer.verifier = TokenVerifier(Settings(auth_jwks_file=str(path)), issuer.keys)
    assert await issuer.verify(signed(ED_KEY, "1")) == "ann"
    assert issuer.fetches == 0
    assert await issuer.verify(signed(OTHER, "2", "ES256")) == "ann"


async def test_several_keys_of_one_name_over_both(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk("k", ed25519.Ed25519PrivateKey.generate())]}))
    issuer = Issuer()
    issuer.give(jwk("k", ED_KEY), jwk("k", ed25519.Ed25519PrivateKey.generate()))
    await issuer.keys.fetch()
    issuer.verifier = TokenVerifier(Settings(auth_jwks_file=str(path)), issuer.keys)
    assert await issuer.verify(signed(ED_KEY, "k")) == "ann"


def test_a_huge_set_is_cut() -> None:
    keys = [jwk(str(number), ED_KEY) for number in range(MAX_KEYS + 50)]
    assert len(read_keys(json.dumps({"keys": keys}).encode(), MAX_KEYS)) == MAX_KEYS


@pytest.mark.parametrize(
    "wrong",
    [
        jwk("2", RSA_KEY) | {"alg": "none"},
        jwk("2", RSA_KEY) | {"alg": "HS256"},
        jwk("2", RSA_KEY) | {"alg": []},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
    ],
)
async def test_a_key_of_no_use_takes_none_of_the_others_away(wrong: dict[str, Any]) -> None:
    issuer = Issuer()
    issuer.give(wrong, jwk("1", ED_KEY))
    assert await issuer.verify(signed(ED_KEY, "1")) == "ann"
    assert issuer.results == ["ok"]


def test_of_a_private_key_the_public_half_is_read() -> None:
    """Its factors, which nothing here needs, would be searched for."""
    private = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(RSA_KEY))
    assert "d" in private
    (key,) = read_keys(json.dumps({"keys": [private]}).encode())
    assert not hasattr(key.key, "private_numbers")


async def test_over_http_only_a_plain_answer_counts(aiohttp_answers: Any) -> None:
    good = json.dumps({"keys": [jwk("1", ED_KEY)]}).encode()
    for answer, result in (
        ((200, good), "ok"),
        ((404, good), "failed"),
        ((302, good), "failed"),
        ((200, b" " * (MAX_BYTES + 1)), "failed"),
    ):
        url = await aiohttp_answers(*answer)
        results: list[str] = []
        keys = RemoteKeys(url, count=results.append)
        await keys.fetch()
        assert results == [result], answer[0]
        assert bool(keys.keys()) == (result == "ok")


@pytest.fixture
async def aiohttp_answers() -> Any:
    """Gives the URL of a server that answers with this status and body."""
    servers: list[asyncio.Server] = []

    async def serve(status: int, body: bytes) -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 {status} x\r\nLocation: /\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"

    yield serve
    for server in servers:
        server.close()


# Claims


def claims(**more: Any) -> str:
    return jwt.encode({"sub": "ann"} | more, "s" * 32, "HS256")


VERIFIER = TokenVerifier(Settings(auth_secret="s" * 32))


@pytest.mark.parametrize(
    ("more", "types", "publish"),
    [
        ({}, None, frozenset()),
        ({"types": ["status", "x"]}, {"status", "x"}, frozenset()),
        ({"types": []}, frozenset(), frozenset()),
        ({"types": ["all"]}, None, frozenset()),
        ({"publish": True}, None, None),
        ({"publish": False}, None, frozenset()),
        ({"types": ["status"], "publish": True}, {"status"}, {"status"}),
        ({"types": ["status"], "publish": ["config"]}, {"status"}, {"config"}),
        ({"types": [], "publish": ["all"]}, frozenset(), None),
    ],
)
def test_what_claims_allow(more: dict[str, Any], types: Any, publish: Any) -> None:
    identity = VERIFIER.verify(claims(**more))
    assert (identity.types, identity.publish) == (types, publish)


@pytest.mark.parametrize(
    "more",
    [{"types": None}, {"types": "status"}, {"types": [1]}, {"types": {"status": 1}},
     {"publish": None}, {"publish": 1}, {"publish": "true"}, {"publish": [None]}],
)  # fmt: skip
def test_claims_of_another_form_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as caught:
        VERIFIER.verify(claims(**more))
    assert caught.value.code is ErrorCode.UNAUTHORIZED
    assert next(iter(more)) in caught.value.message


async def test_a_token_that_comes_during_the_first_fetch_waits_for_that_one() -> None:
    issuer = Issuer()
    issuer.give(jwk("1", ED_KEY))
    issuer.answers.clear()
    running = asyncio.create_task(issuer.keys.run())
    await asyncio.sleep(0)
    shown = asyncio.create_task(issuer.verify(signed(ED_KEY, "1")))
    await asyncio.sleep(0)
    issuer.answers.set()
    assert await shown == "ann"
    assert issuer.fetches == 1
    running.cancel()
    await asyncio.wait([running])
