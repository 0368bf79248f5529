"""Tokens: `AUTH_SECRET` makes every client prove its identity."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import jwt
import pytest
import socketio.exceptions
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.support.fixtures import Opener
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.raw import CLOSE, TEXT, RawClient
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
    client = await plain(user="another_user")
    early = await client.request("subscribe", {"types": ["status"]})
    assert early["data"]["code"] == "UNAUTHORIZED"
    sent = await service.publish("status", "secret")
    given = token()
    expires = jwt.decode(given, options={"verify_signature": False})["exp"]
    got = await client.request("auth", {"token": given})
    assert (got["event"], got["type"]) == ("authenticated", "config")
    assert set(got["data"]) == {"user", "expiresAt"}
    assert got["data"]["user"] == "ann"
    assert got["data"]["expiresAt"] // 1000 == int(expires)
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
    """An event before, then a close frame (clocks may differ by ten seconds)."""
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
    assert got["event"] == "error"
    assert got["data"]["code"] == "UNAUTHORIZED"
    assert "another user" in got["data"]["message"]
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


# What a token allows


def limited(types: list[str], **more: object) -> str:
    return jwt.encode({"sub": "ann", "types": types} | more, SECRET, "HS256")


async def test_a_token_limits_what_its_client_may_read(service: Service, plain: Opener) -> None:
    client = await plain(token=limited(["status", "config", "unknown-type"]))
    connected = (await client.expect("connected"))["data"]
    assert connected["supportedTypes"] == ["status", "config"]
    assert connected["subscriptions"] == ["status"]
    for action, payload in (
        ("subscribe", {"types": ["config", "stats"]}),
        ("subscribe", {"types": ["config"], "recover": {"stats": {"epoch": "x", "seq": 1}}}),
        ("get_history", {"type": "stats"}),
        ("presence", {"type": "stats"}),
    ):
        got = await client.request(action, payload)
        assert got["data"]["code"] == "FORBIDDEN", action
    got = await client.request("subscribe", {"types": ["all"]})
    assert set(got["data"]["types"]) == {"status", "config"}
    await service.publish("stats", "hidden")
    await service.publish("config", "shown")
    await client.expect("shown")
    assert not client.events("hidden")


async def test_a_renewed_token_that_allows_less(service: Service, plain: Opener) -> None:
    client = await plain(token=limited(["status", "config"]), types="all")
    await client.expect("connected")
    got = await client.request("auth", {"token": limited(["status"])})
    assert got["data"]["types"] == ["status"]
    await service.publish("config", "hidden")
    await service.publish("status", "shown")
    await client.expect("shown")
    assert not client.events("hidden")
    got = await client.request("subscribe", {"types": ["config"]})
    assert got["data"]["code"] == "FORBIDDEN"


@pytest.mark.parametrize("late", [False, True])
async def test_a_client_that_asks_for_what_its_token_does_not_allow(
    service: Service, late: bool
) -> None:
    """In a browser: an error and 1008, whether the token comes in the URL or after it."""
    shown = limited(["status"])
    path = "/ws/realtime?types=status,stats" + ("" if late else f"&token={shown}")
    async with await RawClient.open(service, path, headers={"Origin": service.base}) as client:
        if late:
            await client.ask("auth", {"token": shown})
        got, code = await client.to_close()
        assert code == 1008
        assert got[-1]["data"]["code"] == "FORBIDDEN"


async def test_over_socketio_a_token_limits_as_well(service: Service) -> None:
    async with sio_clients(service, 1, auth={"token": limited(["status"])}) as (client,):
        connected = await client.wait_event("connected")
        assert connected[0]["data"]["supportedTypes"] == ["status"]
        got = await client.call("subscribe", {"types": ["stats"]})
        assert got["data"]["code"] == "FORBIDDEN"
    with pytest.raises(socketio.exceptions.ConnectionError):
        async with sio_clients(service, 1, auth={"token": limited(["status"]), "types": ["stats"]}):
            pass


async def test_limits_survive_a_reload(service: Service, plain: Opener) -> None:
    client = await plain(token=limited(["status"]))
    await client.expect("connected")
    await service.hup()
    got = await client.request("subscribe", {"types": ["stats"]})
    assert got["data"]["code"] == "FORBIDDEN"
    got = await client.request("subscribe", {"types": ["all"]})
    assert set(got["data"]["types"]) == {"status"}


# Keys behind a URL


class KeyServer:
    """Serves a JWKS."""

    def __init__(self) -> None:
        self.keys: list[dict[str, object]] = []
        self.asked = 0
        self.server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        assert self.server is not None
        self.server.close()

    def add(self, kid: str) -> ed25519.Ed25519PrivateKey:
        key = ed25519.Ed25519PrivateKey.generate()
        public = json.loads(jwt.get_algorithm_by_name("EdDSA").to_jwk(key.public_key()))
        self.keys.append(public | {"kid": kid})
        return key

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = json.dumps({"keys": self.keys}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()


def signed(key: ed25519.Ed25519PrivateKey, kid: str, user: str = "ann") -> str:
    claims = {"sub": user, "exp": time.time() + 600}
    return jwt.encode(claims, key, "EdDSA", headers={"kid": kid})


async def test_keys_behind_a_url() -> None:
    keys = KeyServer()
    await keys.start()
    first = keys.add("1")
    service = Service(AUTH_JWKS_URL=f"http://127.0.0.1:{keys.port}/jwks.json", WORKERS=1)
    await asyncio.to_thread(service.start)
    try:
        async with await PlainClient.open(service, token=signed(first, "1")) as client:
            assert (await client.expect("connected"))["data"]["user"] == "ann"
        # A rotated key: in the query, in a first message, over Socket.IO.
        second = keys.add("2")
        async with await PlainClient.open(service, token=signed(second, "2")) as client:
            await client.expect("connected")
        third = keys.add("3")
        async with await PlainClient.open(service) as client:
            got = await client.request("auth", {"token": signed(third, "3")})
            assert got["event"] == "authenticated"
        fourth = keys.add("4")
        async with sio_clients(service, 1, auth={"token": signed(fourth, "4")}) as (client_,):
            await client_.wait_event("connected")
        # Invented keys have nothing fetched any more.
        asked = keys.asked
        for number in range(20):
            answer = await service.get(f"/history?type=status&token={signed(first, f'x{number}')}")
            assert answer.status == 401
        assert keys.asked <= asked + 1
        # An outage, and workers that start meanwhile.
        keys.stop()
        await service.hup()
        async with await PlainClient.open(service, token=signed(fourth, "4", "bob")) as client:
            assert (await client.expect("connected"))["data"]["user"] == "bob"
    finally:
        keys.stop()
        await asyncio.to_thread(service.stop)


async def test_without_keys_clients_are_asked_to_come_back() -> None:
    """4401 would keep them away for good."""
    service = Service(AUTH_JWKS_URL=f"http://127.0.0.1:{free_port()}/", WORKERS=1)
    await asyncio.to_thread(service.start)
    try:
        shown = signed(ed25519.Ed25519PrivateKey.generate(), "1")
        answer = await service.get(f"/history?type=status&token={shown}")
        assert (answer.status, answer.body["code"]) == (503, "SERVICE_UNAVAILABLE")
        async with await RawClient.open(
            service, f"/ws/realtime?token={shown}", headers={"Origin": service.base}
        ) as client:
            _, code = await client.to_close()
            assert code == 1013
        async with await raw_socketio(service) as client:
            await client.packet("0")
            await client.send(TEXT, f'40{{"token":"{shown}"}}'.encode())
            _, close = await client.until_frame(CLOSE)
            assert close.close_code == 1012
        async with await RawClient.open(service) as client:
            await client.ask("auth", {"token": shown})
            error = await client.envelope("error")
            assert error["data"]["code"] == "SERVICE_UNAVAILABLE"
    finally:
        await asyncio.to_thread(service.stop)
