"""Fixtures of the tests of `make reload`: what a master has recorded, without one that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.shared import paths


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory in which a master can record what it runs."""
    paths.make_private(paths.runtime_dir(tmp_path))
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with nothing but the configuration of a master."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "gunicorn.conf.py").write_text("workers = 1\n")
    return root
