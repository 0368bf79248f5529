"""The first steps of the README, as they are written there, against a real service."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from tests.page.browser import Browser
from tests.support import REPO
from tests.support.service import TOKEN, Service
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(90)


def block(page: str, language: str, service: Service) -> str:
    """The first block of a language, with the address of the service."""
    found = re.search(
        rf"^```{language}\n(.*?)^```", (REPO / page).read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[1].replace("127.0.0.1:3001", f"127.0.0.1:{service.port}")


@pytest.mark.parametrize("page", ["README.md", "docs/CLIENTS.md"])
async def test_python(service: Service, page: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", block(page, "python", service)),
        stdout=asyncio.subprocess.PIPE,
        limit=2**22,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            lines: list[str] = []
            while not any(line.startswith("history_data") for line in lines):
                lines.append((await process.stdout.readline()).decode())
            await service.publish("status", "greeting", {"hello": page})
            while not (lines[-1].startswith("greeting") and page in lines[-1]):
                lines.append((await process.stdout.readline()).decode())
    finally:
        process.kill()
        await process.communicate()
    assert lines[0].startswith("connected")


async def test_curl(service: Service, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PUBLISH_TOKEN={TOKEN}\n")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", block("README.md", "sh", service)),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    answer, _ = await process.communicate()
    stored = json.loads(answer)
    assert (await service.history("status"))[-1]["id"] == stored["id"]


@pytest.mark.parametrize("page", ["README.md"])
async def test_browser(browser: Browser, service: Service, page: str) -> None:
    sent = await service.publish("status", "greeting", {"hello": "browser"})
    async with await browser.open(f"{service.base}/") as tab:
        await tab.live()
        snippet = block(page, "js", service).replace("console.log(", "window.got.push(")
        await tab.value(f"window.got = []; {snippet} 0")
        past = "window.got.filter((one) => one.event === 'history_data' && one.type === 'status')"
        messages = await tab.wait(f"{past}[0]?.data.messages")
        assert messages[-1]["seq"] >= sent["seq"]
        more = await service.publish("status", "greeting", {"hello": "again"})
        await tab.wait(f"window.got.some((one) => one.id === '{more['id']}')")


@pytest.mark.parametrize(
    "program", [("node", "--experimental-websocket", "--no-warnings"), ("node_modules/.bin/bun",)]
)
async def test_client(
    packages: Path, service: Service, tmp_path: Path, program: tuple[str, ...]
) -> None:
    code = block("clients/js/README.md", "js", service)
    code = code.replace("'@yujian/realtime'", f"'{packages}/clients/js/dist/index.js'")
    code = code.replace("https://lab.example", service.base)
    script = tmp_path / "first.mjs"
    script.write_text(code)
    sent = await service.publish("status", "greeting", {"hello": "client"})
    process = await asyncio.create_subprocess_exec(
        *(*program, str(script)),
        cwd=packages,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines: list[str] = []

    async def read() -> bool:
        assert process.stdout is not None
        lines.append((await process.stdout.readline()).decode())
        return bool(lines[-1])

    try:
        await until(read, "a first line")
    finally:
        process.kill()
        await process.communicate()
    assert sent["seq"]
    assert any(name in lines[0] for name in ("greeting", "status_update"))
