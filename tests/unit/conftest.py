"""Fixtures for tests that need a real Valkey."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from tests.unit.backplane_support import MakeNode, Node, ValkeyProcess
from workers.leader import valkey as private_valkey


def pytest_unconfigure() -> None:
    """Reap the servers that tests have ended by their pids."""
    for child in private_valkey._children:
        child.poll()


@pytest.fixture
async def valkey() -> AsyncIterator[ValkeyProcess]:
    directory = Path(tempfile.mkdtemp(prefix="yujian-test-"))
    server = ValkeyProcess(directory)
    await server.start()
    try:
        yield server
    finally:
        if server._process is not None:
            server.kill()
        shutil.rmtree(directory)


@pytest.fixture
async def make_node(valkey: ValkeyProcess) -> AsyncIterator[MakeNode]:
    """Makes started nodes; keyword arguments are settings."""
    nodes = []

    async def make(clock: Callable[[], float] = time.time, **settings: Any) -> Node:
        node = Node(valkey.url, dataclasses.replace(Settings(), **settings), clock)
        await node.backplane.connect(asyncio.get_running_loop().time() + 5)
        await node.reader.start()
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        await node.backplane.close()
