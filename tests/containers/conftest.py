"""The engine ends with the tests that have started it."""

from __future__ import annotations

from tests.containers import project


def pytest_sessionfinish() -> None:
    """Stop the engine, unless it ran before."""
    project.stop_engine()
