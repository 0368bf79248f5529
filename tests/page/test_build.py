"""The built files are what the sources build: only so they may be under version control."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path

from tests.integration.harness import REPO

BUILT = ("app/page", "clients/js/dist")
SOURCES = ("package.json", "package-lock.json", ".npmrc", "frontend", "clients/js")


def files(root: Path) -> dict[str, bytes]:
    """Built files by name. Compressed ones count as what they hold: zlib's versions differ."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name, data = path.relative_to(root).as_posix(), path.read_bytes()
            if name.endswith(".gz"):
                found[name] = gzip.decompress(data)
            elif name.endswith(".br"):
                found[name] = b""  # looked at by the build itself
            else:
                found[name] = data
    return found


def test_built_files_are_those_of_the_sources(packages: Path, tmp_path: Path) -> None:
    for name in SOURCES:
        source = packages / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("node_modules", "dist")
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    (tmp_path / "app").mkdir()
    done = subprocess.run(["npm", "run", "build"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in BUILT:
        built, kept = files(tmp_path / name), files(REPO / name)
        assert built.keys() == kept.keys(), "run `make page` and commit what it changes"
        changed = [path for path in built if built[path] != kept[path]]
        assert changed == [], "run `make page` and commit what it changes"


def test_types_and_parts(packages: Path) -> None:
    for script in ("check", "test"):
        done = subprocess.run(["npm", "run", script], cwd=packages, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_file_names_no_mirror() -> None:
    lock = (REPO / "package-lock.json").read_text()
    assert [found for found in re.findall(r'"resolved": "([^"]*)"', lock) if "://" in found] == []


def test_the_client_is_small() -> None:
    code = (REPO / "clients/js/dist/index.js").read_bytes()
    assert len(gzip.compress(code, 9)) < 5_000
    assert b"import" not in code.split(b"\n", 1)[0]
