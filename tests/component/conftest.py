"""Fixtures for tests that need a real Valkey."""

from tests.support.fixtures import make_node, valkey

__all__ = ["make_node", "valkey"]
