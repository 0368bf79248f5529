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
    "deploy",
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
    """Put the files of a release in place; those that they replace are kept in `failed`.

    Raises:
        OSError, tarfile.TarError: it cannot be done. The files are as before, or, when `failed`
            cannot be written, all of the release.
    """
    with tempfile.TemporaryDirectory(prefix=".release-", dir=ROOT) as scratch:
        fresh, replaced = Path(scratch) / "fresh", Path(scratch) / "replaced"
        with tarfile.open(archive) as packed:
            _extract(packed, fresh)
        replaced.mkdir()
        names = [name for name in (*RELEASE, *CONFIGURATION) if os.path.lexists(fresh / name)]
        if not names:
            raise tarfile.TarError(f"{archive} holds nothing of a release")
        moves: list[tuple[Path, Path]] = []
        try:
            for name in names:
                _swap(fresh / name, ROOT / name, replaced / name, moves)
        except OSError:
            for source, target in reversed(moves):
                target.rename(source)
            raise
        shutil.rmtree(failed, ignore_errors=True)
        failed.mkdir(mode=0o700)
        for path in replaced.iterdir():
            shutil.move(path, failed / path.name)


def _swap(fresh: Path, place: Path, replaced: Path, moves: list[tuple[Path, Path]]) -> None:
    """Put `fresh` in the place of what moves to `replaced`; notes each move in `moves`.

    Directories stay the same ones, since containers have some of them mounted. Nothing is copied,
    so that a full disk leaves no half of each.
    """

    def move(source: Path, target: Path) -> None:
        source.rename(target)
        moves.append((source, target))

    if all(path.is_dir() and not path.is_symlink() for path in (fresh, place)):
        replaced.mkdir()
        for name in sorted(
            {path.name for directory in (fresh, place) for path in directory.iterdir()}
        ):
            _swap(fresh / name, place / name, replaced / name, moves)
        return
    if os.path.lexists(place):
        move(place, replaced)
    if os.path.lexists(fresh):
        move(fresh, place)


def _extract(packed: tarfile.TarFile, place: Path) -> None:
    """Extract what we have packed.

    Raises:
        tarfile.TarError: a member leads out of `place`, or is no file, directory or link.
    """
    if hasattr(tarfile, "data_filter"):
        packed.extractall(place, filter="data")
        return
    # Python before 3.11.4, as Debian 12 has it.
    for member in packed.getmembers():
        target = os.path.normpath(Path(member.name).parent / member.linkname)
        if not (member.isfile() or member.isdir() or member.issym()) or any(
            Path(path).is_absolute() or ".." in Path(path).parts for path in (member.name, target)
        ):
            raise tarfile.TarError(f"{member.name!r} is no file of a release")
    packed.extractall(place)  # noqa: S202 (checked)


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
