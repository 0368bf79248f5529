"""Places and programs of the monitoring tests."""

from __future__ import annotations

import pytest

from tests.support import REPO

MONITORING = REPO / "monitoring"


needs_prometheus = pytest.mark.needs("promtool", "prometheus")
needs_alertmanager = pytest.mark.needs("amtool", "prometheus-alertmanager")
