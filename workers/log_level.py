"""The level of the log, changed while the service runs, without a reload.

The level is a word in a file that every worker looks at, every two seconds, or six while it has no clients; `scripts/log_level.py`
writes it. It holds over reloads, until the file is gone or the service starts anew.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from app.seconds import REST, next_second
from app.setting_values import log_level
from workers.shared import paths
from workers.shared.file import write_atomically

DEFAULT = "default"
"""Takes LOG_LEVEL again."""
LOOK_SECONDS = 2
"""Between two looks at the file."""
_LONGEST = 100
"""Bytes of the file that are read; it holds one word."""

logger = logging.getLogger(__name__)


def _wanted(path: Path, default: str) -> str:
    """The level that is in force: that in the file, or `default` where it names none."""
    if not os.path.exists(path):  # noqa: PTH110 (often, and it is not there as a rule)
        return default
    try:
        with path.open("rb") as file:
            return log_level(file.read(_LONGEST).decode("ascii").strip())
    except (OSError, ValueError):
        return default


async def follow(data_dir: Path, default: str) -> None:
    """Keep this process at the level that is in force.

    Args:
        data_dir: of the service.
        default: LOG_LEVEL.
    """
    root, path = logging.getLogger(), paths.log_level_file(data_dir)
    while True:
        level = _wanted(path, default)
        if level != logging.getLevelName(root.level):
            root.setLevel(level)
            logger.log(root.level, "The log level is %s from now on", level.lower())
        await next_second(LOOK_SECONDS, REST)


def change(data_dir: Path, level: str) -> None:
    """Put a level in force, or `DEFAULT`."""
    path = paths.log_level_file(data_dir)
    if level == DEFAULT:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, level.encode())
