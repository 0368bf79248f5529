"""Admission: the upgrade request, origin, token, options and the cap."""

from __future__ import annotations

import errno
import functools
import random
import time
from collections.abc import Set as AbstractSet
from typing import Any
from urllib.parse import parse_qsl

import jwt
import pytest
from aiohttp import HttpVersion10
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from app.config import Settings
from app.config import load as load_settings
from app.errors import ErrorCode
from app.http.admission import (
    RETRY_AFTER,
    Admission,
    Admitted,
    Refused,
    choose_subprotocol,
    parse_query,
)
from app.http.clients import Clients
from app.http.cors import Origins
from app.http.header_lists import MOST_PARTS
from app.protocol.requests import DEFAULT_OPTIONS
from app.sessions.addresses import Addresses, TooMany
from app.sessions.auth import TokenVerifier
from tests.support.clock import Clock
from tests.support.slots import TableSlots

SECRET = "s" * 32
UPGRADE = {
    "Host": "presence.example",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Door:
    """An Admission, and what stands around it."""

    def __init__(self, **environ: str) -> None:
        settings: Settings = load_settings(environ)
        self.clock = Clock(1000.0)
        self.slots = TableSlots(settings, self.clock)
        self.reasons: list[str] = []
        self.serving = True
        self.memory = True
        clients = Clients(settings.trusted_proxies)
        most, connects = settings.max_connections_per_address, settings.max_connects_per_address
        self.addresses = Addresses(most, connects, self.slots) if most or connects else None
        self.admission = Admission(
            settings,
            self.slots,
            TokenVerifier(settings),
            clients,
            Origins(settings, clients),
            is_serving=lambda: self.serving,
            has_memory=lambda: self.memory,
            count_refused=self.reasons.append,
            addresses=self.addresses,
        )

    def check(
        self, query: str = "", method: str = "GET", version: Any = None, **headers: str | None
    ) -> Admitted:
        merged: dict[str, str | None] = dict(UPGRADE)
        merged |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = make_mocked_request(
            method,
            "/ws/realtime" + (f"?{query}" if query else ""),
            headers={name: value for name, value in merged.items() if value is not None},
            **({"version": version} if version else {}),
        )
        return self.admission.check(request.clone(remote="127.0.0.1"))

    def refuse(self, query: str = "", **headers: Any) -> Refused:
        before = self.slots.connections
        with pytest.raises(Refused) as caught:
            self.check(query, **headers)
        assert self.slots.connections == before, "a refusal must reserve nothing"
        assert self.reasons[-1] == caught.value.reason
        assert caught.value.close
        return caught.value


@pytest.fixture
def door() -> Door:
    return Door()


def test_a_plain_client_gets_the_defaults(door: Door) -> None:
    admitted = door.check()
    assert admitted.protocol == "plain"
    assert admitted.handshake is not None
    assert admitted.handshake.key == UPGRADE["Sec-WebSocket-Key"]
    assert admitted.options.types is None
    assert admitted.user is None
    assert admitted.identity is None
    assert admitted.options.resume is None
    assert not admitted.options.batch
    assert door.slots.connections == 1
    assert door.reasons == []


def test_a_query_that_was_sent_before_says_the_same(door: Door) -> None:
    for _ in range(2):
        assert door.check("EIO=4&transport=websocket").protocol == "socketio"
        assert door.check("transport=websocket&EIO=4").protocol == "socketio"
        chosen = door.check("types=status&batch=1&history=3")
        assert (chosen.protocol, chosen.options.types, chosen.options.batch, chosen.options.history) == (
            "plain", frozenset({"status"}), True, 3,
        )  # fmt: skip
        for user in ("ann", "bob"):
            assert door.check(f"types=status&user={user}").user == user
        assert door.refuse("EIO=3&transport=websocket").reason == "transport"
        assert door.refuse("types=nonsense").reason == "types"


def test_a_plain_query_says_what_the_library_says() -> None:
    chosen = random.Random(3)
    for _ in range(5_000):
        raw = "".join(
            chosen.choices(["a", "b", "=", "&", "%20", "+", ";", "ä"], k=chosen.randrange(12))
        )
        assert parse_query(raw) == dict(parse_qsl(raw, keep_blank_values=True))


@pytest.mark.parametrize(
    "query",
    ["EIO=4&transport=websocket", "transport=websocket&EIO=4&t=17.5", "EIO=4"],
)
def test_eio_4_is_socketio(door: Door, query: str) -> None:
    assert door.check(query).protocol == "socketio"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("EIO=4&transport=polling", "WebSocket transport"),
        ("transport=polling", "WebSocket transport"),
        ("EIO=4&transport=webtransport", "WebSocket transport"),
        ("EIO=3&transport=websocket", "Engine.IO 4"),
        ("EIO=", "Engine.IO 4"),
        ("EIO=4&transport=websocket&sid=abc", "no session to upgrade"),
    ],
)
def test_other_transports_are_refused_with_what_is_served(
    door: Door, query: str, says: str
) -> None:
    # A polling request is an ordinary GET or POST: the answer must not be about upgrades.
    for method in ("GET", "POST"):
        refused = door.refuse(
            query, method=method, Upgrade=None, Connection="keep-alive", Sec_WebSocket_Key=None
        )
        assert refused.status == 400
        assert says in refused.message
        assert refused.reason == "transport"


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({"method": "POST"}, 405, "GET"),
        ({"Upgrade": None}, 400, "Upgrade: websocket"),
        ({"Upgrade": "h2c"}, 400, "Upgrade: websocket"),
        ({"Connection": None}, 400, "Connection: Upgrade"),
        ({"Connection": "keep-alive, upgrader"}, 400, "Connection: Upgrade"),
        ({"version": HttpVersion10}, 400, "Upgrade"),
        ({"Sec_WebSocket_Version": None}, 426, "version 13"),
        ({"Sec_WebSocket_Version": "8"}, 426, "version 13"),
        ({"Sec_WebSocket_Key": None}, 400, "base64"),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZQ=="}, 400, "base64"),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=!"}, 400, "base64"),
        ({"Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAAAA"}, 400, "base64"),
        ({"Sec_WebSocket_Key": "é" * 24}, 400, "base64"),
    ],
)
def test_a_broken_handshake_is_explained(
    door: Door, headers: dict[str, Any], status: int, says: str
) -> None:
    refused = door.refuse(**headers)
    assert refused.status == status
    assert says in refused.message
    assert refused.reason == "handshake"
    assert ("Sec-WebSocket-Version" in refused.headers) == (status == 426)
    codes = {405: "METHOD_NOT_ALLOWED", 400: "BAD_REQUEST", 426: "UPGRADE_REQUIRED"}
    assert refused.code == codes[status]


