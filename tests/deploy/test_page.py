"""The page of frontend/ in a real browser, through a real Caddy."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.deploy.caddy import Caddy, address, behind_caddy
from tests.integration.harness import free_port, until

BROWSER = next(
    (
        found
        for name in ("chromium-headless-shell", "chromium", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here"),
]


class Page:
    """A tab, driven by the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.problems: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for frame in self._socket:
            got = json.loads(frame.data)
            if "id" in got:
                self._answers.pop(got["id"]).set_result(got)
            elif got["method"] in {"Runtime.exceptionThrown", "Log.entryAdded"}:
                self.problems.append(json.dumps(got["params"]))

    async def call(self, method: str, **params: object) -> Any:
        """Call a method, and return its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(20):
            got = await self._answers[number]
        assert "error" not in got, got
        return got["result"]

    async def value(self, expression: str) -> Any:
        """Value of an expression in the page."""
        got = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return got["result"].get("value")

    async def text(self, selector: str) -> str:
        """What an element shows."""
        return str(await self.value(f"document.querySelector({json.dumps(selector)}).textContent"))


@asynccontextmanager
async def browse(url: str, profile: Path) -> AsyncIterator[Page]:
    """Open a page in a browser of its own."""
    assert BROWSER is not None
    process = await asyncio.create_subprocess_exec(
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--ignore-certificate-errors", "--host-resolver-rules=MAP *.localhost 127.0.0.1"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    port_file = profile / "DevToolsActivePort"
    try:
        await until(lambda: port_file.exists() and "\n" in port_file.read_text(), "DevTools")
        base = f"http://127.0.0.1:{port_file.read_text().split()[0]}"
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{base}/json/list") as answer:
                tabs = await answer.json()
            tab = next(one for one in tabs if one["type"] == "page")
            async with http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.call("Runtime.enable")
                await page.call("Log.enable")
                await page.call("Page.navigate", url=url)
                yield page
            await page._reader
    finally:
        # What Debian installs is a script that starts the browser: end both.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_the_page_shows_live_data_and_recovers(tmp_path: Path) -> None:
    port = free_port()
    service = behind_caddy(port, DRAIN_SECONDS=1)
    async with service:
        await service.publish(data={"task": "<b>bold</b>", "load": 0.123})
        caddy = Caddy(address(service), https_port=port)
        await asyncio.to_thread(caddy.start)
        try:
            async with browse(caddy.site, tmp_path / "profile") as page:
                await _check(page, service)
        finally:
            await asyncio.to_thread(caddy.stop)


async def _check(page: Page, service: Any) -> None:
    async def live() -> bool:
        return await page.value("document.querySelector('#connection')?.dataset.state") == "live"

    async def shows(text: str) -> bool:
        return text in await page.text('dl[data-type="status"]')

    await until(live, "the page is connected")
    # The newest of the history, as text and not as HTML.
    await until(lambda: shows("<b>bold</b>"), "the newest message")
    assert await shows("0.12")
    await service.publish(data={"task": "second"})
    await until(lambda: shows("second"), "a live message")
    assert page.problems == [], "nothing against the policy, no error"

    victim = service.kill_worker()
    await service.replaced(victim)
    await service.publish(data={"task": "third"})
    await until(lambda: shows("third"), "the message after a reconnect")
    await until(live, "connected again")
    assert await page.text("#reconnects") != "0"
    assert await page.text("#missed") == "0"
