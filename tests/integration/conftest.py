"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fixtures import no_leftovers, plain
from tests.support.node import installed
from tests.support.service import Service

__all__ = ["no_leftovers", "plain"]

NODE = Path(__file__).with_name("node")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One service with default settings for all tests of a module that leave it whole."""
    running = Service().start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def node() -> Path:
    """The directory of the Node clients, with their packages installed."""
    return installed(NODE, "node_modules/socket.io-client")
