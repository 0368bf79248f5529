"""Fixtures of the monitoring tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.receiver import Receiver
from tests.support.service import Service


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    """One service for all tests of this directory that leave it intact."""
    running = Service(COLLECTOR=1).start()
    yield running
    running.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook that keeps what it gets."""
    with Receiver() as receiver:
        yield receiver
