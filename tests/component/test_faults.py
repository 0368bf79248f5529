"""What failed calls say of the backplane."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest

from app.backplane import server
from app.backplane.client import Backplane
from app.backplane.publisher import StreamPublisher
from app.config import Settings
from app.errors import BackplaneUnavailable
from tests.support.backplane import Node, draft
from tests.support.valkeys import ValkeyProcess


@pytest.mark.parametrize(
    ("limit", "warned"), [(0, False), (400 * 2**20, False), (64 * 2**20, True)]
)
async def test_a_server_that_is_too_small_is_a_warning(
    valkey: ValkeyProcess, limit: int, warned: bool
) -> None:
    """Limited by an operator, or by the service."""
    await valkey.command("CONFIG", "SET", "maxmemory", limit)
    backplane = Backplane(valkey.url, Settings(), "test")
    await backplane.connect(asyncio.get_running_loop().time() + 5)
    found = [text for text in backplane.warnings() if "maxmemory " in text]
    assert len(found) == warned
    if warned:
        assert "HISTORY_BYTES" in found[0]
        assert "64 MB" in found[0]
    await backplane.close()


async def test_a_network_that_drops_everything_is_no_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No connection can be opened in time: that passes, and is waited for."""
    monkeypatch.setattr(server, "CONNECT_TIMEOUT", 0.1)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):  # the last ones wait for the listener, and so does whatever comes then
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        backplane = Backplane(f"redis://127.0.0.1:{port}/0", Settings(), "test")
        publisher = StreamPublisher(backplane, {})
        loop = asyncio.get_running_loop()
        with pytest.raises(BackplaneUnavailable):
            await publisher.store([draft()], loop.time() + 1.0)
        assert backplane.errors["timeout"] >= 2  # it was waited for
        assert publisher.fault is not None
        assert publisher.fault.cause == "timeout"
        assert publisher.fault.words == "it does not answer in time"
        assert not backplane.available
        await backplane.close()


async def test_an_answer_that_is_no_reply_costs_one_connection(valkey: ValkeyProcess) -> None:
    """A proxy or another program at the address: nothing that follows on it can be read."""
    spoiled = 0

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal spoiled
        upstream, up = await asyncio.open_unix_connection(valkey.socket)
        answers = asyncio.create_task(_pipe(upstream, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if b"EVALSHA" in data and not spoiled:
                    spoiled += 1
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                else:
                    up.write(data)
        answers.cancel()
        up.transport.abort()
        writer.transport.abort()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    node = Node(f"redis://127.0.0.1:{port}/0", Settings(), time.time)
    (position,) = await node.publish(draft())
    assert position.seq == 1
    assert spoiled == 1
    assert node.backplane.errors == {"lost": 1}
    (position,) = await node.publish(draft())
    assert position.seq == 2
    await node.backplane.close()
    server.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
