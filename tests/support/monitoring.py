"""Places and programs of the monitoring tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.support import REPO
from tests.support.program import run

MONITORING = REPO / "monitoring"


needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="Prometheus is not installed (Debian: prometheus)",
)


needs_alertmanager = pytest.mark.skipif(
    not (shutil.which("amtool") and shutil.which("prometheus-alertmanager")),
    reason="Alertmanager is not installed (Debian: prometheus-alertmanager)",
)


def shellcheck(script: Path) -> None:
    """Assert that a script is clean."""
    result = run(Path(sys.executable).with_name("shellcheck"), script)
    assert result.returncode == 0, result.stdout
