"""The Autobahn suite for WebSockets, which needs a Python 2.7: an environment for it, and a run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).with_name("autobahn.txt")
ENVIRONMENT = Path(sys.prefix) / "autobahn"
"""Where the suite is installed: beside what runs these tests, so that `make clean` removes it."""
COMPRESSION = ("12.*", "13.*")
"""Cases of compression, which take minutes."""
BUILD_SECONDS = 300
RUN_SECONDS = 300

# `zope` is spread over directories by .pth files, which only a site directory may have.
_RUN = "import site; site.addsitedir({!r}); from autobahntestsuite.wstest import run; run()"


class NoPython(Exception):
    """There is no Python 2.7 to run the suite with."""


def python27() -> str:
    """Path of a Python 2.7 that has pip.

    Raises:
        NoPython: with what to do about it.
    """
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [
        os.environ.get("PYTHON27"),
        *(str(path) for path in sorted(home.glob("versions/2.7*/bin/python2.7"))),
        shutil.which("python2.7"),
    ]
    for python in filter(None, candidates):
        tried = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
        if tried.returncode == 0 and b"python 2.7" in tried.stdout:
            return python
    raise NoPython(
        "The Autobahn suite needs a Python 2.7 with pip: run `pyenv install 2.7.18`,"
        " or set PYTHON27 to the path of one."
    )


def install(environment: Path = ENVIRONMENT) -> Path:
    """Install the suite unless that is done; processes wait for one another.

    Raises:
        NoPython: there is no Python 2.7.
        subprocess.CalledProcessError: pip failed.
    """
    environment.mkdir(parents=True, exist_ok=True)
    done = environment / "installed.txt"
    wanted = REQUIREMENTS.read_text()
    with (environment / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != wanted:
            packages = environment / "packages"
            shutil.rmtree(packages, ignore_errors=True)
            pip = [python27(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run(
                [*pip, "--no-deps", "--target", packages, "--requirement", REQUIREMENTS],
                env=os.environ | {"PYTHONWARNINGS": "ignore"},
                timeout=BUILD_SECONDS,
                check=True,
            )
            done.write_text(wanted)
    return environment / "packages"


def run(
    url: str,
    directory: Path,
    cases: list[str],
    *,
    left_out: tuple[str, ...] = (),
    seconds: int = RUN_SECONDS,
) -> dict[str, dict[str, Any]]:
    """Run cases against a server that echoes.

    Args:
        url: of the server.
        directory: for the reports; it must exist.
        cases: ids or patterns of the suite; `*`: all.
        left_out: ids or patterns of those that are not run.
        seconds: that the run may take.

    Returns:
        What the suite says of each case, by its id: `behavior`, `behaviorClose` and `report`, the
        file with every octet of the case.

    Raises:
        NoPython: there is no Python 2.7.
        subprocess.SubprocessError: the suite failed, or took longer than `seconds`.
    """
    packages = install()
    specification = directory / "specification.json"
    reports = directory / "reports"
    described = {
        "outdir": str(reports),
        "servers": [{"agent": "service", "url": url}],
        "cases": cases,
        "exclude-cases": list(left_out),
        "exclude-agent-cases": {},
    }
    specification.write_text(json.dumps(described))
    suite = [python27(), "-c", _RUN.format(str(packages))]
    with (directory / "suite.log").open("wb") as log:
        subprocess.run(
            [*suite, "--mode", "fuzzingclient", "--spec", str(specification)],
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=True,
        )
    verdicts: dict[str, dict[str, Any]] = json.loads((reports / "index.json").read_text())[
        "service"
    ]
    for verdict in verdicts.values():
        verdict["report"] = str(reports / verdict.pop("reportfile"))
    return verdicts
