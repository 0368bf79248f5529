"""Files of this user that workers write for one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.private_file import read_private, write_private


def test_a_file_that_cannot_be_put_in_its_place_leaves_no_other_one(tmp_path: Path) -> None:
    place = tmp_path / "note"
    place.mkdir()
    with pytest.raises(OSError, match="note"):
        write_private(place, b"new")
    assert list(tmp_path.iterdir()) == [place]
    place.rmdir()
    write_private(place, b"new")
    assert read_private(place, 2) == b"ne"
    assert list(tmp_path.iterdir()) == [place]
