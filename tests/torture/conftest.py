"""Fixtures of the torture tests: those of the integration tests, and of handoffs in one process."""

from __future__ import annotations

import resource

import pytest

from tests.support.fixtures import make_node, no_leftovers, valkey
from tests.support.handoff import make

__all__ = ["make", "make_node", "no_leftovers", "valkey"]


@pytest.fixture(autouse=True)
def descriptors() -> None:
    """As many files as this process may open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 20_000 if hard == resource.RLIM_INFINITY else min(20_000, hard)
    assert wanted >= 12_000, f"only {wanted} open files are allowed: ulimit -Hn 20000"
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
