"""A plain JSON client: prints what it receives, comes back by itself, and gets what it missed.

Usage: python examples/listen.py [ws://host:port/ws/realtime]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from typing import Any

import aiohttp

DEFAULT_URL = "ws://127.0.0.1:3001/ws/realtime"
STAY_AWAY = {1008, 4401, 4409}
"""Close codes after which coming back makes no sense."""


async def listen(url: str) -> None:
    """Print every message until the service sends this client away.

    Raises:
        aiohttp.ClientError: the first connection failed.
    """
    positions: dict[str, dict[str, Any]] = {}
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.ws_connect(url) as socket:
                    await follow(socket, positions)
            except aiohttp.ClientError as error:
                if not positions:
                    raise
                print(error, file=sys.stderr)
            else:
                print(f"closed with {socket.close_code}", file=sys.stderr)
                if socket.close_code in STAY_AWAY:
                    return
            await asyncio.sleep(random.uniform(0.5, 2))  # noqa: S311 - so that not all come at once


async def follow(
    socket: aiohttp.ClientWebSocketResponse, positions: dict[str, dict[str, Any]]
) -> None:
    """Print one connection's messages, and keep the position of each type."""
    if positions:
        payload = {"types": list(positions), "recover": positions}
        await socket.send_json({"action": "subscribe", "payload": payload})
    async for frame in socket:
        print(frame.data, flush=True)
        message = json.loads(frame.data)
        if message["event"] == "gap":
            last = message["data"]
            positions[message["type"]] = {"epoch": last["epoch"], "seq": last["last"]}
        elif "seq" in message:
            positions[message["type"]] = {"epoch": message["epoch"], "seq": message["seq"]}


def main() -> None:
    """Listen until Ctrl-C."""
    url = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(listen(url))
        except aiohttp.ClientError as error:
            sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    main()
