"""What all workers together have counted during a reload, out of their metrics files."""

from __future__ import annotations

from pathlib import Path

from workers.shared import paths
from workers.shared.metrics_files import MetricsFiles

_NAMES = {
    ("realtime_handed_over_total", "drained"): "drained",
    ("realtime_handed_over_total", "lost"): "lost",
    ("realtime_messages_replayed_total", None): "replayed",
}


class ReloadFigures:
    """Counts from now on.

    Args:
        data_dir: of the service.
    """

    def __init__(self, data_dir: Path) -> None:
        self._files = MetricsFiles(paths.metrics_dir(data_dir))
        self._before = self._read()

    def since(self) -> dict[str, int]:
        """What was counted since."""
        return {name: value - self._before[name] for name, value in self._read().items()}

    def _read(self) -> dict[str, int]:
        found = dict.fromkeys(_NAMES.values(), 0)
        for metric in self._files.collect():
            for sample in metric.samples:
                name = _NAMES.get((sample.name, sample.labels.get("result")))
                if name is not None:
                    found[name] += int(sample.value)
        return found
