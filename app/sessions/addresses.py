"""Limits per client address at one worker: connections, and handshakes in a second.

An IPv6 address counts as its /64, which is what one customer gets. Addresses are those that
trusted proxies name (`app.http.clients`); a proxy that is not trusted is one address.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

from app.errors import PresenceError
from app.transport.connection import Connection

_V6_PREFIX = 64


class TooMany(PresenceError):
    """An address is at a limit.

    Args:
        reason: one word for the metric of refused connections.
        message: reported to the client.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Addresses:
    """What the addresses of this worker's clients hold.

    Args:
        connections: most of one address at once; 0: no limit.
        connects: most handshakes of one address in a second; 0: no limit.
    """

    def __init__(self, connections: int, connects: int) -> None:
        self._most = connections
        self._most_connects = connects
        self._held: Counter[str] = Counter()
        self._connects: Counter[str] = Counter()
        self._of: dict[Connection, str] = {}

    def check(self, address: str, *, is_counted: bool = False) -> None:
        """Count a handshake, unless it is counted already.

        Raises:
            TooMany: the address is at a limit.
        """
        network = network_of(address)
        if self._most_connects and not is_counted:
            self._connects[network] += 1
            if self._connects[network] > self._most_connects:
                raise TooMany(
                    "address_rate",
                    f"One address may connect at most {self._most_connects} times per second.",
                )
        if self._most and self._held[network] >= self._most:
            raise TooMany("address", f"One address may have at most {self._most} connections.")

    def hold(self, connection: Connection, address: str) -> None:
        """Count a connection until `release`; the address may be what `of` has returned."""
        network = address if "/" in address else network_of(address)
        self._of[connection] = network
        self._held[network] += 1

    def release(self, connection: Connection) -> None:
        """Count a connection no more."""
        network = self._of.pop(connection, None)
        if network is None:
            return
        self._held[network] -= 1
        if not self._held[network]:
            del self._held[network]

    def of(self, connection: Connection) -> str | None:
        """The network that a connection counts for."""
        return self._of.get(connection)

    def start_second(self) -> None:
        """Forget the handshakes of the second that is over."""
        self._connects.clear()


def network_of(address: str) -> str:
    """What an address counts as: itself, or the /64 of an IPv6 address that is not mapped."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip) >> _V6_PREFIX << _V6_PREFIX, _V6_PREFIX)))
