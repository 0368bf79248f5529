"""Whether the service in this container serves: `GET /status` answers 200.

    python -m scripts.healthy
    python -m scripts.healthy --worker    whether any worker of DATA_DIR serves, however well: 3 if none

For health checks of images without curl. Two containers may share a network, where either may
answer: with MASTER_PID_FILE, which `workers.start` writes, a worker of that master must be ready
too. Exit code 0: it serves; 1: it does not, or that cannot be known.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from app.command_line import make_parser
from workers.shared import paths
from workers.shared.slots import LEAVING, READY, SlotTable

NO_WORKER = 3
"""Exit code."""
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


def has_worker(data_dir: Path) -> bool:
    """Whether a worker of any master lives and has clients, or takes them; also where that is unknown."""
    file = paths.slots_file(data_dir)
    # Something may have removed it: the workers put it back.
    return not file.exists() or any(
        row.state in (READY, LEAVING) and Path(f"/proc/{row.pid}").exists()
        for row in SlotTable(file, 1).rows()
    )


def main(arguments: Sequence[str] = ()) -> int:
    """Ask the service named by BIND, or look for a worker of it; returns the exit code."""
    parser = make_parser("python -m scripts.healthy", __doc__)
    parser.add_argument("--worker", action="store_true", help="look for a worker of DATA_DIR only")
    options = parser.parse_args(arguments)
    try:
        data_dir = paths.data_directory()
        if options.worker:
            return 0 if has_worker(data_dir) else NO_WORKER
        if note := os.environ.get("MASTER_PID_FILE"):
            master = int(Path(note).read_text())
            if not is_ready(data_dir, master):
                print(f"master {master} has no worker that is ready", file=sys.stderr)
                return 1
        status = status_of(os.environ.get("BIND") or "127.0.0.1:3001")
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
