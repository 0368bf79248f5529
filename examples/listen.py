"""Prints what a client receives; it comes back by itself, and gets what it missed.

Usage: python examples/listen.py [http://host:port], with `pip install ./clients/python`.
"""

import asyncio
import sys

from yujian_realtime import connect


async def main() -> None:
    """Print every message until the service sends this client away."""
    async with connect(*sys.argv[1:2]) as lab:
        async for message in lab.subscribe("status", "stats", "health"):
            print(message.event, message.seq, message.data, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
