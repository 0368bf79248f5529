"""A project for each file, and the engine, which ends with the tests that have started it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containers import project as containers
from tests.containers.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Everything in operation after a first deployment."""
    made = Project(tmp_path_factory.mktemp("containers"))
    try:
        made.version("1.0.0")
        done = made.deploy()
        assert done.code == 0, done
        assert "started for the first time" in done.json["how"]
        yield made
    finally:
        made.destroy()


def pytest_sessionfinish() -> None:
    """Stop the engine, unless it ran before or other processes of tests use it."""
    containers.stop_engine()
