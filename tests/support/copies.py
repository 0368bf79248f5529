"""Copies of the repository, for tests and scripts that change what they deploy or reload."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support import REPO, programs
from tests.support.service import MARK, Service
from tests.support.waiting import until_now

SERVICE = ("app", "workers", "gunicorn.conf.py")
"""What a service needs."""
SCRIPTED = (
    *SERVICE,
    *("scripts", "requirements.txt", "requirements.lock", "caddy", "docker-compose.yml"),
    *("deploy-websocket.sh", "rollback.sh", "verify-deployment.sh"),
)
"""What the scripts of a deployment need as well."""


def build_wheel(directory: Path) -> Path:
    """Build the wheel of the service into a directory; returns where it is."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", directory], cwd=REPO, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Done:
    """A script that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed last with --json."""
        return json.loads(self.out.splitlines()[-1])


def copy_code(source: Path, target: Path) -> None:
    """Copy a directory of code with what Python has compiled of it.

    Without that each process of a service would compile all of it. What changes in the copy has
    another time than its source had, by which Python sees that it must compile it anew.
    """
    # The last while another process writes what it has compiled.
    ignored = shutil.ignore_patterns("node_modules", "*.pyc.*")
    shutil.copytree(source, target, ignore=ignored)


class Copy:
    """Files and directories of the repository in a directory of their own."""

    root: Path

    def fill(self, names: Iterable[str]) -> None:
        """Copy files and directories of the repository to `root`."""
        self.root.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (REPO / name).is_dir():
                copy_code(REPO / name, self.root / name)
            else:
                shutil.copy2(REPO / name, self.root / name)
        if (self.root / "caddy").is_dir():
            (self.root / "Caddyfile").symlink_to("caddy/Caddyfile")

    def change(self, file: str, old: str, new: str) -> None:
        """Change the code, as a new version does."""
        path = self.root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def version(self, version: str) -> None:
        """Let the code say that it is of a version."""
        (self.root / "app/__init__.py").write_text(f'__version__ = "{version}"\n')

    def read(self, file: str) -> str:
        """A file of the copy."""
        return (self.root / file).read_text()

    def run_script(
        self, script: str, *arguments: str, environ: dict[str, str], timeout: float
    ) -> Done:
        """Run a script of the copy to its end, from elsewhere."""
        done = subprocess.run(
            [str(self.root / script), *arguments],
            cwd="/",
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def interrupt_script(
        self,
        script: str,
        *arguments: str,
        environ: dict[str, str],
        when: Callable[[str], bool],
        by: signal.Signals = signal.SIGINT,
    ) -> Done:
        """Start a script of the copy, and press ^C when a condition holds.

        Args:
            script: with its `arguments`.
            environ: of the script.
            when: is given what was printed so far.
            by: what is sent to the script and all that it runs in the foreground.
        """
        said = self.root.parent / "interrupted.log"
        with said.open("w") as log:
            process = subprocess.Popen(
                [str(self.root / script), *arguments],
                cwd="/",
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                # As from a terminal: what runs in the background of a shell ignores it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )
        until_now(
            lambda: when(said.read_text()) or process.poll() is not None,
            "the moment to interrupt",
            180,
        )
        if process.poll() is None:
            os.killpg(process.pid, by)
        out, _ = process.communicate(timeout=180)
        return Done(process.returncode, out, said.read_text())


class Installed(Copy, Service):
    """A service that runs from a copy of the repository.

    Its settings are in `.env` of the copy, except for the address, so that scripts find them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"HANDLERS": "", "WORKERS": 1, "DRAIN_SECONDS": 2, **settings})
        self.root = self.home / "yujian"
        self.fill(SCRIPTED)
        lines = [f"{name}={value}\n" for name, value in self.settings.items()]
        (self.root / ".env").write_text("".join(lines))

    @property
    def backups(self) -> Path:
        """Where the scripts keep their backups."""
        return self.root / "backups"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the service and of the scripts."""
        plain = {name: value for name, value in os.environ.items() if name not in self.settings}
        return plain | {
            **self.quick,
            MARK: self.mark,
            "PYTHON": sys.executable,
            "CADDY": programs.find("caddy"),
        }

    def run(self, script: str, *arguments: str, **environ: str) -> Done:
        """Run a script of the copy to its end."""
        return self.run_script(script, *arguments, environ=self.environ | environ, timeout=100)

    def end(self) -> None:
        """Stop a service that a script has started."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "gunicorn" in " ".join(process.cmdline()):
                    process.terminate()
        self.assert_nothing_left()


class CopiedService(Copy, Service):
    """A service that runs a copy of the code, which a test may change between reloads."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"HANDLERS": "handlers", **options})
        self.root = Path(tempfile.mkdtemp(prefix="yj-code-"))
        self.fill(SERVICE)
        shutil.copy(REPO / "tests/support/handlers.py", self.root)

    def destroy(self) -> None:
        """Remove the copy as well."""
        super().destroy()
        shutil.rmtree(self.root, ignore_errors=True)
