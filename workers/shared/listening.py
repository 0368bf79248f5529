"""What BIND stands for, and whether it can be listened on, found out before anything depends on it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

_ADVICE = {
    errno.EADDRINUSE: "end what listens there (ss -ltnp shows it), or choose another address",
    errno.EADDRNOTAVAIL: "choose an address of this machine",
    errno.EACCES: "choose a port above 1023, or a path that this user can write to",
}


def address_of(listener: socket.socket) -> str:
    """The address of a listening socket, as BIND says it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"


def stands_for(bind: str, addresses: Iterable[str]) -> bool:
    """Whether BIND names all these addresses of sockets; port 0 names any port."""
    if bind.startswith("unix:"):
        return set(addresses) <= {bind}
    host, _, port = bind.rpartition(":")
    hosts = {host}
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        hosts |= {f"[{name[0]}]" if ":" in str(name[0]) else str(name[0]) for *_, name in found}
    parts = [address.rpartition(":") for address in addresses]
    return all(its_host in hosts and port in ("0", its_port) for its_host, _, its_port in parts)


def fault_of(bind: str, beside: str = "") -> str:
    """Why BIND cannot be listened on, in one line; empty when it can.

    Args:
        bind: `host:port`, `[IPv6]:port` or `unix:path`.
        beside: the one that the service which asks listens on, and keeps until it has this one.
    """
    try:
        if bind.startswith("unix:"):
            _try_path(Path(bind.removeprefix("unix:")))
        else:
            host, _, port = bind.rpartition(":")
            _try_port(host.strip("[]"), int(port))
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = getattr(error, "strerror", None) or str(error)
        advice = _ADVICE.get(number or 0, "choose another address")
        if number == errno.EADDRINUSE and beside.rpartition(":")[2] == bind.rpartition(":")[2]:
            advice = f"the service listens on {beside} until it ends: restart it"
        return f"BIND: cannot listen on {bind}: {reason}: {advice}"
    return ""


def _try_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)  # two may have one address until one of them listens


def _try_path(path: Path) -> None:
    """One that was left by a service that was killed does not count: gunicorn removes it."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "something that is no socket is there")
    except FileNotFoundError:
        pass
    else:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(path)) != errno.ECONNREFUSED:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    beside = path.with_name(f"{path.name[:-1]}~")  # of the same length
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(beside))
        beside.unlink()
