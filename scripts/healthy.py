"""Whether the service in this container serves: `GET /status` answers 200.

For health checks of images without curl. Exit code 0: it serves; 1: it does not.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys

_TIMEOUT = 8.0
"""Seconds; less than the timeout of the health check."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "::1"}  # noqa: S104


def status_of(bind: str) -> int:
    """The HTTP status that the service on this address answers to `GET /status`."""
    if bind.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_TIMEOUT)
        connection.sock.connect(bind.removeprefix("unix:"))
    else:
        host, _, port = bind.rpartition(":")
        host = _EVERYWHERE.get(host, host).strip("[]")
        connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT)
    try:
        connection.request("GET", "/status")
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> int:
    """Ask the service named by BIND; returns the exit code."""
    try:
        status = status_of(os.environ.get("BIND") or "127.0.0.1:3001")
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main())
