"""The control groups of this process: what it may use, and what it uses (cgroup v1 and v2).

Limits may stand on any group above the process' own; the caller takes the tightest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LARGEST = 64 * 1024
"""Bytes that are read of a file."""
_RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")
"""Of memory.stat: bytes that a group gives back when it needs memory."""
_UNLIMITED = 1 << 62
"""Bytes: cgroup v1 says that there is no limit by a number of about 2^63."""


@dataclass(frozen=True, slots=True)
class CpuGroup:
    """A group of the CPU controller."""

    path: Path
    accounting: Path
    """Where its use is counted: with cgroup v1 another controller's group."""
    unified: bool
    """Whether it is cgroup v2."""

    def limit(self) -> float | None:
        """Cores that its quota grants; None: no quota."""
        try:
            if self.unified:
                quota, period = map(int, _read(self.path / "cpu.max").split())
            else:
                quota = int(_read(self.path / "cpu.cfs_quota_us"))
                period = int(_read(self.path / "cpu.cfs_period_us"))
            return quota / period if quota > 0 else None
        except (OSError, ValueError, ZeroDivisionError):
            return None

    def used(self) -> float | None:
        """Seconds of processor time; None: not counted."""
        if self.unified:
            usage = _keyed(self.accounting / "cpu.stat").get("usage_usec")
            return None if usage is None else usage / 1e6
        usage = _number(self.accounting / "cpuacct.usage")
        return None if usage is None else usage / 1e9


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A group of the memory controller."""

    path: Path
    unified: bool

    def limit(self) -> int | None:
        """Bytes; None: no limit."""
        # Past `memory.high` the kernel takes pages away and slows the group down, long before it kills.
        names = ("memory.max", "memory.high") if self.unified else ("memory.limit_in_bytes",)
        limits = [number for name in names if (number := _number(self.path / name)) is not None]
        return min((limit for limit in limits if 0 < limit < _UNLIMITED), default=None)

    def used(self) -> int | None:
        """Bytes in use, without what the kernel takes back before it ends a process.

        That is pages of files, and its own caches of names and inodes (counted by cgroup v2 only).
        """
        name = "memory.current" if self.unified else "memory.usage_in_bytes"
        used = _number(self.path / name)
        if used is None:
            return None
        prefix = "" if self.unified else "total_"
        figures = _keyed(self.path / "memory.stat")
        cached = sum(figures.get(prefix + name, 0) for name in _RECLAIMABLE)
        return max(used - cached, 0)


def cpu_groups(root: Path = Path("/")) -> list[CpuGroup]:
    """Groups of the CPU controller, the process' own first; empty where there are none."""
    unified = [CpuGroup(path, path, unified=True) for path in _unified(root, "cpu")]
    if unified:
        return unified
    accounting = list(_legacy(root, "cpuacct"))
    found = []
    for number, path in enumerate(_legacy(root, "cpu")):
        where = accounting[number] if number < len(accounting) else path
        found.append(CpuGroup(path, where, unified=False))
    return found


def memory_groups(root: Path = Path("/")) -> list[MemoryGroup]:
    """Groups of the memory controller, the process' own first; empty where there are none."""
    unified = [MemoryGroup(path, unified=True) for path in _unified(root, "memory")]
    return unified or [MemoryGroup(path, unified=False) for path in _legacy(root, "memory")]


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that the tightest quota grants; None: no quota."""
    return min((limit for one in cpu_groups(root) if (limit := one.limit())), default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest limit grants; None: no limit."""
    return min((limit for one in memory_groups(root) if (limit := one.limit())), default=None)


def _unified(root: Path, controller: str) -> Iterator[Path]:
    """Groups of cgroup v2, where it has this controller."""
    own = _own(root, "")
    if own is None:
        return
    mounts = [one for one in _mounts(root) if one.unified] or [
        _Mount(root / _USUAL, "/", unified=True)
    ]
    for mount in mounts:
        file = mount.place / "cgroup.controllers"
        # Beside the hierarchies of cgroup v1 it may have none, or some of the controllers.
        if file.exists() and (mount.place == root / _USUAL or controller in _words(file)):
            yield from mount.groups(own)
            return


def _legacy(root: Path, controller: str) -> Iterator[Path]:
    """Groups of one controller of cgroup v1."""
    own = _own(root, controller)
    if own is None:
        return
    usual = _Mount(root / _USUAL / controller, "/", frozenset((controller,)))
    mounts = [one for one in _mounts(root) if controller in one.controllers]
    for mount in [*mounts, usual]:
        if mount.place.is_dir():
            yield from mount.groups(own)
            return


_USUAL = "sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class _Mount:
    """Where a hierarchy of groups is to be seen."""

    place: Path
    top: str
    """The group that is seen there: a container's own where it has no namespace of its own."""
    controllers: frozenset[str] = frozenset()
    """Of cgroup v1."""
    unified: bool = False

    def groups(self, own: str) -> Iterator[Path]:
        """The group `own` and those above it, as far as they can be seen."""
        if self.top != "/" and f"{own}/".startswith(f"{self.top}/"):
            own = own[len(self.top) :]
        return _upwards(self.place / own.lstrip("/"), self.place)


def _mounts(root: Path) -> Iterator[_Mount]:
    """What /proc/self/mountinfo says; nothing where it cannot be read."""
    try:
        lines = os.fsdecode((root / "proc/self/mountinfo").read_bytes()).splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        words, kind = before.split(), after.split()
        if len(words) < 5 or len(kind) < 3 or kind[0] not in {"cgroup", "cgroup2"}:
            continue
        top, place = map(_unescaped, words[3:5])
        legacy = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset()
        yield _Mount(root / place.lstrip("/"), top, legacy, unified=kind[0] == "cgroup2")


def _unescaped(path: str) -> str:
    """A path of mountinfo, where blanks and the like are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _own(root: Path, controller: str) -> str | None:
    """The path of this process' group; the controller of cgroup v2 has no name."""
    try:
        lines = os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines()
    except OSError:
        return None
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_unified = number == "0" and not controllers
        if path and (is_unified if not controller else controller in controllers.split(",")):
            return path
    return None


def _upwards(group: Path, top: Path) -> Iterator[Path]:
    # Without a namespace of its own the container sees a path of the host, which leads nowhere
    # under its own mount: then it is the mount itself that has the limits.
    while True:
        yield group
        if group in (top, group.parent):
            return
        group = group.parent


def _words(path: Path) -> list[str]:
    """The words of a file; none when it is missing."""
    try:
        return _read(path).split()
    except (OSError, ValueError):
        return []


def _read(path: Path) -> str:
    """A file of the kernel, which is given at once; without what Python puts around files."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read(_LARGEST).decode("ascii")


def _number(path: Path) -> int | None:
    """A file of one number; None when it is missing or says `max`."""
    try:
        return int(_read(path))
    except (OSError, ValueError):
        return None


def _keyed(path: Path) -> dict[str, int]:
    """A file of lines `key number`; empty when it is missing."""
    try:
        lines = _read(path).splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
