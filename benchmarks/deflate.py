"""What permessage-deflate costs and saves: bytes and CPU time per delivery, with and without it.

`python -m benchmarks.deflate [CLIENTS] [MESSAGES]` starts the service with one worker, connects
clients that offer the extension, and publishes messages such as the collector's.
"""

from __future__ import annotations

import asyncio
import json
import sys

import psutil

from tests.support.raw import RawClient
from tests.support.service import Service
from tests.support.waiting import until

OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
SIZES = (200, 600, 4000, 40_000)
"""Bytes of `data`, about; the collector's status is some 600."""
RATE = 50
"""Messages a second."""


def payload(size: int, number: int) -> dict[str, object]:
    """Data like figures of machines."""
    hosts = {
        f"machine-{host}": {
            "cpu": (number * 7 + host * 13) % 1000 / 10,
            "memory": (number * 3 + host) % 1000 / 10,
            "state": "working",
            "task": f"run {number + host}",
        }
        for host in range(200)
    }
    kept: dict[str, object] = {}
    for name, figures in hosts.items():
        if len(json.dumps(kept)) >= size:
            break
        kept[name] = figures
    return kept


async def measure(deflate: int, size: int, clients: int, messages: int) -> tuple[float, float]:
    """Bytes on the wire and microseconds of CPU of the worker, for each delivery."""
    async with Service(WORKERS=1, DEFLATE=deflate, RATE_LIMIT=0) as service:
        opened = [await RawClient.open(service, headers=OFFER) for _ in range(clients)]
        received = [0] * clients

        async def read(number: int, client: RawClient) -> None:
            while data := await client.reader.read(65536):
                received[number] += len(data)

        tasks = [asyncio.create_task(read(*pair)) for pair in enumerate(opened)]
        await asyncio.sleep(2)
        worker = psutil.Process(service.worker_pids()[0])
        before, began = list(received), worker.cpu_times()
        idle = began.user + began.system
        for number in range(messages):
            await service.publish("status", "figures", payload(size, number))
            await asyncio.sleep(1 / RATE)
        last = sum(received)

        def is_quiet() -> bool:
            nonlocal last
            quiet, last = last == sum(received), sum(received)
            return quiet

        await until(is_quiet, "all received")
        ended = worker.cpu_times()
        deliveries = clients * messages
        wire = sum(now - then for now, then in zip(received, before, strict=True)) / deliveries
        for task in tasks:
            task.cancel()
        for client in opened:
            await client.abort()
        return wire, (ended.user + ended.system - idle) / deliveries * 1e6


async def main() -> None:
    """Print a table."""
    clients = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    messages = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    print("| data | bytes off | bytes on | CPU off | CPU on |\n|---|---|---|---|---|")
    for size in SIZES:
        off = await measure(0, size, clients, messages)
        on = await measure(1, size, clients, messages)
        print(
            f"| {size} | {off[0]:.0f} | {on[0]:.0f} | {off[1]:.1f} µs | {on[1]:.1f} µs |",
            flush=True,
        )


if __name__ == "__main__":
    asyncio.run(main())
