"""Backups: what the service has stored, and the release and configuration that ran.

    python -m scripts.backup create DIRECTORY [--rdb FILE] [--release FILE]
    python -m scripts.backup check DIRECTORY
    python -m scripts.backup restore DIRECTORY [--data] [--release]

A backup holds `SHA256SUMS`, `release.tar.gz` and, if this machine keeps the messages,
`data/appendonlydir`: a snapshot that Valkey itself has made (BGSAVE), laid out so that it starts
from it. A file that is being written is never copied. `restore` needs no stop: clients stay
connected, and learn by a `gap` that the streams have fallen back.

Exit codes: 0 done; 1 it could not be done, nothing was changed; 3 the backup is damaged.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.command_line import end_by_interrupts, make_parser
from app.config import Settings, load
from app.errors import SettingsError
from scripts.release import ROOT, pack, restore_release
from workers.leader import valkey
from workers.shared import paths
from workers.shared.locks import open_lock, take_flock, try_flock

_SUMS = "SHA256SUMS"
_APPEND_ONLY = "appendonlydir"
_BASE = "appendonly.aof.1.base.rdb"
_MANIFEST = "appendonly.aof.manifest"
_MARK = 40
"""Bytes that end a snapshot on the wire, hexadecimal digits."""
_RDB_EOF = 0xFF
_RDB_END = 9
"""Bytes that end a snapshot in a file: `_RDB_EOF` and a checksum."""
_HEX = re.compile(rb"[0-9a-f]{40}")
_SNAPSHOT_SECONDS = 120
_STOP_SECONDS = 30


class BackupError(Exception):
    """It could not be done; the message says why."""


class Damaged(BackupError):
    """The backup is not what was written."""


# Making one


def create(target: Path, settings: Settings, rdb: Path | None, release: Path | None) -> None:
    """Make a backup; the directory appears only when it is complete.

    Args:
        target: the directory, which does not exist yet.
        settings: of the service.
        rdb: a snapshot of the server at BACKPLANE_URL, made by its own tools.
        release: archive of what runs, made by `scripts.release`; without it the present files are packed.

    Raises:
        BackupError: it exists, or Valkey cannot make a snapshot.
    """
    if target.exists():
        raise BackupError(f"{target} exists")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        if release is not None and release.is_file():
            shutil.copyfile(release, partial / "release.tar.gz")
        else:
            pack(partial / "release.tar.gz")
        store = partial / "data" / _APPEND_ONLY
        if rdb is not None:
            _lay_out(store, rdb)
        elif not settings.backplane_url:
            _copy_private(store, settings)
        _check_data(partial)
        _write_sums(partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_private(store: Path, settings: Settings) -> None:
    data_dir = settings.data_dir
    directory = paths.valkey_place(data_dir).directory
    if valkey.find(data_dir) is not None:
        try:
            _lay_out(store, _snapshot(data_dir))
        finally:
            (directory / "dump.rdb").unlink(missing_ok=True)
    elif (directory / _APPEND_ONLY).is_dir():
        with _lock(data_dir, blocking=False):  # so that no server starts meanwhile
            _copy(directory / _APPEND_ONLY, store)


def _copy(source: Path, target: Path) -> None:
    """Copy a directory in place of what is at `target`.

    Raises:
        BackupError: it cannot be copied; nothing is left at `target`.
    """
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, target)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        # copytree gathers what went wrong with each file.
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise BackupError(f"{source} cannot be copied to {target}: {why}") from None


def _snapshot(data_dir: Path) -> Path:
    """Let the running server write a snapshot, and return its path."""
    client = redis.Redis(
        unix_socket_path=str(paths.valkey_place(data_dir).socket), socket_timeout=10
    )
    try:
        before = client.info("persistence")
        client.bgsave(schedule=True)
        deadline = time.monotonic() + _SNAPSHOT_SECONDS
        while True:
            now = client.info("persistence")
            # Counted when it begins.
            if now["rdb_saves"] > before["rdb_saves"] and not now["rdb_bgsave_in_progress"]:
                if now["rdb_last_bgsave_status"] != "ok":
                    raise BackupError("Valkey cannot write a snapshot: see valkey.log (disk full?)")
                break
            if time.monotonic() > deadline:
                raise BackupError(f"no snapshot within {_SNAPSHOT_SECONDS} s")
            time.sleep(0.05)
    except redis.RedisError as error:
        raise BackupError(f"Valkey: {error}") from None
    finally:
        client.close()
    return paths.valkey_place(data_dir).directory / "dump.rdb"


def _lay_out(store: Path, rdb: Path) -> None:
    """Make of a snapshot an append-only directory: a base, to which nothing was appended yet."""
    store.mkdir(mode=0o700, parents=True)
    shutil.copyfile(rdb, store / _BASE)
    _cut_mark(store / _BASE)
    (store / _MANIFEST).write_text(f"file {_BASE} seq 1 type b\n")


def _cut_mark(base: Path) -> None:
    """Cut off what `valkey-cli --rdb -` leaves behind a snapshot: the mark that ends it on the wire.

    The checker does not mind it, but no server loads such a file as a base.
    """
    with base.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size <= _MARK + _RDB_END:
            return
        file.seek(size - _MARK - _RDB_END)
        tail = file.read()
        if tail[0] == _RDB_EOF and _HEX.fullmatch(tail[_RDB_END:]):
            file.truncate(size - _MARK)


def _write_sums(directory: Path) -> None:
    lines = [f"{_digest(file)}  {file.relative_to(directory)}\n" for file in _files(directory)]
    for file in _files(directory):
        with file.open("rb") as content:
            os.fsync(content.fileno())
    (directory / _SUMS).write_text("".join(lines))


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != _SUMS)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# Checking one


def check(directory: Path) -> None:
    """Check a backup by its sums, and its data by Valkey's own checkers.

    Raises:
        BackupError: there is none.
        Damaged: something is missing, changed or added.
    """
    if not directory.is_dir():
        raise BackupError(f"there is no backup {directory}")
    sums = directory / _SUMS
    if not sums.is_file():
        raise Damaged(f"{sums} is missing")
    wanted: dict[str, str] = {}
    for line in sums.read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        wanted[name] = digest
    found = {str(file.relative_to(directory)) for file in _files(directory)}
    for name in sorted(wanted.keys() | found):
        # What a deployment adds to its own backup is no part of it.
        if name in found - wanted.keys() and name.startswith(("report.", "failed/")):
            continue
        if name not in found or name not in wanted:
            raise Damaged(f"{name} is {'missing' if name in wanted else 'not part of the backup'}")
        if _digest(directory / name) != wanted[name]:
            raise Damaged(f"{name} has changed since it was written")
    _check_data(directory)


def _check_data(directory: Path) -> None:
    store = directory / "data" / _APPEND_ONLY
    if not store.is_dir():
        return
    manifest = store / _MANIFEST
    if not manifest.is_file():
        raise Damaged(f"{manifest} is missing")
    for line in manifest.read_text(errors="replace").splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "file" or "/" in words[1]:
            raise Damaged(f"{manifest} is not understood: {line[:80]!r}")
        file = store / words[1]
        if not file.is_file():
            raise Damaged(f"{file} is missing")
        # One by one: valkey-check-aof 9.1 does not know the first bytes of its own bases.
        with file.open("rb") as content:
            magic = content.read(6)
        if magic.startswith((b"REDIS", b"VALKEY")):
            _run_checker("valkey-check-rdb", file)
        elif magic:
            _run_checker("valkey-check-aof", file)
    _load(store)


def _load(store: Path) -> None:
    """Let a Valkey of its own start from a copy of the data: what loads is good, nothing else.

    Raises:
        Damaged: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="yj-load-") as scratch:
        place, log = Path(scratch), Path(scratch) / "log"
        _copy(store, place / _APPEND_ONLY)
        address = place / "s"
        options = {
            "port": "0",
            "unixsocket": str(address),
            "dir": str(place),
            "logfile": str(log),
            "appendonly": "yes",
            "save": "",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        # It would outlive us where we are killed.
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(valkey.binary()), *words]
        with subprocess.Popen(  # noqa: S603 (our own program)
            command, stdin=subprocess.DEVNULL, start_new_session=True
        ) as server:
            try:
                _wait_loaded(server, address, log)
            finally:
                server.kill()


