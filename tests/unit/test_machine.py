"""The newest figures of the machine, from the collector to any worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.machine import MachineStatus


def test_figures_are_those_of_the_last_write(tmp_path: Path) -> None:
    now = 1000.0
    status = MachineStatus(tmp_path, lambda: now)
    assert status.read() == {}
    status.write({"cpu": 1.5, "host": "a"})
    status.write({"cpu": 2.5, "host": "a"})
    assert MachineStatus(tmp_path, lambda: now).read() == {"cpu": 2.5, "host": "a"}


@pytest.mark.parametrize(("later", "fresh"), [(89.0, True), (91.0, False), (-91.0, False)])
def test_old_figures_are_none(tmp_path: Path, later: float, fresh: bool) -> None:
    MachineStatus(tmp_path, lambda: 1000.0).write({"cpu": 1})
    assert bool(MachineStatus(tmp_path, lambda: 1000.0 + later).read()) is fresh


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"at": "x", "status": {}}', '{"at":1000,"status":3}']
)
def test_a_damaged_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert MachineStatus(tmp_path, lambda: 1000.0).read() == {}