def test_header_lists_and_case_do_not_matter(door: Door) -> None:
    assert door.check(Connection="keep-alive, Upgrade", Upgrade="WebSocket")


@pytest.mark.parametrize(
    ("query", "types"),
    [
        ("types=", set()),
        ("types=,", set()),
        ("types=health", {"health"}),
        ("types=stats,%20status,stats", {"stats", "status"}),
        ("types=all", {"status", "stats", "health", "config", "system", "extra"}),
        ("types=health,all", {"status", "stats", "health", "config", "system", "extra"}),
        ("types=extra", {"extra"}),
    ],
)
def test_types_replace_the_default(query: str, types: AbstractSet[str]) -> None:
    assert Door(MESSAGE_TYPES="extra").check(query).options.types == types


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("types=nope", ErrorCode.INVALID_TYPE),
        ("types=status,Status", ErrorCode.INVALID_TYPE),
        ("types=status,error", ErrorCode.SUBSCRIPTION_INVALID),
        ("types=control", ErrorCode.INVALID_TYPE),
        ("batch=maybe", ErrorCode.INVALID_PAYLOAD),
        ("history=0", ErrorCode.INVALID_PAYLOAD),
        ("history=101", ErrorCode.INVALID_PAYLOAD),
        ("history=x", ErrorCode.INVALID_PAYLOAD),
        ("user=" + "x" * 129, ErrorCode.INVALID_PAYLOAD),
        ("user=a%0Ab", ErrorCode.INVALID_PAYLOAD),
        ("&".join(f"a{n}=1" for n in range(40)), ErrorCode.INVALID_PAYLOAD),
    ],
)
def test_wrong_options_are_refused(door: Door, query: str, code: ErrorCode) -> None:
    refused = door.refuse(query)
    assert (refused.status, refused.code) == (400, code)


