"""What the service costs while nothing happens: without clients, and with many that are silent."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.peers.load import Load
from benchmarks.procs import ROOT, Server, service
from benchmarks.scenarios import Figures, Size, say
from benchmarks.storm import OTHERS

SECONDS = 30.0
"""Length of a measurement: the interval of pings to silent clients."""
_SETTLE = 8.0
"""Seconds until what follows a start or many connects is over."""
_DEFAULTS = {"COLLECTOR": "1", "HEARTBEAT_INTERVAL": "30", "HEARTBEAT_TIMEOUT": "60"}


def idle(size: Size, figures: Figures) -> None:
    """Percent of one processor that all processes take, and what Valkey has of it.

    Two workers with the collector, as they come. Silent clients do no more than answer pings, and
    get no messages: how often the figures of the machine change is no matter of the service.
    """
    for name, clients in (("idle", 0), ("silent", size.many)):
        with ExitStack() as stack:
            server = stack.enter_context(service(2, pinned=False, root=ROOT, **_DEFAULTS))
            load = stack.enter_context(Load(server, "raw", OTHERS, server.port, "/ws/broadcast"))
            time.sleep(_SETTLE)
            if clients:
                load.connect(clients)
                time.sleep(_SETTLE)
            for number in range(size.connect_rounds):
                say(f"idle: {clients} clients, round {number + 1}")
                _measure(server, name, figures)


def _measure(server: Server, name: str, figures: Figures) -> None:
    valkey = server.find("valkey-server")
    before, began = server.cpu_by_process(), time.monotonic()
    time.sleep(SECONDS)
    after, seconds = server.cpu_by_process(), time.monotonic() - began
    used = {pid: (cpu - before.get(pid, 0.0)) / seconds * 100 for pid, cpu in after.items()}
    figures.add(f"{name}_percent", "service", sum(used.values()))
    figures.add(f"{name}_valkey_percent", "service", sum(used.get(pid, 0.0) for pid in valkey))
