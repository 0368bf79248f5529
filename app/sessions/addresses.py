"""Limits per client address: connections, and handshakes in a second, over all workers of the machine.

An IPv6 address counts as its /64, which is what one customer gets. Addresses are those that
trusted proxies name (`app.http.clients`); a proxy that is not trusted is one address.
"""

from __future__ import annotations

import ipaddress

from app.backplane.worker_names import Place
from app.errors import PresenceError
from app.ports import Slots
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
    """What the addresses of clients hold on this machine.

    Args:
        connections: most of one address at once; 0: no limit.
        connects: most handshakes of one address in a second; 0: no limit.
        slots: counts them over all workers, up to the same limits.
    """

    def __init__(self, connections: int, connects: int, slots: Slots) -> None:
        self._most = connections
        self._most_connects = connects
        self._slots = slots
        self._of: dict[Connection, str] = {}

    def check(self, address: str, *, is_counted: bool = False) -> None:
        """Count a handshake, unless it is counted already, before anything is done for it.

        Raises:
            TooMany: the address is at a limit.
        """
        network = network_of(address)
        if (
            self._most_connects
            and not is_counted
            and self._slots.count_handshake(network) > self._most_connects
        ):
            raise TooMany(
                "address_rate",
                f"One address may connect at most {self._most_connects} times per second.",
            )
        if self._most and self._slots.connections_of_address(network) >= self._most:
            raise self._too_many()

    def claim(self, address: str) -> None:
        """Count a connection that is admitted: the caller gives it to `hold` or `give_back`.

        Raises:
            TooMany: the address is at its limit by now.
        """
        if self._most and not self._slots.claim_address(network_of(address)):
            raise self._too_many()

    def give_back(self, address: str) -> None:
        """Count a connection no more that was claimed."""
        if self._most:
            self._slots.release_address(network_of(address))

    def hold(self, connection: Connection, address: str) -> None:
        """Count a claimed connection until `release`."""
        if self._most:
            self._of[connection] = network_of(address)

    def adopt(self, connection: Connection, network: str, giver: Place) -> None:
        """Count a connection that another worker has counted.

        Args:
            connection: the same in this worker.
            network: what `of` has returned there.
            giver: the other worker.
        """
        if self._most:
            self._slots.adopt_address(*giver, network)
            self._of[connection] = network

    def give(self, connection: Connection) -> None:
        """Count a connection no more that another worker counts."""
        self._of.pop(connection, None)

    def release(self, connection: Connection) -> None:
        """Count a connection no more."""
        network = self._of.pop(connection, None)
        if network is not None:
            self._slots.release_address(network)

    def of(self, connection: Connection) -> str | None:
        """The network that a connection counts for."""
        return self._of.get(connection)

    def _too_many(self) -> TooMany:
        return TooMany("address", f"One address may have at most {self._most} connections.")


def network_of(address: str) -> str:
    """What an address counts as: itself, or the /64 of an IPv6 address that is not mapped."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip) >> _V6_PREFIX << _V6_PREFIX, _V6_PREFIX)))