def test_the_options_of_a_plain_client(door: Door) -> None:
    admitted = door.check("batch=1&user=%E6%B1%89+a&resume=r.1&types=status&other=x")
    assert admitted.options.batch
    assert admitted.user == "汉 a"
    assert admitted.options.resume == "r.1"
    assert not door.check("batch=0&user=").options.batch
    assert (door.check("history=3").options.history, door.check("history=").options.history) == (
        3,
        None,
    )
    assert door.check("user=").user is None


def test_socketio_ignores_the_options_of_plain_clients(door: Door) -> None:
    admitted = door.check("EIO=4&transport=websocket&types=nope&batch=1&resume=x&user=a")
    assert admitted.options == DEFAULT_OPTIONS
    assert admitted.user == "a"


# Origins


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("presence.example", "http://presence.example", True),
        ("presence.example", "https://presence.example", True),
        ("presence.example:443", "https://presence.example", True),
        ("Presence.example:3001", "http://presence.EXAMPLE:3001", True),
        ("[::1]:3001", "http://[::1]:3001", True),
        ("presence.example", "https://evil.example", False),
        ("presence.example", "https://presence.example.evil.example", False),
        ("presence.example", "https://presence.example:8443", False),
        ("presence.example", "null", False),
        ("presence.example", "", False),
        ("", "https://", False),
    ],
)
def test_by_default_only_the_same_origin_connects(
    door: Door, host: str, origin: str, allowed: bool
) -> None:
    if allowed:
        assert door.check(Host=host, Origin=origin)
    else:
        refused = door.refuse(Host=host, Origin=origin)
        assert (refused.status, refused.reason) == (403, "origin")


def test_listed_origins_come_in_beside_the_same() -> None:
    door = Door(ALLOWED_ORIGINS="https://lab.yujian.team")
    assert door.check(Origin="https://lab.yujian.team")
    assert door.check(Origin=None)
    assert door.check(Origin="https://presence.example")
    assert door.check(Origin="HTTPS://Lab.Yujian.Team:443/")
    door.refuse(Origin="http://lab.yujian.team")
    assert Door(ALLOWED_ORIGINS="*").check(Origin="null")


@pytest.mark.parametrize(
    ("allowed", "origin", "comes_in"),
    [
        ("https://*.example.org", "https://a.example.org", True),
        ("https://*.example.org", "https://a.b.example.org:443", True),
        ("https://*.example.org", "https://example.org", False),
        ("https://*.example.org", "https://aexample.org", False),
        ("https://*.example.org", "https://a.example.org:8443", False),
        ("https://*.example.org", "http://a.example.org", False),
        ("https://*.example.org", "https://a.example.org.evil.example", False),
        ("https://*.example.org", "https://evil.example/.example.org", False),
        ("https://*.example.org", "https://evil.example#.example.org", False),
        ("https://*.example.org:*", "https://a.example.org:8443", True),
        ("http://localhost:*", "http://localhost", True),
        ("http://localhost:*", "http://localhost:5173", True),
        ("http://localhost:*", "http://localhost.evil.example:5173", False),
        ("http://localhost:*", "http://localhost:5173@evil.example", False),
        ("http://[::1]:*", "http://[::1]:5173", True),
        ("http://localhost", "http://localhost:80", True),
        ("null", "null", True),
        ("https://lab.example", "null", False),
        ("https://*.example.org", "https://" + "a" * 400 + ".example.org", False),
    ],
)
def test_origins_with_wildcards(allowed: str, origin: str, comes_in: bool) -> None:
    door = Door(ALLOWED_ORIGINS=allowed)
    if comes_in:
        assert door.check(Origin=origin)
    else:
        assert door.refuse(Origin=origin).reason == "origin"


