"""The page at `/`: its answers, by request, and their headers."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from app.http.page import LINKS, ROOT, PageFiles
from tests.support.http_side import HttpSide, http_side

Client = TestClient[web.Request, web.Application]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    for name, text in {
        "index.html": "<!doctype html><title>t</title>",
        "icon.svg": "<svg/>",
        "assets/index-abc.js": "1;" * 100,
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "assets/index-abc.js.gz").write_bytes(gzip.compress(b"1;" * 100))
    (tmp_path / "assets/index-abc.js.br").write_bytes(b"brotli")
    return tmp_path


@pytest.fixture
async def client(root: Path) -> AsyncIterator[Client]:
    app = web.Application()
    PageFiles(root).add_routes(app, "1.2.3")
    async with TestClient(TestServer(app), auto_decompress=False) as client:
        yield client


async def test_the_page_is_asked_for_anew_each_time(client: Client) -> None:
    answer = await client.get("/")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert await answer.text() == "<!doctype html><title>t</title>"
    tag = answer.headers["ETag"]
    again = await client.get("/", headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status, await again.read()) == (304, b"")
    assert again.headers["ETag"] == tag
    head = await client.head("/")
    assert (head.status, await head.read()) == (200, b"")


async def test_nothing_inline_and_nothing_from_elsewhere(client: Client) -> None:
    headers = (await client.get("/")).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate, br", "br"),
        ("gzip", "gzip"),
        ("br;q=0, gzip;q=0.5", "gzip"),
        ("*", "br"),
        ("identity", None),
        ("deflate", None),
        ("gzip;q=x", None),
    ],
)
async def test_assets_are_compressed_and_kept(
    client: Client, accepted: str, encoding: str | None
) -> None:
    answer = await client.get("/assets/index-abc.js", headers={"Accept-Encoding": accepted})
    assert answer.headers.get("Content-Encoding") == encoding
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert answer.headers["Vary"] == "Accept-Encoding"
    expected = {"br": b"brotli", "gzip": gzip.compress(b"1;" * 100), None: b"1;" * 100}
    body = await answer.read()
    assert (
        gzip.decompress(body) == b"1;" * 100 if encoding == "gzip" else body == expected[encoding]
    )


async def test_each_encoding_has_its_own_tag(client: Client) -> None:
    tags = [
        (await client.get("/assets/index-abc.js", headers={"Accept-Encoding": one})).headers["ETag"]
        for one in ("br", "gzip", "identity")
    ]
    assert len(set(tags)) == 3


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("application/json", True),
        ("application/json, text/plain, */*", True),
        ("application/json, text/html;q=0.9", True),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/html, application/json", False),
        ("application/json;q=0.5, text/html", False),
        ("application/json;q=0", False),
        ("*/*", False),
        ("", False),
    ],
)
async def test_programs_get_links(client: Client, accept: str, json: bool) -> None:
    answer = await client.get("/", headers={"Accept": accept})
    assert answer.content_type == ("application/json" if json else "text/html")
    assert "Accept" in answer.headers["Vary"]
    if json:
        body = await answer.json()
        assert body["version"] == "1.2.3"
        assert body["links"] == LINKS


@pytest.mark.parametrize("path", ["/assets/none.js", "/assets/..%2findex.html", "/assets/"])
async def test_what_is_not_there(path: str) -> None:
    async with http_side() as side:
        assert (await side.client.get(path)).status == 404


async def test_links_lead_somewhere() -> None:
    async with http_side() as side:
        known = {resource.canonical for resource in side.app.router.resources()} | {
            "/ws/realtime",
            "/events",
            "/metrics",
        }  # those are added by app/main.py
        assert {link.partition("?")[0] for link in LINKS.values()} <= known


async def test_without_the_page() -> None:
    async with http_side(PAGE="0") as side:
        for path in ("/", "/config.json", "/icon.svg"):
            assert (await side.client.get(path)).status == 404


async def test_the_page_knows_where_its_service_is() -> None:
    async with http_side() as side:
        answer = await side.client.get("/config.json")
        assert await answer.json() == {"api": ""}


async def test_the_built_page_loads_only_what_is_there() -> None:
    side: HttpSide
    async with http_side() as side:
        answer = await side.client.get("/", headers={"Accept": "text/html"})
        html = await answer.text()
        found = re.findall(r'(?:src|href)="([^"]+)"', html)
        assert any(name.endswith(".js") for name in found)
        for name in found:
            assert (await side.client.get(name)).status == 200, name
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", html)


def test_the_first_load_is_small() -> None:
    html = (ROOT / "index.html").read_text()
    loaded = ["index.html", *re.findall(r'(?:src|href)="/([^"]+\.(?:js|css|svg))"', html)]
    sizes = {name: (ROOT / f"{name}.gz").stat().st_size for name in loaded}
    assert sum(sizes.values()) <= 100_000, sizes
