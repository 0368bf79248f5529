"""Places and programs of the monitoring tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import REPO, programs
from tests.support.program import run

MONITORING = REPO / "monitoring"


needs_prometheus = pytest.mark.needs("promtool", "prometheus")
needs_alertmanager = pytest.mark.needs("amtool", "prometheus-alertmanager")


def shellcheck(script: Path) -> None:
    """Assert that a script is clean."""
    result = run(programs.find("shellcheck"), script)
    assert result.returncode == 0, result.stdout
