"""Fixtures shared with the integration tests."""

from tests.support.fixtures import no_leftovers

__all__ = ["no_leftovers"]
