"""What any process of this machine can say of it: its connections, and its newest figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.config import Settings
from app.errors import ClientError
from app.ports import Slots
from app.private_file import read_private, write_private
from app.protocol.envelope import decode_json, encode_json
from app.types import WorkerRow

FRESH = 90.0
"""Seconds for which figures stand for the present; the collector renews them every 30 s."""
_LARGEST_FILE = 256 * 1024
"""Bytes of `status.json` that are read; it has some 500."""


class MachineStatus:
    """The collector's newest figures, in a file of the data directory for all workers.

    Args:
        data_dir: of the service.
        now: Unix time in seconds.
    """

    def __init__(self, data_dir: Path, now: Callable[[], float] = time.time) -> None:
        self._file = data_dir / "status.json"
        self._now = now

    def write(self, status: Mapping[str, object]) -> None:
        """Replace the figures.

        Raises:
            OSError: they cannot be written.
        """
        write_private(self._file, json.dumps({"at": self._now(), "status": status}).encode())

    def read(self) -> dict[str, object]:
        """The figures; empty where there are none of the last `FRESH` seconds."""
        try:
            kept = decode_json(read_private(self._file, _LARGEST_FILE))
            status, at = kept["status"], float(kept["at"])
            encode_json([[status]])  # it is to be a part of messages
        except (OSError, ClientError, ValueError, KeyError, TypeError, OverflowError):
            return {}
        if not isinstance(status, dict) or abs(self._now() - at) > FRESH:
            return {}
        return status


def describe_worker(row: WorkerRow, *, is_known: bool = True) -> dict[str, object]:
    """A worker as `GET /status` and `GET /ws/stats` show it.

    Args:
        row: of the worker.
        is_known: whether its process is shown as well, which is not for strangers.
    """
    shown: dict[str, object] = {"state": row.state, "connections": row.connections}
    if is_known:
        shown = {
            "pid": row.pid,
            **shown,
            "generation": row.generation,
            "startedAt": round(row.started * 1000),
        }
    return shown | {"deaf": True} if row.stats.get("deaf") else shown


def describe_connections(
    slots: Slots, settings: Settings, *, is_known: bool = True
) -> dict[str, object]:
    """The connections of this machine by type, protocol and worker: `GET /ws/stats`."""
    rows = slots.rows()
    total = sum(row.connections for row in rows)
    subscribed = sum(figure(row.stats, "subscribed") for row in rows)
    anonymous = sum(figure(row.stats, "anonymous") for row in rows)
    return {
        "totalConnections": total,
        "uniqueUsers": slots.unique_users() + anonymous,
        "averageSubscriptions": round(subscribed / total, 2) if total else 0,
        "subscriptions": {
            type: sum(figure(row.stats, "subscriptions", type) for row in rows)
            for type in settings.message_types
        },
        "protocols": {
            name: sum(figure(row.stats, name) for row in rows)
            for name in ("plain", "socketio", "sse")
        },
        "slowConsumers": sum(figure(row.stats, "slow") for row in rows),
        "maxConnections": settings.max_total_connections,
        "workers": [describe_worker(row, is_known=is_known) for row in rows],
    }


def figure(stats: Mapping[str, Any], *path: str) -> Any:
    """A number out of what a worker shows of itself; 0 where it has not shown it yet."""
    value: Any = stats
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else 0
