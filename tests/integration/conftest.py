"""Fixtures of the integration tests."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.harness import Service
from tests.integration.wsclient import PlainClient, abort_all

Opener = Callable[..., Coroutine[Any, Any, PlainClient]]
NODE = Path(__file__).with_name("node")


def pytest_configure() -> None:
    """Let SIGTERM, as a CI sends it, end the tests as Ctrl-C does: with their services."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Leave no service behind, however the tests ended."""
    for running in list(Service.running):
        running.destroy()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One service with default settings for all tests of a module that leave it whole."""
    running = Service().start()
    yield running
    running.stop()


@pytest_asyncio.fixture(autouse=True)
async def no_leftovers() -> AsyncIterator[None]:
    """A failed test must not make later ones fail with warnings of its open sockets."""
    yield
    await abort_all()


@pytest_asyncio.fixture
async def plain(service: Service) -> AsyncIterator[Opener]:
    """Opens plain clients of the module's service, and closes them after the test."""
    async with AsyncExitStack() as stack:

        async def opener(**query: Any) -> PlainClient:
            client = await PlainClient.open(service, **query)
            return await stack.enter_async_context(client)

        yield opener


@pytest.fixture(scope="session")
def node() -> Path:
    """The directory of the Node clients, with their packages installed."""
    if not (NODE / "node_modules").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=NODE, check=True)
    return NODE


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Show the end of the service's log with a failed test."""
    report: Any = yield
    if report.failed:
        for running in Service.running:
            report.sections.append((f"log of the service on {running.port}", running.log[-6000:]))
    return report