def _wait_loaded(server: subprocess.Popen[bytes], address: Path, log: Path) -> None:
    deadline = time.monotonic() + _SNAPSHOT_SECONDS
    # The library would try for seconds where the server has ended.
    once = Retry(NoBackoff(), 0)
    with redis.Redis(unix_socket_path=str(address), socket_timeout=10, retry=once) as client:
        while True:
            if server.poll() is not None:
                said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
                raise Damaged(f"Valkey does not start from it: {' '.join(said[-2:])}")
            with contextlib.suppress(redis.RedisError):  # not yet, or it is loading
                client.ping()
                return
            if time.monotonic() > deadline:
                raise Damaged(f"Valkey has not loaded it within {_SNAPSHOT_SECONDS} s")
            time.sleep(0.02)


def _run_checker(name: str, file: Path) -> None:
    """Valkey's server is its checkers too: the name that it is called by tells."""
    done = subprocess.run(  # noqa: S603 (our own program)
        [name, str(file)],
        executable=valkey.binary(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_SNAPSHOT_SECONDS,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise Damaged(f"{name} refuses {file.name}: {said[-1] if said else done.returncode}")


# Bringing one back


def restore(directory: Path, settings: Settings, *, data: bool, release: bool) -> list[str]:
    """Bring a backup back; returns what was done.

    Raises:
        BackupError: it cannot be done; nothing was changed.
    """
    check(directory)
    store = directory / "data" / _APPEND_ONLY
    done = []
    if data and store.is_dir():
        if settings.backplane_url:
            raise BackupError("the messages are kept by the server at BACKPLANE_URL: restore there")
        _restore_data(store, settings.data_dir)
        done.append("data")
    if release:
        restore_release(directory / "release.tar.gz", directory / "failed")
        done.append("release")
    return done


def _restore_data(store: Path, data_dir: Path) -> None:
    with _owner_of(data_dir):
        directory = paths.make_private(paths.valkey_place(data_dir).directory)
    fresh, place = directory / f"{_APPEND_ONLY}.new", directory / _APPEND_ONLY
    replaced = directory / f"{_APPEND_ONLY}.replaced"
    _copy(store, fresh)
    owner = data_dir.stat()
    for path in (fresh, *fresh.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    with _lock(data_dir, blocking=True):
        shutil.rmtree(replaced, ignore_errors=True)
        if place.exists():
            place.rename(replaced)
        fresh.rename(place)


@contextmanager
def _owner_of(data_dir: Path) -> Iterator[None]:
    """Be the user that DATA_DIR belongs to, where root runs this: the service takes no files of others."""
    if os.geteuid() or not data_dir.exists():
        yield
        return
    owner = data_dir.stat()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def _lock(data_dir: Path, *, blocking: bool) -> Iterator[None]:
    """Hold the lock without which no private Valkey starts; `blocking`: stop the one that runs.

    The leader starts it again as soon as the lock is free.
    """
    with _owner_of(data_dir):
        directory = paths.make_private(paths.valkey_place(data_dir).directory)
        fd = open_lock(directory / "lock")
    try:
        if blocking:
            _take_from_server(fd, data_dir)
        elif not try_flock(fd):
            raise BackupError("Valkey has just started: try again")
        yield
    finally:
        os.close(fd)


def _take_from_server(fd: int, data_dir: Path) -> None:
    """Wait for the lock in the kernel before the server ends: no other process takes it in between."""
    waiter = threading.Thread(target=take_flock, args=(fd,), daemon=True)
    waiter.start()
    deadline = time.monotonic() + _STOP_SECONDS
    while waiter.is_alive():
        if time.monotonic() > deadline:
            raise BackupError(f"Valkey does not give its files up within {_STOP_SECONDS} s")
        valkey.stop(data_dir)
        waiter.join(0.2)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("python -m scripts.backup", __doc__)
    parser.add_argument("command", choices=["create", "check", "restore"], help="what to do")
    parser.add_argument("path", type=Path, metavar="DIRECTORY", help="the backup")
    parser.add_argument(
        "--rdb", type=Path, metavar="FILE", help="create: of a snapshot that another tool has made"
    )
    parser.add_argument("--data", action="store_true", help="restore: what was stored only")
    parser.add_argument(
        "--release",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FILE",
        help="create: with this release; restore: code and configuration only",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    path = options.path.absolute()
    rdb = options.rdb.absolute() if options.rdb else None
    release = options.release.absolute() if options.release else None
    os.chdir(ROOT)
    try:
        if options.command == "check":
            check(path)
        else:
            settings = load(os.environ, ROOT / ".env")
            if options.command == "create":
                create(path, settings, rdb, release)
            else:
                both = not options.data and options.release is None
                done = restore(
                    path,
                    settings,
                    data=options.data or both,
                    release=options.release is not None or both,
                )
                print("restored:", ", ".join(done) or "nothing")
    except Damaged as error:
        print(f"The backup is damaged: {error}", file=sys.stderr)
        return 3
    except (BackupError, SettingsError, OSError, tarfile.TarError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    end_by_interrupts()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(1)
