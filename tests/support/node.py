"""Scripts under Node that talk JSON lines."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support import programs
from tests.support.waiting import DEADLINE

Line = dict[str, Any]


class Node:
    """A script under Node that talks JSON lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[Any] = []

    async def line(self) -> Any:
        """The next line that the script prints."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            text = await self.process.stdout.readline()
        assert text, f"the script ended; it said {self.lines}"
        self.lines.append(json.loads(text))
        return self.lines[-1]

    async def until(self, key: str, value: str) -> Line:
        """The next line with this value under this key."""
        while True:
            line: Line = await self.line()
            if line.get(key) == value:
                return line

    async def tell(self, **order: object) -> None:
        """Give the script an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.process.stdin.drain()

    async def call(self, event: str, *args: object, **more: object) -> Any:
        """Emit with an ack, and return the ack's argument."""
        await self.tell(emit=event, args=args, ack=event, **more)
        line = await self.until("ack", event)
        assert "error" not in line, line
        return line["args"][0]


def installed(directory: Path, *needed: str) -> Path:
    """A directory with what its package-lock.json names; processes wait for one another.

    Args:
        directory: where package-lock.json is.
        needed: paths in it that show that all is there.
    """
    name = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    with Path(tempfile.gettempdir(), f"yujian-npm-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((directory / path).exists() for path in needed):
            npm = [programs.find("npm"), "ci", "--no-audit", "--no-fund"]
            subprocess.run(npm, cwd=directory, check=True)
    return directory


@asynccontextmanager
async def script(path: Path, program: str = "", **environ: str) -> AsyncIterator[Node]:
    """Run a script until the end of the block, under Node or another runtime."""
    process = await asyncio.create_subprocess_exec(
        program or programs.find("node"),
        str(path),
        env=dict(os.environ) | environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**22,
    )
    try:
        yield Node(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()  # not `wait`: what is left in a pipe keeps its transport open
