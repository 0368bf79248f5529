"""What an address may ask for over HTTP, with a clock that a test turns."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from app.config import Settings
from app.errors import ClientError, ErrorCode
from app.http import budgets as module
from app.http import limiter as limiter_module
from app.http.budgets import Budgets
from app.http.clients import Clients
from app.http.errors import HttpError
from app.http.limiter import Limiter
from app.http.writers import Writers
from app.sessions.addresses import network_of
from app.sessions.auth import TokenVerifier
from app.turns import SLICE
from tests.support.clock import Clock

TOKEN = "t" * 32


@pytest.fixture
def clock() -> Clock:
    return Clock(50.0)


def test_an_address_may_ask_ten_seconds_ahead(clock: Clock) -> None:
    budgets = Budgets(5, 0, clock)
    asked = [budgets.admits(budgets.account("192.0.2.1")) for _ in range(51)]
    assert asked == [True] * 50 + [False]
    assert budgets.admits(budgets.account("192.0.2.2"))
    clock.now += 1
    again = [budgets.admits(budgets.account("192.0.2.1")) for _ in range(6)]
    assert again == [True] * 5 + [False]


def test_time_is_counted_as_well(clock: Clock) -> None:
    budgets = Budgets(0, 0.1, clock)
    budgets.spend(budgets.account("192.0.2.1"), 1.05)
    clock.now += 0.4
    assert not budgets.admits(budgets.account("192.0.2.1"))
    clock.now += 0.8
    assert budgets.admits(budgets.account("192.0.2.1"))


def test_many_addresses_share_a_part_of_the_loop(clock: Clock) -> None:
    """Each is far within its own budget; those that used more than an even part are refused."""
    budgets = Budgets(1000, 100.0, clock)
    clock.now += 0.5
    for number in range(20):
        budgets.spend(budgets.account(f"192.0.2.{number}"), 0.02)
    assert not budgets.admits(budgets.account("192.0.2.1"))
    assert budgets.admits(budgets.account("198.51.100.1"))
    clock.now += 1.0
    assert budgets.admits(budgets.account("192.0.2.1"))


def test_the_table_of_addresses_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ADDRESSES", 3)
    budgets = Budgets(1, 0, clock)
    for number in range(10):
        budgets.account(f"192.0.2.{number}")
        budgets.account("192.0.2.0")
    assert len(budgets) == 3


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unix", "unix"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_what_an_address_counts_as(address: str, key: str) -> None:
    assert network_of(address) == key


class Side:
    """The middleware around a handler."""

    def __init__(
        self,
        clock: Clock,
        trusted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = (),
        **settings: Any,
    ) -> None:
        self.settings = dataclasses.replace(Settings(), publish_token=TOKEN, **settings)
        self.budgets = Budgets(self.settings.http_rate_limit, self.settings.http_rate_time, clock)
        self.noted: list[str] = []
        self.slept: list[float] = []
        self.limiter = Limiter(
            Writers(self.settings, TokenVerifier(self.settings)),
            Clients(trusted),
            self.budgets,
            lambda reason, _: self.noted.append(reason),
            lambda: SLICE,
            cpu=lambda: 0.0,
        )

    async def ask(
        self,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None,
        path: str = "/history",
        method: str = "GET",
        peer: str | None = None,
        forwarded: str | None = None,
        **headers: str,
    ) -> int:
        if forwarded is not None:
            headers["X-Forwarded-For"] = forwarded
        transport = mock.Mock()
        transport.get_extra_info.side_effect = lambda name, default=None: (
            (peer, 40000) if peer and name == "peername" else default
        )
        request = make_mocked_request(method, path, headers=headers, transport=transport)
        middleware = self.limiter.middleware()
        try:
            response = await middleware(request, handler or ok)
        except HttpError as error:
            wanted = ("RATE_LIMITED", {"Retry-After": "2"})
            return error.status if (error.code, error.headers) == wanted else 0
        except ClientError as error:
            return HttpError.of(error).status
        return response.status


async def ok(_: web.Request) -> web.Response:
    return web.Response(body=b"{}")


@pytest.fixture
def side(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Side:
    side = Side(clock, http_rate_limit=1, http_rate_time=0.0)

    async def sleep(seconds: float) -> None:
        side.slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return side


async def test_requests_beyond_the_budget_are_answered_late(side: Side) -> None:
    assert [await side.ask() for _ in range(12)] == [200] * 10 + [429] * 2
    assert len(side.slept) == 2
    assert all(0.5 <= seconds <= 1.5 for seconds in side.slept)
    assert side.noted == ["http_rate"] * 2


async def test_those_that_go_on_asking_wait_longer(clock: Clock, side: Side) -> None:
    for _ in range(10 + 100):
        await side.ask()
    for first, holds in ((0, 1), (20, 2), (40, 3), (60, 4), (80, 4)):
        slept = side.slept[first : first + 20]
        assert all(0.5 * holds <= seconds <= 1.5 * holds for seconds in slept), first
    clock.now += 200
    for _ in range(11):
        await side.ask()
    assert side.slept[-1] <= 1.5, "it is forgotten in time"


async def test_reads_of_history_count_beside_the_handler(clock: Clock, side: Side) -> None:
    """The handler waits for Valkey, and may share what another one reads."""
    side.budgets = side.limiter._budgets = Budgets(0, 10.0, clock)
    used = []
    for path in ("/ws/stats", "/history"):
        assert await side.ask(path=path) == 200
        (account,) = side.budgets._accounts.values()
        used.append(account.seconds)
    assert used[1] - used[0] >= 0.0005


async def test_publishers_and_upgrades_are_not_limited(side: Side) -> None:
    for _ in range(15):
        assert await side.ask(Authorization=f"Bearer {TOKEN}") == 200
        assert await side.ask(path="/ws/realtime?EIO=4") == 200
    assert await side.ask() == 200


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "PUT"])
@pytest.mark.parametrize("path", ["/events", "/events/", "/ws/realtime"])
async def test_what_becomes_no_connection_is_limited(side: Side, path: str, method: str) -> None:
    asked = [await side.ask(path=path, method=method) for _ in range(12)]
    assert asked == [200] * 10 + [429] * 2


async def test_wrong_tokens_are_slowed_down_and_then_refused(clock: Clock, side: Side) -> None:
    side.budgets = side.limiter._budgets = Budgets(1000, 0, clock)

    async def wrong(_: web.Request) -> web.Response:
        raise ClientError(ErrorCode.UNAUTHORIZED, "The token's signature is wrong.")

    answers = [await side.ask(wrong) for _ in range(25)]
    assert answers == [401] * 19 + [429] * 6
    assert side.slept[:2] == [0.05, 0.1]
    assert sorted(side.slept[:19]) == side.slept[:19]
    assert await side.ask() == 200, "a right token from the same address is taken"
    clock.now += 20
    assert await side.ask(wrong) == 401


async def test_only_so_many_refusals_wait(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter_module, "MAX_HELD_BACK", 0)
    for _ in range(10):
        await side.ask()
    request = make_mocked_request("GET", "/history")
    with pytest.raises(HttpError) as refused:
        await side.limiter.middleware()(request, ok)
    assert refused.value.close
    assert side.slept == []


async def test_the_time_of_handlers_is_counted(clock: Clock, side: Side) -> None:
    side.budgets = side.limiter._budgets = Budgets(0, 0.1, clock)

    async def slow(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 200_000_000)

    assert await side.ask(slow) == 200
    (account,) = side.budgets._accounts.values()
    assert account.seconds >= 0.4


# Clients that share an address

PROXY = "192.0.2.80"
FLOOD = 15


async def asked_by_both(side: Side, first: str = "203.0.113.5") -> tuple[list[int], int]:
    """What a client gets that asks too much, and then another one through the same proxy."""
    flood = [await side.ask(peer=PROXY, forwarded=first) for _ in range(FLOOD)]
    return flood, await side.ask(peer=PROXY, forwarded="203.0.113.6")


def behind(clock: Clock, *trusted: str) -> Side:
    networks = tuple(ipaddress.ip_network(name) for name in trusted)
    return Side(clock, networks, http_rate_limit=1, http_rate_time=0.0)


async def test_clients_behind_a_trusted_proxy_have_budgets_of_their_own(
    clock: Clock, side: Side
) -> None:
    flood, other = await asked_by_both(behind(clock, f"{PROXY}/32"))
    assert (flood[-1], other) == (429, 200)


async def test_clients_behind_any_other_proxy_share_one(clock: Clock, side: Side) -> None:
    """As docs/PROTOCOL.md says: any client can write X-Forwarded-For."""
    flood, other = await asked_by_both(behind(clock, "198.51.100.0/24"))
    assert (flood[-1], other) == (429, 429)


async def test_a_client_cannot_spend_the_budget_of_another_one(clock: Clock, side: Side) -> None:
    """Behind a trusted proxy it may name an address, which stands before its own."""
    spoofed = "203.0.113.6, 203.0.113.5"
    flood, other = await asked_by_both(behind(clock, f"{PROXY}/32"), spoofed)
    assert (flood[-1], other) == (429, 200)


async def test_a_publisher_is_not_refused_for_others_at_its_address(side: Side) -> None:
    assert [await side.ask() for _ in range(FLOOD)][-1] == 429
    assert await side.ask(Authorization=f"Bearer {TOKEN}") == 200
    assert await side.ask(path="/ws/realtime") == 200, "upgrades have limits of their own"
