"""The load client of the field: `load.c`, compiled when it is first needed."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.procs import TOKEN, BenchmarkError, LoadProcess, Server

ANSWER_S = 240
"""Seconds for an answer to a command, above those that `load.c` gives to any."""

PUBLISH_S = 60
"""Seconds for what one command publishes."""

_SOURCE = Path(__file__).with_name("load.c")


@cache
def _binary() -> str:
    """Compile the client; the file is removed when this process ends."""
    directory = tempfile.TemporaryDirectory(prefix="yujian-load-")
    _kept.append(directory)
    target = str(Path(directory.name, "load"))
    argv = ["cc", "-O2", "-pthread", "-o", target, str(_SOURCE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(argv)} fails:\n{done.stderr}")
    return target


_kept: list[tempfile.TemporaryDirectory[str]] = []


class Load(LoadProcess):
    """A process with connections to one server.

    Args:
        server: that is running.
        wire: of `load.c`.
        path: of the upgrade.
        publish_port: where messages are published.
        publish_path: of these requests.
        first: connections to the same server of other processes, whose addresses are not used.
    """

    def __init__(
        self,
        server: Server,
        wire: str,
        path: str,
        publish_port: int,
        publish_path: str,
        first: int = 0,
    ) -> None:
        argv = [_binary(), str(server.port), path, wire, str(publish_port), publish_path, TOKEN]
        argv += [str(first)]
        super().__init__(argv)

    def __call__(self, command: str, limit: float = ANSWER_S) -> dict[str, Any]:
        """Run a command.

        Raises:
            BenchmarkError: it failed, or was not answered within `limit` seconds.
        """
        self.send(command)
        return self.result(limit)

    def connect(self, clients: int, path: str = "") -> dict[str, Any]:
        """Open that many more connections, at another path where one is given.

        Raises:
            BenchmarkError: not all of them were served.
        """
        answer = self(f"connect {clients} {path}")
        if answer["lost"] or answer["new"] != clients:
            raise BenchmarkError(f"load: {answer} of {clients} connections")
        return answer

    def ask(self, clients: int, text: str) -> dict[str, Any]:
        """Let the first of them send a message of at most 125 bytes at once, and wait for answers.

        Raises:
            BenchmarkError: not all of them were answered.
        """
        answer = self(f"ask {clients} {text}")
        if answer["answered"] != clients:
            raise BenchmarkError(f"load: {answer} of {clients} requests")
        return answer

    def stall(self, clients: int) -> None:
        """Read nothing any more from the first of them; they are not counted from then on."""
        self(f"stall {clients}")

    def publish(
        self,
        count: int,
        size: int = 1,
        filling: int = 50,
        rate: float = 0,
        limit: float = PUBLISH_S,
    ) -> dict[str, Any]:
        """Publish `count` calls of `size` messages with `filling` more bytes each.

        `rate` is in calls a second. 0: each when the one before has arrived everywhere; -1: some
        calls ahead of that. It is `cut` after `limit` seconds, or when nothing more arrives.
        """
        return self(f"publish {count} {size} {filling} {rate} {limit}", limit + ANSWER_S)
