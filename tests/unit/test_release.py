"""Releases that are packed and put back; what fails in between leaves the files as they were."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from scripts import release


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a release in it."""
    root = tmp_path / "root"
    for name in ("app", "workers", "caddy"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text("old")
    (root / ".env").write_text("old")
    (root / "Caddyfile").symlink_to("caddy/file")
    monkeypatch.setattr(release, "ROOT", root)
    return root


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def packed(root: Path) -> Path:
    """An archive of the old files; new ones are in their place."""
    archive = root.parent / "release.tar.gz"
    release.pack(archive)
    for path in root.rglob("file"):
        path.write_text("new")
    (root / ".env").write_text("new")
    return archive


@pytest.mark.parametrize("python", ["this", "3.11.2"])
def test_a_release_comes_back(root: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(root)
    (root / "app/new").mkdir()
    (root / "app/new/file").write_text("new")
    mounted = {name: (root / name).stat().st_ino for name in ("app", "caddy")}
    if python == "3.11.2":
        # It knows no filters, of whatever kind.
        monkeypatch.delattr(tarfile, "data_filter")
        plain = tarfile.TarFile.extractall

        def extractall(self: tarfile.TarFile, path: Any) -> None:
            plain(self, path)

        monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    failed = root.parent / "failed"
    release.restore_release(archive, failed)
    assert set(contents(root).values()) == {"old"}
    assert (root / "Caddyfile").is_symlink()
    assert set(contents(failed).values()) == {"new"}
    assert contents(failed).keys() == {*contents(root), "app/new/file"}
    # Containers have directories of it mounted, and go on with those.
    assert {name: (root / name).stat().st_ino for name in mounted} == mounted


@pytest.mark.parametrize(
    ("name", "link"), [("../out", ""), ("/out", ""), ("app/x", "../../out"), ("x", "/etc/passwd")]
)
def test_an_archive_that_leads_elsewhere(
    root: Path, name: str, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = root.parent / "bad.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        member = tarfile.TarInfo(name)
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
        made.addfile(member, io.BytesIO())
    before = contents(root)
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(tarfile.TarError, match="no file of a release"):
        release.restore_release(archive, root.parent / "failed")
    assert contents(root) == before


@pytest.mark.parametrize("fails_at", range(1, 11))
def test_a_swap_that_fails_midway_changes_nothing(
    root: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(root)
    before, links = contents(root), (root / "Caddyfile").is_symlink()
    rename, count = Path.rename, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == fails_at:
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        release.restore_release(archive, root.parent / "failed")
    assert contents(root) == before
    assert (root / "Caddyfile").is_symlink() == links
