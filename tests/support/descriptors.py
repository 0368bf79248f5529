"""How many files this process has open."""

from __future__ import annotations

import gc
import os


def open_files() -> int:
    """Descriptors that are open, after what was left to the collector is closed."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
