"""Handlers of an application one of whose workers can be made deaf (setting HANDLERS).

The worker whose pid is in the file DEAF_FILE reads no more from the backplane.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from socketio import AsyncServer

from app import canary
from app.backplane.reader import Batch, StreamReader
from workers.handoff import deaf

_read = StreamReader.read


async def _read_or_not(self: StreamReader) -> Batch:
    named = Path(os.environ["DEAF_FILE"])
    if named.exists() and str(os.getpid()) in named.read_text().split():
        await asyncio.Event().wait()
    return await _read(self)


def register(_: AsyncServer) -> None:
    """Arm this worker, with limits that a test can wait for."""
    StreamReader.read = _read_or_not  # type: ignore[method-assign]
    canary.INTERVAL, canary.LIMIT = 0.5, 2.0
    vars(canary).update(BEAT=1, REST=1)
    deaf.GRACE = float(os.environ["DEAF_GRACE"])
