"""Programs and receivers of the monitoring tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with these variables and nothing else in its environment."""
    base = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(
        [str(part) for part in command],
        env=base | environ,
        capture_output=True,
        text=True,
        timeout=50,
    )


class Program:
    """A program in the background, killed at the end; its output is in `log`."""

    def __init__(self, log: Path, *command: str | Path, **environ: str) -> None:
        self.log = log
        self._command = [str(part) for part in command]
        self._environ = {"PATH": "/usr/local/bin:/usr/bin:/bin"} | environ

    def __enter__(self) -> Self:
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                self._command, env=self._environ, stdout=out, stderr=subprocess.STDOUT
            )
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._process.kill()
        self._process.wait()
        if error is not None:
            error.add_note(self.log.read_text(errors="replace")[-3000:])
