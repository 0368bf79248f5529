"""How a master checks its settings: in a fork, so that it imports nothing of `app` itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import REPO

_MASTER = """
import json, pathlib, signal, sys
from workers import master
if "ignored" in sys.argv:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
found = master._check(pathlib.Path(sys.argv[1]))
print(json.dumps([*found, [name for name in sys.modules if name.partition(".")[0] == "app"]]))
"""


def check(home: Path, *options: str) -> tuple[int, str, str, list[str]]:
    """Exit code, both outputs, and what of `app` the master has imported."""
    done = subprocess.run(
        [sys.executable, "-c", _MASTER, str(home), *options],
        cwd=REPO,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: Any = json.loads(done.stdout)
    return tuple(found)


@pytest.mark.parametrize("options", [[], ["ignored"]], ids=["", "SIGCHLD is ignored"])
def test_settings_and_warnings(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / ".env").write_text("WORKERS=3\nNO_SUCH_SETTING=1\nPUBLISH_TOKEN=short\n")
    code, shown, said, imported = check(tmp_path, *options)
    assert (code, imported) == (0, [])
    assert json.loads(shown)["workers"] == 3
    assert "short" not in shown
    assert [line.partition(":")[0] for line in said.splitlines()] == ["warning"] * 2


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"BIND=\xff\n")
    code, shown, said, _ = check(tmp_path)
    assert (code, shown) == (1, "")
    assert len(said.splitlines()) == 1, said