def test_connection_and_upgrade_on_several_lines(door: Door) -> None:
    headers = CIMultiDict(
        [(name, value) for name, value in UPGRADE.items() if name not in {"Connection", "Upgrade"}]
        + [("Connection", "keep-alive"), ("Connection", "Upgrade")]
        + [("Upgrade", "h2c"), ("Upgrade", "WebSocket")]
    )
    request = make_mocked_request("GET", "/ws/realtime", headers=headers)
    assert door.admission.check(request.clone(remote="127.0.0.1"))


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        ("json", "json"),
        ("json, msgpack", "json"),
        ("bearer.abc, json", "json"),
        ("bearer.abc", "bearer.abc"),
        ("a b, json", "json"),
        ("", None),
    ],
)
def test_the_first_offered_subprotocol_is_chosen(offered: str | None, chosen: str | None) -> None:
    headers = {} if offered is None else {"Sec-WebSocket-Protocol": offered}
    assert choose_subprotocol(make_mocked_request("GET", "/", headers=headers)) == chosen


def test_a_subprotocol_may_show_the_token() -> None:
    door = Door(AUTH_SECRET=SECRET)
    assert door.check(Sec_WebSocket_Protocol=f"json, bearer.{signed()}").user == "ada"
    refused = door.refuse(Sec_WebSocket_Protocol=f"bearer.{signed(exp=1)}")
    assert (refused.status, refused.close_code) == (401, 4401)


@pytest.mark.parametrize("query", ["user=%ff", "user=a%c3", "x=%80&user=a", "user=a%ed%a0%80"])
def test_a_byte_that_is_no_utf_8_is_refused(door: Door, query: str) -> None:
    assert door.refuse(query).code == ErrorCode.INVALID_PAYLOAD


def test_names_are_compared_in_nfc(door: Door) -> None:
    assert door.check("user=e%CC%81").user == door.check("user=%C3%A9").user == "é"


def test_limits_per_address() -> None:
    door = Door(MAX_CONNECTS_PER_ADDRESS="2", TRUSTED_PROXIES="127.0.0.1")
    for address in ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"):
        door.check(X_Forwarded_For=address)
    refused = door.refuse(X_Forwarded_For="2001:db8:0:1::3")
    assert (refused.status, refused.reason, refused.close_code) == (429, "address_rate", 1013)
    door.check(X_Forwarded_For="2001:db8:0:2::1")
    door.clock.now += 0.99
    door.refuse(X_Forwarded_For="2001:db8:0:1::3")
    door.clock.now += 0.01
    door.check(X_Forwarded_For="2001:db8:0:1::3")


def test_connections_per_address_are_counted_until_they_end() -> None:
    settings = load_settings({"MAX_CONNECTIONS_PER_ADDRESS": "1"})
    addresses = Addresses(1, 0, TableSlots(settings))
    one: Any = object()
    addresses.check("1.2.3.4")
    addresses.claim("1.2.3.4")
    addresses.hold(one, "1.2.3.4")
    for refuse in (addresses.check, addresses.claim):
        with pytest.raises(TooMany):
            refuse("::ffff:1.2.3.4")
    addresses.claim("1.2.3.5")
    addresses.give_back("1.2.3.5")
    addresses.claim("1.2.3.5")
    addresses.release(one)
    addresses.release(one)
    addresses.claim("1.2.3.4")


def test_what_came_in_and_did_not_begin_is_given_back() -> None:
    door = Door(MAX_CONNECTIONS_PER_ADDRESS="1")
    before = door.slots.connections
    admitted = door.check()
    assert door.refuse().reason == "address"
    door.admission.give_back(admitted)
    assert door.slots.connections == before
    door.check()


