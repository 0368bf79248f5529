"""Programs that tests start. One that is missing fails them, and is named with what brings it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PACKAGES = {
    "amtool": "apt-get install prometheus-alertmanager",
    "caddy": "pip install -r requirements-dev.txt",
    "cc": "apt-get install gcc libc6-dev",
    "chromium-headless-shell": "apt-get install chromium-headless-shell",
    "curl": "apt-get install curl",
    "node": "apt-get install nodejs",
    "npm": "apt-get install npm",
    "prlimit": "apt-get install util-linux",
    "prometheus": "apt-get install prometheus",
    "prometheus-alertmanager": "apt-get install prometheus-alertmanager",
    "promtool": "apt-get install prometheus",
    "shellcheck": "pip install -r requirements-dev.txt",
    "systemd-analyze": "apt-get install systemd",
    "systemd-notify": "apt-get install systemd",
}
"""What brings a program, by its name."""


def find(name: str, *others: str) -> str:
    """Path of a program: of this environment, or of the machine.

    Args:
        name: it; a key of `PACKAGES`.
        others: other names of the same program.

    Raises:
        AssertionError: it is missing.
    """
    beside = Path(sys.executable).with_name(name)
    if beside.is_file():
        return str(beside)
    found = next(filter(None, map(shutil.which, (name, *others))), None)
    assert found, f"{name} is missing: {PACKAGES[name]}"
    return found
