"""Paths of the service: its code, its settings, and the files that its processes share.

The shared files are named after `DATA_DIR` alone, so a new master (USR2), a new leader or a
second tool finds the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dotenv import dotenv_values

_LONGEST_SOCKET_PATH = 107
"""Bytes that fit in `sockaddr_un.sun_path` before its final zero (unix(7))."""

_SOCKET_NAME = "valkey.sock"
_REPLICA_SOCKET_NAME = "repl.sock"

# Names in shared directories are guessable: the owner is checked before use (`make_private`).
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_TEMPORARY = Path("/tmp")  # noqa: S108


_CODE = Path(__file__).resolve().parents[2]
"""Holds `app` and `workers`: a checkout, or the `site-packages` that a wheel was installed into."""
_CONFIGURATION = "gunicorn.conf.py"


def home() -> Path:
    """Directory of `.env`, and the base of relative paths: the checkout, else the current one."""
    return _CODE if is_checkout() else Path.cwd()


def data_directory() -> Path:
    """DATA_DIR as the environment or `.env` has it.

    The other settings are not needed yet, and may be wrong.
    """
    named = (
        os.environ.get("DATA_DIR")
        or dotenv_values(home() / ".env", interpolate=False).get("DATA_DIR")
        or "data"
    )
    return home() / os.path.expanduser(named)  # noqa: PTH111 (an unknown user is no error here)


def is_checkout() -> bool:
    """Whether the code runs from a checkout (or a copy of one), not from an installed wheel."""
    return (_CODE / _CONFIGURATION).exists()


def configuration() -> Path:
    """The configuration of gunicorn: at the top of a checkout, inside `workers` in a wheel."""
    return (_CODE if is_checkout() else _CODE / "workers") / _CONFIGURATION


def identity(data_dir: Path) -> str:
    """Short name of a data directory, the same for every path that leads to it."""
    return hashlib.blake2b(os.fsencode(data_dir.resolve()), digest_size=8).hexdigest()


def make_private(directory: Path) -> Path:
    """Create a directory that only this user can enter, and return it.

    Raises:
        PermissionError: it exists and is a link, a file, or another user's.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{directory} is not a directory: remove it")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{directory} belongs to another user")
    if status.st_mode & 0o077:
        directory.chmod(0o700)
    return directory


def check_own(file: Path) -> None:
    """Make sure that what is at the path of a file of the service is such a file, or nothing.

    Raises:
        PermissionError: it is a link, a directory, a socket or a pipe, or another user's.
    """
    try:
        status = file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(f"{file} is not a plain file: remove it")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{file} belongs to another user")