def test_only_a_trusted_proxy_names_host_and_scheme() -> None:
    forwarded = {
        "Origin": "https://lab.example",
        "X_Forwarded_Host": "evil.example, lab.example",
        "X_Forwarded_Proto": "https",
    }
    Door().refuse(**forwarded)
    door = Door(TRUSTED_PROXIES="127.0.0.0/8")
    assert door.check(**forwarded)
    door.refuse(**{**forwarded, "X_Forwarded_Proto": "http"})
    door.refuse(**{**forwarded, "X_Forwarded_Host": "lab.example, evil.example"})
    assert door.check(**{**forwarded, "X_Forwarded_Proto": "wss"})


# Tokens


def signed(**claims: Any) -> str:
    return jwt.encode({"sub": "ada"} | claims, SECRET, algorithm="HS256")


@pytest.mark.parametrize("place", ["query", "header"])
def test_a_token_names_the_user(place: str) -> None:
    door = Door(AUTH_SECRET=SECRET)
    expires = int(time.time()) + 60
    token = signed(exp=expires)
    if place == "query":
        admitted = door.check(f"user=mallory&token={token}")
    else:
        admitted = door.check("user=mallory", Authorization=f"bearer {token}")
    assert admitted.user == "ada"
    assert admitted.identity is not None
    assert admitted.identity.expires_at == expires


def test_a_wrong_token_is_refused() -> None:
    door = Door(AUTH_SECRET=SECRET)
    for refused in (
        door.refuse(f"token={signed(exp=1)}"),
        door.refuse(Authorization=f"Bearer {signed(exp=1)}"),
        door.refuse(f"EIO=4&transport=websocket&token={signed(exp=1)}"),
    ):
        assert (refused.status, refused.code) == (401, ErrorCode.UNAUTHORIZED)
        assert refused.reason == "token"
        assert "expired" in refused.message
        assert "Bearer" in refused.headers["WWW-Authenticate"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic YTpi"}])
def test_a_token_may_come_later(headers: dict[str, str]) -> None:
    admitted = Door(AUTH_SECRET=SECRET).check("user=mallory&token=", **headers)
    assert admitted.user is None
    assert admitted.identity is None


def test_without_keys_a_token_means_nothing(door: Door) -> None:
    assert door.check("token=whatever&user=ada").user == "ada"


# Room


def test_the_cap_is_the_last_word() -> None:
    door = Door(MAX_TOTAL_CONNECTIONS="2")
    door.check()
    door.check()
    refused = door.refuse()
    assert (refused.status, refused.code) == (503, ErrorCode.MAX_CONNECTIONS_EXCEEDED)
    assert refused.reason == "cap"
    low, high = RETRY_AFTER
    assert low <= int(refused.headers["Retry-After"]) <= high
    door.slots.release_connection()
    door.refuse("types=nope")
    door.check()
    delays = {door.refuse().retry_after for _ in range(200)}
    assert len(delays) > 1, "clients must not all come back at once"


def test_a_worker_that_does_not_serve_says_so(door: Door) -> None:
    door.serving = False
    refused = door.refuse()
    assert (refused.status, refused.reason, refused.retry_after) == (503, "not_ready", 1)


def test_no_memory_no_connection(door: Door) -> None:
    door.memory = False
    refused = door.refuse()
    assert (refused.status, refused.reason) == (503, "memory")
    assert refused.retry_after


def test_an_address_that_cannot_be_counted_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(MAX_CONNECTIONS_PER_ADDRESS="5", MAX_TOTAL_CONNECTIONS="1")

    def is_full(_: str) -> bool:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(door.slots, "claim_address", is_full)
        refused = door.refuse()
    assert (refused.status, refused.code) == (503, ErrorCode.SERVICE_UNAVAILABLE)
    assert (refused.reason, bool(refused.retry_after)) == ("memory", True)
    door.check()


# Requests for server-sent events.


def ask(door: Door, query: str = "", version: Any = None, **headers: str) -> tuple[Admitted, str]:
    merged = {"Host": "presence.example"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    request = make_mocked_request(
        "GET",
        "/events" + (f"?{query}" if query else ""),
        headers=merged,
        **({"version": version} if version else {}),
    )
    return door.admission.check_events(request.clone(remote="127.0.0.1"))


def test_a_stream_has_the_options_of_plain_json() -> None:
    door = Door()
    admitted, last_id = ask(door, "types=status,stats&batch=1&history=3&user=ann&lastEventId=a%3Bb")
    assert admitted.protocol == "sse"
    assert (
        admitted.options.types,
        admitted.options.batch,
        admitted.options.history,
        admitted.user,
    ) == (
        frozenset({"status", "stats"}),
        True,
        3,
        "ann",
    )
    assert last_id == "a;b"
    assert door.slots.connections == 1
    assert ask(door, "lastEventId=old", Last_Event_ID="new")[1] == "new"
    assert ask(door)[0].options.types is None


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("", 0),
        ("text/event-stream", 0),
        ("text/html, */*;q=0.1", 0),
        ("Text/*; q=0.5", 0),
        ("*/*;q=0, text/event-stream", 0),
        ("text/html", 406),
        ("text/event-stream;q=0", 406),
        ("text/event-stream; Q=0.000, */*", 406),
        ("text/*;q=0, */*", 406),
        (",;,", 406),
    ],
)
def test_what_a_client_of_a_stream_must_accept(accept: str, status: int) -> None:
    door = Door()
    headers = {"Accept": accept} if accept else {}
    if not status:
        ask(door, **headers)
        return
    with pytest.raises(Refused) as caught:
        ask(door, **headers)
    assert (caught.value.status, caught.value.code) == (status, ErrorCode.NOT_ACCEPTABLE)
    assert caught.value.retry_after is None
    assert door.reasons == ["stream"]
    assert door.slots.connections == 0


