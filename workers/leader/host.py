"""What this machine, or the container that the service runs in, has and uses.

A container with a limit is measured against its limit, since that is where it will be throttled
or killed (`app/cgroups.py`). Limits may stand on any group above the process' own; the tightest
counts. Without limits it is the machine itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from app import cgroups
from app.cgroups import CpuGroup
from app.clock import running_time

FULL_PERCENT = 95.0
"""Percent of the memory in use from which on there is none for more connections."""
_INIT = 1
_MEMINFO = 256
"""Bytes of /proc/meminfo that hold what is read of it."""


@dataclass(frozen=True, slots=True)
class HostSample:
    """Figures of one moment. Percentages are of what the service may use; sizes in bytes."""

    cpu_percent: float
    """Since the sample before; of all cores, or of the container's share of them."""
    cpus: float
    """Cores that the service may use; a container's share may be a fraction."""
    memory_percent: float
    memory_used: int
    memory_total: int
    disk_percent: float
    """Of the file system that holds the data directory."""
    disk_used: int
    disk_total: int
    uptime: float
    """Seconds since the machine or the container started."""
    load: tuple[float, float, float]
    """Of the machine, over 1, 5 and 15 minutes."""


@dataclass(frozen=True, slots=True)
class _CpuTime:
    """Processor time used up to a moment, both in seconds, where `cpus` can be used."""

    used: float
    at: float
    cpus: float


class HostSampler:
    """Samples the machine. A sample takes well under a millisecond unless the disk is slow.

    Args:
        data_dir: a directory of the file system to watch.
        root: where to find `proc/self/cgroup` and `sys/fs/cgroup`.
        clock: monotonic seconds.
    """

    def __init__(
        self, data_dir: Path, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._cpu_groups = cgroups.cpu_groups(root)
        self._memory_groups = cgroups.memory_groups(root)
        self._last = self._cpu_time()
        self._cpu_percent = 0.0
        self._started = running_time() - _uptime()

    def sample(self) -> HostSample:
        """Measure now. Blocks for as long as the file system takes to answer."""
        cpus = self._measure_cpu()
        memory_used, memory_total = self._memory()
        disk = psutil.disk_usage(str(self._data_dir))
        return HostSample(
            cpu_percent=self._cpu_percent,
            cpus=cpus,
            memory_percent=_percent(memory_used, memory_total),
            memory_used=memory_used,
            memory_total=memory_total,
            disk_percent=disk.percent,
            disk_used=disk.used,
            disk_total=disk.total,
            uptime=running_time() - self._started,
            load=os.getloadavg(),
        )

    def memory_percent(self) -> float:
        """Memory in use now, in percent of what there is."""
        return _percent(*self._memory())

    def memory_total(self) -> int:
        """Bytes of memory that the service may use: the container's limit, or all there is."""
        return self._memory()[1]

    def _measure_cpu(self) -> float:
        now = self._cpu_time()
        elapsed = now.at - self._last.at
        # A limit that was just set or lifted changes what is counted: start again from there.
        if now.cpus != self._last.cpus or now.used < self._last.used:
            self._last = now
        elif elapsed > 0:
            used = now.used - self._last.used
            self._cpu_percent = _percent(used, elapsed * now.cpus)
            self._last = now
        return now.cpus

    def _cpu_time(self) -> _CpuTime:
        # A container, or a service, may have been given some of the machine's cores.
        allowed = os.sched_getaffinity(0)
        cores = float(len(allowed))
        tightest: tuple[float, CpuGroup] | None = None
        for group in self._cpu_groups:
            limit = group.limit()
            if limit is not None and limit < (tightest[0] if tightest else cores):
                tightest = limit, group
        if tightest is not None:
            limit, group = tightest
            used = group.used()
            if used is not None:
                return _CpuTime(used, self._clock(), limit)
        return _CpuTime(_spent_on(allowed), self._clock(), cores)

    def _memory(self) -> tuple[int, int]:
        total, available = _machine_memory()
        found = total - available, total
        for group in self._memory_groups:
            limit = group.limit()
            # The kernel adds up what is used at each look, so only where it counts.
            if limit is not None and limit < found[1] and (used := group.used()) is not None:
                found = used, limit
        return found


class Headroom:
    """Whether there is memory for more connections; looks once a second at most.

    Args:
        sampler: measures the container's memory, or the machine's.
        clock: monotonic seconds.
    """

    def __init__(self, sampler: HostSampler, clock: Callable[[], float] = time.monotonic) -> None:
        self._sampler = sampler
        self._clock = clock
        self._looked_at = float("-inf")
        self._enough = True

    def __call__(self) -> bool:
        """Whether there is, by the last look."""
        now = self._clock()
        if now - self._looked_at >= 1.0:
            self._looked_at = now
            # Without a free descriptor nothing can be measured; the last look stands then.
            with contextlib.suppress(OSError):
                self._enough = self._sampler.memory_percent() < FULL_PERCENT
        return self._enough


def _machine_memory() -> tuple[int, int]:
    """Bytes of memory of the machine: all, and those that programs could have."""
    fields: dict[bytes, int] = {}
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", "rb", buffering=0) as file:  # noqa: PTH123
        for line in file.read(_MEMINFO).splitlines():
            name, _, value = line.partition(b":")
            fields[name] = int(value.split()[0]) * 1024
            if name == b"MemAvailable":
                return fields[b"MemTotal"], fields[name]
    machine = psutil.virtual_memory()
    return machine.total, machine.available


def _spent_on(cores: set[int]) -> float:
    """Seconds of processor time that these cores have spent on any process."""
    each = psutil.cpu_times(percpu=True)
    # Where cores are offline they are not numbered as they are counted.
    counted = [each[core] for core in cores] if max(cores) < len(each) else each
    # The kernel counts guests' time as user time as well; waiting for a disk is idling.
    return sum(time.user + time.nice + time.system + time.irq + time.softirq for time in counted)


def _uptime() -> float:
    """Seconds since the first process started: that of the container, where there is one."""
    try:
        started = psutil.Process(_INIT).create_time()
    except psutil.Error:
        started = psutil.boot_time()
    return max(time.time() - started, 0.0)


def _percent(part: float, total: float) -> float:
    return round(min(max(part / total, 0.0), 1.0) * 100, 1) if total else 0.0
