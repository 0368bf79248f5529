"""Fixtures of the page's tests: packages of Node, a browser, a service with a collector."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.page.browser import Browser, Driver
from tests.support import REPO
from tests.support.fixtures import no_leftovers
from tests.support.node import installed
from tests.support.service import Service

__all__ = ["no_leftovers"]


@pytest.fixture(scope="session")
def packages() -> Path:
    """The repository, with the packages of its workspaces installed."""
    return installed(REPO, "node_modules/playwright-core", "node_modules/.bin/bun")


@pytest.fixture(scope="session")
def shots() -> Path | None:
    """Where screenshots go: PAGE_SHOTS; without it none is taken, for each costs as much as a test."""
    chosen = os.environ.get("PAGE_SHOTS")
    if not chosen:
        return None
    directory = Path(chosen)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def driver(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """One browser for all tests of this process."""
    with Driver(tmp_path_factory.mktemp("driver")) as driver:
        yield driver


@pytest_asyncio.fixture
async def browser(driver: Driver, shots: Path | None) -> AsyncIterator[Browser]:
    """The browser for one test."""
    async with Browser(driver, shots) as browser:
        yield browser


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service that publishes its own figures; its CPU and memory raise no alarm."""
    running = Service(COLLECTOR=1, ALERT_CPU=100, ALERT_MEMORY=100, ALERT_DISK=100).start()
    yield running
    running.stop()
