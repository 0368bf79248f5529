"""Fixtures that several directories of tests share; their conftest.py import them."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.config import Settings
from tests.support.backplane import MakeNode, Node
from tests.support.client import Client
from tests.support.plain import PlainClient
from tests.support.service import Service
from tests.support.shared import SharedService
from tests.support.valkeys import Starter, ValkeyProcess, valkeys

Opener = Callable[..., Coroutine[Any, Any, PlainClient]]


@pytest_asyncio.fixture(autouse=True)
async def no_leftovers() -> AsyncIterator[None]:
    """A failed test must not make later ones fail with warnings of its open sockets."""
    yield
    await Client.close_all()


@pytest.fixture(scope="session")
def shared() -> Iterator[SharedService]:
    """The service that all tests of this process share."""
    shared = SharedService()
    yield shared
    shared.stop()


@pytest.fixture
def service(shared: SharedService, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service with default settings, which others use before and after: leave it as it was."""
    with shared.lent(request.node.nodeid) as running:
        yield running


@pytest_asyncio.fixture
async def plain(service: Service) -> AsyncIterator[Opener]:
    """Opens plain clients of the service, and closes them after the test."""
    async with AsyncExitStack() as stack:

        async def opener(**query: Any) -> PlainClient:
            client = await PlainClient.open(service, **query)
            return await stack.enter_async_context(client)

        yield opener


@pytest.fixture
def start_valkey() -> Iterator[Starter]:
    """Starts Valkeys on the loopback; returns their URLs."""
    with valkeys() as start:
        yield start


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
