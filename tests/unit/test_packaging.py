"""What is installed: the pins, their hashes, the metadata, and the wheel."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins(path: str) -> dict[str, str]:
    """Name and version of each line `name==version`, without extras and case."""
    found = re.findall(
        r"^([\w.-]+)(?:\[\w+\])?==([^\s;\\]+)", (ROOT / path).read_text(), re.MULTILINE
    )
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_the_lock_has_the_pins_with_hashes() -> None:
    """`make lock` writes it anew."""
    assert pins("requirements.lock") == pins("requirements.txt")
    blocks = re.split(
        r"^(?=[\w.-]+==)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE
    )
    assert all("--hash=sha256:" in block for block in blocks[1:])


def test_every_requirement_is_pinned() -> None:
    for path in ("requirements.txt", "requirements-dev.txt"):
        lines = (ROOT / path).read_text().splitlines()
        named = [line for line in lines if line and not line.startswith(("#", "-r "))]
        assert [line for line in named if "==" not in line] == []


def test_the_metadata_names_the_direct_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = (ROOT / "requirements.txt").read_text().partition("# Needed by")[0]
    assert project["dependencies"] == [
        line for line in direct.splitlines() if line and not line.startswith("#")
    ]
