"""What tests of the Python client have in common."""

from __future__ import annotations

import asyncio
from typing import Any

from yujian_realtime import Message, Subscription

SECRET = "0123456789abcdef0123456789abcdef"
PAUSE = (0.05, 0.5)


async def collect(subscription: Subscription, last: object) -> list[Message]:
    """Messages up to the one whose data is `last`."""
    messages = []
    async with asyncio.timeout(60):
        async for message in subscription:
            messages.append(message)
            if message.data == last:
                break
    return messages


def data(messages: list[Message]) -> list[Any]:
    return [message.data for message in messages]
