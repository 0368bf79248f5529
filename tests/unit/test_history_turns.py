"""Reads of history wait for their turn, before they begin and before their answers are decoded."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from app.backplane.entries import body_name
from app.backplane.history import History
from app.turns import SLICE, Turns

BODY = (
    b'{"id":"x","type":"status","timestamp":1,"direction":"server-to-client","event":"e","data":1'
)


class Asked:
    """A backplane that answers when it is let, and the time that reads have."""

    settings = SimpleNamespace(max_message_size=1000)
    has_time = True

    def __init__(self) -> None:
        self.asked = 0
        self.open = asyncio.Event()
        self.history = History(
            self,  # type: ignore[arg-type]
            {},
            turns=Turns(lambda: SLICE if self.has_time else 0.0),
        )

    async def ask(self, _commands: Any) -> Any:
        self.asked += 1
        await self.open.wait()
        fields = [b"p", b"epoch", b"e", b"e", b"t", b"1", body_name(BODY), BODY]
        return [[0, [b"0-7", fields]]]


async def passes(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_read_begins_and_is_decoded_when_there_is_time() -> None:
    backplane = Asked()
    backplane.has_time = False
    read = asyncio.create_task(backplane.history.newest("status", 5))
    await passes()
    assert backplane.asked == 0
    backplane.has_time = True
    while not backplane.asked:
        await asyncio.sleep(0)
    backplane.has_time = False
    await passes()
    backplane.open.set()
    await passes()
    assert not read.done(), "the answer is there, and there is no time for it"
    backplane.has_time = True
    (message,), more = await asyncio.wait_for(read, 5)
    assert (message.seq, message.body, more) == (7, BODY, False)
