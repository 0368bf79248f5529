"""A real Chromium, driven by playwright-core in a Node process (driver.mjs)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from tests.support import REPO, programs
from tests.support.service import Service
from tests.support.waiting import until

_OPEN_TIMEOUT = 60.0
_ANSWER_TIMEOUT = 40.0


FIRST_FIGURE = """
new MutationObserver((_, observer) => {
  if (!/\\d/.test(document.querySelector('[data-testid=cpu] .figure')?.textContent)) return;
  if (document.querySelector('[data-testid=link]')?.dataset.link !== 'open') return;
  window.firstFigure = performance.now();
  window.receivedBefore = document.querySelector('[data-testid=link-received]').textContent;
  observer.disconnect();
}).observe(document, {childList: true, subtree: true, characterData: true, attributes: true});
"""
"""Notes when the first live figure stood on the page, in milliseconds since the navigation began,
and how many live messages had come by then."""


async def sampled(service: Service, count: int = 3) -> None:
    """Wait until the series has some samples."""

    async def has() -> bool:
        hosts = (await service.get("/stats/series", range="15m")).body["hosts"]
        return any(len(columns["t"]) >= count for columns in hosts.values())

    await until(has, f"{count} samples", 40)


def chromium() -> str:
    """The browser of this machine. A missing one fails the tests: the page would go untested.

    The headless shell is the same engine without windows: a visit takes it a third of the processor.
    """
    return programs.find("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class Driver:
    """A Chromium and the Node process that drives it, for all tests of this process.

    Args:
        directory: of its Unix socket.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "driver"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [programs.find("node"), str(Path(__file__).with_name("driver.mjs")), str(self.path)],
            cwd=REPO,
            env=dict(os.environ) | {"CHROMIUM": chromium()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the browser does not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it closes the browser, then ends
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Browser:
    """The browser for one test; each `Tab` has a profile of its own.

    Args:
        driver: drives it.
        shots: directory for screenshots; None: none are taken.
    """

    def __init__(self, driver: Driver, shots: Path | None) -> None:
        self.shots = shots
        self._driver = driver
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        reader, self._writer = await asyncio.open_unix_connection(self._driver.path, limit=2**24)
        self._task = asyncio.create_task(self._read(reader))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._writer is not None
        assert self._task is not None
        self._writer.write_eof()  # the driver closes the pages, then the connection
        try:
            async with asyncio.timeout(20):
                await self._task
        finally:
            self._writer.close()
            await self._writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            answer = json.loads(line)
            future = self._answers.pop(answer["id"], None)
            if future is not None and not future.done():
                future.set_result(answer)
        for future in self._answers.values():
            future.set_exception(AssertionError("the driver of the browser has ended"))

    async def call(self, op: str, timeout: float = _ANSWER_TIMEOUT, **arguments: Any) -> Any:
        """Carry out an operation of the driver, and return its value."""
        assert self._writer is not None
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        line = json.dumps({"id": number, "op": op, **arguments}) + "\n"
        self._writer.write(line.encode())
        async with asyncio.timeout(timeout):
            answer = await future
        assert "error" not in answer, f"{op} {arguments}: {answer['error']}"
        return answer["value"]

    async def open(self, url: str, **options: Any) -> Tab:
        """Open an address in a new profile.

        Args:
            url: the address.
            options: width, height, lang, dark, init (a script that runs first), route (whether
                `hangup` is wanted).
        """
        tab = Tab(self, f"p{next(self._numbers)}")
        await self.call("open", _OPEN_TIMEOUT, page=tab.name, url=url, **options)
        return tab

    @contextlib.asynccontextmanager
    async def shared(self, url: str, **options: Any) -> AsyncIterator[Tab]:
        """A page that tests leave as they found it, so that the next one with the same options has it.

        To open one, and to look at it for the first time, costs as much as a test does with it.
        After a test that failed it is opened anew.
        """
        name = json.dumps([url, options])
        tab = Tab(self, f"p{next(self._numbers)}")
        if not await self.call("take", page=tab.name, name=name):
            tab = await self.open(url, **options)
        yield tab  # where the test fails it is closed with the others
        await tab.do("keep", name=name)


class Tab:
    """One page in the browser."""

    def __init__(self, browser: Browser, name: str) -> None:
        self.browser = browser
        self.name = name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(AssertionError, TimeoutError):
            await self.do("close")

    async def do(self, op: str, **arguments: Any) -> Any:
        """An operation of the driver on this page."""
        return await self.browser.call(op, page=self.name, **arguments)

    async def wait(self, expression: str, seconds: float = 20.0) -> Any:
        """Wait until an expression is true in the page."""
        return await self.do("wait", expression=expression, timeout=seconds * 1000)

    async def value(self, expression: str) -> Any:
        """Value of an expression in the page."""
        return await self.do("value", expression=expression)

    async def text(self, name: str) -> str:
        """What an element with this `data-testid` shows."""
        return str(await self.do("text", selector=f"[data-testid={name}]"))

    async def shows(self, name: str, text: str, seconds: float = 20.0) -> None:
        """Wait until an element with this `data-testid` shows a text."""
        selector = json.dumps(f"[data-testid={name}]")
        await self.wait(
            f"document.querySelector({selector})?.innerText.includes({json.dumps(text)})", seconds
        )

    async def live(self) -> None:
        """Wait until the page is connected and shows figures."""
        await self.wait(
            "document.querySelector('[data-testid=link]')?.dataset.link === 'open'"
            " && /\\d/.test(document.querySelector('[data-testid=cpu] .figure')?.innerText)"
        )

    async def click(self, selector: str) -> None:
        """Click an element."""
        await self.do("click", selector=selector)

    async def fill(self, selector: str, text: str) -> None:
        """Type a text into a field."""
        await self.do("fill", selector=selector, text=text)

    async def shot(self, name: str, *, full: bool = True) -> None:
        """Take a screenshot of the full page, or of what is visible."""
        if self.browser.shots is not None:
            await self.do("shot", path=str(self.browser.shots / f"{name}.png"), full=full)

    async def assert_accessible(self) -> None:
        """Assert that axe finds nothing serious, and that nothing is wider than the screen."""
        found = await self.do("axe")
        assert [one for one in found if one["impact"] in {"serious", "critical"}] == []
        assert await self.value("document.documentElement.scrollWidth <= innerWidth")

    async def assert_accessible_in_all_looks(self, shot: str | None = None) -> None:
        """`assert_accessible` in both colour schemes and both languages; ends with the first.

        Args:
            shot: name of a screenshot of each.
        """
        for lang, dark in ((1, True), (1, False), (0, True), (0, False)):
            await self.do("dark", dark=dark)
            await self.do("check", selector=f"input[name=lang] >> nth={lang}")
            name = f"{'zh' if lang else 'en'}-{'dark' if dark else 'light'}"
            await self.wait(f"document.documentElement.lang.startsWith('{name[:2]}')")
            if shot:
                await self.shot(f"{shot}-{name}", full=False)
            await self.assert_accessible()

    async def assert_no_problems(self) -> None:
        """Assert that the console has no error and no warning so far."""
        assert await self.do("problems") == []
