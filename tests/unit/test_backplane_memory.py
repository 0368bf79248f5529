"""How much memory the private Valkey may take, on machines of several sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config import full_backplane, load
from workers import runtime
from workers.leader.host import HostSampler

MB = 2**20
MANY = ",".join(f"type-{n}" for n in range(27))


@pytest.mark.parametrize(
    ("total", "environ", "wanted", "warned"),
    [
        (512 * MB, {}, full_backplane(load({})), False),
        (64_000 * MB, {}, full_backplane(load({})), False),
        (512 * MB, {"MESSAGE_TYPES": MANY}, 512 * MB * 2 // 5, False),
        (64_000 * MB, {"MESSAGE_TYPES": MANY}, full_backplane(load({"MESSAGE_TYPES": MANY})), False),
        (512 * MB, {"BACKPLANE_MEMORY": "200MB"}, 200 * MB, False),
        (512 * MB, {"BACKPLANE_MEMORY": "400MB"}, 400 * MB, True),
    ],
    ids=["defaults", "a large machine", "many types", "many on a large one", "set", "too much"],
)  # fmt: skip
def test_it_fits_into_the_memory(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    total: int,
    environ: dict[str, str],
    wanted: int,
    warned: bool,
) -> None:
    monkeypatch.setattr(HostSampler, "memory_total", lambda _: total)
    settings = load(environ | {"DATA_DIR": str(tmp_path)})
    assert runtime._backplane_memory(settings) == wanted
    assert ("BACKPLANE_MEMORY" in caplog.text) is warned
