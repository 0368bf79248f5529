"""The examples of the pages for users, as they are written there, against a real service.

Every fenced block of these pages runs, or is marked with a line `<!-- not run: REASON -->` before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import socketio
import websockets

from app.protocol.schema import asyncapi
from app.protocol.schema.bodies import PUBLISHED
from app.protocol.schema.json_schema import DIALECT, Schemas
from app.setting_values import BUILT_IN_TYPES
from tests.support import REPO, programs
from tests.support.service import TOKEN, Service

pytestmark = pytest.mark.timeout(120)

PAGES = (
    "README.md",
    "clients/js/README.md",
    "clients/python/README.md",
    "docs/CLIENTS.md",
    "docs/HANDLERS.md",
    "docs/HTTP.md",
    "docs/PROTOCOL.md",
)
NOT_RUN = {
    ("README.md", "console"): "it installs",
    ("clients/js/README.md", "jsx"): "a component of React",
    ("docs/PROTOCOL.md", ""): "what curl shows",
}
"""Blocks that need more than a service; others must run."""

_BLOCK = re.compile(
    r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One example."""

    page: str
    number: int
    language: str
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{self.language}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        found = _BLOCK.findall((REPO / page).read_text())
        for number, (not_run, language, code) in enumerate(found, 1):
            yield Block(page, number, language, code, not_run or None)


BLOCKS = list(blocks())


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages and not block.not_run]


def test_every_block_runs_or_says_why_not() -> None:
    marked = {(block.page, block.language): block.not_run for block in BLOCKS if block.not_run}
    assert marked == NOT_RUN
    known = {"js", "py", "python", "sh", "console", "json"}
    assert [
        str(block) for block in BLOCKS if not block.not_run and block.language not in known
    ] == []
    assert len(BLOCKS) > 15, "the search finds the blocks"


def fitted(code: str, service: Service) -> str:
    """An example with the address of the service."""
    for address in ("http://127.0.0.1:3001", "https://lab.example"):
        code = code.replace(address, service.base)
    return code.replace("127.0.0.1:3001", f"127.0.0.1:{service.port}")


