"""Lets the cap hold over two services on one machine while one takes over from the other.

    ... | python -m scripts.hold_connections     count so many connections, held elsewhere
    python -m scripts.hold_connections --count   print the connections of this service

Two containers have a slot table each. Each line read is a number of connections that the old
container still has; the new one counts them against `MAX_TOTAL_CONNECTIONS` as long as this runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from app.command_line import make_parser
from app.config import Settings, load
from workers.shared import paths
from workers.shared.slots import LEAVING, SlotTable
from workers.shared.worker_slots import WorkerSlots


def hold(table: SlotTable, settings: Settings, numbers: Iterable[str]) -> None:
    """Count in a row of our own what each line says, until the lines end."""
    # A row that is leaving is no successor.
    index = table.claim_row(os.getpid())
    table.set_state(index, LEAVING)
    slots = WorkerSlots(table, index, settings)
    held = 0
    try:
        for line in numbers:
            if not line.strip().isdecimal():
                continue
            wanted = int(line)
            if wanted > held:
                # From no worker of this machine: past the cap, which they have been let in by.
                slots.adopt_connections(index, generation=-1, count=wanted - held)
            for _ in range(held - wanted):
                slots.release_connection()
            held = wanted
    finally:
        table.free(os.getpid())


def main() -> int:
    """Hold, or print the count; returns the exit code."""
    parser = make_parser("python -m scripts.hold_connections", __doc__)
    parser.add_argument("--count", action="store_true", help="print the connections")
    options = parser.parse_args()
    settings = load(os.environ, Path(".env"))
    file = paths.slots_file(settings.data_dir)
    if not file.exists():
        print("no service runs with this DATA_DIR", file=sys.stderr)
        return 1
    table = SlotTable(file, settings.max_total_connections)
    if options.count:
        print(sum(row.connections for row in table.rows()))
    else:
        hold(table, settings, sys.stdin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
