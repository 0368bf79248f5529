"""Ports of the loopback."""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 16_000, 32_000
"""Below those that the kernel gives to connections (ip_local_port_range begins at 32768)."""


def free_port() -> int:
    """A TCP port of the loopback on which nothing listens, and that no other test is given.

    It is reserved, as the name of an abstract Unix socket, until this process ends.
    """
    for port in random.sample(range(_FIRST, _LAST), 1000):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0yujian-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            holder.close()
            continue
        holder.detach()
        return port
    raise AssertionError("no port is free")
