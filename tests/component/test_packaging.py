"""The wheel that is built of this repository."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from app import __version__
from tests.support.copies import build_wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    path = build_wheel(tmp_path_factory.mktemp("wheel"))
    assert path.name == f"yujian_presence-{__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_code_the_page_and_the_configuration(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package in ("app", "workers"):
        files = {
            str(path.relative_to(ROOT))
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert files <= names
    assert wheel.read("workers/gunicorn.conf.py") == (ROOT / "gunicorn.conf.py").read_bytes()
    others = {name.partition("/")[0] for name in names} - {"app", "workers"}
    assert others == {f"yujian_presence-{__version__}.dist-info"}


def test_the_wheel_has_entry_points_and_the_licence(wheel: zipfile.ZipFile) -> None:
    info = f"yujian_presence-{__version__}.dist-info"
    entries = wheel.read(f"{info}/entry_points.txt").decode()
    assert "yujian-presence = workers.run:main" in entries
    assert "yujian-presence-reload = workers.reload.command:main" in entries
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
