"""How much memory the private Valkey may take, on machines of several sizes."""

from __future__ import annotations

import pytest

from app.config import full_backplane, load
from workers import runtime

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
    caplog: pytest.LogCaptureFixture,
    total: int,
    environ: dict[str, str],
    wanted: int,
    warned: bool,
) -> None:
    assert runtime._backplane_memory(load(environ), total) == wanted
    assert ("BACKPLANE_MEMORY" in caplog.text) is warned
