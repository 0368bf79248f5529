"""CORS answers, over a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from multidict import CIMultiDictProxy

from tests.support.http_side import HttpSide, http_side

LAB = "https://lab.yujian.team"
PREFLIGHT = {
    "Origin": LAB,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


@pytest.fixture
async def side() -> AsyncIterator[HttpSide]:
    async with http_side(ALLOWED_ORIGINS=f"{LAB},https://b.example") as side:
        yield side


def shared_with(headers: CIMultiDictProxy[str]) -> list[str]:
    return headers.getall("Access-Control-Allow-Origin", [])


async def test_listed_pages_may_read_answers_and_errors(side: HttpSide) -> None:
    for path, status in [("/status", 200), ("/nowhere", 404), ("/history?type=x", 400)]:
        answer = await side.client.get(path, headers={"Origin": LAB})
        assert answer.status == status
        assert shared_with(answer.headers) == [LAB]
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("origin", ["https://evil.example", "http://lab.yujian.team", "null", ""])
async def test_other_pages_may_not(side: HttpSide, origin: str) -> None:
    answer = await side.client.get("/status", headers={"Origin": origin})
    assert shared_with(answer.headers) == []
    assert answer.headers["Vary"] == "Origin", "a cache must keep the answers apart"
    refused = await side.client.options("/ws/broadcast", headers=PREFLIGHT | {"Origin": origin})
    assert shared_with(refused.headers) == []
    assert "Access-Control-Allow-Methods" not in refused.headers


async def test_a_preflight_is_answered(side: HttpSide) -> None:
    answer = await side.client.options("/ws/broadcast", headers=PREFLIGHT)
    assert answer.status == 204
    assert shared_with(answer.headers) == [LAB]
    assert answer.headers["Access-Control-Allow-Methods"] == "OPTIONS, POST"
    allowed = answer.headers["Access-Control-Allow-Headers"].lower()
    assert {"authorization", "content-type", "x-publish-token"} <= set(allowed.split(", "))
    assert int(answer.headers["Access-Control-Max-Age"]) > 0


async def test_options_without_a_preflight_names_the_methods(side: HttpSide) -> None:
    answer = await side.client.options("/status")
    assert answer.status == 204
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    assert "Access-Control-Allow-Methods" not in answer.headers
    assert (await side.client.options("/nowhere")).status == 404


async def test_by_default_nothing_is_shared() -> None:
    async with http_side() as side:
        answer = await side.client.get("/status", headers={"Origin": LAB})
        assert shared_with(answer.headers) == []
        assert "Vary" not in answer.headers
        preflight = await side.client.options("/ws/broadcast", headers=PREFLIGHT)
        assert shared_with(preflight.headers) == []


async def test_all_origins_are_a_star() -> None:
    async with http_side(ALLOWED_ORIGINS="*") as side:
        answer = await side.client.get("/status", headers={"Origin": "null"})
        assert shared_with(answer.headers) == ["*"]
        preflight = await side.client.options("/ws/broadcast", headers=PREFLIGHT)
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
