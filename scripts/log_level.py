"""`make log-level LEVEL=debug`: change the level of the log while the service runs.

`debug` shows each connection and each HTTP call; `default` is LOG_LEVEL again, and so is a restart.

Exit codes: 0 the workers take the level; 1 it cannot be written down, or `.env` not be read; 2 nothing
runs, or wrong arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from app.command_line import make_parser
from app.seconds import REST
from workers.log_level import DEFAULT, LOOK_SECONDS, change
from workers.reload.command import FAILED, NOT_RUNNING, OK, NotRunning, find_data_dir, find_master
from workers.reload.watch import Failed

LEVELS = ("debug", "info", "warning", "error", "critical", DEFAULT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the level down where the workers look; returns the exit code."""
    parser = make_parser("python -m scripts.log_level", __doc__)
    parser.add_argument("level", choices=LEVELS, metavar="LEVEL", help=", ".join(LEVELS))
    level = parser.parse_args(arguments).level
    try:
        data_dir = find_data_dir()
        find_master(data_dir)
        change(data_dir, level)
    except NotRunning as error:
        print(f"Not changed: {error}", file=sys.stderr)
        return NOT_RUNNING
    except (Failed, OSError) as error:
        print(f"Not changed: {error}", file=sys.stderr)
        return FAILED
    print(
        f"The workers log at level {level} within {LOOK_SECONDS} seconds"
        f" ({REST} where no client is connected)."
    )
    return OK


if __name__ == "__main__":
    sys.exit(main())
