"""Which Host headers are served: a page under a rebound name is no page of ours."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from app.config import load
from app.http.clients import Clients
from app.http.cors import Hosts
from tests.support.http_side import http_side


def allows(
    host: str | None,
    Origin: str = "",  # noqa: N803
    language: str = "",
    site: str = "",
    **environ: str,
) -> bool:
    settings = load(environ)
    given = {"Origin": Origin, "Accept-Language": language, "Sec-Fetch-Site": site}
    headers = {name: value for name, value in given.items() if value}
    headers |= {} if host is None else {"Host": host}
    request = make_mocked_request("GET", "/history", headers=headers).clone(remote="127.0.0.1")
    return Hosts(settings, Clients(settings.trusted_proxies)).allows(request)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:3001", "api.localhost", "127.0.0.1:3001", "127.1.2.3", "[::1]:3001",
     "[::1]", "localhost.", None],
)  # fmt: skip
def test_a_loopback_bind_serves_the_loopback(host: str | None) -> None:
    assert allows(host)
    assert allows(host, BIND="[::1]:3001")
    assert allows(host, BIND="localhost:3001", ALLOWED_HOSTS="api.example")


@pytest.mark.parametrize(
    "host",
    ["evil.example:3001", "localhost.evil.example", "127.0.0.1.evil.example", "evil.localhost.example",
     "0.0.0.0:3001", "10.0.0.1", "127.0.0.1@evil.example", "localhost:3001:1", "[::2]", "", "a b",
     "localhost\x00", "127.0.0.1:x", "x" * 400 + ".localhost"],
)  # fmt: skip
def test_a_loopback_bind_serves_no_other_name(host: str) -> None:
    assert not allows(host)
    assert not allows(host, ALLOWED_HOSTS="api.example")
    assert allows(host, ALLOWED_HOSTS="*")
    assert allows(host, TRUSTED_PROXIES="127.0.0.1"), "a proxy brings the public name"
    assert allows(host, BIND="0.0.0.0:3001")
    assert allows(host, BIND="unix:/run/x.sock")


def test_listed_hosts() -> None:
    listed = {"ALLOWED_HOSTS": "api.example, *.lab.example"}
    for bind in ("127.0.0.1:3001", "0.0.0.0:3001"):
        assert allows("API.example:443", BIND=bind, **listed)
        assert allows("a.b.lab.example", BIND=bind, **listed)
        assert not allows("lab.example", BIND=bind, **listed)
        assert not allows("evil.example", BIND=bind, **listed)


def test_programs_may_name_anything_without_a_dot() -> None:
    assert allows("x")
    assert allows("backend:3001")
    assert not allows("x", Origin="http://x")
    # The same-origin GET of a page bears no Origin, but what the browser adds to each request.
    assert not allows("x", language="en")
    assert not allows("backend:3001", site="same-origin")
    assert allows("localhost:3001", language="en")
    assert not allows("[::2]")


async def test_every_route_looks_at_the_host() -> None:
    async with http_side() as side:
        for path in ("/status", "/history?type=status", "/ws/stats", "/nothing"):
            answer = await side.client.get(path, headers={"Host": "evil.example:3001"})
            assert answer.status == 403
            assert (await answer.json())["code"] == "FORBIDDEN"
        answer = await side.client.options("/history", headers={"Host": "evil.example"})
        assert answer.status == 403
        assert side.refused[0] == ("host", None)
