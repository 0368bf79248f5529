"""`make lint` looks at all that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

NOT_OURS = {".git", ".venv", "node_modules", "data", "backups"}


def shell_scripts(directory: Path = ROOT) -> Iterator[Path]:
    """Files that a shell runs, by their name or their first line."""
    for path in directory.iterdir():
        if path.is_symlink() or path.name in NOT_OURS:
            continue
        if path.is_dir():
            yield from shell_scripts(path)
        elif path.suffix == ".sh" or (
            not path.suffix and re.match(rb"#!.*\b(ba|da)?sh\b", path.read_bytes()[:80])
        ):
            yield path


def test_every_shell_script_is_checked() -> None:
    found = re.search(r"^\t.*/shellcheck -x (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    checked = {path for pattern in found[1].split() for path in ROOT.glob(pattern)}
    scripts = set(shell_scripts())
    assert len(scripts) > 10
    assert scripts <= checked, "add it to `lint` in the Makefile"