@pytest.mark.parametrize(
    ("name", "part", "status"),
    [
        ("Accept", "text/event-stream", 406),
        ("Upgrade", "websocket", 400),
        ("Connection", "Upgrade", 400),
    ],
)
def test_only_the_first_parts_of_a_list_are_looked_at(name: str, part: str, status: int) -> None:
    """To look at each of thousands would take a request some 20 ms."""
    door = Door()
    check = functools.partial(ask, door) if name == "Accept" else door.check
    check(**{name: "x," * (MOST_PARTS - 1) + part})
    with pytest.raises(Refused) as caught:
        check(**{name: "x," * MOST_PARTS + part})
    assert caught.value.status == status


def test_a_stream_needs_a_newer_http() -> None:
    with pytest.raises(Refused) as caught:
        ask(Door(), version=HttpVersion10)
    assert (caught.value.status, caught.value.code) == (505, ErrorCode.HTTP_VERSION_NOT_SUPPORTED)


def test_a_stream_needs_its_token_in_the_request() -> None:
    door = Door(AUTH_SECRET=SECRET)
    with pytest.raises(Refused) as caught:
        ask(door)
    assert (caught.value.status, caught.value.code) == (401, ErrorCode.UNAUTHORIZED)
    assert caught.value.headers["WWW-Authenticate"] == "Bearer"
    token = jwt.encode({"sub": "ann", "types": ["status"], "exp": time.time() + 60}, SECRET)
    admitted, _ = ask(door, f"types=status&token={token}")
    assert admitted.user == "ann"
    with pytest.raises(Refused) as caught:
        ask(door, "types=stats", Authorization=f"Bearer {token}")
    assert (caught.value.status, caught.value.code) == (403, ErrorCode.FORBIDDEN)


def test_temporary_refusals_of_a_stream_say_when_to_come_back() -> None:
    door = Door(MAX_TOTAL_CONNECTIONS="1")
    ask(door)
    with pytest.raises(Refused) as caught:
        ask(door)
    assert (caught.value.status, caught.value.reason) == (503, "cap")
    assert caught.value.retry_after in range(RETRY_AFTER[0], RETRY_AFTER[1] + 1)
    door.serving = False
    with pytest.raises(Refused) as caught:
        ask(door)
    assert caught.value.retry_after == 1