def runtime_dir(data_dir: Path) -> Path:
    """Directory for Unix sockets: in the data directory, or in /tmp where that is too long."""
    inside = data_dir.resolve() / "run"
    if len(os.fsencode(inside / _SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
        return inside
    return _TEMPORARY / f"yujian-{identity(data_dir)}"


@dataclass(frozen=True, slots=True)
class ValkeyPlace:
    """Where a Valkey that the service runs has its files."""

    directory: Path
    """For all that it writes."""
    socket: Path
    """On which it listens."""

    @property
    def pid_file(self) -> Path:
        """Its process id, which it writes."""
        return self.directory / "valkey.pid"

    @property
    def log(self) -> Path:
        """What it writes to its output."""
        return self.directory / "valkey.log"


def valkey_place(data_dir: Path) -> ValkeyPlace:
    """Of the private Valkey: its append-only file is in the directory as well."""
    return ValkeyPlace(data_dir.resolve() / "valkey", runtime_dir(data_dir) / _SOCKET_NAME)


def replica_place(data_dir: Path) -> ValkeyPlace:
    """Of the replica of a shared server. Not that of the private Valkey, whose data may be there."""
    return ValkeyPlace(data_dir.resolve() / "replica", runtime_dir(data_dir) / _REPLICA_SOCKET_NAME)


def replica_note(data_dir: Path) -> Path:
    """What the leader says of that replica. A file in memory: it changes several times a second."""
    return _SHARED_MEMORY / f"yujian-{identity(data_dir)}-replica"


class PidFiles(NamedTuple):
    """Process ids of gunicorn masters."""

    first: Path
    """Of the master."""
    second: Path
    """Of one that is to take its place; gunicorn names it so after USR2."""


def pid_files(data_dir: Path) -> PidFiles:
    """Where masters write their process ids."""
    return PidFiles(data_dir / "gunicorn.pid", data_dir / "gunicorn.pid.2")


def reload_lock(data_dir: Path) -> Path:
    """File on which a `make reload` holds a lock while it works."""
    return data_dir / "reload.lock"


def collector_file(data_dir: Path) -> Path:
    """What the collector must know when it begins again: alarms and figures of the past."""
    return data_dir / "collector.json"


def leader_lock(data_dir: Path) -> Path:
    """File whose lock makes a worker the leader of this machine."""
    return data_dir.resolve() / "leader.lock"


def masters_lock(data_dir: Path) -> Path:
    """File on which every live gunicorn master holds a shared lock."""
    return data_dir.resolve() / "masters.lock"


def failure_file(data_dir: Path) -> Path:
    """Why a worker could not start: the newest such note, as JSON. In memory: the disk may be full."""
    return metrics_dir(data_dir) / "failure.json"


def log_level_file(data_dir: Path) -> Path:
    """The level of the log, where it was changed while the service runs."""
    return runtime_dir(data_dir) / "log-level"


class LeftFiles(NamedTuple):
    """What became of the connections of a worker that has left, as JSON."""

    on_disk: Path
    in_memory: Path
    """Where the disk takes none."""


def left_files(data_dir: Path, pid: int) -> LeftFiles:
    """Where a worker leaves it."""
    name = f"left-{pid}.json"
    return LeftFiles(runtime_dir(data_dir) / name, metrics_dir(data_dir) / name)


def all_left_files(data_dir: Path) -> list[Path]:
    """All of these that there are."""
    places = (runtime_dir(data_dir), metrics_dir(data_dir))
    return [path for place in places for _, path in _by_pid(place, "left-*.json")]


def fingerprint_file(data_dir: Path, pid: int) -> Path:
    """What the master of that pid was made of, as JSON."""
    return runtime_dir(data_dir) / f"master-{pid}.json"


def fingerprint_files(data_dir: Path) -> list[tuple[int, Path]]:
    """All of these that there are, with the pids of their masters."""
    return _by_pid(runtime_dir(data_dir), "master-*.json")


def files_in(data_dir: Path) -> list[Path]:
    """The files of a service that exist while it does not run, or whose names can be guessed."""
    return [
        masters_lock(data_dir),
        leader_lock(data_dir),
        reload_lock(data_dir),
        slots_file(data_dir),
        *pid_files(data_dir),
        data_dir.resolve() / "jwks.json",
        valkey_place(data_dir).directory / "lock",
        replica_place(data_dir).directory / "lock",
    ]


def slots_file(data_dir: Path) -> Path:
    """The shared slot table. A file in memory: it need not outlive the machine."""
    return _SHARED_MEMORY / f"yujian-{identity(data_dir)}-slots-v1"


def successor_socket(data_dir: Path, pid: int) -> Path:
    """Where the worker of a process takes connections over, and gives its listening sockets."""
    return runtime_dir(data_dir) / f"heir-{pid}.sock"


def successor_sockets(data_dir: Path) -> list[tuple[int, Path]]:
    """The sockets that there are, with the pids of their workers."""
    return _by_pid(runtime_dir(data_dir), "heir-*.sock")


def _by_pid(directory: Path, pattern: str) -> list[tuple[int, Path]]:
    """Files of processes in a directory; `*` is the pid."""
    before, after = pattern.split("*")
    found = []
    for path in directory.glob(pattern):
        pid = path.name.removeprefix(before).removesuffix(after)
        if pid.isdigit():
            found.append((int(pid), path))
    return found


def metrics_dir(data_dir: Path) -> Path:
    """Directory for prometheus_client's multiprocess files, in memory too."""
    return _SHARED_MEMORY / f"yujian-{identity(data_dir)}-metrics"
