"""The control groups of this process: what it may use, and what it uses (cgroup v1 and v2).

Limits may stand on any group above the process' own; the caller takes the tightest.
"""

from __future__ import annotations

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
        limit = _number(self.path / ("memory.max" if self.unified else "memory.limit_in_bytes"))
        return limit if limit is not None and limit < _UNLIMITED else None

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
    unified = [CpuGroup(path, path, unified=True) for path in _unified(root)]
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
    unified = [MemoryGroup(path, unified=True) for path in _unified(root)]
    return unified or [MemoryGroup(path, unified=False) for path in _legacy(root, "memory")]


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that the tightest quota grants; None: no quota."""
    return min((limit for one in cpu_groups(root) if (limit := one.limit())), default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest limit grants; None: no limit."""
    return min((limit for one in memory_groups(root) if (limit := one.limit())), default=None)


def _unified(root: Path) -> Iterator[Path]:
    """Groups of cgroup v2."""
    mount = root / "sys/fs/cgroup"
    own = _own(root, "")
    if own is not None and (mount / "cgroup.controllers").exists():
        yield from _upwards(mount / own.lstrip("/"), mount)


def _legacy(root: Path, controller: str) -> Iterator[Path]:
    """Groups of one controller of cgroup v1."""
    mount = root / "sys/fs/cgroup" / controller
    own = _own(root, controller)
    if own is not None and mount.is_dir():
        yield from _upwards(mount / own.lstrip("/"), mount)


def _own(root: Path, controller: str) -> str | None:
    """The path of this process' group; the controller of cgroup v2 has no name."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
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
