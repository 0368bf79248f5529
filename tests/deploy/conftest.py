"""Fixtures shared with the integration tests."""

from tests.integration.conftest import no_leftovers, pytest_runtest_makereport

__all__ = ["no_leftovers", "pytest_runtest_makereport"]
