"""The newest figures of the machine, from the collector to any worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.machine import MachineStatus
from app.protocol.envelope import encode_json


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


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "{",
        "[" * 50_000,
        '{"at":100}',
        '{"at":"noon","status":{}}',
        '{"at":null,"status":{}}',
        '{"at":NaN,"status":{"cpu":1}}',
        '{"at":100,"status":{"cpu":NaN}}',
        '{"at":' + "9" * 400 + ',"status":{"cpu":1}}',
        '{"at":100,"status":{"cpu":' + "9" * 400 + "}}",
        '{"at":100,"status":{"cpu":' + "[" * 126 + "]" * 126 + "}}",
        '{"at":100,"status":[1]}',
        json.dumps({"at": 100, "status": {"cpu": "x" * 1_000_000}}),
    ],
)
def test_a_file_of_anything(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    found = MachineStatus(tmp_path, lambda: 100.0).read()
    assert found == {}
    encode_json({"data": found})
