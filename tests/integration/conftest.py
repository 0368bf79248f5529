"""Fixtures of the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fixtures import no_leftovers, plain, service, shared, start_valkey
from tests.support.node import installed

__all__ = ["no_leftovers", "plain", "service", "shared", "start_valkey"]

NODE = Path(__file__).with_name("node")


@pytest.fixture(scope="session")
def node() -> Path:
    """The directory of the Node clients, with their packages installed."""
    return installed(NODE, "node_modules/socket.io-client")
