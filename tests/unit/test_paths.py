from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from workers.shared import locks, paths
from workers.shared.file import write_atomically


def test_names_follow_the_real_directory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    link = tmp_path / "link"
    link.symlink_to(data)
    assert paths.slots_file(link) == paths.slots_file(data)
    assert paths.valkey_place(link).socket == paths.valkey_place(data).socket
    assert paths.slots_file(data) != paths.slots_file(tmp_path)
    assert paths.leader_lock(link) == data.resolve() / "leader.lock"


def test_socket_path_always_fits(tmp_path: Path) -> None:
    short = Path("/tmp/d")
    assert paths.valkey_place(short).socket.parent == short / "run"
    long = tmp_path / ("d" * 120)
    assert len(os.fsencode(paths.valkey_place(long).socket)) < 108
    assert paths.valkey_place(long).socket != paths.valkey_place(tmp_path / ("e" * 120)).socket


def test_private_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = paths.make_private(tmp_path / "a" / "b")
    made.chmod(0o755)
    assert paths.make_private(made).stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        paths.make_private(made)


def test_what_belongs_to_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    file.touch()
    directory.mkdir()
    paths.check_own(file)
    paths.check_own(tmp_path / "missing")
    paths.check_own(file / "below-a-file")
    os.close(locks.open_lock(file))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for refuse, path in (
        (paths.check_own, file),
        (locks.open_lock, file),
        (paths.make_private, directory),
    ):
        with pytest.raises(PermissionError, match="belongs to another user"):
            refuse(path)


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(Path, "replace", is_full)
    with pytest.raises(OSError, match="no room"):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []
