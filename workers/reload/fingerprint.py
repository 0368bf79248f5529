"""What a gunicorn master was made of, so that a reload knows what HUP would not renew.

HUP renews what workers import after the fork. The modules of the master, the configuration's
hooks and the libraries that it has loaded for all workers change with a new master only (USR2).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workers.shared import paths
from workers.shared.file import write_atomically
from workers.shared.processes import start_time

_INSTALLED = (".dist-info", ".egg-info")


def record(root: Path, data_dir: Path, bind: str | None) -> None:
    """Write what this process is made of by now; done by a master before its first fork.

    Args:
        bind: the setting of the address that it listens on; None where systemd gives the sockets.
    """
    for pid, old in paths.fingerprint_files(data_dir):
        if not start_time(pid):
            old.unlink(missing_ok=True)
    held = [root / "gunicorn.conf.py"]
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "workers" and getattr(module, "__file__", None):
            held.append(Path(str(module.__file__)))
    libraries = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    taken = {
        "born": start_time(os.getpid()),
        "bind": bind,
        "python": sys.version,
        "files": {str(path): _hash(path) for path in held},
        "libraries": libraries,
        "installed": sorted(_installed(libraries)),
    }
    write_atomically(paths.fingerprint_file(data_dir, os.getpid()), json.dumps(taken).encode())


def note_bind(data_dir: Path, bind: str) -> None:
    """Write down that this master listens on another address from now on."""
    taken = _recorded(data_dir, os.getpid())
    if taken is not None:
        text = json.dumps(taken | {"bind": bind})
        write_atomically(paths.fingerprint_file(data_dir, os.getpid()), text.encode())


def bind_of(data_dir: Path, pid: int) -> str | None:
    """The setting of the address that a master listens on; None when it is not known."""
    return (_recorded(data_dir, pid) or {}).get("bind")


def _recorded(data_dir: Path, pid: int) -> dict[str, Any] | None:
    try:
        taken: dict[str, Any] = json.loads(paths.fingerprint_file(data_dir, pid).read_bytes())
    except (OSError, ValueError):
        return None
    return taken if taken["born"] == start_time(pid) else None


def changes(data_dir: Path, pid: int) -> list[str] | None:
    """What has changed since that master started, by name; None when it has not said."""
    taken = _recorded(data_dir, pid)
    if taken is None:
        return None
    changed = [
        os.path.relpath(path) for path, old in taken["files"].items() if _hash(Path(path)) != old
    ]
    if taken["python"] != sys.version:
        changed.append("Python")
    then, now = set(taken["installed"]), _installed(taken["libraries"])
    changed += sorted({name.partition("-")[0] for name in then ^ now})
    return changed


def _hash(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except FileNotFoundError:
        return "missing"


def _installed(libraries: Iterable[str]) -> set[str]:
    """Installed distributions as `name-version`, without reading them."""
    found: set[str] = set()
    for directory in libraries:
        try:
            names = [path.name for path in Path(directory).iterdir()]
        except FileNotFoundError:
            continue
        found |= {name.rpartition(".")[0] for name in names if name.endswith(_INSTALLED)}
    return found
