"""The code and configuration that are deployed, as one archive.

    python -m scripts.release pack FILE            pack what is here
    python -m scripts.release restore FILE KEEP    put it back; what it replaces goes to KEEP

Imports nothing of the service, since it must work when the service does not.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

RELEASE = (
    "app",
    "workers",
    "scripts",
    "frontend",
    "gunicorn.conf.py",
    "requirements.txt",
    "requirements.lock",
    "Dockerfile",
    ".dockerignore",
    "deploy-websocket.sh",
    "rollback.sh",
    "verify-deployment.sh",
)
CONFIGURATION = (".env", "Caddyfile", "caddy", "docker-compose.yml", "monitoring")


def pack(file: Path) -> None:
    """Pack the release and configuration of this directory; the file appears when it is complete."""
    partial = file.with_name(f".{file.name}.partial")
    # 0600: .env is in it.
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
        with tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for name in (*RELEASE, *CONFIGURATION):
                if (ROOT / name).exists():
                    archive.add(ROOT / name, name, filter=_without_caches)
        raw.flush()
        os.fsync(raw.fileno())
    partial.rename(file)


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith(("__pycache__", ".pyc")) else member


def restore_release(archive: Path, failed: Path) -> None:
    """Put the files of a release in place; those that they replace are kept in `failed`."""
    with tempfile.TemporaryDirectory(prefix=".release-", dir=ROOT) as scratch:
        fresh = Path(scratch)
        with tarfile.open(archive) as packed:
            packed.extractall(fresh, filter="data")
        shutil.rmtree(failed, ignore_errors=True)
        failed.mkdir(mode=0o700)
        for name in (*RELEASE, *CONFIGURATION):
            if not (fresh / name).exists():
                continue
            if (ROOT / name).exists():
                shutil.move(ROOT / name, failed / name)
            (fresh / name).rename(ROOT / name)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        match arguments:
            case ["pack", file]:
                pack(Path(file).absolute())
            case ["restore", file, keep]:
                restore_release(Path(file).absolute(), Path(keep).absolute())
            case _:
                print(__doc__, file=sys.stderr)
                return 64
    except (OSError, tarfile.TarError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