@asynccontextmanager
async def running(
    *command: str, cwd: Path, **environ: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=os.environ | environ,
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=2**22,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # of a pipe, every part
        await process.communicate()


async def assert_shows_messages(
    process: asyncio.subprocess.Process, service: Service, type: str = "status"
) -> None:
    """Publish until the example shows a message, or else ends by itself."""
    assert process.stdout is not None
    mark = f"mark-{process.pid}"
    said: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said.append(line.decode())
            if mark in said[-1]:
                return

    reading = asyncio.create_task(read())
    try:
        async with asyncio.timeout(60):
            while not reading.done():
                # The examples listen to this event, or to every one.
                data = {"presence": {"state": "working", "task": mark, "updatedAt": 1}}
                await service.publish(type, "status_update", data)
                await asyncio.wait([reading], timeout=0.3)
    except TimeoutError:
        pytest.fail(f"the example shows no message; it says: {''.join(said)[-2000:]}")
    finally:
        reading.cancel()
    assert any(mark in line for line in said), f"the example has ended: {''.join(said)[-2000:]}"


@pytest.mark.parametrize("block", of("js"), ids=str)
async def test_javascript(block: Block, service: Service, node: Path, tmp_path: Path) -> None:
    code = fitted(block.code, service)
    code = code.replace("'@yujian/realtime'", f"'{REPO}/clients/js/dist/index.js'")
    (tmp_path / "node_modules").symlink_to(node / "node_modules")
    (tmp_path / "example.mjs").write_text(code)
    options = ("--experimental-websocket", "--no-warnings")
    # As in a browser; deep objects are shown as [Object] otherwise.
    (tmp_path / "setup.mjs").write_text(
        "import util from 'node:util';\nimport { EventSource } from 'eventsource';\n"
        "globalThis.EventSource ??= EventSource;\nutil.inspect.defaultOptions.depth = 9;\n"
    )
    async with running(
        *(programs.find("node"), *options, "--import", "./setup.mjs", "example.mjs"), cwd=tmp_path
    ) as process:
        await assert_shows_messages(process, service)


@pytest.mark.parametrize("block", of("py", "python"), ids=str)
async def test_python(block: Block, service: Service, tmp_path: Path) -> None:
    if "def register(" in block.code:
        names: dict[str, Any] = {}
        exec(block.code, names)
        server = socketio.AsyncServer()
        names["register"](server)
        assert {"rename", "wave", "announce"} <= set(server.handlers["/"])
        return
    (tmp_path / "example.py").write_text(fitted(block.code, service))
    environ = {"PYTHONPATH": str(REPO / "clients/python/src"), "PUBLISH_TOKEN": TOKEN}
    async with running(*(sys.executable, "-u", "example.py"), cwd=tmp_path, **environ) as process:
        if "Publisher(" not in block.code:
            await assert_shows_messages(process, service)
            return
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert (await service.history("config", limit=1))[0]["event"] == "tick"


@pytest.mark.parametrize("block", of("sh"), ids=str)
async def test_shell(block: Block, service: Service, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PUBLISH_TOKEN={TOKEN}\n")
    async with running(*("bash", "-euc", fitted(block.code, service)), cwd=tmp_path) as process:
        if "curl -N" in block.code:
            await assert_shows_messages(process, service)
            return
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        stored = json.loads(output.decode().splitlines()[-1])
        assert (await service.history("status", limit=1))[0]["id"] == stored["id"]


COMMANDS = [
    (block, line.removeprefix("$ "))
    for block in of("console")
    for line in block.code.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=lambda value: str(value)[:50])
async def test_commands(block: Block, command: str, service: Service, tmp_path: Path) -> None:
    if " users " in command:  # lists are kept where a setting says so
        async with Service(PRESENCE_NAMES="all") as keeping:
            await assert_command_ends_well(command, keeping, tmp_path)
    else:
        await assert_command_ends_well(command, service, tmp_path)


async def assert_command_ends_well(command: str, service: Service, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        f"PUBLISH_TOKEN={TOKEN}\nBIND=127.0.0.1:{service.port}\n"
        # Where it is set, each client shows a token.
        + (f"AUTH_SECRET={'s' * 32}\n" if " token " in command else "")
    )
    shim = tmp_path / "yujian"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m yujian_realtime "$@"\n')
    shim.chmod(0o755)
    assert shutil.which("jq") or "jq" not in command
    line = fitted(command, service).replace("--clients 1000", "--clients 20 --seconds 1")
    environ = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO / "clients/python/src"),
        "PYTHONUNBUFFERED": "1",
    }
    async with contextlib.AsyncExitStack() as stack:
        if " close --user ann" in command:  # which is an error where there is none
            url = f"ws://127.0.0.1:{service.port}/ws/realtime?user=ann"
            await stack.enter_async_context(websockets.connect(url))
        # What writes into a pipe would keep the first kilobytes to itself.
        shell = ("stdbuf", "-oL", "bash", "-euo", "pipefail", "-c", line)
        process = await stack.enter_async_context(running(*shell, cwd=tmp_path, **environ))
        if " watch " in command:
            await assert_shows_messages(process, service)
            return
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()


DOCUMENT = asyncapi.json_schemas(BUILT_IN_TYPES)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json(block: Block) -> None:
    value = json.loads(block.code)
    if "action" in value:
        name = f"request:{value['action']}"
    elif "direction" in value:
        name = "StreamMessage"
    else:
        schema = Schemas(BUILT_IN_TYPES, "#/$defs/").struct(PUBLISHED)
        jsonschema_rs.validator_for(schema | {"$schema": DIALECT}).validate(value)
        return
    schema = {"$schema": DIALECT, "$defs": DOCUMENT["$defs"], "$ref": f"#/$defs/{name}"}
    jsonschema_rs.validator_for(schema).validate(value)
