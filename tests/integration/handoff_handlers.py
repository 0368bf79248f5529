"""Handlers for the tests of the handoff: slow ones, calls of the server, and successors gone wrong.

What the file `TEST_SWITCH` says when a worker starts decides what is wrong with that worker.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from socketio import AsyncServer

from app.backplane.worker_names import Place
from app.sessions.handoff import state as session_state
from app.sessions.handoff.transfer import Transfer
from tests.support import handlers

TAKEN_BEFORE_HALT = 100
"""Connections of one worker that another takes before it waits for the end of `TEST_SWITCH`."""
RECOVERS_AFTER = 6.0
"""Seconds after which a worker without free descriptors has some again."""


def register(sio: AsyncServer) -> None:
    """Add the handlers, and break what is to be broken."""
    handlers.register(sio)

    @sio.on("slow")
    async def slow(sid: str, seconds: float) -> dict[str, int]:
        await asyncio.sleep(seconds)
        return {"pid": os.getpid()}

    @sio.on("quiz")
    async def quiz(sid: str, data: dict[str, Any]) -> str:
        """Call a client from a task of the server's own; the answer goes into a room."""

        async def ask() -> None:
            answer = await sio.call("question", data["n"], to=data["sid"], timeout=20)
            await sio.emit("result", {"answer": answer, "asker": os.getpid()}, room="results")

        sio.start_background_task(ask)
        return "asked"

    switch = _switch()
    if switch.exists():
        _break(switch.read_text())


def _switch() -> Path:
    return Path(os.environ.get("TEST_SWITCH", "/nonexistent"))


def _break(what: str) -> None:
    if what == "version":
        session_state.VERSION += 1
    elif what == "descriptors":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, hard))
        asyncio.get_running_loop().call_later(
            RECOVERS_AFTER, resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard)
        )
    elif what == "dies":
        unpack = Transfer.unpack

        async def unpack_and_die(*args: Any) -> Any:
            await unpack(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        Transfer.unpack = unpack_and_die  # type: ignore[assignment, method-assign]
    elif what == "halts":
        unpack_all, taken = Transfer.unpack, Counter[Place]()

        async def unpack_some(
            self: Transfer, origin: Place, states: Sequence[Any], *more: Any
        ) -> Any:
            while taken[origin] >= TAKEN_BEFORE_HALT and _switch().exists():
                await asyncio.sleep(0.02)
            taken[origin] += len(states)
            return await unpack_all(self, origin, states, *more)

        Transfer.unpack = unpack_some  # type: ignore[assignment, method-assign]
