"""A copy of the repository with a service of its own, for scripts that change what they deploy."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support import REPO
from tests.support.service import MARK, Service

_COPIED = (
    "app",
    "workers",
    "scripts",
    "gunicorn.conf.py",
    "requirements.txt",
    "requirements.lock",
    "Caddyfile",
    "caddy",
    "docker-compose.yml",
    "deploy-websocket.sh",
    "rollback.sh",
    "verify-deployment.sh",
)


@dataclass(frozen=True)
class Done:
    """A script that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed with --json."""
        return json.loads(self.out)


class Installed(Service):
    """A service that runs from a copy of the repository.

    Its settings are in `.env` of the copy, except for the address, so that scripts find them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"HANDLERS": "", "WORKERS": 1, "DRAIN_SECONDS": 2, **settings})
        self.root = self.home / "yujian"
        self.root.mkdir()
        for name in _COPIED:
            if (REPO / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(REPO / name, self.root / name, ignore=ignored)
            else:
                shutil.copy2(REPO / name, self.root / name)
        lines = [f"{name}={value}\n" for name, value in self.settings.items()]
        (self.root / ".env").write_text("".join(lines))
        self.mark = uuid.uuid4().hex
        self._mark = self.mark

    @property
    def backups(self) -> Path:
        """Where the scripts keep their backups."""
        return self.root / "backups"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the service and of the scripts."""
        plain = {name: value for name, value in os.environ.items() if name not in self.settings}
        caddy = str(Path(sys.executable).with_name("caddy"))
        return plain | {
            MARK: self.mark,
            "PYTHON": sys.executable,
            "CADDY": caddy,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def spawn(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"],
                cwd=self.root,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        Service.running.append(self)
        return self.process

    def run(self, script: str, *arguments: str, **environ: str) -> Done:
        """Run a script of the copy to its end, from elsewhere."""
        done = subprocess.run(
            [str(self.root / script), *arguments],
            cwd="/",
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def change(self, file: str, old: str, new: str) -> None:
        """Change the code, as a new version does."""
        path = self.root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def read(self, file: str) -> str:
        """A file of the copy."""
        return (self.root / file).read_text()

    def end(self) -> None:
        """Stop a service that a script has started."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "gunicorn" in " ".join(process.cmdline()):
                    process.terminate()
        self.assert_nothing_left()


class CopiedService(Service):
    """A service that runs a copy of the code, which a test may change between reloads."""

    def __init__(self, **options: Any) -> None:
        self.code = Path(tempfile.mkdtemp(prefix="yj-code-"))
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("app", "workers"):
            shutil.copytree(REPO / name, self.code / name, ignore=ignored)
        shutil.copy(REPO / "gunicorn.conf.py", self.code)
        super().__init__(**{"HANDLERS": "handlers", **options})
        shutil.copy(REPO / "tests/support/handlers.py", self.code)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the processes in the directory of the copy."""
        environ = dict(os.environ) | self.settings | {MARK: self._mark}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"],
                cwd=self.code,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        Service.running.append(self)
        return self.process

    def destroy(self) -> None:
        """Remove the copy as well."""
        super().destroy()
        shutil.rmtree(self.code, ignore_errors=True)
