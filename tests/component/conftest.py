"""Fixtures for tests that need a real Valkey, or what a master has recorded."""

from tests.support.fixtures import make_node, start_valkey, valkey
from tests.support.reloading import data_dir, root
from tests.support.slots import path, table

__all__ = ["data_dir", "make_node", "path", "root", "start_valkey", "table", "valkey"]
