"""Tokens: `AUTH_SECRET` makes every client prove who it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import jwt
import pytest
import socketio.exceptions

from tests.support.fixtures import Opener
from tests.support.raw import CLOSE, TEXT
from tests.support.service import Service
from tests.support.sioclient import SioClient, raw_socketio, sio_clients

SECRET = "integration-secret-of-at-least-32-bytes"


def token(user: str = "ann", lifetime: float = 3600, secret: str = SECRET) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + lifetime}, secret, "HS256")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    running = Service(AUTH_SECRET=SECRET).start()
    yield running
    running.stop()


async def test_connected_comes_after_the_token(service: Service, plain: Opener) -> None:
    client = await plain(user="somebody_else")
    early = await client.request("subscribe", {"types": ["status"]})
    assert early["data"]["code"] == "UNAUTHORIZED"
    sent = await service.publish("status", "secret")
    got = await client.request("auth", {"token": token()})
    assert (got["event"], got["type"]) == ("authenticated", "config")
    assert set(got["data"]) == {"user", "expiresAt"}
    assert got["data"]["user"] == "ann"
    assert abs(got["data"]["expiresAt"] / 1000 - time.time() - 3600) < 60
    connected = await client.expect("connected")
    assert connected["data"]["user"] == "ann"
    # The defaults took their position at the handshake and waited for the token.
    await client.wait_seq("status", sent["seq"])
    secret = client.events("secret")[0]
    assert client.received.index(connected) < client.received.index(secret)


@pytest.mark.parametrize(
    "wrong",
    ["", "x", "a.b.c", token(secret="another-secret-of-at-least-32-bytes!"), token(lifetime=-60),
     jwt.encode({"sub": "ann"}, "", "none"), jwt.encode({"exp": time.time() + 60}, SECRET, "HS256")],
)  # fmt: skip
async def test_wrong_tokens(plain: Opener, wrong: str) -> None:
    client = await plain()
    got = await client.request("auth", {"token": wrong})
    assert got["event"] == "error"
    assert got["data"]["code"] in {"UNAUTHORIZED", "INVALID_PAYLOAD"}
    if wrong:
        assert got["data"]["code"] == "UNAUTHORIZED"
    assert not client.events("connected")


@pytest.mark.timeout(90)
async def test_an_expired_token_closes_with_4401(plain: Opener) -> None:
    """Told before, then closed (clocks may differ by ten seconds)."""
    client = await plain()
    await client.request("auth", {"token": token(lifetime=3)})
    got = await client.expect("token_expiring", timeout=30)
    assert isinstance(got["data"]["expiresAt"], int)
    assert await client.wait_closed(45) == 4401


@pytest.mark.timeout(90)
async def test_a_new_token_in_time_keeps_the_connection(plain: Opener) -> None:
    client, witness = await plain(), await plain()
    for each in (client, witness):
        await each.request("auth", {"token": token(lifetime=3)})
    await client.expect("token_expiring", timeout=30)
    assert (await client.request("auth", {"token": token()}))["event"] == "authenticated"
    assert await witness.wait_closed(45) == 4401
    await client.barrier()


async def test_a_token_of_another_user_changes_nothing(plain: Opener) -> None:
    client = await plain()
    await client.request("auth", {"token": token("ann")})
    got = await client.request("auth", {"token": token("bob")})
    assert got["event"] == "error" or got["data"]["user"] == "bob"
    await client.barrier()


async def test_socketio_takes_the_token_at_connect(service: Service) -> None:
    async with sio_clients(service, auth={"token": token("sue")}) as [client]:
        (connected,) = await client.wait_event("connected")
        assert connected["data"]["user"] == "sue"
    for auth in ({"token": "x"}, {"user": "sue"}, None):
        refused = SioClient()
        with pytest.raises(socketio.exceptions.ConnectionError):
            await refused.connect(service, auth)
        assert set(refused.refused[0]) == {"message", "data"}
        assert refused.refused[0]["data"]["code"] == "UNAUTHORIZED"
        await refused.close()
    await service.wait_connections(0)


async def test_an_expired_token_on_socketio(service: Service) -> None:
    """4401 is final: a DISCONNECT packet comes first, which stops the client's reconnecting."""
    async with await raw_socketio(service) as client:
        auth = json.dumps({"token": token("tim", lifetime=3)})
        await client.send(TEXT, b"40" + auth.encode())
        before, close = await client.until_frame(CLOSE)
        assert close.close_code == 4401
        texts = [frame.payload for frame in before if frame.opcode == TEXT]
        assert any(text.startswith(b'42["token_expiring"') for text in texts)
        assert texts[-1] == b"41"


async def test_history_over_http_needs_a_token_too(service: Service) -> None:
    """Where clients need one to receive messages, old messages are no less theirs."""
    assert (await service.get("/history", type="status")).status == 401
    answer = await service.request("GET", "/history?type=status", token=token())
    assert answer.status == 200
