"""Whether the service in this container serves: `GET /status` answers 200.

For health checks of images without curl. Two containers may share a network, where either may
answer: with MASTER_PID_FILE, which `workers.start` writes, a worker of that master must be ready
too. Exit code 0: it serves; 1: it does not.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
from pathlib import Path

from workers.shared import paths
from workers.shared.slots import READY, SlotTable

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


def is_ready(data_dir: Path, master: int) -> bool:
    """Whether a master has a worker that serves."""
    file = paths.slots_file(data_dir)
    return file.exists() and any(
        row.master == master and row.state == READY for row in SlotTable(file, 1).rows()
    )


def main() -> int:
    """Ask the service named by BIND; returns the exit code."""
    try:
        if note := os.environ.get("MASTER_PID_FILE"):
            master = int(Path(note).read_text())
            if not is_ready(Path(os.environ.get("DATA_DIR") or "data").expanduser(), master):
                print(f"master {master} has no worker that is ready", file=sys.stderr)
                return 1
        status = status_of(os.environ.get("BIND") or "127.0.0.1:3001")
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main())
